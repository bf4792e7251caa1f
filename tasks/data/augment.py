"""Random changes to a training image: flip, zoom, shift, colour; drawn from the sample's generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.spec.training import Augmentation

FILL = 114  # grey level around a zoomed-out or shifted image, as in the YOLO family's code
MIN_AREA_LEFT = 0.25  # an object is dropped if less than this part of its area stays in view
MIN_SIDE = 2.0  # pixels; an object is dropped if less of its width or height stays in view


class Labelled(NamedTuple):
    """An image, uint8 [3, H, W], and its objects: boxes float32 [n, 4] xyxy in pixels, labels int64 [n]."""

    image: Tensor
    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Draws:
    """One sample's random numbers.

    ``zoom``, ``brightness``, ``contrast`` and ``saturation`` are factors (1: no change); ``shift_x`` and
    ``shift_y`` are parts of the image's width and height.
    """

    flip: bool
    zoom: float
    shift_x: float
    shift_y: float
    brightness: float
    contrast: float
    saturation: float


def draw(settings: Augmentation, generator: np.random.Generator) -> Draws:
    """Draw one sample's random numbers.

    The count of numbers taken from ``generator`` is always the same, so switching one change off does not alter the
    others.
    """
    chance = generator.random()
    zoom, shift_x, shift_y, brightness, contrast, saturation = generator.uniform(-1, 1, size=6)
    return Draws(
        flip=bool(chance < settings.flip),
        zoom=float(1 + settings.scale * zoom),
        shift_x=float(settings.translate * shift_x),
        shift_y=float(settings.translate * shift_y),
        brightness=float(1 + settings.color * brightness),
        contrast=float(1 + settings.color * contrast),
        saturation=float(1 + settings.color * saturation),
    )


def apply(image: Tensor, boxes: Tensor, labels: Tensor, draws: Draws) -> Labelled:
    """Change ``image`` (uint8 [3, H, W]) and its objects (float32 [n, 4] xyxy in pixels, int64 [n]) alike.

    Boxes are clipped to the image. An object is dropped when less than a quarter of its area, or less than 2
    pixels of its width or height, stay in view. The input is not modified; the image's size stays.
    """
    height, width = image.shape[-2:]
    boxes, labels = move_objects(boxes, labels, draws, width=width, height=height)
    return Labelled(change_pixels(image, draws), boxes, labels)


def change_pixels(image: Tensor, draws: Draws) -> Tensor:
    """Return ``image``, uint8 [3, H, W], after the changes. It is not modified."""
    from torchvision.transforms.v2 import functional

    if draws.flip:
        image = functional.horizontal_flip(image)
    if _moves(draws):
        image = _zoom_and_shift(image, draws)
    # Colour comes last and also changes the filled margins, as one light would over the whole picture.
    for factor, adjust in (
        (draws.brightness, functional.adjust_brightness),
        (draws.contrast, functional.adjust_contrast),
        (draws.saturation, functional.adjust_saturation),
    ):
        if factor != 1.0:
            image = adjust(image, factor)
    return image


def move_objects(boxes: Tensor, labels: Tensor, draws: Draws, *, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Return the boxes and labels of objects after the same changes to a ``width`` x ``height`` image, as in apply."""
    if draws.flip:
        boxes = _flip(boxes, width)
    if _moves(draws):
        moved = _moved(boxes, window(draws, width=width, height=height), width=width, height=height)
        cut, kept = clip_boxes(moved, width=width, height=height)
        boxes, labels = cut[kept], labels[kept]
    return boxes, labels


def move_regions(boxes: Tensor, labels: Tensor, draws: Draws, *, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Return the boxes and labels of ignore regions after the same changes to a ``width`` x ``height`` image.

    boxes: float32 [k, 4] xyxy in pixels. labels: int64 [k]. Boxes are clipped to the image. Other than objects, a
    region stays however little of it is in view, because that part is still no background.
    """
    if draws.flip:
        boxes = _flip(boxes, width)
    if _moves(draws):
        boxes = _moved(boxes, window(draws, width=width, height=height), width=width, height=height)
        boxes, _ = clip_boxes(boxes, width=width, height=height)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return boxes[kept], labels[kept]


def _flip(boxes: Tensor, width: int) -> Tensor:
    return torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)


def _moves(draws: Draws) -> bool:
    return (draws.zoom, draws.shift_x, draws.shift_y) != (1.0, 0.0, 0.0)


def window(draws: Draws, *, width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the window, in whole pixels, that fills a ``width`` x ``height`` image.

    Without zoom and shift it is the whole image.
    """
    window_width = max(2, round(width / draws.zoom))
    window_height = max(2, round(height / draws.zoom))
    left = round((width - window_width) / 2 - draws.shift_x * window_width)
    top = round((height - window_height) / 2 - draws.shift_y * window_height)
    return left, top, left + window_width, top + window_height


def _moved(boxes: Tensor, view: tuple[int, int, int, int], *, width: int, height: int) -> Tensor:
    """Return boxes in pixels of the image that the window ``view`` fills."""
    left, top, right, bottom = view
    scale = boxes.new_tensor([width / (right - left), height / (bottom - top)] * 2)
    return (boxes - boxes.new_tensor([left, top] * 2)) * scale


def _zoom_and_shift(image: Tensor, draws: Draws) -> Tensor:
    """Resize a window of whole pixels to the image's size. This is cheaper than a warp, and exact for the boxes."""
    from torchvision.transforms.v2 import functional

    height, width = image.shape[-2:]
    left, top, right, bottom = window(draws, width=width, height=height)
    view = image[:, max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
    margins = [max(0, -left), max(0, -top), max(0, right - width), max(0, bottom - height)]
    if any(margins):
        view = functional.pad(view, margins, fill=[FILL])
    resized: Tensor = functional.resize(view, [height, width], antialias=True)
    return resized


def clip_boxes(boxes: Tensor, *, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Return the boxes (float [n, 4] xyxy) cut at the image's edges, and a mask (bool [n]) of those to keep."""
    limit = boxes.new_tensor([width, height] * 2)
    cut = torch.minimum(boxes.clamp(min=0), limit)
    before = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    sides = cut[:, 2:] - cut[:, :2]
    left = sides[:, 0] * sides[:, 1]
    return cut, (left >= MIN_AREA_LEFT * before) & (sides >= MIN_SIDE).all(dim=1)
