"""Darknet's weight files.

A file is a header (three int32: major, minor, revision; then ``seen``, the images trained on, as int32, or as int64
when 10 · major + minor is 2 or more) and little-endian float32 values: for each convolution, in the cfg's order, its
biases, or BatchNorm's β, γ, running mean and running variance; then its kernel [out, in, height, width]
(``save_convolutional_weights`` in Darknet's ``parser.c``). ``X.conv.N`` holds the cfg's layers 0 … N − 1.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tasks.detectors.yolo_network import ConvBlock, YoloNetwork
from tasks.documents.regular_file import open_regular
from tasks.errors import DataError

FLOAT_BYTES = 4
# Every part of a Darknet version is smaller. A file with a larger number is not a Darknet file.
MAX_VERSION = 1000


@dataclass(frozen=True)
class DarknetHeader:
    """The header of a weight file: the version of Darknet, and ``seen``, the number of images trained on."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0

    @property
    def format(self) -> str:
        """The header's ``struct`` format: 20 bytes, or 16 in the files of Darknet 0.1."""
        return "<3iq" if 10 * self.major + self.minor >= 2 else "<3ii"


@dataclass(frozen=True)
class DarknetReport:
    """The result of loading a file: the cfg's numbers of the convolutions loaded, and of those left as they were.

    other_classes: the number of classes of the file's outputs, if it is not the detector's.
    """

    file: str
    header: DarknetHeader
    loaded: tuple[int, ...]
    skipped: tuple[int, ...]
    other_classes: int | None = None

    def __str__(self) -> str:
        text = f"{self.file}: layers {_runs(self.loaded, self.skipped)} loaded"
        if self.skipped:
            text += f", {_runs(self.skipped, self.loaded)} left as they were"
        if self.other_classes is not None:
            text += f" (its outputs are for {self.other_classes} classes)"
        return text


@dataclass(frozen=True)
class _Convolution:
    """A convolution of the cfg: layer number, tensors in the file's order, and number of anchors if it is an output."""

    number: int
    tensors: tuple[Tensor, ...]
    anchors: int = 0

    def floats(self, classes: int) -> int:
        """Return the number of its float32 values in the file of a network for ``classes`` classes."""
        if self.anchors:
            weight = self.tensors[-1]
            return self.anchors * (5 + classes) * (weight.shape[1] * weight.shape[2] * weight.shape[3] + 1)
        return sum(tensor.numel() for tensor in self.tensors)


def _convolutions(detector: YoloNetwork) -> list[_Convolution]:
    found = []
    for name, module in detector.layers.items():
        if isinstance(module, ConvBlock):
            norm = module.norm
            statistics = (norm.bias, norm.weight, norm.running_mean, norm.running_var)
            tensors = tuple(tensor.detach() for tensor in statistics if tensor is not None)
            found.append(_Convolution(int(name), (*tensors, module.conv.weight.detach())))
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            anchors = module.out_channels // (5 + detector.num_classes)
            found.append(_Convolution(int(name), (module.bias.detach(), module.weight.detach()), anchors))
    return found


def _floats(convolutions: Sequence[_Convolution], classes: int) -> int:
    return sum(item.floats(classes) for item in convolutions)


def read_header(path: Path) -> DarknetHeader:
    """Read the header of a weight file.

    Raises:
        DataError: the file cannot be read, is too short for a header, or does not start with one.
    """
    try:
        with open_regular(path) as file:
            start = file.read(20)
    except OSError as error:
        raise DataError(f"{path}: the weight file cannot be read: {error.strerror}") from None
    if len(start) < 12:
        raise DataError(f"{path}: {len(start)} bytes; expected a Darknet weight file, whose header alone has 16 or 20")
    header = DarknetHeader(*struct.unpack("<3i", start[:12]))
    if not all(0 <= part < MAX_VERSION for part in (header.major, header.minor, header.revision)):
        raise DataError(
            f"{path}: expected a Darknet weight file, which starts with its version; "
            f"found {header.major}.{header.minor}.{header.revision}"
        )
    size = struct.calcsize(header.format)
    if len(start) < size:
        raise DataError(
            f"{path}: {len(start)} bytes; expected a Darknet weight file, whose header alone has {size} "
            f"in version {header.major}.{header.minor}"
        )
    return DarknetHeader(*struct.unpack(header.format, start[:size]))


