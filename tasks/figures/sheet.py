"""A sheet of test images with the true boxes and the predicted ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tasks.data.samples import ANY_CLASS, Regions
from tasks.errors import DataError
from tasks.figures.boxes import (
    DRAWN_SCORE,
    FONT_SIZE,
    INK,
    LINE_WIDTH,
    Box,
    Color,
    class_color,
    draw_outlines,
    draw_tags,
    marks_of,
    pixel_box,
)
from tasks.metrics.detections import ImageDetections
from tasks.plain_text import LABEL_LIMIT, plain_name

# An image, its objects (boxes [m, 4] in pixels of the image, labels [m]) and its detections.
SheetImage = tuple[Image.Image, tuple[np.ndarray, np.ndarray], ImageDetections]

TILE_WIDTH = 520
_GAP = 12
_LEGEND_SIZE = 17
_LEGEND_HEIGHT = 4096  # at most
_PAPER = (255, 255, 255)
# Ignore regions of any class.
GREY = (150, 150, 150)


def detection_sheet(
    images: Sequence[SheetImage],
    classes: Sequence[str],
    *,
    regions: Sequence[Regions | None] = (),
    score: float = DRAWN_SCORE,
    columns: int = 3,
) -> Image.Image:
    """Draw each image on a tile of its own, ``columns`` tiles in a row. Return the sheet as an RGB image.

    Boxes have the colour of their class. True ones are dashed; predicted ones of at least ``score`` are
    solid, with class and score. An ignore region is hatched, in the colour of its class or, for any class, in grey.

    regions: those of each image; none if empty.

    Raises:
        DataError: there are no images, or a label is not one of ``classes``.
    """
    if not images:
        raise DataError("sheet: expected at least one image, found none")
    columns = max(1, min(columns, len(images)))
    ignored = [Regions.none() if own is None else own for own in regions] or [Regions.none()] * len(images)
    tiles = [_tile(entry, own, classes, score) for entry, own in zip(images, ignored, strict=True)]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    width = columns * TILE_WIDTH + (columns + 1) * _GAP
    legend = _legend(classes, score, width, regions=any(map(len, ignored)))
    height = legend.height + sum(max(tile.height for tile in row) + _GAP for row in rows)
    sheet = Image.new("RGB", (width, height), _PAPER)
    sheet.paste(legend, (0, 0))
    top = legend.height
    for row in rows:
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (TILE_WIDTH + _GAP), top))
        top += max(tile.height for tile in row) + _GAP
    return sheet


def most_pixels(images: int, columns: int = 3) -> int:
    """Return the most pixels of a sheet of so many images, if none is more than four times as high as wide."""
    rows = -(-images // columns)
    return (columns * (TILE_WIDTH + _GAP) + _GAP) * (rows * (4 * TILE_WIDTH + _GAP) + _LEGEND_HEIGHT)


def _tile(entry: SheetImage, regions: Regions, classes: Sequence[str], score: float) -> Image.Image:
    image, truth, found = entry
    true_boxes = np.asarray(truth[0], np.float64).reshape(-1, 4)
    of_class = regions.labels[regions.labels != ANY_CLASS]
    for label in [*np.asarray(truth[1]).tolist(), *found.labels.tolist(), *of_class.tolist()]:
        if not 0 <= label < len(classes):
            raise DataError(f"sheet: labels: expected class indices from 0 to {len(classes) - 1}, found {label}")
    scale = TILE_WIDTH / image.width
    size = (TILE_WIDTH, max(1, round(image.height * scale)))
    tile = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(tile)
    for box, label in zip(regions.boxes, regions.labels.tolist(), strict=True):
        _hatched(draw, pixel_box(box, scale, size), GREY if label == ANY_CLASS else class_color(label))
    marks = marks_of(found, classes, score=score, scale=scale, size=size)
    draw_outlines(draw, marks, LINE_WIDTH)
    for box, label in zip(true_boxes, truth[1], strict=True):
        _dashed(draw, pixel_box(box, scale, size), class_color(label))
    draw_tags(draw, marks, size, FONT_SIZE)
    return tile


def _dashed(draw: ImageDraw.ImageDraw, box: Box, color: Color, dash: int = 6) -> None:
    """Draw a black box with dashes of ``color``, visible on any background and over a solid box of that colour."""
    left, top, right, bottom = box
    draw.rectangle(box, outline=(0, 0, 0), width=2)
    for start in range(left, right, 2 * dash):
        for y in (top, bottom - 1):
            draw.rectangle((start, y, min(start + dash - 1, right), y + 1), fill=color)
    for start in range(top, bottom, 2 * dash):
        for x in (left, right - 1):
            draw.rectangle((x, start, x + 1, min(start + dash - 1, bottom)), fill=color)


def _hatched(draw: ImageDraw.ImageDraw, box: Box, color: Color, gap: int = 8) -> None:
    """Draw a thin box filled with diagonal lines, through which the image stays visible."""
    left, top, right, bottom = box
    draw.rectangle(box, outline=color)
    height = bottom - top
    for start in range(left - height + gap, right, gap):
        # The line from (start, bottom) to (start + height, top), cut at the left and right edges.
        first, last = max(start, left), min(start + height, right)
        draw.line((first, bottom - (first - start), last, bottom - (last - start)), fill=color)


def _legend(classes: Sequence[str], score: float, width: int, *, regions: bool = False) -> Image.Image:
    """Draw the meaning of the boxes and the colour of each class, in as many lines as the width needs.

    regions: whether ignore regions are among them.
    """
    font = ImageFont.load_default(_LEGEND_SIZE)
    line = _LEGEND_SIZE + 14
    boxes = ["truth", f"predicted, score at least {score:g}", *(["ignore region"] if regions else [])]
    entries = [*boxes, *(plain_name(name, LABEL_LIMIT) for name in classes)]
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
            draw.rectangle(box, outline=INK, width=LINE_WIDTH)
        elif number < len(boxes):
            _hatched(draw, box, GREY)
        else:
            draw.rectangle(box, fill=class_color(number - len(boxes)))
        draw.text((left + 30, top + 2 + _LEGEND_SIZE // 2), text, fill=INK, font=font, anchor="lm")
    return legend
