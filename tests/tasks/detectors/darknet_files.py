"""Darknet weight files for tests, written from a detector."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from tasks.detectors.darknet import FLOAT_BYTES, DarknetHeader
from tasks.detectors.yolo_network import ConvBlock, YoloNetwork


def packed(header: DarknetHeader) -> bytes:
    return struct.pack(header.format, header.major, header.minor, header.revision, header.seen)


def darknet_bytes(detector: YoloNetwork, *, layers: int | None = None, header: DarknetHeader | None = None) -> int:
    """Return the size of the file that :func:`save_darknet` writes. The detector may be on the meta device."""
    return len(packed(header or DarknetHeader())) + FLOAT_BYTES * sum(item.numel() for item in _saved(detector, layers))


def save_darknet(
    detector: YoloNetwork, path: Path, *, layers: int | None = None, header: DarknetHeader | None = None
) -> None:
    """Write ``detector`` as a Darknet file: all of it, or the cfg's first ``layers`` layers (``X.conv.N``)."""
    with path.open("wb") as file:
        file.write(packed(header or DarknetHeader()))
        for tensor in _saved(detector, layers):
            file.write(tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())


def _saved(detector: YoloNetwork, layers: int | None) -> Iterator[Tensor]:
    """Yield the tensors of the convolutions in the file's order."""
    for name, module in detector.layers.items():
        if layers is not None and int(name) >= layers:
            continue
        if isinstance(module, ConvBlock):
            norm = module.norm
            yield from (
                item for item in (norm.bias, norm.weight, norm.running_mean, norm.running_var) if item is not None
            )
            yield module.conv.weight
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            yield from (module.bias, module.weight)
