"""Batches: geometry, caching, and random draws that depend only on their seeds."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data.batches import Batch, Batches, cut_batches
from tasks.data.image_cache import ImageCache, decode
from tasks.data.loading import EvaluationLoader, training_loader
from tasks.data.samples import ANY_CLASS, ImageSample, Regions
from tasks.errors import ClientError
from tasks.spec.data import SyntheticStreet
from tasks.spec.training import Augmentation
from tasks.training.multi_scale import resize
from tasks.training.targets import targets_of
from tests.tasks.drawn_data import drawn_data

pytestmark = pytest.mark.usefixtures("one_thread")

Samples = tuple[ImageSample, ...]
PLAIN = Augmentation(flip=0, scale=0, translate=0, color=0)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    spec = SyntheticStreet(train_images=40, test_images=5, width=128, height=96)
    return drawn_data(spec, tmp_path_factory.mktemp("cache")).train["2"][:11]


def loader(
    samples: Samples,
    *,
    seed: int = 5,
    round: int = 1,
    client: str = "2",
    batch_size: int = 4,
    epochs: int = 1,
    augmentation: Augmentation | None = None,
    workers: int = 0,
    cache: ImageCache | None = None,
    drop_last: bool = False,
) -> Batches:
    return training_loader(
        samples,
        width=64,
        height=96,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        round=round,
        client=client,
        augmentation=augmentation or Augmentation(),
        workers=workers,
        cache=cache or ImageCache(50),
        drop_last=drop_last,
    )


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.indices for batch in first] == [batch.indices for batch in second]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)
        for left, right in zip(a.boxes + a.labels, b.boxes + b.labels, strict=True):
            assert torch.equal(left, right)


def test_evaluation_is_in_order_with_boxes_in_input_pixels(samples: Samples) -> None:
    batches = EvaluationLoader(samples[:5], width=64, height=192, batch_size=2, cache=ImageCache(50))
    assert len(batches) == 3
    got = list(batches)
    assert [batch.indices for batch in got] == [[0, 1], [2, 3], [4]]
    assert got[0].images.dtype == torch.uint8
    assert got[0].images.shape == (2, 3, 192, 64)
    # From 128 x 96 to 64 x 192, widths are halved and heights doubled.
    expected = samples[3].boxes * np.array([0.5, 2, 0.5, 2], dtype=np.float32)
    np.testing.assert_allclose(got[1].boxes[1].numpy(), expected)
    np.testing.assert_array_equal(got[1].labels[1].numpy(), samples[3].labels)
    assert_same(got, list(batches))
    assert_same(got, [batches[number] for number in range(len(batches))])
    with pytest.raises(IndexError):
        batches[3]


def test_decode_stretches_without_padding(samples: Samples) -> None:
    with Image.open(samples[0].path) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(samples[0], width=128, height=96), expected.transpose(2, 0, 1))
    small = decode(samples[0], width=32, height=32).astype(float)
    assert abs(small.mean() - expected.mean()) < 1


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_no_bit(samples: Samples, workers: int) -> None:
    assert_same(list(loader(samples, epochs=2)), list(loader(samples, epochs=2, workers=workers)))


def test_torchs_global_generator_is_not_used(samples: Samples) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = list(loader(samples))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert_same(first, list(loader(samples)))


@pytest.mark.parametrize("change", [{"seed": 6}, {"round": 2}, {"client": "3"}])
def test_seed_round_and_client_each_change_order_and_augmentation(samples: Samples, change: dict) -> None:
    first, second = list(loader(samples)), list(loader(samples, **change))
    assert [batch.indices for batch in first] != [batch.indices for batch in second]
    images = [
        {index: image for batch in got for index, image in zip(batch.indices, batch.images, strict=True)}
        for got in (first, second)
    ]
    assert not torch.equal(images[0][0], images[1][0])


def test_every_epoch_has_every_image_once_in_another_order(samples: Samples) -> None:
    batches = loader(samples, epochs=3)
    got = list(batches)
    per_epoch = len(loader(samples))
    assert len(got) == len(batches) == 3 * per_epoch
    orders = [
        [index for batch in got[epoch * per_epoch :][:per_epoch] for index in batch.indices] for epoch in range(3)
    ]
    assert all(sorted(order) == list(range(len(samples))) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_a_longer_turn_starts_like_a_shorter_one(samples: Samples) -> None:
    assert_same(list(loader(samples)), list(loader(samples, epochs=2))[: len(loader(samples))])


def test_no_augmentation_is_the_evaluation_image(samples: Samples) -> None:
    plain = next(iter(loader(samples, augmentation=PLAIN)))
    whole = next(iter(EvaluationLoader(samples, width=64, height=96, batch_size=len(samples), cache=ImageCache(50))))
    for position, index in enumerate(plain.indices):
        assert torch.equal(plain.images[position], whole.images[index])
        assert torch.equal(plain.boxes[position], whole.boxes[index])


@pytest.mark.parametrize(
    ("count", "drop_last", "sizes"),
    [
        (8, False, [4, 4]),
        (9, False, [4, 5]),
        (10, False, [4, 4, 2]),
        (1, False, [1]),
        (3, False, [3]),
        (10, True, [4, 4]),
        (9, True, [4, 4]),
        (3, True, [3]),
    ],
)
def test_no_batch_has_a_single_image_if_avoidable(count: int, drop_last: bool, sizes: list[int]) -> None:
    cuts = cut_batches(count, 4, drop_last=drop_last)
    assert [cut.stop - cut.start for cut in cuts] == sizes
    assert [index for cut in cuts for index in range(cut.start, cut.stop)] == list(range(sum(sizes)))


def test_batches_of_one_stay_batches_of_one() -> None:
    assert [cut.stop - cut.start for cut in cut_batches(3, 1)] == [1, 1, 1]


def test_cached_images_are_not_changed_by_augmentation(samples: Samples) -> None:
    cache = ImageCache(50)
    list(loader(samples, cache=cache, epochs=2))
    for sample in samples:
        np.testing.assert_array_equal(cache.get(sample, width=64, height=96), decode(sample, width=64, height=96))


def test_cache_is_bounded_and_drops_the_least_recently_used(samples: Samples) -> None:
    size = 3 * 32 * 32
    cache = ImageCache(2 * size / 1e6)
    a, b, c = samples[:3]
    for sample in (a, b, a, c):  # b is the least recently used when c is added
        cache.get(sample, width=32, height=32)
    assert (len(cache), cache.bytes) == (2, 2 * size)
    kept = cache.get(a, width=32, height=32)
    assert cache.get(a, width=32, height=32) is kept
    assert len(cache) == 2
    cache.get(a, width=64, height=64)  # larger than the bound: returned, but not kept
    assert (len(cache), cache.bytes) == (2, 2 * size)
    none = ImageCache(0)
    none.get(a, width=32, height=32)
    assert len(none) == 0


def test_a_cache_is_sent_empty_to_other_processes(samples: Samples) -> None:
    cache = ImageCache(1)
    cache.get(samples[0], width=32, height=32)
    sent = copy.copy(cache)  # copies by the protocol that sends objects to processes
    assert (len(sent), sent.bytes, sent.limit) == (0, 0, cache.limit)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:600]), "expected an image that can be decoded"),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"\0"),
            "has changed since the data set was loaded",
        ),
        (lambda path: path.unlink(), "cannot be read: No such file"),
    ],
    ids=["truncated", "changed", "gone"],
)
def test_bad_image_is_the_clients_own_error(samples: Samples, workers: int, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    path: Path = samples[1].path
    good = path.read_bytes()
    try:
        damage(path)
        with pytest.raises(ClientError, match=f"^{path}: .*{message}"):
            list(loader(samples, workers=workers))
        with pytest.raises(ClientError, match=f"^{path}: .*{message}"):
            list(EvaluationLoader(samples, width=64, height=96, batch_size=2, cache=ImageCache(50)))
    finally:
        path.write_bytes(good)


def test_client_without_images_is_named() -> None:
    with pytest.raises(ClientError, match="client 2: no training images; expected at least one"):
        loader(())


def with_region(sample: ImageSample) -> ImageSample:
    box = np.array([[16, 24, 64, 48]], dtype=np.float32)
    return dataclasses.replace(sample, regions=Regions(box, np.array([ANY_CLASS])))


def test_regions_are_in_input_pixels_for_every_image_of_a_batch_that_has_any(samples: Samples) -> None:
    chosen = (samples[0], with_region(samples[1]), samples[2])
    first, second = EvaluationLoader(chosen, width=64, height=192, batch_size=2, cache=ImageCache(50))
    assert first.regions is not None
    assert first.region_labels is not None
    assert [region.tolist() for region in first.regions] == [[], [[8, 48, 32, 96]]]
    assert [label.tolist() for label in first.region_labels] == [[], [ANY_CLASS]]
    assert (second.regions, second.region_labels) == (None, None)
    targets = targets_of(first).to(torch.device("cpu"))
    assert targets.regions is not None
    assert torch.equal(targets.regions[1], first.regions[1])
    assert targets.region_labels == first.region_labels
    _, resized = resize(first.images, targets, (128, 96))
    assert resized.regions is not None
    assert resized.regions[1].tolist() == [[16, 24, 64, 48]]
    assert resized.region_labels == first.region_labels


def test_regions_are_augmented_with_their_image_and_change_nothing_else(samples: Samples) -> None:
    plain, with_regions = list(loader(samples)), list(loader(tuple(map(with_region, samples))))
    assert_same(plain, with_regions)
    assert all(batch.regions is None for batch in plain)
    moved = [region.tolist() for batch in with_regions for region in batch.regions or ()]
    assert len(moved) == len(samples)
    assert len({str(region) for region in moved}) > len(samples) / 2
    # An object in the region's place moves to the same place.
    objects = tuple(
        dataclasses.replace(sample, boxes=sample.regions.boxes, labels=np.zeros(1, np.int64))
        for sample in map(with_region, samples)
        if sample.regions is not None
    )
    assert moved == [box.tolist() for batch in loader(objects) for box in batch.boxes]
