"""The reader of COCO's JSON: what it reads, and its error for each mistake."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.data.catalog import load_data
from tasks.data.coco import load_coco
from tasks.data.entries import Faults
from tasks.data.export.coco import write_coco
from tasks.data.export.voc import write_voc
from tasks.data.samples import ANY_CLASS, Regions, samples_digest
from tasks.errors import DataError
from tasks.spec.clients import ByField, ByList, Dirichlet
from tasks.spec.data import Coco, SyntheticStreet
from tests.tasks.drawn_data import drawn_data

WIDTH, HEIGHT = 64, 48
SPEC = Coco(name="mine")


def part(numbers: range, device: Callable[[int], Any]) -> dict[str, Any]:
    images = [
        {"id": n, "file_name": f"sub/{n}.png", "width": WIDTH, "height": HEIGHT, "device": device(n)} for n in numbers
    ]
    annotations = [
        {"id": n, "image_id": n, "category_id": 7, "bbox": [n, 2, 10.5, 20], "iscrowd": n % 2} for n in numbers
    ]
    categories = [{"id": 9, "name": "ant"}, {"id": 7, "name": "bee"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def documents() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the documents of training (images 1 to 4, devices east and west) and of the shared test set (5 and 6)."""
    return part(range(1, 5), lambda n: ("east", "west")[n % 2]), part(range(5, 7), lambda n: None)


def write(root: Path, train: Any, test: Any) -> None:
    (root / "train.json").write_text(json.dumps(train))
    (root / "test.json").write_text(json.dumps(test))


@pytest.fixture
def root(tmp_path: Path, documents: tuple[dict[str, Any], dict[str, Any]]) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for number in range(1, 7):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "sub" / f"{number}.png")
    write(tmp_path, *documents)
    return tmp_path


def test_reads_devices_corners_and_crowds(root: Path) -> None:
    data = load_coco(root, SPEC)
    assert data.classes == ("ant", "bee")
    assert {d: [s.key for s in samples] for d, samples in data.train.items()} == {
        "east": ["sub/2", "sub/4"], "west": ["sub/1", "sub/3"],
    }  # fmt: skip
    east, west = data.train["east"][0], data.train["west"][0]
    np.testing.assert_array_equal(east.boxes, [[2, 2, 12.5, 22]])
    np.testing.assert_array_equal(east.labels, [1])
    assert east.difficult is None
    assert east.regions is None
    # A crowd is no object.
    assert west.difficult is None
    assert len(west.labels) == 0
    assert west.regions is not None
    assert (west.regions.boxes.tolist(), west.regions.labels.tolist()) == ([[1, 2, 11.5, 22]], [1])
    assert data.test["east"] is data.test["west"]
    assert [sample.key for sample in data.test["east"]] == ["sub/5", "sub/6"]


def test_test_images_with_devices_give_a_test_set_for_each(root: Path, documents: Any) -> None:
    train, test = documents
    test["images"][0]["device"] = test["images"][1]["device"] = "west"
    write(root, train, test)
    data = load_coco(root, SPEC)
    assert {device: len(samples) for device, samples in data.test.items()} == {"east": 0, "west": 2}


def test_other_field_lists_and_partitions(root: Path, documents: Any) -> None:
    train, test = documents
    for image in train["images"]:
        image["device"] = None
    write(root, train, test)
    with pytest.raises(DataError, match=r"train\.json: no training image has 'device'.*data\.clients\.field"):
        load_coco(root, SPEC)
    for number, image in enumerate(train["images"]):
        image["camera"] = number // 2
    write(root, train, test)
    assert list(load_coco(root, Coco(name="mine", clients=ByField(field="camera"))).train) == ["0", "1"]
    (root / "clients.yaml").write_text("a: [1.png, 2.png]\nb: [sub/3, images/sub/4.png]\n")
    listed = load_coco(root, Coco(name="mine", clients=ByList()))
    assert {d: len(samples) for d, samples in listed.train.items()} == {"a": 2, "b": 2}
    spread = load_coco(root, Coco(name="mine", clients=Dirichlet(clients=4, alpha=0.1)))
    assert [len(samples) for samples in spread.train.values()] == [1, 1, 1, 1]


def test_boxes_within_a_pixel_of_the_edge_are_cut(root: Path, documents: Any) -> None:
    train, test = documents
    train["annotations"][1]["bbox"] = [-0.5, 0, 65, 48.75]
    write(root, train, test)
    np.testing.assert_array_equal(load_coco(root, SPEC).train["east"][0].boxes, [[0, 0, 64, 48]])


