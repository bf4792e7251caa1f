"""Images of clients that label a part of the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from flows.cli import data_report as command
from tasks.data.catalog import load_data
from tasks.data.check import check_data
from tasks.data.entries import Faults
from tasks.data.image_cache import ImageCache
from tasks.data.label_space import with_label_space
from tasks.data.loading import EvaluationLoader, training_loader
from tasks.data.samples import ANY_CLASS, FederatedData, ImageSample, Regions, samples_digest
from tasks.errors import DataError
from tasks.models.evaluate import evaluation_sets
from tasks.spec.data import Coco, Holdout
from tasks.spec.training import Augmentation
from tests.tasks.data.pictures import HEIGHT, WIDTH, picture

CLASSES = ("bin", "cup", "hat")
SPACE = {"a": ("bin", "hat"), "b": ("cup",)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a COCO folder: devices a, b and c have three training images and a test image, each with a bin and a cup.

    Nobody has a hat. train.json and test.json name the devices, shared.json is the test set without devices.
    """
    root = tmp_path_factory.mktemp("set")
    (root / "images").mkdir()
    number = 0
    for file, each in (("train.json", 3), ("test.json", 1)):
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for device in "abc":
            for _ in range(each):
                number += 1
                picture(number).save(root / "images" / f"{number}.png")
                images.append({"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT})
                images[-1]["device"] = device
                for label in (1, 2):
                    box = {"image_id": number, "category_id": label, "bbox": [label, 1, 20, 20 + label]}
                    boxes.append({"id": len(boxes) + 1, **box})
        categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, 1)]
        document = {"images": images, "annotations": boxes, "categories": categories}
        (root / file).write_text(json.dumps(document))
        for image in images:
            del image["device"]
        (root / "shared.json").write_text(json.dumps(document))
    return root


def load(root: Path, *, faults: Faults | None = None, whole: bool = False, **fields: Any) -> FederatedData:
    spec = Coco.model_validate({"name": "mine", "label_space": SPACE, **fields})
    return load_data(spec, root_of=lambda name: root, cache=root / "cache", faults=faults, whole=whole)


def spaces(samples: tuple[ImageSample, ...]) -> set[str | None]:
    """Return the label spaces of ``samples``: a 1 for a labelled class, else a 0. None: all are labelled."""
    return {None if item.labelled is None else "".join(map(str, item.labelled.astype(int))) for item in samples}


def labels(samples: tuple[ImageSample, ...]) -> list[list[int]]:
    return [item.labels.tolist() for item in samples]


def test_each_client_s_images_have_its_label_space_and_no_other_objects(root: Path) -> None:
    data = load(root, whole=True)
    assert {client: spaces(own) for client, own in data.train.items()} == {"a": {"101"}, "b": {"010"}, "c": {None}}
    assert {client: labels(own) for client, own in data.train.items()} == {
        "a": [[0]] * 3, "b": [[1]] * 3, "c": [[0, 1]] * 3,
    }  # fmt: skip
    assert data.train["b"][0].boxes.tolist() == [[2, 1, 22, 23]]


def test_a_client_s_own_test_set_has_its_label_space_too(root: Path) -> None:
    data = load(root)
    assert {client: spaces(own) for client, own in data.test.items()} == {"a": {"101"}, "b": {"010"}, "c": {None}}
    assert labels(data.test["a"]) == [[0]]


def test_a_shared_test_set_is_labelled_completely(root: Path) -> None:
    data = load(root, test="shared.json")
    assert spaces(data.test["a"]) == {None}
    assert labels(data.test["a"]) == [[0, 1]] * 3
    assert data.test["a"] is data.test["b"]


def test_held_out_images_have_the_label_space_of_their_client(root: Path) -> None:
    data = load(root, holdout=Holdout(fraction=0.34, least=1))
    assert {client: spaces(own) for client, own in data.holdout.items()} == {"a": {"101"}, "b": {"010"}, "c": {None}}


def test_pooled_images_keep_the_label_space_of_their_client(root: Path) -> None:
    federation, pooled = load(root), load(root, pooled=True)
    assert [samples_digest([sample]) for sample in pooled.train["all"]] == [
        samples_digest([sample]) for own in federation.train.values() for sample in own
    ]
    assert spaces(pooled.train["all"]) == spaces(pooled.test["all"]) == {"101", "010", None}


def test_a_device_alone_is_scored_on_each_test_image_s_own_classes(root: Path) -> None:
    alone = load(root, local_only="b")
    assert spaces(alone.train["b"]) == {"010"}
    assert [labels((sample,))[0] for sample in alone.test["b"]] == [[0], [1], [0, 1]]


def test_a_client_that_names_all_classes_is_as_one_that_is_not_named(root: Path) -> None:
    named, plain = load(root, label_space={"a": CLASSES}), load(root, label_space=None)
    assert named.train["a"][0].labelled is None
    assert named.digest == plain.digest
    assert [samples_digest(own) for own in named.train.values()] == [
        samples_digest(own) for own in plain.train.values()
    ]


