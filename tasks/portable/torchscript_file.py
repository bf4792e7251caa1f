"""Write a detector with its decoding as a TorchScript file, and run such a file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tasks.detectors.base import Detections, Detector
from tasks.portable.network import PortableNetwork
from tasks.portable.select import select_by_group
from tasks.spec.training import EvaluationSpec


def write_torchscript(
    path: Path, detector: Detector, rules: EvaluationSpec, example: Tensor, entries: Mapping[str, str]
) -> None:
    """Write ``detector`` with ``rules`` to ``path``; ``entries`` become its extra files.

    example: an image of the input's size and type.

    Raises:
        SpecError: the detector cannot be exported.
        OSError: the file cannot be written.
    """
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # about what tracing makes constant: all shapes are
        network = PortableNetwork(detector, rules, torch.jit.script(select_by_group))
        traced = torch.jit.trace(network, (example,), check_trace=False)
        with path.open("wb") as file:
            torch.jit.save(traced, file, _extra_files={name: text.encode() for name, text in entries.items()})


def torchscript_runner(path: Path) -> Callable[[Tensor], Detections]:
    """Return a function that detects in one image with the file, on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(path, map_location="cpu")

    def run(image: Tensor) -> Detections:
        return Detections(*loaded(image))

    return run
