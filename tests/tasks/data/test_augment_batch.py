"""Augmentation of a batch at once, as on a GPU, against that of one image: boxes are common, pixels are close."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tasks.data.augment import Draws, change_pixels, draw
from tasks.data.augment_batch import apply_to_batch
from tasks.spec.training import Augmentation

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 72, 96


def draws(**fields: float | bool) -> Draws:
    plain = {"flip": False, "zoom": 1.0, "shift_x": 0.0, "shift_y": 0.0}
    return Draws(**{**plain, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, **fields})  # type: ignore[arg-type]


def pictures(count: int, smooth: bool) -> Tensor:
    """Return images of noise, uint8 [count, 3, H, W]. smooth: noise in large grains, as in photographs."""
    generator, factor = np.random.default_rng(5), 6 if smooth else 1
    found = []
    for _ in range(count):
        pixels = generator.integers(0, 256, (HEIGHT // factor, WIDTH // factor, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        found.append(torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy()))
    return torch.stack(found)


def differences(changes: list[Draws], *, smooth: bool = False) -> Tensor:
    """Return the differences in levels between the batch and its images one by one."""
    images = pictures(len(changes), smooth)
    before = images.clone()
    found = apply_to_batch(images, changes)
    assert torch.equal(images, before)
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    expected = torch.stack([change_pixels(image, one) for image, one in zip(images, changes, strict=True)])
    return (found.int() - expected.int()).abs()


def test_flips_shifts_and_margins_are_exact() -> None:
    changes = [
        draws(),
        draws(flip=True),
        draws(shift_x=0.2, shift_y=-0.1),
        draws(flip=True, shift_x=-0.5, shift_y=0.5),
    ]
    assert differences(changes).max() == 0


@pytest.mark.parametrize("smooth", [False, True])
def test_a_zoom_differs_by_one_level_and_seldom_by_two(smooth: bool) -> None:
    zooms = [0.3, 0.75, 0.8, 0.97, 1.03, 1.25, 1.9]
    changes = [draws(flip=index % 2 > 0, zoom=zoom, shift_x=0.1 * (index - 3)) for index, zoom in enumerate(zooms)]
    found = differences(changes, smooth=smooth)
    assert found.max() <= 2
    assert (found == 2).float().mean() < 1e-4
    assert found.float().mean() < 0.1


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_change_of_colour_differs_by_one_level_at_most(name: str) -> None:
    found = differences([draws(**{name: factor}) for factor in (0.0, 0.7, 0.93, 1.0, 1.1, 1.3, 2.0)])
    assert found.max() <= 1
    assert found.float().mean() < 0.01


def test_all_changes_together_differ_by_few_levels() -> None:
    changes = [draw(Augmentation(), np.random.default_rng(number)) for number in range(40)]
    found = differences(changes, smooth=True)
    assert found.max() <= 5
    assert found.float().mean() < 0.2


def test_other_draws_give_other_images() -> None:
    images = pictures(1, True)
    assert len({apply_to_batch(images, [draws(zoom=zoom)]).sum().item() for zoom in (0.8, 1.0, 1.2)}) == 3