def test_two_label_spaces_of_the_same_images_have_different_digests(root: Path) -> None:
    """So two clients with the same test images share an evaluation only if they label the same classes."""
    one, other = (load(root, label_space={"a": space}).test["a"] for space in (["bin"], ["bin", "hat"]))
    assert labels(one) == labels(other)
    assert samples_digest(one) != samples_digest(other)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"z": ["bin"]}, "data.label_space: expected devices of the data set, a to c, found z"),
        ({"a": ["bin", "mug"]}, "data.label_space.a: expected classes of bin, cup, hat, found mug"),
        (dict.fromkeys("abc", ("bin", "cup")), "data.label_space: expected each class to be labelled by a device, fou"),
    ],
)
def test_mistakes_that_only_the_data_show(root: Path, space: dict[str, Sequence[str]], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        load(root, label_space=space, whole=True)
    faults = Faults(collect=True)
    load(root, label_space=space, whole=True, faults=faults)
    assert len(faults.errors) == 1


def test_a_silo_with_its_own_images_knows_no_other_client(root: Path) -> None:
    whole = load(root, label_space=None)
    own = FederatedData("mine", "", CLASSES, {"b": whole.train["b"]}, {"b": whole.test["b"]})
    space = {"a": ["bin"], "b": ["cup"], "elsewhere": ["mug"]}
    found = with_label_space(own, space, Faults(), whole=False)
    assert spaces(found.test["b"]) == {"010"}
    with pytest.raises(DataError, match="found mug"):
        with_label_space(own, space, Faults(), whole=True)


def test_flags_and_regions_follow_the_objects(root: Path) -> None:
    sample = load(root, label_space=None).train["a"][0]
    boxes = np.array([[1, 1, 2, 2]] * 3, dtype=np.float32)
    regions = Regions(boxes, np.array([0, 1, ANY_CLASS]))
    full = ImageSample(**{**vars(sample), "difficult": np.array([False, True]), "regions": regions})
    data = FederatedData("mine", "", CLASSES, {"a": (full,), "b": (full,)}, {"a": (full,), "b": (full,)})
    found = with_label_space(data, {"a": ["bin"], "b": ["cup"]}, Faults(), whole=False)
    a, b = found.train["a"][0], found.train["b"][0]
    assert a.difficult is None
    assert b.difficult is not None and b.difficult.tolist() == [True]  # noqa: PT018
    assert a.regions is not None and a.regions.labels.tolist() == [0, ANY_CLASS]  # noqa: PT018
    assert b.regions is not None and b.regions.labels.tolist() == [1, ANY_CLASS]  # noqa: PT018


def test_batches_have_the_label_space_of_each_image(root: Path) -> None:
    data = load(root, pooled=True)
    size: dict[str, Any] = {"width": 96, "height": 64, "batch_size": 9, "cache": ImageCache(0)}
    (batch,) = EvaluationLoader(data.train["all"], **size)
    rows = [[True, False, True]] * 3 + [[False, True, False]] * 3 + [[True] * 3] * 3
    assert batch.labelled is not None
    assert batch.labelled.tolist() == rows
    order: dict[str, Any] = {
        "epochs": 1,
        "seed": 1,
        "round": 1,
        "client": "all",
        "workers": 0,
        "augmentation": Augmentation(),
    }
    (batch,) = training_loader(data.train["all"], **size, **order)
    assert batch.labelled is not None
    assert batch.labelled.tolist() == [rows[index] for index in batch.indices]
    (batch,) = EvaluationLoader(data.train["all"][6:], **size)
    assert batch.labelled is None


def test_a_model_with_other_classes_knows_which_are_labelled(root: Path) -> None:
    classes = ("shoe", "hat", "cup", "bin")
    sets = {item.clients[0]: item for item in evaluation_sets(load(root), classes)}
    (sample,) = sets["a"].samples
    assert sample.labels.tolist() == [3]
    assert sample.labelled is not None
    assert sample.labelled.tolist() == [True, True, False, True]
    assert sets["c"].samples[0].labelled is None


def test_the_check_tells_no_object_from_not_labelled(root: Path) -> None:
    spec = Coco.model_validate({"name": "mine", "label_space": SPACE})
    report = check_data(spec, root_of=lambda name: root, cache=root / "cache")
    assert report.errors == ()
    assert report.boxes_by_device == {
        "a": {"bin": 3, "cup": None, "hat": 0},
        "b": {"bin": None, "cup": 3, "hat": None},
        "c": {"bin": 3, "cup": 3, "hat": 0},
    }
    assert not any("on device" in text for text in report.warnings)
    console = Console(width=100, record=True)
    command._print_counts(report, spec, console)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["training", "boxes", "a", "b", "c"] in lines
    assert ["bin", "3", "—", "3"] in lines
    assert ["cup", "—", "3", "3"] in lines
    assert ["hat", "0", "—", "0"] in lines
    assert ["hat", "0", "0", "0"] in lines  # the table of the classes over all devices: boxes, devices, test boxes


def test_many_devices_take_several_tables(root: Path) -> None:
    spec = Coco.model_validate({"name": "mine", "label_space": SPACE})
    report = check_data(spec, root_of=lambda name: root, cache=root / "cache")
    tables = list(command._by_device(report, width=18))
    assert [[str(column.header) for column in table.columns[1:]] for table in tables] == [["a"], ["b"], ["c"]]
