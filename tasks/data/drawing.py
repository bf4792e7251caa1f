"""What a synthetic street looks like: fixed camera backgrounds, and seven kinds of objects as cut-outs.

The random numbers come from the caller's generator; the same numbers give the same pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Generator = np.random.Generator
Color = tuple[int, int, int]
Painter = Callable[["Brush", Generator], None]

_OVERSAMPLE = 2  # shapes are drawn this much larger and scaled down, for soft edges


Range = tuple[float, float]


def color(rng: Generator, hue: Range, saturation: Range, value: Range) -> Color:
    """Return a random colour with hue, saturation and value within the given ranges of [0, 1]."""
    drawn = [float(rng.uniform(*limits)) for limits in (hue, saturation, value)]
    red, green, blue = colorsys.hsv_to_rgb(*drawn)
    return round(red * 255), round(green * 255), round(blue * 255)


def shade(base: Color, factor: float) -> Color:
    """Return ``base``, darker for a ``factor`` under 1 and lighter for one over 1."""
    red, green, blue = (min(255, round(part * factor)) for part in base)
    return red, green, blue


class Brush:
    """A transparent canvas to draw on. Coordinates are fractions of its width and height."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGBA", (width * _OVERSAMPLE, height * _OVERSAMPLE))
        self._draw = ImageDraw.Draw(self.image)

    def _points(self, points: tuple[float, ...]) -> list[tuple[float, float]]:
        width, height = self.image.size
        return [(x * (width - 1), y * (height - 1)) for x, y in zip(points[::2], points[1::2], strict=True)]

    def polygon(self, fill: Color, *points: float) -> None:
        self._draw.polygon(self._points(points), fill=fill)

    def box(self, fill: Color, left: float, top: float, right: float, bottom: float, *, round_by: float = 0) -> None:
        corners = self._points((left, top, right, bottom))
        self._draw.rounded_rectangle(corners, radius=round_by * min(self.image.size), fill=fill)

    def ellipse(self, fill: Color, left: float, top: float, right: float, bottom: float) -> None:
        self._draw.ellipse(self._points((left, top, right, bottom)), fill=fill)

    def slice(
        self, fill: Color, start: float, end: float, left: float, top: float, right: float, bottom: float
    ) -> None:
        self._draw.pieslice(self._points((left, top, right, bottom)), start, end, fill=fill)

    def line(self, fill: Color, thickness: float, *points: float) -> None:
        pixels = max(1, round(thickness * min(self.image.size)))
        self._draw.line(self._points(points), fill=fill, width=pixels)


def _basket(brush: Brush, rng: Generator) -> None:
    base = color(rng, (0.36, 0.52), (0.5, 0.85), (0.4, 0.75))
    brush.polygon(base, 0, 0, 1, 0, 0.82, 1, 0.18, 1)
    for part in np.linspace(0.12, 0.88, 5):
        inset = 0.18 * float(part)
        brush.line(shade(base, 0.6), 0.05, inset, float(part), 1 - inset, float(part))
        brush.line(shade(base, 0.7), 0.04, float(part), 0, 0.5 + 0.64 * (float(part) - 0.5), 1)
    brush.box(shade(base, 1.25), 0, 0, 1, 0.11)


def _carton(brush: Brush, rng: Generator) -> None:
    base = color(rng, (0.07, 0.11), (0.35, 0.6), (0.5, 0.8))
    depth = float(rng.uniform(0.18, 0.34))
    brush.polygon(shade(base, 1.2), depth, 0, 1, 0, 1 - depth, depth, 0, depth)
    brush.polygon(shade(base, 0.65), 1, 0, 1, 1 - depth, 1 - depth, 1, 1 - depth, depth)
    brush.box(base, 0, depth, 1 - depth, 1)
    brush.box(shade(base, 1.35), 0.42 * (1 - depth), depth, 0.58 * (1 - depth), 1)


def _chair(brush: Brush, rng: Generator) -> None:
    base = color(rng, (0.97, 1.03) if rng.random() < 0.5 else (0.56, 0.66), (0.55, 0.9), (0.4, 0.85))
    brush.box(shade(base, 0.85), 0.12, 0, 0.88, 0.55, round_by=0.08)
    for part in (0.3, 0.5, 0.7):
        brush.line(shade(base, 0.5), 0.05, part, 0.08, part, 0.42)
    brush.polygon(shade(base, 1.1), 0.12, 0.48, 0.88, 0.48, 1, 0.66, 0, 0.66)
    for left in (0.02, 0.86):
        brush.box(shade(base, 0.6), left, 0.64, left + 0.12, 1)
    for left in (0.22, 0.68):
        brush.box(shade(base, 0.45), left, 0.64, left + 0.09, 0.9)


