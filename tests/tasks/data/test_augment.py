"""Augmentation: boxes follow the pixels, and objects that leave the view are dropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.data.augment import FILL, Draws, apply, clip_boxes, draw, move_regions
from tasks.spec.training import Augmentation

HEIGHT, WIDTH = 80, 120
BOX = (30, 20, 60, 50)


def draws(*, flip: bool = False, zoom: float = 1, shift_x: float = 0, shift_y: float = 0, color: float = 1) -> Draws:
    return Draws(flip, zoom, shift_x, shift_y, brightness=color, contrast=color, saturation=color)


def picture() -> tuple[Tensor, Tensor, Tensor]:
    """Return an image of a white rectangle on black, its box and its label."""
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    left, top, right, bottom = BOX
    image[:, top:bottom, left:right] = 255
    return image, torch.tensor([BOX], dtype=torch.float32), torch.tensor([4])


def white_box(image: Tensor) -> Tensor:
    rows, columns = torch.nonzero(image[0] > 185, as_tuple=True)
    return torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()


@pytest.mark.parametrize(
    "change",
    [
        draws(flip=True),
        draws(zoom=1.25),
        draws(zoom=0.75),
        draws(shift_x=0.1, shift_y=-0.1),
        draws(flip=True, zoom=0.8, shift_x=-0.1, shift_y=0.1),
    ],
)
def test_boxes_follow_the_pixels(change: Draws) -> None:
    image, boxes, labels = picture()
    new_image, new_boxes, new_labels = apply(image, boxes, labels, change)
    assert new_image.shape == image.shape
    assert new_image.dtype == torch.uint8
    assert new_labels.tolist() == [4]
    assert (new_boxes[0] - white_box(new_image)).abs().max() <= 1
    assert torch.equal(white_box(image), torch.tensor(BOX).float())  # the input is not changed


def test_zoom_and_shift_have_the_stated_size_and_direction() -> None:
    image, boxes, labels = picture()
    _, larger, _ = apply(image, boxes, labels, draws(zoom=1.25))
    sides = larger[0, 2:] - larger[0, :2]
    torch.testing.assert_close(sides, torch.tensor([37.5, 37.5]), atol=1, rtol=0)
    _, moved, _ = apply(image, boxes, labels, draws(shift_x=0.1, shift_y=-0.1))
    torch.testing.assert_close(moved[0], torch.tensor(BOX) + torch.tensor([12.0, -8.0, 12.0, -8.0]))


def test_uncovered_border_is_grey() -> None:
    image, boxes, labels = picture()
    out, _, _ = apply(image, boxes, labels, draws(zoom=0.5))
    assert out[:, 0, 0].tolist() == [FILL] * 3
    assert out[:, -1, -1].tolist() == [FILL] * 3


def test_color_changes_pixels_and_no_box() -> None:
    image = torch.full((3, HEIGHT, WIDTH), 100, dtype=torch.uint8)
    boxes = torch.tensor([BOX], dtype=torch.float32)
    out, same, _ = apply(image, boxes, torch.tensor([0]), draws(color=1.2))
    assert out.float().mean() > 110
    assert torch.equal(same, boxes)


def test_objects_that_are_mostly_out_of_view_are_dropped() -> None:
    boxes = torch.tensor(
        [
            [-10.0, 10, 10, 30],  # half is in view
            [-15.9, 10, 4, 30],  # a fifth is in view
            [90, -15, 110, 5],  # exactly a quarter is in view
            [200, 10, 220, 30],  # nothing is in view
            [118.5, 10, 124, 30],  # over a quarter is in view, but it is only 1.5 pixels wide
        ]
    )
    cut, kept = clip_boxes(boxes, width=WIDTH, height=HEIGHT)
    assert kept.tolist() == [True, False, True, False, False]
    assert cut[0].tolist() == [0, 10, 10, 30]


def test_an_image_may_lose_all_objects_or_have_none() -> None:
    image, _, _ = picture()
    boxes = torch.tensor([[0.0, 0, 8, 8]])
    _, left, labels = apply(image, boxes, torch.tensor([1]), draws(shift_x=-0.2, shift_y=-0.2))
    assert left.shape == (0, 4)
    assert labels.shape == (0,)
    _, none, _ = apply(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), draws(flip=True, zoom=1.2))
    assert none.shape == (0, 4)


def test_random_changes_stay_within_the_settings_and_reach_both_limits() -> None:
    settings = Augmentation(flip=0.5, scale=0.25, translate=0.1, color=0.3)
    many = [draw(settings, np.random.default_rng(number)) for number in range(300)]
    assert 100 < sum(one.flip for one in many) < 200
    for name, middle, spread in (
        ("zoom", 1, 0.25),
        ("shift_x", 0, 0.1),
        ("shift_y", 0, 0.1),
        ("brightness", 1, 0.3),
        ("contrast", 1, 0.3),
        ("saturation", 1, 0.3),
    ):
        values = np.array([getattr(one, name) for one in many]) - middle
        assert np.abs(values).max() <= spread
        assert values.min() < -0.8 * spread
        assert values.max() > 0.8 * spread


def test_switching_one_change_off_does_not_change_the_others() -> None:
    everything = draw(Augmentation(), np.random.default_rng(1))
    less = draw(Augmentation(flip=0, color=0), np.random.default_rng(1))
    assert (less.zoom, less.shift_x, less.shift_y) == (
        everything.zoom,
        everything.shift_x,
        everything.shift_y,
    )
    assert (less.flip, less.brightness) == (False, 1.0)


@pytest.mark.parametrize(
    "change", [draws(), draws(flip=True), draws(zoom=1.25, shift_x=0.1), draws(flip=True, zoom=0.8, shift_y=-0.1)]
)
def test_regions_move_as_objects_do(change: Draws) -> None:
    image, boxes, labels = picture()
    _, expected, _ = apply(image, boxes, labels, change)
    moved, same = move_regions(boxes, labels, change, width=WIDTH, height=HEIGHT)
    assert torch.equal(moved, expected)
    assert torch.equal(same, labels)


def test_a_region_stays_as_long_as_a_part_of_it_is_in_view() -> None:
    image, _, _ = picture()
    change = draws(shift_x=-0.2)  # by 24 pixels to the left
    boxes = torch.tensor([[0.0, 0, 25, 40], [0.0, 0, 24, 40], [-5, -5, 200, 200]])
    labels = torch.tensor([-1, 2, 0])
    assert apply(image, boxes[:1], labels[:1], change).labels.shape == (0,)
    moved, kept = move_regions(boxes, labels, change, width=WIDTH, height=HEIGHT)
    assert kept.tolist() == [-1, 0]
    assert moved.tolist() == [[0, 0, 1, 40], [0, 0, WIDTH, HEIGHT]]
