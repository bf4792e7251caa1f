"""What a record says of the software and the processor: equal bits are claimed for equal ones only."""

from __future__ import annotations

import platform
from importlib import metadata

from tasks.site import processor_name
from tasks.spec.federation import FederationSpec
from tasks.spec.records import Environment


def this_environment(spec: FederationSpec) -> Environment:
    return Environment(
        fedbench=metadata.version("fedbench"),
        python=platform.python_version(),
        torch=metadata.version("torch"),
        torchvision=metadata.version("torchvision"),
        cpu=processor_name(),
        threads=spec.training.threads,
    )
