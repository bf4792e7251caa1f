"""The reader of PASCAL VOC folders, one for each device or one for all, and the round trip of the synthetic set."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data.catalog import load_data
from tasks.data.entries import Faults
from tasks.data.export.coco import write_coco
from tasks.data.export.voc import write_voc
from tasks.data.samples import FederatedData, samples_digest
from tasks.data.voc import load_voc
from tasks.errors import DataError
from tasks.spec.clients import ByField, ByList, Iid
from tasks.spec.data import Coco, DataSpec, FederatedStreet, SyntheticStreet, VocFolders
from tests.tasks.data.voc_folder import CHAIR, HEIGHT, TABLE, WIDTH, add_image, add_lists
from tests.tasks.drawn_data import drawn_data


@pytest.fixture
def by_device(tmp_path: Path) -> Path:
    """Return a folder of devices 2 and 10, which have the same test set."""
    for device, name in (("2", "a"), ("10", "b")):
        add_image(tmp_path / device, name, CHAIR, TABLE)
        add_image(tmp_path / device, "t", TABLE)
        add_lists(tmp_path / device, f"{name}\n", "t\n\n")
    (tmp_path / "README.md").touch()
    return tmp_path


FOLDERS = VocFolders(name="mine")


def test_devices_are_in_numeric_order_and_share_an_equal_test_set(by_device: Path) -> None:
    data = load_voc(by_device, FOLDERS)
    assert list(data.train) == ["2", "10"]
    assert data.classes == ("chair", "table")
    assert data.test["2"] is data.test["10"]
    (sample,) = data.train["10"]
    assert (sample.key, sample.width, sample.height) == ("b", WIDTH, HEIGHT)
    np.testing.assert_array_equal(sample.boxes, [[1, 2, 30, 40], [10, 10, 64, 48]])
    assert sample.boxes.dtype == np.float32
    np.testing.assert_array_equal(sample.labels, [0, 1])
    assert sample.difficult is not None
    assert sample.difficult.tolist() == [False, True]


def test_without_difficult_objects_the_flags_are_none(one_folder: Path) -> None:
    data = load_voc(one_folder, VocFolders(name="mine", clients=Iid(clients=1)))
    assert data.train["1"][0].difficult is None


def test_different_test_sets_are_kept_apart(by_device: Path) -> None:
    add_image(by_device / "10", "u", CHAIR)
    add_lists(by_device / "10", "b\n", "t\nu\n")
    data = load_voc(by_device, FOLDERS)
    assert {device: len(samples) for device, samples in data.test.items()} == {"2": 1, "10": 2}


def test_the_digest_depends_on_the_content_and_can_be_pinned(by_device: Path) -> None:
    first = load_voc(by_device, FOLDERS)
    assert load_voc(by_device, VocFolders(name="mine", digest=first.digest)).digest == first.digest
    annotation = by_device / "2" / "Annotations" / "a.xml"
    annotation.write_text(annotation.read_text().replace(">30<", ">31<"))
    with pytest.raises(DataError, match=f"'mine' is not the one .* expected content digest {first.digest}, found"):
        load_voc(by_device, VocFolders(name="mine", digest=first.digest))


def test_devices_are_read_from_an_element_of_the_annotation(one_folder: Path) -> None:
    data = load_voc(one_folder, VocFolders(name="mine", clients=ByField(field="camera")))
    assert {device: [s.path.name for s in samples] for device, samples in data.train.items()} == {
        "A": ["a.png"], "B": ["b.png"], "C": ["c.png"],
    }  # fmt: skip
    assert data.test["A"] is data.test["C"]
    with pytest.raises(DataError, match=r"Annotations: no training image has 'device'.*data\.clients\.field"):
        load_voc(one_folder, VocFolders(name="mine", clients=ByField()))


LISTS: list[tuple[str, str]] = [
    ("x: [a, nosuch]\ny: [b, c]", r"clients.yaml: device x: no image 'nosuch'"),
    ("x: [a]\ny: [b]", r"c\.xml: expected the image in .*clients.yaml"),
    ("x: [a, b]\ny: [b.png, c]", r"device y: expected every image once, found 'b.png' under device x already"),
    ("x: [a, b, c]\ny: []", r"clients.yaml: no images of device y; expected some of each device from x to y"),
    ("x y: [a, b, c]", r"expected a device named by letters.* found 'x y'"),
    ("x: a", r"clients.yaml: expected a mapping of devices to lists of image names, found"),
    ("- a", r"expected a mapping of devices"),
    ("x: [", r"clients.yaml, line 1, column 5: expected YAML or JSON"),
    ("x: [a]\nx: [b, c]", r"clients.yaml: x: expected each key once, found it twice on lines 1 and 2"),
    ('{"x": ["a"],\n"x": ["b", "c"]}', r"clients.yaml: x: expected each key once, found it twice on lines 1 and 2"),
    ("x: [010]", r"clients.yaml: device x: no image '010'"),
]


@pytest.mark.parametrize(("text", "message"), LISTS)
def test_wrong_lists_of_clients_are_refused(one_folder: Path, text: str, message: str) -> None:
    (one_folder / "clients.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        load_voc(one_folder, VocFolders(name="mine", clients=ByList()))


LIKE_NUMBERS = ("000010", "10", "1e3", "no")


def test_devices_and_images_of_a_list_are_read_as_text(tmp_path: Path) -> None:
    for name in LIKE_NUMBERS:
        add_image(tmp_path, name, CHAIR)
    add_image(tmp_path, "007", CHAIR)
    add_lists(tmp_path, "\n".join(LIKE_NUMBERS), "007\n")
    (tmp_path / "clients.yaml").write_text("010: [000010]\n10:\n- 10\nno: [1e3]\n0x1F: [no]\n")
    data = load_voc(tmp_path, VocFolders(name="mine", clients=ByList()))
    owned = dict(zip(("010", "10", "no", "0x1F"), LIKE_NUMBERS, strict=True))
    assert {device: samples[0].key for device, samples in data.train.items()} == owned


def test_devices_are_read_from_a_list_which_counts_for_the_digest(one_folder: Path) -> None:
    spec = VocFolders(name="mine", clients=ByList(file="who.json"))
    with pytest.raises(DataError, match=r"who\.json: cannot be read: No such file"):
        load_voc(one_folder, spec)
    (one_folder / "who.json").write_text(json.dumps({"10": ["a", "c.png"], "9": ["JPEGImages/b.png"]}))
    data = load_voc(one_folder, spec)
    assert {device: [s.key for s in samples] for device, samples in data.train.items()} == {
        "9": ["b"],
        "10": ["c", "a"],
    }
    (one_folder / "who.json").write_text(json.dumps({"10": ["a"], "9": ["b", "c"]}))
    assert load_voc(one_folder, spec).digest != data.digest


Edit = Callable[[Path], object]


def annotation(old: str, new: str) -> Edit:
    def edit(root: Path) -> None:
        path = root / "2" / "Annotations" / "a.xml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return edit


WRONG: dict[str, tuple[Edit, str]] = {
    "no annotation": (lambda root: (root / "2/Annotations/a.xml").unlink(), r"2/Annotations/a\.xml: cannot be read"),
    "no XML": (annotation("<annotation>", ""), r"a\.xml: expected XML"),
    "other XML": (lambda root: (root / "2/Annotations/a.xml").write_text("<x/>"), r"element annotation, found x"),
    "no class": (annotation("<name>chair</name>", ""), r"a\.xml: object 1: name: missing"),
    "word in a box": (annotation("<xmin>1<", "<xmin>one<"), r"a\.xml: object 1: bndbox: expected four numbers"),
    "edge missing": (annotation("<xmin>1</xmin>", ""), r"object 1: bndbox: expected four numbers.*None"),
    "not finite": (annotation("<xmin>1<", "<xmin>nan<"), r"object 1: bndbox: expected four numbers"),
    "an underscore": (annotation("<xmin>1<", "<xmin>1_0<"), r"object 1: bndbox: expected four numbers.*'1_0'"),
    "another script": (annotation("<xmin>1<", "<xmin>١<"), r"object 1: bndbox: expected four numbers.*'١'"),
    "empty box": (annotation("<xmin>1<", "<xmin>30<"), r"object 1: bndbox: expected xmin < xmax .* empty box 30, 2"),
    "box outside": (annotation("<xmax>30<", "<xmax>65<"), r"object 1: .*inside the image of 64 x 48 pixels, found 1"),
    "difficult": (annotation("<difficult>0", "<difficult>no"), r"object 1: difficult: expected 0 or 1, found 'no'"),
    "other size": (
        annotation("<width>64<", "<width>65<"),
        r"a\.jpg: expected the annotation's 65 x 48 pixels, found 64",
    ),
    "size of digits": (
        annotation("<width>64<", f"<width>{'6' * 5000}<"),
        r"expected the annotation's 6{64} x 48 pixels, found 64 x 48",
    ),
    "no image": (lambda root: (root / "2/JPEGImages/a.jpg").unlink(), r"a\.jpg: the image cannot be read: No such"),
    "cut image": (
        lambda root: (root / "2/JPEGImages/a.jpg").write_bytes((root / "2/JPEGImages/a.jpg").read_bytes()[:900]),
        r"2/JPEGImages/a\.jpg: the image is truncated",
    ),
    "no images at all": (
        lambda root: (root / "2/JPEGImages").rename(root / "gone"),
        r"JPEGImages: the folder of images",
    ),
    "no list": (lambda root: (root / "2/ImageSets/Main/test.txt").unlink(), r"2/ImageSets/Main/test\.txt: cannot be"),
    "path in the list": (
        lambda root: add_lists(root / "2", "../a", "t"),
        r"train\.txt: line 1: expected an image's name",
    ),
    "empty list": (lambda root: add_lists(root / "2", "\n", "t"), r"no images of device 2; expected .* from 2 to 10"),
    "listed twice": (
        lambda root: add_lists(root / "2", "a\na", "t"),
        r"a\.xml: expected every image once, .*train\.txt",
    ),
    "tested on training": (lambda root: add_lists(root / "2", "a", "t\na"), r"a\.xml: expected every image once"),
    "class only in test": (
        lambda root: add_image(root / "10", "t", CHAIR | {"name": "cat"}),
        r"t\.xml: class 'cat' is in no training image; expected one of chair, table",
    ),
    "device's name": (
        lambda root: (root / "10").rename(root / "no 10"),
        r"expected a device named by .* found 'no 10'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_name_file_and_what_was_expected(by_device: Path, case: str) -> None:
    edit, message = WRONG[case]
    edit(by_device)
    with pytest.raises(DataError, match=message):
        load_voc(by_device, FOLDERS)


def test_classes_of_the_specification_are_enforced(by_device: Path) -> None:
    assert load_voc(by_device, VocFolders(name="mine", classes=("table", "chair", "cat"))).classes[0] == "table"
    with pytest.raises(DataError, match=r"a\.xml: class 'table' .* expected one of chair"):
        load_voc(by_device, VocFolders(name="mine", classes=("chair",)))


def test_the_error_of_a_plain_voc_folder_explains_how_to_get_clients(one_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder for each device.*set data\.clients\.kind to field, list"):
        load_voc(one_folder, FOLDERS)
    with pytest.raises(DataError, match=r"nowhere: the folder of data set 'mine' cannot be read"):
        load_voc(tmp_path / "nowhere", FOLDERS)


def test_one_folder_can_be_partitioned(one_folder: Path) -> None:
    data = load_voc(one_folder, VocFolders(name="mine", clients=Iid(clients=3)))
    assert sorted(s.key for samples in data.train.values() for s in samples) == ["a", "b", "c"]
    assert list(data.train) == ["1", "2", "3"]
    with pytest.raises(DataError, match=r"data\.clients\.clients: expected at most 3, the number of training images"):
        load_voc(one_folder, VocFolders(name="mine", clients=Iid(clients=4)))


def test_messages_about_names_that_are_not_utf8_can_be_written(by_device: Path) -> None:
    (by_device / "10").rename(by_device / "caf\udce9")
    faults = Faults(collect=True)
    load_voc(by_device, FOLDERS, faults=faults)
    text = "\n".join(faults.errors)
    assert text.encode().isascii()
    assert "expected a device named by letters, digits, '.', '_' and '-', at most 64, found 'caf\\udce9'" in text
    assert "expected a file name in UTF-8, found 'caf\\udce9/JPEGImages/b.jpg'" in text


TINY = SyntheticStreet(train_images=40, test_images=20, width=96, height=80)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def digests(data: FederatedData) -> dict[str, tuple[str, str]]:
    return {device: (samples_digest(data.train[device]), samples_digest(data.test[device])) for device in data.train}


@pytest.mark.parametrize("test", ["global", "per-device"])
@pytest.mark.parametrize("split", [5, 20])
def test_all_forms_load_to_the_same_samples(cache: Path, tmp_path: Path, split: Any, test: Any) -> None:
    spec = TINY.model_copy(update={"split": split, "test": test})
    data = drawn_data(spec, cache)
    write_coco(data, tmp_path / "coco")
    write_voc(data, tmp_path / "voc" / f"street_{split}")
    forms: tuple[tuple[DataSpec, Path], ...] = (
        (Coco(name="mine"), tmp_path / "coco"),
        (VocFolders(name="mine"), tmp_path / "voc" / f"street_{split}"),
        (FederatedStreet(split=split, form="voc"), tmp_path / "voc"),
    )
    for form, root in forms:
        read = load_data(form, root_of={"mine": root, "street": root}.get, cache=cache)
        assert read.classes == data.classes
        assert list(read.train) == list(data.train)
        assert digests(read) == digests(data)
        assert (read.test["1"] is read.test["5"]) == (test == "global")


def test_a_missing_and_an_extra_street_device_are_named(cache: Path, tmp_path: Path) -> None:
    write_voc(drawn_data(TINY, cache), tmp_path / "street_5")
    (tmp_path / "street_5" / "3").rename(tmp_path / "street_5" / "6")
    load = partial(load_data, FederatedStreet(form="voc"), root_of=lambda name: tmp_path, cache=cache)
    with pytest.raises(
        DataError, match=r"street_5/3/Annotations: no such folder; expected one for each of the 5 devices"
    ):
        load()
    faults = Faults(collect=True)
    assert list(load(faults=faults).train) == ["1", "2", "4", "5"]
    assert "street_5/6: expected folders of the devices 1 to 5 only, found another" in "\n".join(faults.errors)


def test_blanks_around_numbers_are_xml_formatting_and_digits_of_another_script_state_no_size(one_folder: Path) -> None:
    plain = load_voc(one_folder, VocFolders(name="mine", clients=Iid(clients=1))).train["1"]
    path = one_folder / "Annotations" / "a.xml"
    text = path.read_text()
    changed = text.replace("<xmin>1<", "<xmin>\n\t1\n<").replace("<width>64<", "<width>٩٩<")
    assert changed.count("\n\t1") == changed.count("٩٩") == 1
    path.write_text(changed)
    found = load_voc(one_folder, VocFolders(name="mine", clients=Iid(clients=1))).train["1"]
    assert samples_digest(found) == samples_digest(plain)
