"""Augment the images of a batch together, with matrix products that a GPU computes fast.

The changes are those of :func:`tasks.data.augment.change_pixels`. A flip, a shift by whole pixels and the grey margins
are the same to the bit. A zoom differs by one level, and seldom by two, because the CPU's filter has weights of 16
bits. Each change of colour may differ by one level more, and its factor multiplies the differences before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.data.augment import FILL, Draws, window
from tasks.data.transfer import constant

# Weights of red, green and blue in torchvision's grey.
GREY = (0.2989, 0.587, 0.114)


def apply_to_batch(images: Tensor, draws: Sequence[Draws]) -> Tensor:
    """Return ``images``, uint8 [B, 3, H, W], each changed by its draws. They are not modified.

    The host does not wait for a GPU.
    """
    height, width = images.shape[-2:]
    views = [window(one, width=width, height=height) for one in draws]
    if any(view != (0, 0, width, height) for view in views) or any(one.flip for one in draws):
        images = _view(images, views, [one.flip for one in draws])
    if any((one.brightness, one.contrast, one.saturation) != (1.0, 1.0, 1.0) for one in draws):
        images = _colour(images, draws)
    return images


def _view(images: Tensor, views: Sequence[tuple[int, int, int, int]], flips: Sequence[bool]) -> Tensor:
    """Flip images, and resize the window of each to the image's size: one product for the columns, one for the rows."""
    batch, channels, height, width = images.shape
    numbers = constant(
        [
            [left, right - left, top, bottom - top, float(flip)]
            for (left, top, right, bottom), flip in zip(views, flips, strict=True)
        ],
        images.device,
    )
    left, columns, top, rows, flipped = numbers.unbind(1)
    across = _weights(left, columns, width, max(right - left for left, _, right, _ in views) / width)
    down = _weights(top, rows, height, max(bottom - top for _, top, _, bottom in views) / height)
    across = torch.where(flipped[:, None, None] > 0, across.flip(2), across)
    # Outside of the image is FILL. Without it, these pixels are 0 and their weights can be left out.
    pixels = images.float() - FILL
    pixels = (pixels.view(batch, channels * height, width) @ across.transpose(1, 2)).round()
    pixels = pixels.view(batch, channels, height, width).transpose(0, 1)
    pixels = (down @ pixels).transpose(0, 1)
    return (pixels.round() + FILL).clamp(0, 255).to(torch.uint8)


def _weights(start: Tensor, size: Tensor, pixels: int, most: float) -> Tensor:
    """Return the weights of an image's pixels in each pixel of its resized window: float32 [B, pixels, pixels].

    start, size: float32 [B], the window along an axis with this number of ``pixels``. most: largest size of a window,
    over ``pixels``. The filter is a triangle, as wide as a pixel of the result where that is larger (antialias).
    """
    number = torch.arange(pixels, device=start.device, dtype=torch.float32)
    scale = size[:, None] / pixels
    centre = scale * (number + 0.5)  # [B, pixels], in pixels of the window
    steepness = 1 / scale.clamp(min=1)

    def triangle(place: Tensor) -> Tensor:
        """Return the weight of the window's pixel at ``place``, [B, pixels or 1, …]; it has none outside the window."""
        weight = (1 - (place + 0.5 - centre[..., None]).abs() * steepness[..., None]).clamp(min=0)
        return weight * ((place >= 0) & (place < size[:, None, None]))

    reach = math.ceil(max(most, 1)) + 1
    near = torch.arange(-reach, reach + 1, device=start.device)
    total = triangle(centre.floor()[..., None] + near).sum(dim=2, keepdim=True)
    return triangle((number - start[:, None])[:, None]) / total


def _colour(images: Tensor, draws: Sequence[Draws]) -> Tensor:
    """Change brightness, then contrast, then saturation, each rounded down to whole levels as on a CPU."""
    factors = constant(
        [[one.brightness, one.contrast, 1.0 - one.contrast, one.saturation, 1.0 - one.saturation] for one in draws],
        images.device,
    )
    brightness, contrast, to_mean, saturation, to_grey = factors[:, :, None, None, None].unbind(1)
    pixels = _levels(images.float() * brightness)
    pixels = _levels(pixels * contrast + _grey(pixels).mean(dim=(1, 2, 3), keepdim=True) * to_mean)
    return _levels(pixels * saturation + _grey(pixels) * to_grey).to(torch.uint8)


def _levels(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 255).floor()


def _grey(pixels: Tensor) -> Tensor:
    """Return the grey of colours, in whole levels: [B, 1, H, W]."""
    red, green, blue = pixels.unbind(1)
    return (red * GREY[0] + green * GREY[1] + blue * GREY[2]).floor()[:, None]
