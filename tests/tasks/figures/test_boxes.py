"""Detections drawn on an image: places and colours of the boxes, and the pixels that stay unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tasks.figures.boxes import DRAWN_SCORE, class_color, draw_detections
from tasks.metrics.detections import ImageDetections

GREY = (128, 128, 128)


def changed(image: Image.Image, drawn: Image.Image) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((np.asarray(image.convert("RGB")) != np.asarray(drawn)).any(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize("scale", [1, 4])
def test_a_box_is_outlined_in_its_colour_with_a_tag_on_it(scale: int) -> None:
    image = Image.new("RGB", (520 * scale, 400 * scale), GREY)
    box = np.array([100, 150, 300, 350]) * scale
    found = ImageDetections(box[None], np.array([0.876]), np.array([1]))
    drawn = draw_detections(image, found, ["bus", "chair"])
    assert (drawn.size, drawn.mode) == (image.size, "RGB")
    left, top, right, bottom = changed(image, drawn)
    assert (left, right, bottom) == (100 * scale, 300 * scale, 350 * scale)
    assert 150 * scale - 30 * scale < top < 150 * scale - 10 * scale  # the tag grows with the image
    pixels = np.asarray(drawn)
    assert tuple(pixels[300 * scale, 100 * scale]) == class_color(1)
    assert tuple(pixels[250 * scale, 200 * scale]) == GREY
    assert (np.asarray(image) == 128).all()  # the given image is not changed


def test_detections_below_the_score_are_not_drawn() -> None:
    image = Image.new("L", (100, 80), 128)
    boxes = np.array([[10, 10, 40, 40], [50, 50, 90, 70]])
    found = ImageDetections(boxes, np.array([DRAWN_SCORE - 0.01, 0.1]), np.array([0, 0]))
    assert np.asarray(draw_detections(image, found, ["a"])).tolist() == np.asarray(image.convert("RGB")).tolist()
    _, _, right, bottom = changed(image, draw_detections(image, found, ["a"], score=0.29))
    assert right < 50
    assert 40 <= bottom < 60


def test_colours_differ_between_neighbouring_classes_and_repeat() -> None:
    assert len({class_color(label) for label in range(7)}) == 7
    assert class_color(7) == class_color(0)


def test_a_tiny_image_and_boxes_outside_of_it_are_drawn() -> None:
    image = Image.new("RGB", (12, 9), GREY)
    found = ImageDetections(np.array([[-5, -5, 90, 90], [np.nan] * 4]), np.array([0.9, 0.8]), np.array([0, 0]))
    assert draw_detections(image, found, ["a class with a long name"]).size == (12, 9)
