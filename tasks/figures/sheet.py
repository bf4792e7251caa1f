"""A sheet of test images with the true boxes and the predicted ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tasks.errors import DataError
from tasks.metrics.detections import ImageDetections

# An image, its objects (boxes [m, 4] in pixels of the image, labels [m]) and what was found in it.
SheetImage = tuple[Image.Image, tuple[np.ndarray, np.ndarray], ImageDetections]

TILE_WIDTH = 520
_GAP = 12
_FONT_SIZE = 15
_LEGEND_SIZE = 17
_INK, _PAPER = (31, 41, 55), (255, 255, 255)
# Okabe and Ito's colours (distinct for colour-blind readers too), black and its neighbours left out: after
# these seven they come again.
_COLORS = (
    (230, 159, 0), (86, 180, 233), (0, 190, 130), (240, 228, 66),
    (110, 140, 255), (235, 95, 20), (225, 130, 190),
)  # fmt: skip

_Box = tuple[int, int, int, int]
_Color = tuple[int, int, int]


def detection_sheet(
    images: Sequence[SheetImage], classes: Sequence[str], *, score: float = 0.3, columns: int = 3
) -> Image.Image:
    """Draw each image on a tile of its own, ``columns`` beside each other: an RGB image.

    Boxes have the colour of their class. True ones are dashed; predicted ones of at least ``score`` are
    solid, with class and score.

    Raises:
        DataError: no images, or a label that is none of ``classes``.
    """
    if not images:
        raise DataError("sheet: expected at least one image, found none")
    columns = max(1, min(columns, len(images)))
    tiles = [_tile(entry, classes, score) for entry in images]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    width = columns * TILE_WIDTH + (columns + 1) * _GAP
    legend = _legend(classes, score, width)
    height = legend.height + sum(max(tile.height for tile in row) + _GAP for row in rows)
    sheet = Image.new("RGB", (width, height), _PAPER)
    sheet.paste(legend, (0, 0))
    top = legend.height
    for row in rows:
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (TILE_WIDTH + _GAP), top))
        top += max(tile.height for tile in row) + _GAP
    return sheet


def _tile(entry: SheetImage, classes: Sequence[str], score: float) -> Image.Image:
    image, truth, found = entry
    true_boxes = np.asarray(truth[0], np.float64).reshape(-1, 4)
    for label in [*np.asarray(truth[1]).tolist(), *found.labels.tolist()]:
        if not 0 <= label < len(classes):
            raise DataError(f"sheet: labels: expected class indices from 0 to {len(classes) - 1}, found {label}")
    scale = TILE_WIDTH / image.width
    size = (TILE_WIDTH, max(1, round(image.height * scale)))
    tile = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(tile)
    best_first = [index for index in np.argsort(-found.scores, kind="stable") if found.scores[index] >= score]
    for index in reversed(best_first):
        draw.rectangle(_scaled(found.boxes[index], scale, size), outline=_color(found.labels[index]), width=3)
    for box, label in zip(true_boxes, truth[1], strict=True):
        _dashed(draw, _scaled(box, scale, size), _color(label))
    font = ImageFont.load_default(_FONT_SIZE)
    taken: list[_Box] = []
    for index in best_first:
        label = int(found.labels[index])
        text = f"{classes[label]} {found.scores[index]:.2f}"
        width = int(draw.textlength(text, font=font)) + 8
        tag = _free_place(_scaled(found.boxes[index], scale, size), width, size, taken)
        taken.append(tag)
        draw.rectangle(tag, fill=_color(label))
        draw.text((tag[0] + 4, (tag[1] + tag[3]) // 2), text, fill=_INK, font=font, anchor="lm")
    return tile


def _scaled(box: np.ndarray, scale: float, size: tuple[int, int]) -> _Box:
    """The box in pixels of the tile, cut at its edges; corners in order, whatever a detector says."""
    limits = np.array([size[0] - 1, size[1] - 1] * 2)
    pixels = np.clip(np.nan_to_num(np.asarray(box, np.float64) * scale), 0, limits).round().astype(int)
    left, top, right, bottom = (int(side) for side in pixels)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _dashed(draw: ImageDraw.ImageDraw, box: _Box, color: _Color, dash: int = 6) -> None:
    """Black with dashes of the colour: seen on any background, and over a solid box of the same colour."""
    left, top, right, bottom = box
    draw.rectangle(box, outline=(0, 0, 0), width=2)
    for start in range(left, right, 2 * dash):
        for y in (top, bottom - 1):
            draw.rectangle((start, y, min(start + dash - 1, right), y + 1), fill=color)
    for start in range(top, bottom, 2 * dash):
        for x in (left, right - 1):
            draw.rectangle((x, start, x + 1, min(start + dash - 1, bottom)), fill=color)


def _free_place(box: _Box, width: int, size: tuple[int, int], taken: Sequence[_Box]) -> _Box:
    """Where a tag goes: on the box, under it, or inside it, the first place that no other tag covers."""
    left, top, right, bottom = box
    height = _FONT_SIZE + 5
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


def _legend(classes: Sequence[str], score: float, width: int) -> Image.Image:
    """What the boxes mean and the colour of each class, in as many lines as the width asks for."""
    font = ImageFont.load_default(_LEGEND_SIZE)
    line = _LEGEND_SIZE + 14
    entries = ["truth", f"predicted, score at least {score:g}", *classes]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, x, y = [], _GAP, _GAP
    for text in entries:
        needed = 30 + int(measure.textlength(text, font=font)) + 26
        if x > _GAP and x + needed > width:
            x, y = _GAP, y + line
        places.append((x, y))
        x += needed
    legend = Image.new("RGB", (width, y + line + 4), _PAPER)
    draw = ImageDraw.Draw(legend)
    for number, (text, (left, top)) in enumerate(zip(entries, places, strict=True)):
        box = (left, top + 2, left + 22, top + _LEGEND_SIZE + 4)
        if number == 0:
            _dashed(draw, box, _PAPER)
        elif number == 1:
            draw.rectangle(box, outline=_INK, width=3)
        else:
            draw.rectangle(box, fill=_color(number - 2))
        draw.text((left + 30, top + 2 + _LEGEND_SIZE // 2), text, fill=_INK, font=font, anchor="lm")
    return legend


def _color(label: int) -> _Color:
    return _COLORS[int(label) % len(_COLORS)]