def load_darknet(detector: YoloNetwork, path: Path) -> DarknetReport:
    """Load a Darknet file into ``detector`` in place. Nothing is changed unless the whole file fits.

    From a file for another number of classes, all but the output convolutions are loaded. A file may end with any
    layer, and then the layers up to there are loaded. A file named ``X.conv.N`` must end with layer N − 1.

    Raises:
        DataError: the file is not a Darknet file, is shorter or longer than the network (the message names both
            lengths), or holds values that cannot be weights.
    """
    header = read_header(path)
    offset = struct.calcsize(header.format)
    size = path.stat().st_size
    convolutions, other = _match(detector, path, size, offset)
    values = np.memmap(path, dtype="<f4", mode="r", offset=offset) if size > offset else np.zeros(0, "<f4")
    classes = detector.num_classes if other is None else other
    read: list[tuple[Tensor, Tensor]] = []
    loaded = []
    at = 0
    for item in convolutions:
        if item.anchors and other is not None:
            at += item.floats(classes)
            continue
        loaded.append(item.number)
        for tensor in item.tensors:
            part = torch.from_numpy(np.array(values[at : at + tensor.numel()], dtype=np.float32))
            if not bool(torch.isfinite(part).all()):
                raise DataError(f"{path}: layer {item.number} holds NaN or infinity; expected weights")
            read.append((tensor, part.view(tensor.shape)))
            at += tensor.numel()
        if len(item.tensors) == 5 and bool((read[-2][1] < 0).any()):
            raise DataError(f"{path}: layer {item.number} has a negative running variance; expected weights")
    for tensor, value in read:
        tensor.copy_(value)
    skipped = tuple(item.number for item in _convolutions(detector) if item.number not in loaded)
    return DarknetReport(path.name, header, tuple(loaded), skipped, other)


def _match(detector: YoloNetwork, path: Path, size: int, offset: int) -> tuple[list[_Convolution], int | None]:
    """Return the convolutions in a file of ``size`` bytes, and its number of classes if it is not the detector's."""
    every = _convolutions(detector)
    classes = detector.num_classes
    named = re.search(r"\.conv\.([0-9]+)$", path.name)
    wanted = [item for item in every if item.number < int(named[1])] if named else every
    found, rest = divmod(size - offset, FLOAT_BYTES)
    if not rest:
        if found == _floats(wanted, classes):
            return wanted, None
        # Outputs have 5 + classes filters an anchor, so the length gives the classes. With -5 classes they have none.
        fixed = _floats(wanted, -5)
        a_filter = _floats(wanted, -4) - fixed
        if a_filter and (found - fixed) % a_filter == 0 and (found - fixed) // a_filter > 5:
            return wanted, (found - fixed) // a_filter - 5
        for end in range(1, 0 if named else len(every)):
            if found == _floats(every[:end], classes):
                return every[:end], None
    expected = offset + FLOAT_BYTES * _floats(wanted, classes)
    what = f"layers 0 to {int(named[1]) - 1}" if named else f"all {len(detector.table)} layers"
    raise DataError(
        f"{path}: {size} bytes; expected {expected} for {what} of {detector.spec.kind} with {classes} classes "
        f"({'too short' if size < expected else 'too long'})"
    )


def _runs(chosen: Sequence[int], others: Sequence[int]) -> str:
    """Return ``chosen`` as text, ``0–80, 84–92``: first and last of each run without one of ``others`` in between."""
    runs: list[list[int]] = []
    following = False
    for number in sorted((*chosen, *others)):
        if number in chosen:
            if not following:
                runs.append([])
            runs[-1].append(number)
        following = number in chosen
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"