def _electrombile(brush: Brush, rng: Generator) -> None:
    base = color(rng, (0, 1), (0.2, 0.8), (0.3, 0.9))
    tyre, metal = (28, 28, 30), (120, 122, 126)
    for left in (0.0, 0.66):
        brush.ellipse(tyre, left, 0.5, left + 0.34, 1)
        brush.ellipse(metal, left + 0.1, 0.65, left + 0.24, 0.85)
    brush.line(tyre, 0.07, 0.83, 0.75, 0.7, 0.04)
    brush.line(tyre, 0.06, 0.58, 0.03, 0.8, 0.03)
    brush.polygon(base, 0.14, 0.45, 0.46, 0.42, 0.56, 0.62, 0.68, 0.18, 0.8, 0.22, 0.72, 0.78, 0.3, 0.78)
    brush.box((40, 36, 36), 0.08, 0.32, 0.48, 0.46, round_by=0.06)
    brush.ellipse((235, 230, 190), 0.74, 0.16, 0.84, 0.3)


def _gastank(brush: Brush, rng: Generator) -> None:
    base = color(rng, (0.55, 0.63), (0.08, 0.4), (0.5, 0.85))
    brush.box((70, 72, 76), 0.34, 0, 0.66, 0.2)
    brush.box((150, 60, 40), 0.42, 0, 0.58, 0.08)
    brush.box(base, 0, 0.13, 1, 0.96, round_by=0.3)
    brush.box(shade(base, 1.25), 0.18, 0.22, 0.34, 0.88, round_by=0.05)
    brush.box(shade(base, 0.6), 0.8, 0.25, 0.94, 0.86, round_by=0.05)
    brush.box(shade(base, 0.7), 0.0, 0.5, 1, 0.56)
    brush.box((60, 60, 64), 0.12, 0.92, 0.88, 1)


def _sunshade(brush: Brush, rng: Generator) -> None:
    base = color(rng, (0, 1), (0.5, 0.95), (0.5, 0.95))
    other = (225, 222, 214) if rng.random() < 0.7 else shade(base, 0.55)
    pole = float(rng.uniform(0.4, 0.75))
    brush.box((96, 90, 84), 0.485, 0.1, 0.515, 1)
    steps = int(rng.integers(6, 10))
    for number in range(steps):
        start, end = 180 + 180 * number / steps, 180 + 180 * (number + 1) / steps
        brush.slice(base if number % 2 else other, start, end, 0, 0, 1, 2 * pole)
    for number in range(steps):  # the fringe
        left = number / steps
        brush.ellipse(shade(base, 0.7), left, pole - 0.06, left + 1 / steps, pole + 0.06)


def _table(brush: Brush, rng: Generator) -> None:
    wood, plastic = ((0.05, 0.09), (0.45, 0.75), (0.35, 0.65)), ((0.0, 1.0), (0.0, 0.06), (0.8, 0.95))
    base = color(rng, *(wood if rng.random() < 0.6 else plastic))
    for left, bottom in ((0.05, 1.0), (0.87, 1.0), (0.22, 0.85), (0.72, 0.85)):
        brush.box(shade(base, 0.55), left, 0.28, left + 0.07, bottom)
    brush.polygon(base, 0.16, 0, 0.84, 0, 1, 0.28, 0, 0.28)
    brush.box(shade(base, 0.7), 0, 0.28, 1, 0.38)
    brush.line(shade(base, 0.8), 0.03, 0.1, 0.14, 0.9, 0.14)


PAINTERS: dict[str, Painter] = {
    "basket": _basket,
    "carton": _carton,
    "chair": _chair,
    "electrombile": _electrombile,
    "gastank": _gastank,
    "sunshade": _sunshade,
    "table": _table,
}


def cut_out(name: str, width: int, height: int, rng: Generator) -> Image.Image:
    """Draw an object of class ``name`` as an RGBA image of width x height pixels. It reaches all four edges."""
    brush = Brush(width, height)
    PAINTERS[name](brush, rng)
    image = brush.image
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(image).astype(np.float32)
    top, bottom = rng.uniform(0.75, 1.15), rng.uniform(0.65, 1.05)
    light = np.linspace(top, bottom, height, dtype=np.float32)[:, None, None]
    grain = rng.normal(0, 9, (height, width, 1)).astype(np.float32)
    pixels[..., :3] = pixels[..., :3] * light + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")


