"""The reader of the published JSON: what it reads, and its error for each mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from tasks.data.samples import class_counts, samples_digest
from tasks.data.street import load_street
from tasks.errors import DataError

WIDTH, HEIGHT = 64, 48


def entry(key: str, device: int | None, *items: tuple[str, list[Any]]) -> dict[str, Any]:
    devices = {} if device is None else {"device_1_id": "1", "device_2_id": str(device)}
    return {"image_id": key, **devices, "items": [{"class": name, "bbox": box} for name, box in items]}


def write(root: Path, train: Any, test: Any) -> None:
    (root / "train_label.json").write_text(json.dumps(train))
    (root / "test_label.json").write_text(json.dumps(test))


@pytest.fixture
def labels() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    train = [entry(f"00000{device}", device, ("chair", ["1", "2", "30", "40"])) for device in (3, 1, 2, 5, 4)]
    train.append(entry("000006", 1, ("table", ["10", "10", "64", "48"]), ("basket", ["5", "5", "9", "9"])))
    return train, [entry("000007", None, ("basket", ["1", "1", "20", "20"])), entry("000008", None)]


@pytest.fixture
def street(tmp_path: Path, labels: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> Path:
    (tmp_path / "Images").mkdir()
    for number in range(1, 9):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "Images" / f"00000{number}.jpg")
    write(tmp_path, *labels)
    return tmp_path


def test_reads_devices_boxes_and_one_shared_test_set(street: Path) -> None:
    data = load_street(street, 5, name="street", expected_digest=None)
    assert data.classes == ("basket", "chair", "table")
    assert list(data.train) == ["1", "2", "3", "4", "5"]
    assert [[sample.key for sample in samples] for samples in data.train.values()] == [
        ["000001", "000006"], ["000002"], ["000003"], ["000004"], ["000005"],
    ]  # fmt: skip
    two = data.train["1"][1]
    assert (two.width, two.height) == (WIDTH, HEIGHT)
    assert two.boxes.dtype == np.float32
    np.testing.assert_array_equal(two.boxes, [[10, 10, 64, 48], [5, 5, 9, 9]])
    np.testing.assert_array_equal(two.labels, [2, 0])
    assert data.test["1"] is data.test["5"]
    assert data.test["1"][1].boxes.shape == (0, 4)
    assert class_counts(data.train["1"], data.classes) == {"basket": 1, "chair": 1, "table": 1}


def test_the_digest_depends_on_the_content_and_not_on_the_place(
    street: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = load_street(street, 5, name="street", expected_digest=None)
    elsewhere = tmp_path_factory.mktemp("other") / "copy"
    street.rename(elsewhere)
    second = load_street(elsewhere, 5, name="renamed", expected_digest=first.digest)
    assert samples_digest(first.test["1"]) == samples_digest(second.test["1"])

    image = elsewhere / "Images" / "000003.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(DataError, match=f"expected content digest {first.digest}, found [0-9a-f]{{64}}") as caught:
        load_street(elsewhere, 5, name="street", expected_digest=first.digest)
    assert str(elsewhere) in str(caught.value)


def test_the_samples_digest_depends_on_boxes_labels_and_the_ends_of_samples(street: Path) -> None:
    a, b = load_street(street, 5, name="street", expected_digest=None).train["1"]
    digests = {samples_digest(samples) for samples in ((a, b), (b, a), (a,), (b,), ())}
    assert len(digests) == 5


def test_test_entries_with_devices_give_a_test_set_per_device(street: Path, labels: Any) -> None:
    train, test = labels
    test[0]["device_2_id"], test[1]["device_2_id"] = "2", 4
    write(street, train, test)
    data = load_street(street, 5, name="street", expected_digest=None)
    assert {client: [s.key for s in samples] for client, samples in data.test.items()} == {
        "1": [], "2": ["000007"], "3": [], "4": ["000008"], "5": [],
    }  # fmt: skip


Edit = Callable[[list[dict[str, Any]], list[dict[str, Any]]], object]


def set_box(value: Any) -> Edit:
    return lambda train, test: train[0]["items"][0].update(bbox=value)


WRONG_LABELS: list[tuple[str, Edit, str]] = [
    (
        "no image_id",
        lambda train, _: train[1].pop("image_id"),
        r"train_label.json: entry 2: image_id: missing",
    ),
    ("path as id", lambda train, _: train[1].update(image_id="../x"), r"entry 2: image_id: .* found '../x'"),
    ("no items", lambda _, test: test[0].pop("items"), r"test_label.json: image 000007: items: missing key"),
    ("items no list", lambda _, test: test[0].update(items={}), r"image 000007: items: expected a list"),
    (
        "entry no mapping",
        lambda train, _: train.append(cast(Any, [])),
        r"entry 7: expected a mapping",
    ),
    (
        "object no mapping",
        lambda train, _: train[0].update(items=[1]),
        r"000003: object 1: expected a mapping",
    ),
    ("no class", lambda train, _: train[0]["items"][0].pop("class"), r"000003: object 1: class: missing key"),
    ("no bbox", lambda train, _: train[0]["items"][0].pop("bbox"), r"000003: object 1: bbox: missing key"),
    (
        "class no name",
        lambda train, _: train[0]["items"][0].update({"class": 3}),
        r"class: expected a name, found 3",
    ),
    (
        "class of half an emoji",
        lambda train, _: train[0]["items"][0].update({"class": "\ud83d"}),
        r"class: expected a name, found '\\ud83d'",
    ),
    (
        "class only in test",
        lambda _, test: test[0]["items"][0].update({"class": "cat"}),
        r"test_label.json: image 000007: class 'cat' .* expected one of basket, chair, table",
    ),
    ("box of words", set_box(["1", "2", "x", "4"]), r"000003: object 1: bbox: expected four numbers .*'x'"),
    ("box of three", set_box(["1", "2", "3"]), r"000003: object 1: bbox: expected four numbers"),
    ("box with underscore", set_box(["1", "2", "3_0", "40"]), r"000003: object 1: bbox: expected four numbers .*'3_0'"),
    ("box with a blank", set_box(["1", "2", " 30", "40"]), r"000003: object 1: bbox: expected four numbers .*' 30'"),
    ("box not finite", set_box(["1", "2", "nan", "4"]), r"000003: object 1: bbox: expected four numbers"),
    (
        "box of truth values",
        set_box([False, False, True, True]),
        r"000003: object 1: bbox: expected four numbers",
    ),
    ("empty box", set_box(["5", "2", "5", "4"]), r"000003: object 1: bbox: expected xmin < xmax"),
    (
        "box outside",
        set_box(["5", "2", "65", "4"]),
        r"000003: object 1: .* inside the image of 64 x 48 pixels, found 5, 2, 65, 4",
    ),
    (
        "no device",
        lambda train, _: train[0].pop("device_2_id"),
        r"train_label.json: image 000003: device_2_id: missing",
    ),
    (
        "unknown device",
        lambda train, _: train[0].update(device_2_id="6"),
        r"000003: .* from 1 to 5, found '6'",
    ),
    (
        "device no number",
        lambda train, _: train[0].update(device_2_id=[1]),
        r"000003: device_2_id: expected a device",
    ),
    (
        "device without images",
        lambda train, _: train.pop(0),
        r"train_label.json: device_2_id: no images of device 3",
    ),
    (
        "some tests with device",
        lambda _, test: test[0].update(device_2_id="1"),
        r"000008: device_2_id: .* or in none",
    ),
    (
        "image twice",
        lambda train, _: train.append(train[0]),
        r"000003: expected every image once, .* in train_label.json",
    ),
    (
        "test on training image",
        lambda _, test: test.append(entry("000003", None)),
        r"test_label.json: image 000003: .* once",
    ),
    (
        "no images at all",
        lambda _, test: test.clear(),
        r"test_label.json: expected a list of at least one image",
    ),
    (
        "image missing",
        lambda _, test: test.append(entry("000099", None)),
        r"000099: .*000099.jpg: .* cannot be read",
    ),
]


@pytest.mark.parametrize(
    ("edit", "message"), [case[1:] for case in WRONG_LABELS], ids=[case[0] for case in WRONG_LABELS]
)
def test_wrong_labels_name_file_and_image(street: Path, labels: Any, edit: Edit, message: str) -> None:
    train, test = labels
    edit(train, test)
    write(street, train, test)
    with pytest.raises(DataError, match=message):
        load_street(street, 5, name="street", expected_digest=None)


@pytest.mark.parametrize("missing", ["Images", "train_label.json", "test_label.json", "."])
def test_missing_parts_are_named(street: Path, missing: str) -> None:
    path = street / missing
    path.rename(street.parent / f"{street.name}-gone")
    kind = "file" if missing.endswith("json") else "folder"
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: no such {kind}; data set 'street' needs Images/"):
        load_street(street, 5, name="street", expected_digest=None)


@pytest.mark.parametrize("content", [b'[{"image_id"', b"\xff\xfe\x00", b"[" * 100_000], ids=["cut", "bytes", "deep"])
def test_labels_that_are_no_json_are_refused(street: Path, content: bytes) -> None:
    (street / "test_label.json").write_bytes(content)
    with pytest.raises(DataError, match=r"test_label\.json: expected JSON"):
        load_street(street, 5, name="street", expected_digest=None)


def test_unreadable_and_truncated_images_are_refused(street: Path) -> None:
    image = street / "Images" / "000004.jpg"
    good = image.read_bytes()
    image.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"image 000004: .*000004.jpg: the image is truncated"):
        load_street(street, 5, name="street", expected_digest=None)
    image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image 000004: .*000004.jpg: expected a readable image") as caught:
        load_street(street, 5, name="street", expected_digest=None)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        (5, [212, 344, 37, 122, 50]),
        (20, [163, 76, 50, 39, 52, 14, 38, 8, 34, 13, 18, 39, 32, 14, 37, 30, 27, 32, 15, 34]),
    ],
)
def test_real_street_has_the_published_counts(street_dir: Path, split: Any, sizes: list[int]) -> None:
    data = load_street(street_dir, split, name="street", expected_digest=None)
    assert [len(samples) for samples in data.train.values()] == sizes
    assert data.classes == ("basket", "carton", "chair", "electrombile", "gastank", "sunshade", "table")
    everything = [sample for samples in data.train.values() for sample in samples]
    assert list(class_counts(everything, data.classes).values()) == [165, 215, 494, 510, 106, 413, 102]
    assert len(data.test["1"]) == 191
    assert list(class_counts(data.test["1"], data.classes).values()) == [46, 60, 125, 152, 31, 100, 25]