@pytest.mark.parametrize(
    ("bbox", "boxes"), [([-30, 10, 90, 60], [[0, 10, 60, 48]]), ([64, 10, 9, 9], None), ([-9, 10, 9.0, 9], None)]
)
def test_crowds_are_cut_to_the_image_and_left_out_if_nothing_stays(
    root: Path, documents: Any, bbox: list[float], boxes: Any
) -> None:
    train, test = documents
    train["annotations"][0]["bbox"] = bbox
    write(root, train, test)
    regions = load_coco(root, SPEC).train["west"][0].regions
    assert (None if regions is None else regions.boxes.tolist()) == boxes


def test_crowds_are_written_and_read_again(root: Path, tmp_path: Path) -> None:
    data = load_coco(root, SPEC)
    write_coco(data, tmp_path / "written")
    again = load_coco(tmp_path / "written", SPEC)
    assert [samples_digest(own) for own in again.train.values()] == [samples_digest(own) for own in data.train.values()]
    assert samples_digest(again.test["east"]) == samples_digest(data.test["east"])
    of_any_class = Regions(np.array([[1, 2, 9, 9]], np.float32), np.array([ANY_CLASS]))
    any_class = [dataclasses.replace(sample, regions=of_any_class) for sample in data.train["west"]]
    write_coco(dataclasses.replace(data, train={**data.train, "west": tuple(any_class)}), tmp_path / "any")
    regions = load_coco(tmp_path / "any", SPEC).train["west"][0].regions
    assert regions is not None
    assert (regions.labels.tolist(), regions.boxes.tolist()) == ([0, 1], [[1, 2, 9, 9]] * 2)
    with pytest.raises(DataError, match=r"1\.png: expected no ignore regions, .* found 1; the forms of COCO, BDD100K"):
        write_voc(data, tmp_path / "voc")


SPELT = ["./sub/{}", "sub\\{}", ".\\sub\\.\\{}", "images/sub/{}", "images\\sub\\{}", "./images/sub/{}"]


@pytest.mark.parametrize("spelling", SPELT)
def test_file_names_as_other_tools_write_them_are_read(root: Path, documents: Any, spelling: str) -> None:
    expected = load_coco(root, SPEC)
    for document in documents:
        for image in document["images"]:
            image["file_name"] = spelling.format(f"{image['id']}.png")
    write(root, *documents)
    found = load_coco(root, SPEC)
    assert [s.path for own in found.train.values() for s in own] == [
        s.path for own in expected.train.values() for s in own
    ]
    (root / "clients.yaml").write_text("a: [1.png, 2.png]\nb: [3.png, images/sub/4.png]\n")
    listed = load_coco(root, Coco(name="mine", clients=ByList()))
    assert {d: len(samples) for d, samples in listed.train.items()} == {"a": 2, "b": 2}


def test_a_name_is_looked_up_below_the_folder_first(root: Path, documents: Any) -> None:
    train, test = documents
    (root / "images" / "images" / "sub").mkdir(parents=True)
    for image in train["images"]:
        inner = root / "images" / "images" / image["file_name"]
        (root / "images" / image["file_name"]).rename(inner)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / image["file_name"])
        image["file_name"] = f"images/{image['file_name']}"
    write(root, train, test)
    found = load_coco(root, SPEC)
    assert {s.path.parent.relative_to(root) for own in found.train.values() for s in own} == {Path("images/images/sub")}


