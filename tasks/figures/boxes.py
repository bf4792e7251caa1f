"""Draw detections on an image: boxes in their class's colour, each with a tag of class and score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tasks.metrics.detections import ImageDetections
from tasks.plain_text import LABEL_LIMIT, plain_name

# By default, a detection under this score is not drawn.
DRAWN_SCORE = 0.3
# Pixels, on an image whose longer side has STANDARD_SIDE of them.
FONT_SIZE, LINE_WIDTH = 15, 3
STANDARD_SIDE = 520
_SMALLEST_FONT = 9
INK = (31, 41, 55)
# Okabe and Ito's colours (distinct for colour-blind readers too), without black and its neighbours. Class 7 has the
# colour of class 0 again, and so on.
_COLORS = (
    (230, 159, 0), (86, 180, 233), (0, 190, 130), (240, 228, 66),
    (110, 140, 255), (235, 95, 20), (225, 130, 190),
)  # fmt: skip

Box = tuple[int, int, int, int]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Mark:
    """A detection as it is drawn: ``box`` in pixels of the drawing."""

    box: Box
    color: Color
    text: str


def draw_detections(
    image: Image.Image, found: ImageDetections, classes: Sequence[str], *, score: float = DRAWN_SCORE
) -> Image.Image:
    """Return a copy of ``image`` (RGB, of its size) with the detections of at least ``score``.

    ``found.boxes`` are in pixels of ``image``. Lines and letters grow with its size.
    """
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    unit = max(drawn.size) / STANDARD_SIDE
    marks = marks_of(found, classes, score=score, scale=1.0, size=drawn.size)
    draw = ImageDraw.Draw(drawn)
    draw_outlines(draw, marks, max(1, round(LINE_WIDTH * unit)))
    draw_tags(draw, marks, drawn.size, max(_SMALLEST_FONT, round(FONT_SIZE * unit)))
    return drawn


def marks_of(
    found: ImageDetections, classes: Sequence[str], *, score: float, scale: float, size: tuple[int, int]
) -> list[Mark]:
    """Return marks for the detections of at least ``score``, best first.

    The drawing has ``size``, which is ``scale`` times the image's.
    """
    best_first = [index for index in np.argsort(-found.scores, kind="stable") if found.scores[index] >= score]
    return [
        Mark(
            box=pixel_box(found.boxes[index], scale, size),
            color=class_color(found.labels[index]),
            text=f"{plain_name(classes[found.labels[index]], LABEL_LIMIT)} {found.scores[index]:.2f}",
        )
        for index in best_first
    ]


def draw_outlines(draw: ImageDraw.ImageDraw, marks: Sequence[Mark], width: int) -> None:
    """Draw the boxes, the best one last, over the others."""
    for mark in reversed(marks):
        draw.rectangle(mark.box, outline=mark.color, width=width)


def draw_tags(draw: ImageDraw.ImageDraw, marks: Sequence[Mark], size: tuple[int, int], font_size: int) -> None:
    """Draw the tags. Those of the best detections choose their places first."""
    font = ImageFont.load_default(font_size)
    margin = max(1, round(font_size * 4 / FONT_SIZE))
    height = font_size + max(1, round(font_size * 5 / FONT_SIZE))
    taken: list[Box] = []
    for mark in marks:
        width = int(draw.textlength(mark.text, font=font)) + 2 * margin
        tag = _free_place(mark.box, (width, height), size, taken)
        taken.append(tag)
        draw.rectangle(tag, fill=mark.color)
        draw.text((tag[0] + margin, (tag[1] + tag[3]) // 2), mark.text, fill=INK, font=font, anchor="lm")


def pixel_box(box: np.ndarray, scale: float, size: tuple[int, int]) -> Box:
    """Return the box in pixels of a drawing, cut at its edges, with corners in order even if the detector's are not."""
    limits = np.array([size[0] - 1, size[1] - 1] * 2)
    pixels = np.clip(np.nan_to_num(np.asarray(box, np.float64) * scale), 0, limits).round().astype(int)
    left, top, right, bottom = (int(side) for side in pixels)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def class_color(label: int) -> Color:
    return _COLORS[int(label) % len(_COLORS)]


def _free_place(box: Box, tag: tuple[int, int], size: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Return the place of a ``tag`` (width, height): on, under or inside the box, the first without another tag."""
    left, top, right, bottom = box
    width, height = tag
    corners = [
        (left, top - height),
        (right - width, top - height),
        (left, bottom + 1),
        (left, top),
        (left, bottom - height),
    ]
    places = []
    for x, y in corners:
        x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        places.append((x, y, x + width - 1, y + height - 1))
    free = (
        place
        for place in places
        if not any(
            place[0] <= other[2] and other[0] <= place[2] and place[1] <= other[3] and other[1] <= place[3]
            for other in taken
        )
    )
    return next(free, places[0])
