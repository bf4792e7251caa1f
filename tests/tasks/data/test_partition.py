"""Partitions of training images: complete, seeded, with the specified sizes and class mixes; their specification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.partition import divide, image_class, partition_samples
from tasks.data.samples import ImageSample
from tasks.errors import DataError, SpecError
from tasks.spec.clients import BySize, Dirichlet, Iid, Partition
from tasks.spec.federation import parse_spec


def sample(key: object, *labels: int) -> ImageSample:
    boxes = np.zeros((len(labels), 4), dtype=np.float32)
    return ImageSample(Path(f"{key}.jpg"), 8, 8, boxes, np.array(labels, dtype=np.int64), str(key), "")


def keys(samples: Sequence[ImageSample], partition: Partition, classes: int = 3) -> dict[str, list[int]]:
    parts = partition_samples(samples, partition, classes=classes)
    return {client: [int(one.key) for one in part] for client, part in parts.items()}


THREE_CLASSES = [sample(number, number % 3) for number in range(300)]
PARTITIONS: tuple[Partition, ...] = (
    Iid(clients=7),
    Dirichlet(clients=7, alpha=0.01),
    Dirichlet(clients=7, alpha=1000),
    BySize(clients=7),
    BySize(clients=3, shares=(1, 5, 2)),
)


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
def test_each_image_goes_to_one_client_by_the_seed_in_the_sets_order(partition: Partition) -> None:
    parts = keys(THREE_CLASSES, partition)
    assert list(parts) == [str(number) for number in range(1, partition.clients + 1)]
    assert sorted(key for part in parts.values() for key in part) == list(range(300))
    assert all(part == sorted(part) for part in parts.values())
    assert keys(THREE_CLASSES, partition) == parts
    assert keys(THREE_CLASSES, partition.model_copy(update={"seed": 2})) != parts


@given(
    labels=st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=4, max_size=60),
    partition=st.one_of(
        st.builds(Iid, clients=st.integers(1, 4), seed=st.integers(0, 5)),
        st.builds(Dirichlet, clients=st.integers(1, 4), alpha=st.floats(1e-6, 1e6), seed=st.integers(0, 5)),
        st.builds(BySize, clients=st.integers(1, 4), exponent=st.floats(0, 10)),
    ),
)
@settings(max_examples=150, deadline=None)
def test_every_client_gets_images_whatever_the_labels(labels: list[list[int]], partition: Partition) -> None:
    parts = keys([sample(number, *own) for number, own in enumerate(labels)], partition)
    assert len(parts) == partition.clients
    assert all(parts.values())
    assert sorted(key for part in parts.values() for key in part) == list(range(len(labels)))


def test_iid_and_dirichlet_sizes_differ_by_one_at_most() -> None:
    for partition in PARTITIONS[:3]:
        sizes = [len(part) for part in keys(THREE_CLASSES, partition).values()]
        assert max(sizes) - min(sizes) <= 1


def test_sizes_follow_the_power_law_or_the_shares() -> None:
    sizes = [len(part) for part in keys(THREE_CLASSES, BySize(clients=4, exponent=1)).values()]
    assert sizes == [144, 72, 48, 36]
    sizes = [len(part) for part in keys(THREE_CLASSES, BySize(clients=3, shares=(1, 5, 2))).values()]
    assert sizes == [38, 187, 75] == divide(300, (1, 5, 2), least=1)


def spread(partition: Dirichlet) -> float:
    """Return the mean total variation distance of the clients' class mixes from the common one."""
    parts = keys(THREE_CLASSES, partition)
    mixes = np.array([np.bincount(np.array(part) % 3, minlength=3) / len(part) for part in parts.values()])
    return float(0.5 * np.abs(mixes - 1 / 3).sum(axis=1).mean())


def test_small_alpha_skews_the_classes_and_a_large_one_does_not() -> None:
    by_alpha = [
        np.mean([spread(Dirichlet(clients=10, alpha=alpha, seed=seed)) for seed in range(5)])
        for alpha in (0.05, 1.0, 1e4)
    ]
    assert by_alpha[0] > by_alpha[1] > by_alpha[2]
    assert by_alpha[0] > 0.4
    assert by_alpha[2] < 0.2


def test_clients_have_the_mixes_that_were_drawn() -> None:
    many = [sample(number, number % 2) for number in range(4000)]
    rng = np.random.Generator(np.random.PCG64(3))
    rng.permutation(4000)
    expected = rng.dirichlet([0.5, 0.5], size=80)
    parts = keys(many, Dirichlet(clients=80, alpha=1.0, seed=3), classes=2)
    # They are not equal: 50 images only sample a mix, and the last clients get the classes that are left.
    found = np.array([np.mean(np.array(part) % 2 == 0) for part in parts.values()])
    assert np.corrcoef(found, expected[:, 0])[0, 1] > 0.95


def test_the_class_of_an_image_is_its_most_frequent_label() -> None:
    assert image_class(sample(1, 2, 0, 0)) == 0
    assert image_class(sample(1, 2, 0, 0, 2)) == 2
    assert image_class(sample(1, 0, 2)) == 0
    assert image_class(sample(1)) == -1


@pytest.mark.parametrize("partition", [Iid(clients=3), Dirichlet(clients=3), BySize(clients=3)], ids=str)
def test_more_clients_than_images_are_refused(partition: Partition) -> None:
    with pytest.raises(DataError, match=r"data\.clients\.clients: expected at most 2, the number of .*, found 3"):
        partition_samples([sample(1, 0), sample(2, 0)], partition, classes=1)


WRONG_SPECS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "voc-folders"}, "data.name: "),
    ({"kind": "coco", "name": "/mnt/x"}, "data.name: "),
    ({"kind": "coco", "name": "a", "train": "../x.json"}, "data.train: "),
    ({"kind": "coco", "name": "a", "test_images": "/images"}, "data.test_images: "),
    ({"kind": "coco", "name": "a", "clients": {"kind": "folders"}}, "data.clients.kind: |data.clients: "),
    ({"kind": "coco", "name": "a", "clients": {"kind": "dirichlet", "alpha": 0}}, "data.clients.alpha: "),
    ({"kind": "coco", "name": "a", "clients": {"kind": "iid", "alpha": 1}}, "data.clients.alpha: "),
    ({"kind": "coco", "name": "a", "clients": {"kind": "size", "shares": [1, 2]}}, "shares: expected 5, one a client"),
    ({"kind": "coco", "name": "a", "classes": ["x", "x"]}, "classes: expected each class once"),
    ({"kind": "coco", "name": "a", "classes": []}, "data.classes: "),
]


@pytest.mark.parametrize(("data", "message"), WRONG_SPECS)
def test_wrong_specifications_of_own_data_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=rf"my\.yaml: .*({message})"):
        parse_spec({"data": data}, source="my.yaml")


def test_devices_are_known_before_reading_only_for_partitions() -> None:
    partition = {"kind": "coco", "name": "a", "clients": {"kind": "iid", "clients": 3}}
    assert parse_spec({"data": partition}, source="x").clients == ("1", "2", "3")
    unknown = parse_spec({"data": {"kind": "coco", "name": "a"}, "participation": {"min_clients": 9}}, source="x")
    assert unknown.clients is None
    with pytest.raises(SpecError, match=r"participation\.min_clients: expected at most 3, the split's devices"):
        parse_spec({"data": partition, "participation": {"min_clients": 9}}, source="x")
    with pytest.raises(ValueError, match=r"min_clients: expected at most 2"):
        unknown.check_devices(("a", "b"))