def test_the_folder_itself_may_hold_the_images(root: Path, documents: Any) -> None:
    expected = load_coco(root, SPEC)
    for image in documents[0]["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    write(root, *documents)
    found = load_coco(root, Coco(name="mine", train_images="."))
    assert [s.content for own in found.train.values() for s in own] == [
        s.content for own in expected.train.values() for s in own
    ]
    for wrong in ("", "..", "./images", "/"):
        with pytest.raises(ValueError, match="train_images"):
            Coco(name="mine", train_images=wrong)


@pytest.mark.parametrize("bbox", [[5, 5, 0, 4], [5.5, 5, 1.03, 0.0], [0, 0, 0, 0]])
@pytest.mark.parametrize("iscrowd", [0, 1])
def test_lines_as_coco_was_published_with_are_noted_and_left_out(
    root: Path, documents: Any, bbox: list[float], iscrowd: int
) -> None:
    """Annotations 918 and 2206849 of instances_train2017.json have no height."""
    train, test = documents
    train["annotations"][1].update(bbox=bbox, iscrowd=iscrowd)
    write(root, train, test)
    faults = Faults(collect=True)
    sample = load_coco(root, SPEC, faults=faults).train["east"][0]
    assert (sample.key, len(sample.labels), sample.regions) == ("sub/2", 0, None)
    assert faults.errors == []
    assert faults.notes.emptied == [f"{root / 'train.json'}: annotation 2: bbox"]


def set_annotation(**fields: Any) -> Callable[[Any, Any], object]:
    return lambda train, _: train["annotations"][1].update(fields)


def set_image(**fields: Any) -> Callable[[Any, Any], object]:
    return lambda train, _: train["images"][1].update(fields)


BOX = r"train\.json: annotation 2: bbox: "
WRONG: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "no images": (lambda train, _: train.pop("images"), r"train\.json: images: expected a list, found None"),
    "categories": (lambda _, test: test.update(categories={}), r"test\.json: categories: expected a list, found {}"),
    "image no mapping": (lambda train, _: train["images"].append(3), r"images: item 5: expected a mapping .* found 3"),
    "id of text": (set_image(id="1"), r"images: item 2: expected a mapping with a whole number as id"),
    "id twice": (set_image(id=1), r"images: item 2: id: expected every id once, found 1 again"),
    "annotation id twice": (set_annotation(id=1), r"annotations: item 2: id: expected every id once"),
    "category twice": (
        lambda train, _: train["categories"].append({"id": 1, "name": "ant"}),
        r"category 1: name: expected every category once, found 'ant' again",
    ),
    "nameless category": (
        lambda train, _: train["categories"][0].pop("name"),
        r"category 9: name: expected a name, found None",
    ),
    "unknown image": (set_annotation(image_id=99), r"annotation 2: image_id: expected the id of one .* found 99"),
    "unknown category": (set_annotation(category_id=1), r"annotation 2: category_id: expected the id .* found 1"),
    "category of truth": (set_annotation(category_id=True), r"annotation 2: category_id: .* found True"),
    "box of three": (set_annotation(bbox=[1, 2, 3]), BOX + r"expected four numbers x, y, width, height"),
    "box of text": (set_annotation(bbox=["1", "2", "3", "4"]), BOX + "expected four numbers x, y"),
    "no box": (lambda train, _: train["annotations"][1].pop("bbox"), BOX + "expected four numbers x, y"),
    "box beyond numbers": (set_annotation(bbox=[10**400, 0, 1, 1]), BOX + "expected four numbers x, y"),
    "not finite": (set_annotation(bbox=[0, 0, float("inf"), 1]), BOX + "expected four numbers xmin"),
    "box turned around": (set_annotation(bbox=[5, 5, -1, 4]), BOX + "expected xmin < xmax .* empty box 5, 5, 4, 9"),
    "box outside": (set_annotation(bbox=[60, 5, 6, 4]), BOX + r"expected a box inside .* 64 x 48 pixels, found 60"),
    "crowd": (set_annotation(iscrowd=2), r"annotation 2: iscrowd: expected 0 or 1, found 2"),
    "no file name": (set_image(file_name=None), r"image 2: file_name: expected a path inside .* found None"),
    "file elsewhere": (set_image(file_name="../2.png"), r"image 2: file_name: .* found '../2.png'"),
    "absolute file": (set_image(file_name="/2.png"), r"image 2: file_name: .* found '/2.png'"),
    "name of bytes": (
        set_image(file_name="caf\udce9.png"),
        r"train\.json: image 2: file_name: expected a name in UTF-8, found 'caf\\udce9.png'; rename the file",
    ),
    "half an emoji": (
        set_image(file_name="\ud83d.png"),
        r"image 2: file_name: expected a name in UTF-8, found '\\ud83d",
    ),
    "class of half an emoji": (
        lambda train, _: train["categories"][0].update(name="\ud83d"),
        r"category 9: name: expected a name, found '\\ud83d'",
    ),
    "name of 300 letters": (
        set_image(file_name=f"sub/{'b' * 300}"),
        r"image 2 .*: the image cannot be read: File name too",
    ),
    "file not there": (set_image(file_name="9.png"), r"image 2 \(9\.png\): .*images/9\.png: the image cannot be read"),
    "one file twice": (set_image(file_name="sub/1.png"), r"image 2 .*expected every image once, .* in train\.json"),
    "tested on training": (
        lambda train, test: test["images"][0].update(file_name="sub/1.png"),
        r"test\.json: image 5 .*expected every image once, found it in train\.json",
    ),
    "other width": (set_image(width=65), r"image 2 .*expected the annotation's 65 x 48 pixels, found 64 x 48"),
    "device missing": (set_image(device=None), r"image 2 .*: device: missing; expected the device"),
    "device of list": (set_image(device=[1]), r"image 2 .*: device: expected a device's name or number, found \[1\]"),
    "device of digits": (
        set_image(device="1" * 5000),
        r"train\.json: device: expected a device named .* at most 64",
    ),
    "device's name": (set_image(device="a/b"), r"train\.json: device: expected a device named by .* found 'a/b'"),
    "some tests with device": (
        lambda train, test: test["images"][0].update(device="east"),
        r"test\.json: image 6 .*: device: missing; expected it in every test image",
    ),
    "test of an unknown device": (
        lambda train, test: [image.update(device="north") for image in test["images"]],
        r"train\.json: device: expected a device from east to west, found 'north'; no .* in 2 images: .*json: image 5 ",
    ),
    "test category": (
        lambda train, test: test["categories"][1].update(name="cat"),
        r"test\.json: image 5 .*: class 'cat' is in no training image; expected one of ant, bee",
    ),
    "nothing": (lambda train, _: (train["images"].clear(), train["annotations"].clear()), r"at least one training im"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_name_file_and_item(root: Path, documents: Any, case: str) -> None:
    edit, message = WRONG[case]
    train, test = documents
    edit(train, test)
    write(root, train, test)
    with pytest.raises(DataError, match=message):
        load_coco(root, SPEC)


def test_all_mistakes_are_named_at_once_and_usable_images_are_kept(root: Path, documents: Any) -> None:
    train, test = documents
    train["annotations"][0]["category_id"] = 1
    train["annotations"][1]["bbox"] = [0, 0, 4, -4]
    (root / "images" / "sub" / "6.png").unlink()
    write(root, train, test)
    faults = Faults(collect=True)
    data = load_coco(root, SPEC, faults=faults)
    assert len(faults.errors) == 3
    assert [sample.key for sample in data.test["east"]] == ["sub/5"]
    kept = [sample for samples in data.train.values() for sample in samples]
    assert [len(sample.labels) + len(sample.regions or ()) for sample in kept] == [0, 1, 0, 1]


def test_a_repeated_key_is_refused_with_its_lines(root: Path) -> None:
    text = json.dumps(json.loads((root / "train.json").read_text()), indent=0)
    (root / "train.json").write_text(text.replace('"id": 2,\n', '"id": 2,\n"id": 3,\n', 1))
    with pytest.raises(DataError, match=r"train\.json: images\.1\.id: .* twice on lines 11 and 12$"):
        load_coco(root, SPEC)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[]", b"[" * 100_000])
def test_files_that_are_no_annotations_are_refused(root: Path, content: bytes) -> None:
    (root / "test.json").write_bytes(content)
    with pytest.raises(DataError, match=r"test\.json: expected (JSON|a mapping with images)"):
        load_coco(root, SPEC)


def test_pycocotools_reads_the_written_files(tmp_path: Path) -> None:
    coco_api = pytest.importorskip("pycocotools.coco")
    spec = SyntheticStreet(train_images=40, test_images=5, width=96, height=80)
    data = drawn_data(spec, tmp_path / "cache")
    write_coco(data, tmp_path / "coco")
    api = coco_api.COCO(str(tmp_path / "coco" / "train.json"))
    samples = {sample.path.name: sample for own in data.train.values() for sample in own}
    assert len(api.getImgIds()) == len(samples) == 40
    assert min(api.getAnnIds()) == 1
    for image in api.loadImgs(api.getImgIds()):
        sample = samples[image["file_name"]]
        found = api.loadAnns(api.getAnnIds(imgIds=[image["id"]]))
        names = [category["name"] for category in api.loadCats([item["category_id"] for item in found])]
        assert names == [data.classes[label] for label in sample.labels]
        boxes = np.array([item["bbox"] for item in found], dtype=np.float32)
        np.testing.assert_array_equal(boxes[:, :2], sample.boxes[:, :2])
        np.testing.assert_array_equal(boxes[:, :2] + boxes[:, 2:], sample.boxes[:, 2:])


def test_the_error_of_a_name_without_a_folder_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data set 'mine'.*'mine' in data_roots.*FEDBENCH_DATA_ROOTS"):
        load_data(SPEC, root_of=lambda name: None, cache=tmp_path)
