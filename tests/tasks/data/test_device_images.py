"""Images that stay on a device: batches made there equal the ordinary loader's but for some levels of pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.data.batches import Batches
from tasks.data.device_images import DeviceImages
from tasks.data.image_cache import ImageCache
from tasks.data.loading import DeviceLoader, EvaluationLoader, TrainingLoader, training_loader
from tasks.data.samples import ImageSample, Regions
from tasks.errors import ClientError
from tasks.spec.training import Augmentation
from tests.gpu.scenes import samples_in

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, HEIGHT = 64, 48
IMAGE_BYTES = 3 * WIDTH * HEIGHT
CPU = torch.device("cpu")


@pytest.fixture
def samples(tmp_path: Path) -> list[ImageSample]:
    """Return nine images. One has an ignore region, and one a label space."""
    found = samples_in(tmp_path, 9)
    regions = Regions(np.array([[10, 10, 60, 50]], np.float32), np.array([1]))
    found[2] = dataclasses.replace(found[2], regions=regions)
    found[5] = dataclasses.replace(found[5], labelled=np.array([True, False, True]))
    return found


def held(limit: int = 1_000_000) -> DeviceImages:
    return DeviceImages(ImageCache(0), CPU, limit)


def loader(samples: Sequence[ImageSample], on_device: DeviceImages | None) -> Batches:
    return training_loader(
        samples,
        width=WIDTH,
        height=HEIGHT,
        batch_size=4,
        epochs=2,
        seed=3,
        round=2,
        client="7",
        augmentation=Augmentation(),
        workers=0,
        cache=ImageCache(0),
        on_device=on_device,
    )


def test_batches_have_the_order_and_objects_of_the_ordinary_loader(samples: list[ImageSample]) -> None:
    ordinary, on_device = loader(samples, None), loader(samples, held())
    assert (type(ordinary), type(on_device)) == (TrainingLoader, DeviceLoader)
    assert len(ordinary) == len(on_device) == 4
    for one, other in zip(ordinary, on_device, strict=True):
        assert one.indices == other.indices
        for name in ("boxes", "labels", "regions", "region_labels"):
            first, second = getattr(one, name), getattr(other, name)
            assert (first is None) == (second is None)
            assert all(torch.equal(*pair) for pair in zip(first or [], second or [], strict=True)), name
        assert (one.labelled is None) == (other.labelled is None)
        assert one.labelled is None or other.labelled is None or torch.equal(one.labelled, other.labelled)
        difference = (one.images.int() - other.images.int()).abs()
        assert difference.max() <= 5
        assert difference.float().mean() < 0.2


def test_images_that_do_not_fit_are_loaded_in_the_ordinary_way(samples: list[ImageSample]) -> None:
    images = held(8 * IMAGE_BYTES)
    assert isinstance(loader(samples, images), TrainingLoader)
    assert len(images) == images.bytes == 0
    assert isinstance(loader(samples[:8], images), DeviceLoader)


def test_the_least_recently_used_images_are_dropped(samples: list[ImageSample]) -> None:
    images = held(5 * IMAGE_BYTES)
    for chosen in (samples[:3], samples[3:5], samples[:2], samples[5:7]):
        assert images.hold(chosen, width=WIDTH, height=HEIGHT, threads=2)
    assert images.bytes == len(images) * IMAGE_BYTES <= images.bytes <= 5 * IMAGE_BYTES
    for sample in samples[5:]:
        sample.path.unlink()
    for sample in (*samples[:2], *samples[5:7]):
        assert images.get(sample, width=WIDTH, height=HEIGHT).shape == (3, HEIGHT, WIDTH)
    with pytest.raises(ClientError, match=r"7\.png"):
        images.get(samples[7], width=WIDTH, height=HEIGHT)


def test_held_images_are_neither_read_again_nor_changed(samples: list[ImageSample]) -> None:
    images = held()
    first = [batch.images.clone() for batch in loader(samples, images)]
    for sample in samples:
        sample.path.unlink()
    second = [batch.images for batch in loader(samples, images)]
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_an_image_that_cannot_be_decoded_is_named(samples: list[ImageSample]) -> None:
    samples[4].path.write_bytes(b"no picture")
    with pytest.raises(ClientError, match=r"4\.png: expected an image that can be decoded"):
        loader(samples, held())


def test_evaluation_uses_the_held_images_in_the_same_bits(samples: list[ImageSample]) -> None:
    size: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "batch_size": 4}
    plain = EvaluationLoader(samples, **size, cache=ImageCache(0))
    images = held()
    with torch.inference_mode():
        found = list(EvaluationLoader(samples, **size, cache=ImageCache(0), on_device=images))
    assert len(images) == len(samples)
    assert not any(images.get(sample, width=WIDTH, height=HEIGHT).is_inference() for sample in samples)
    for one, other in zip(plain, found, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.indices == other.indices
        assert all(torch.equal(*pair) for pair in zip(one.boxes, other.boxes, strict=True))
    few = held(IMAGE_BYTES)
    assert len(list(EvaluationLoader(samples, **size, cache=ImageCache(0), on_device=few))) == 3
    assert len(few) == 1  # the last batch has one image