def passer_by(width: int, height: int, rng: Generator) -> Image.Image:
    """Draw a person who walks past, as an RGBA image. Such persons are not labelled."""
    brush = Brush(width, height)
    coat = color(rng, (0, 1), (0.1, 0.8), (0.2, 0.8))
    brush.box((45, 45, 60), 0.25, 0.5, 0.47, 1)
    brush.box((40, 40, 55), 0.53, 0.5, 0.75, 1)
    brush.box(coat, 0.05, 0.16, 0.95, 0.6, round_by=0.25)
    brush.ellipse((190, 150, 125), 0.3, 0, 0.7, 0.19)
    return brush.image.resize((width, height), Image.Resampling.BOX)


def background(width: int, height: int, rng: Generator) -> NDArray[np.int16]:
    """Draw a camera's view, int16 [height, width, 3] in 0..255: houses, pavement, road and fixed things."""
    image = Image.new("RGB", (width, height), color(rng, (0.0, 0.7), (0.02, 0.2), (0.45, 0.75)))
    draw = ImageDraw.Draw(image)
    horizon = height * rng.uniform(0.2, 0.38)
    curb = height * rng.uniform(0.6, 0.8)

    left = 0.0
    while left < width:  # house fronts with windows, doors and signs
        right = left + width * rng.uniform(0.15, 0.4)
        wall = color(rng, (0, 1), (0.03, 0.35), (0.35, 0.8))
        draw.rectangle((left, 0, right, horizon), fill=wall)
        step = max(6.0, width * rng.uniform(0.05, 0.1))
        for x in np.arange(left + step * 0.3, right - step * 0.6, step):
            pane = color(rng, (0.5, 0.65), (0.05, 0.5), (0.1, 0.6))
            draw.rectangle((x, horizon * 0.15, x + step * 0.6, horizon * rng.uniform(0.5, 0.95)), fill=pane)
        if rng.random() < 0.7:
            sign = color(rng, (0, 1), (0.3, 0.9), (0.4, 0.9))
            draw.rectangle((left + step * 0.2, horizon * 0.62, right - step * 0.3, horizon * 0.8), fill=sign)
        left = right

    pavement = color(rng, (0.05, 0.15), (0.02, 0.18), (0.45, 0.7))
    draw.rectangle((0, horizon, width, curb), fill=pavement)
    middle = width * rng.uniform(0.2, 0.8)
    for x in np.linspace(-width, 2 * width, int(rng.integers(18, 40))):  # slabs, towards a vanishing point
        draw.line((middle + (x - middle) * 0.4, horizon, x, curb), fill=shade(pavement, 0.85))
    for part in np.linspace(0, 1, int(rng.integers(5, 10))) ** 1.6:
        y = horizon + (curb - horizon) * part
        draw.line((0, y, width, y), fill=shade(pavement, 0.85))
    draw.rectangle((0, curb, width, height), fill=color(rng, (0.5, 0.7), (0.0, 0.1), (0.25, 0.45)))
    draw.rectangle((0, curb, width, curb + max(1.0, height * 0.012)), fill=shade(pavement, 1.2))

    for _ in range(int(rng.integers(3, 9))):  # posts, bins and boards that never move
        x, y = width * rng.uniform(0, 1), height * rng.uniform(0.3, 0.95)
        w, h = width * rng.uniform(0.01, 0.07), height * rng.uniform(0.05, 0.25)
        thing = color(rng, (0, 1), (0.05, 0.7), (0.2, 0.8))
        if rng.random() < 0.5:
            draw.rectangle((x, y - h, x + w, y), fill=thing)
        else:
            draw.ellipse((x, y - h * 0.6, x + w, y), fill=thing)

    soft = image.filter(ImageFilter.GaussianBlur(max(0.4, width / 704)))
    patches = Image.fromarray(rng.integers(0, 256, (9, 11), dtype=np.uint8))
    patches = patches.resize((width, height), Image.Resampling.BICUBIC)
    light = 0.75 + 0.45 * np.asarray(patches, dtype=np.float32)[..., None] / 255
    grain = rng.normal(0, 7, (height, width, 1)).astype(np.float32)
    return np.clip(np.asarray(soft, dtype=np.float32) * light + grain, 0, 255).astype(np.int16)
