"""The software and processor that a record names. Equal results to the last bit are promised for equal ones only."""

from __future__ import annotations

import platform
from importlib import metadata

from tasks.site import processor_name
from tasks.spec.federation import FederationSpec
from tasks.spec.records import Environment


def this_environment(spec: FederationSpec) -> Environment:
    """Return the environment of this process, with the threads that ``spec`` sets."""
    return Environment(
        fedbench=metadata.version("fedbench"),
        python=platform.python_version(),
        torch=metadata.version("torch"),
        torchvision=metadata.version("torchvision"),
        cpu=processor_name(),
        threads=spec.training.threads,
    )
