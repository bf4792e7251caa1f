"""Multi-scale training: another input size every ten steps (arXiv 1612.08242, section 2; Darknet's ``random=1``)."""

from __future__ import annotations

import random
from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from tasks.detectors.base import Targets
from tasks.training.seeds import derive_seed

STEPS_A_SIZE = 10
# The coarsest stride of the detectors. In multiples of it, every map of an input has whole cells.
MULTIPLE = 32


def input_size(width: int, height: int, limits: tuple[int, int], *, seed: int, step: int) -> tuple[int, int]:
    """Return the width and height in pixels of the batches of optimiser step ``step`` (from 0).

    The width is a random multiple of 32 within ``limits``, drawn from ``seed`` and ``step`` alone. The height keeps
    the proportions of ``width`` and ``height``, to the nearest multiple of 32.
    """
    draw = random.Random(derive_seed(seed, "input-size", step // STEPS_A_SIZE))
    chosen = MULTIPLE * draw.randint(limits[0] // MULTIPLE, limits[1] // MULTIPLE)
    return chosen, MULTIPLE * max(round(chosen * height / width / MULTIPLE), 1)


def resize(images: Tensor, targets: Targets, size: tuple[int, int]) -> tuple[Tensor, Targets]:
    """Resize a batch, uint8 [B, 3, H, W] with boxes and regions, to ``size`` (width, height): bilinear, antialiased."""
    rows, columns = images.shape[2:]
    width, height = size
    if (columns, rows) == size:
        return images, targets
    pixels = functional.interpolate(
        images.float(), size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )

    def scaled(boxes: list[Tensor]) -> list[Tensor]:
        return [box * box.new_tensor([width / columns, height / rows] * 2) for box in boxes]

    regions = None if targets.regions is None else scaled(targets.regions)
    return pixels.round().clamp(0, 255).to(images.dtype), replace(targets, boxes=scaled(targets.boxes), regions=regions)
