"""Bad files in YOLO's form and in COCO's own layout: each is refused, and the message names file, line and field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.data.catalog import load_data
from tasks.data.check import check_data
from tasks.data.export.coco import COCO_2017, write_coco
from tasks.errors import DataError
from tasks.spec.clients import ByFolder, ByList, Iid
from tasks.spec.data import Coco, DataSpec, FederatedStreet, SyntheticStreet, VocFolders, Yolo
from tests.tasks.data.roboflow_folder import write_roboflow
from tests.tasks.data.yolo_folder import add_image, write_yolo_folder
from tests.tasks.drawn_data import drawn_data

Change = Callable[[Path], object]
YOLO = Yolo(name="mine", clients=Iid(clients=2))
COCO = Coco(name="mine")


def line(text: str) -> Change:
    """Write ``text`` as the labels of image 1, after a good line."""
    return lambda root: (root / "labels/train/1.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{text}\n")


def data(old: str, new: str) -> Change:
    """Change data.yaml."""

    def change(root: Path) -> None:
        text = (root / "data.yaml").read_text()
        assert old in text
        (root / "data.yaml").write_text(text.replace(old, new))

    return change


def listed(text: str) -> Change:
    """Let a text file list the training images."""

    def change(root: Path) -> None:
        data("train: images/train", "train: train.txt")(root)
        (root / "train.txt").write_text(f"images/train/1.png\n{text}\n")

    return change


def no_labels(root: Path) -> None:
    (root / "labels" / "train").rename(root / "labels" / "training")


def several_images(root: Path) -> None:
    data("val: images/val", "val: [images/val, images/train/]")(root)


def keypoints(text: str) -> Change:
    """Write ``text`` as a label of a set with two keypoints of three values."""

    def change(root: Path) -> None:
        data("nc: 3", "nc: 3\nkpt_shape: [2, 3]")(root)
        line(text)(root)

    return change


DATA = "{root}/data.yaml: "
KPT_SHAPE = "kpt_shape: expected the number of keypoints and 2 or 3 values for each, as [17, 3], found "
LABEL = "{root}/labels/train/1.txt: line 2: "
NUMBERS = "class x y width height, or a polygon class x1 y1 x2 y2 x3 y3 …, found "
BAD_YOLO: dict[str, tuple[Change, str]] = {
    "class beyond names": (line("3 0.5 0.5 0.1 0.1"), LABEL + "expected a class from 0 to 2, found 3"),
    "class below 0": (line("-1 0.5 0.5 0.1 0.1"), LABEL + "expected a class from 0 to 2, found -1"),
    "half a class": (line("0.5 0.5 0.5 0.1 0.1"), LABEL + "expected a class from 0 to 2, found 0.5"),
    "class by name": (line("ant 0.5 0.5 0.1 0.1"), LABEL + "expected numbers, found 'ant 0.5 0.5 0.1 0.1'"),
    "pixels": (line("0 300 200 50 40"), LABEL + "expected fractions of the image's size, from 0 to 1, found '300 200"),
    "commas": (line("0,0.5,0.5,0.1,0.1"), LABEL + "expected " + NUMBERS + "1 columns"),
    "four columns": (line("0 0.5 0.5 0.1"), LABEL + "expected " + NUMBERS + "4 columns"),
    "score": (line("0 0.5 0.5 0.1 0.1 0.9"), NUMBERS + "6 columns; a sixth column, a detection's score, is not read"),
    "half a point": (line("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4"), LABEL + "expected " + NUMBERS + "8 columns"),
    "not a number": (line("0 nan 0.5 0.1 0.1"), LABEL + "expected numbers, found '0 nan 0.5 0.1 0.1'"),
    "an underscore": (line("0 0.5 0.5 0.1_0 0.1"), LABEL + "expected numbers, found '0 0.5 0.5 0.1_0 0.1'"),
    "a class with an underscore": (line("0_1 0.5 0.5 0.1 0.1"), LABEL + "expected numbers, found '0_1 0.5 0.5 0"),
    "digits of another script": (line("٠ 0.5 0.5 0.1 0.1"), LABEL + "expected numbers, found '٠ 0.5 0.5 0.1 0.1'"),
    "negative width": (line("0 0.5 0.5 -0.0005 0.1"), LABEL + "expected xmin < xmax and ymin < ymax, found the empty"),
    "box outside": (line("0 0.9 0.5 0.4 0.1"), LABEL + "bbox: expected a box inside the image of 64 x 48"),
    "labels of bytes": (
        lambda root: (root / "labels/train/1.txt").write_bytes(b"0 \xff"),
        "{root}/labels/train/1.txt: expected lines of numbers in UTF-8: ",
    ),
    "no label files": (
        no_labels,
        "{root}: none of the 6 training images has a label file; expected labels/train/1.txt for images/train/1.png",
    ),
    "no data.yaml": (lambda root: (root / "data.yaml").unlink(), DATA + "cannot be read: No such file"),
    "no YAML": (data("nc: 3", "nc: [3"), "{root}/data.yaml, line 5, column 6: expected YAML: "),
    "key twice": (data("nc: 3", "nc: 3\ntrain: images/val"), DATA + "train: "),
    "a list": (lambda root: (root / "data.yaml").write_text("- 1"), "expected a mapping with names, train and val"),
    "no names": (data("names: [ant, bee, cat]", ""), DATA + "names: expected the classes, as a list or by nu"),
    "names from 1": (
        data("names: [ant, bee, cat]", "names: {1: ant, 2: bee, 3: cat}"),
        DATA + "names: expected the numbers from 0 to 2 as keys, found ['1', '2', '3']",
    ),
    "name twice": (data("cat]", "ant]"), DATA + "names: 2: expected every class once, found 'ant' again"),
    "name of a list": (data("cat]", "[cat]]"), DATA + "names: 2: expected a name, found ["),
    "nc of others": (data("nc: 3", "nc: 4"), DATA + "nc: expected 3, the number of names, found 4"),
    "nc with a zero": (data("nc: 3", "nc: 03"), DATA + "line 4: nc: 03 has a leading zero"),
    "keypoints without values": (data("nc: 3", "nc: 3\nkpt_shape: [17]"), DATA + KPT_SHAPE + "["),
    "keypoints of four values": (data("nc: 3", "nc: 3\nkpt_shape: [17, 4]"), DATA + KPT_SHAPE + "["),
    "keypoints by name": (data("nc: 3", "nc: 3\nkpt_shape: [nose, 3]"), DATA + KPT_SHAPE + "["),
    "no keypoints": (data("nc: 3", "nc: 3\nkpt_shape: [0, 3]"), DATA + KPT_SHAPE + "["),
    "a number of keypoints": (data("nc: 3", "nc: 3\nkpt_shape: 17"), DATA + KPT_SHAPE),
    "a keypoint too few": (
        keypoints("0 0.5 0.5 0.1 0.1 0.4 0.4 2"),
        LABEL + "expected class x y width height and 6 columns of keypoints (kpt_shape), or the box alone, found 8",
    ),
    "a polygon among keypoints": (
        keypoints("0 0.1 0.1 0.2 0.2 0.3 0.1"),
        LABEL + "expected class x y width height and 6 columns of keypoints (kpt_shape), or the box alone, found 7",
    ),
    "a box of pixels before keypoints": (
        keypoints("0 300 200 50 40 0.4 0.4 2 0.5 0.5 2"),
        LABEL + "expected fractions of the image's size, from 0 to 1, found '300 200 50 40'",
    ),
    "a keypoint by name": (keypoints("0 0.5 0.5 0.1 0.1 nose 0.4 2 0.5 0.5 2"), LABEL + "expected numbers, found '0 "),
    "keypoints without kpt_shape": (
        line("0 0.5 0.5 0.1 0.1 0.4 0.4 2"),
        NUMBERS + "8 columns; keypoints are left out where data.yaml has kpt_shape",
    ),
    "val and validation": (
        data("nc: 3", "nc: 3\nvalidation: images/train"),
        DATA + "validation: expected val or validation alone, found both: 'images/val' and 'images/train'",
    ),
    "no such folder of validation": (
        data("val: images/val", "validation: images/valid"),
        DATA + "validation: expected a folder of images, or a text file that lists them, inside {root}, found 'images",
    ),
    "path elsewhere": (
        data("path: .", "path: /content/datasets/ants"),
        DATA + "path: expected a folder inside {root}, found '/content/datasets/ants'; without this key, "
        "the other paths start at the file's own folder: remove it",
    ),
    "path upwards": (data("path: .", "path: ../.."), DATA + "path: expected a folder inside {root}, found '"),
    "train upwards": (
        data("images/train", "../../etc"),
        DATA + "train: expected a folder of images, or a text file that lists them, inside {root}, found '.",
    ),
    "no such folder": (data("images/val", "images/valid"), DATA + "val: expected a folder of images, or a text"),
    "a number": (data("images/val", "{a: b}"), DATA + "val: expected a folder of images, or a text file"),
    "no train": (data("train: images/train", "train:"), DATA + "train: missing; expected a folder of images"),
    "no val": (data("val: images/val", ""), DATA + "val or test: missing; expected the images to score on"),
    "folder of labels": (data("images/val", "labels/val"), DATA + "val: expected a folder of images, found none"),
    "no folder or list": (data("images/val", "data.yaml"), DATA + "val: expected a folder or a text file (.txt"),
    "image in both": (several_images, "expected every image once, found it in train already"),
    "listed elsewhere": (
        listed("/home/joe/images/2.png"),
        "{root}/train.txt: line 2: expected the path of an image inside {root}, found '/home/joe/images/2.png'",
    ),
    "listed upwards": (listed("../2.png"), "{root}/train.txt: line 2: expected the path of an image inside {root}"),
    "listed but missing": (listed("images/train/99.png"), "{root}/train.txt: line 2: expected the path of an"),
    "listed twice": (listed("./images/train/1.png"), "expected every image once, found it in train already"),
    "image of text": (
        lambda root: (root / "images/train/1.png").write_text("no image"),
        "{root}/labels/train/1.txt: {root}/images/train/1.png: expected a readable image",
    ),
}  # fmt: skip


def refused(spec: DataSpec, root: Path, message: str) -> None:
    """Check that loading raises the message, and that a check reports it."""
    expected = re.escape(message.format_map({"root": root}))
    with pytest.raises(DataError, match=expected):
        load_data(spec, root_of=lambda name: root, cache=root.parent)
    report = check_data(spec, root_of=lambda name: root, cache=root.parent)
    assert any(re.search(expected, error) for error in report.errors), report.errors


@pytest.mark.parametrize("case", BAD_YOLO)
def test_bad_yolo_files_name_file_and_line(tmp_path: Path, case: str) -> None:
    root = write_yolo_folder(tmp_path / "set")
    change, message = BAD_YOLO[case]
    change(root)
    refused(YOLO, root, message)


def two_devices(root: Path) -> None:
    for device in ("a", "b"):
        write_yolo_folder(root / device)


def other_parts(root: Path) -> None:
    two_devices(root)
    add_image(root, "a/images/test/1.png")
    (root / "a" / "data.yaml").write_text((root / "a" / "data.yaml").read_text() + "test: images/test\n")


def shared_image(root: Path) -> None:
    two_devices(root)
    data("images/train", "[images/train, ../a/images/train]")(root / "b")


BAD_DEVICES: dict[str, tuple[DataSpec, Change, str]] = {
    "no folders": (
        Yolo(name="mine", clients=ByFolder()),
        write_yolo_folder,
        "{root}: expected a folder with data.yaml for each device; this folder itself has one: set data.clients.kind "
        "to list, iid, dirichlet or size",
    ),
    "folders": (
        YOLO,
        two_devices,
        DATA + "no such file, but the folders a, b have one each: set data.clients.kind to folders",
    ),
    "other parts": (
        Yolo(name="mine", clients=ByFolder()),
        other_parts,
        "{root}/b/data.yaml: test: missing; expected the images to score on; {root}/a/data.yaml has it",
    ),
    "image of two devices": (
        Yolo(name="mine", clients=ByFolder()),
        shared_image,
        "{root}: train: expected every image once, found it in train already; so in 6 images: {root}/a/labels/train/1",
    ),
    "no list": (Yolo(name="mine", clients=ByList()), write_yolo_folder, "{root}/clients.yaml: cannot be read: No such"),
}


@pytest.mark.parametrize("case", BAD_DEVICES)
def test_bad_devices_of_yolo(tmp_path: Path, case: str) -> None:
    spec, write, message = BAD_DEVICES[case]
    (tmp_path / "set").mkdir()
    write(tmp_path / "set")
    refused(spec, tmp_path / "set", message)


def rename(old: str, new: str) -> Change:
    return lambda root: (root / old).rename(root / new)


def edit_json(file: str, change: Callable[[Any], object]) -> Change:
    def edit(root: Path) -> None:
        document = json.loads((root / file).read_text())
        change(document)
        (root / file).write_text(json.dumps(document))

    return edit


FIELDS = (
    "{root}/train.json: cannot be read: No such file or directory; set data.train and data.test to the annotation "
    "files, and data.train_images and data.test_images to the folders of their images; JSON files here: annotations/"
)
TRAIN = "annotations/instances_train2017.json"
BAD_COCO: dict[str, tuple[Change, str]] = {
    "no val": (rename("annotations/instances_val2017.json", "annotations/instances_minival.json"), FIELDS),
    "two trains": (
        lambda root: (root / "annotations/instances_train2014.json").write_text("{}"),
        FIELDS + "instances_train2014.json, annotations/instances_train2017.json",
    ),
    "no folder": (rename("val2017", "valid"), FIELDS),
    "no JSON": (lambda root: (root / TRAIN).write_text("{"), f"{{root}}/{TRAIN}: expected JSON: "),
    "no images": (edit_json(TRAIN, lambda document: document.pop("images")), f"{{root}}/{TRAIN}: images: expected"),
    "image elsewhere": (
        edit_json(TRAIN, lambda document: document["images"][0].update(file_name="../val2017/1.jpg")),
        f"{{root}}/{TRAIN}: image 1: file_name: expected a path inside the folder of images",
    ),
    "image missing": (
        edit_json(TRAIN, lambda document: document["images"][0].update(file_name="0.jpg")),
        "{root}/train2017/0.jpg: the image cannot be read: No such file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_COCO)
def test_bad_files_of_cocos_own_layout(tmp_path: Path, case: str) -> None:
    small = SyntheticStreet(train_images=40, test_images=5, width=64, height=64)
    write_coco(drawn_data(small, tmp_path / "cache"), tmp_path / "set", COCO_2017)
    change, message = BAD_COCO[case]
    change(tmp_path / "set")
    refused(COCO, tmp_path / "set", message)


ROBOFLOW_TRAIN = "train/_annotations.coco.json"
BAD_ROBOFLOW: dict[str, tuple[Change, str]] = {
    "no test images": (rename("test/_annotations.coco.json", "test/a.json"), "{root}/train.json: cannot be read: "),
    "no training images": (rename(ROBOFLOW_TRAIN, "train/a.json"), "{root}/train.json: cannot be read: No such file"),
    "no JSON": (lambda root: (root / ROBOFLOW_TRAIN).write_text("{"), f"{{root}}/{ROBOFLOW_TRAIN}: expected JSON: "),
    "a category twice": (
        edit_json(ROBOFLOW_TRAIN, lambda document: document["categories"][2].update(name="chair")),
        f"{{root}}/{ROBOFLOW_TRAIN}: category 2: name: expected every category once, found 'chair' again",
    ),
    "an annotated heading of a class's name": (
        edit_json(ROBOFLOW_TRAIN, lambda document: document["annotations"][0].update(category_id=0)),
        f"{{root}}/{ROBOFLOW_TRAIN}: category 1: name: expected every category once, found 'chair' again",
    ),
    "image elsewhere": (
        edit_json(ROBOFLOW_TRAIN, lambda document: document["images"][0].update(file_name="../test/t.png")),
        f"{{root}}/{ROBOFLOW_TRAIN}: image 0: file_name: expected a path inside the folder of images",
    ),
    "image missing": (lambda root: (root / "train/b.png").unlink(), "{root}/train/b.png: the image cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROBOFLOW)
def test_bad_files_of_roboflows_layout(tmp_path: Path, case: str) -> None:
    root = write_roboflow(tmp_path / "set", ("train", "test"))
    change, message = BAD_ROBOFLOW[case]
    change(root)
    refused(Coco(name="mine", clients=Iid(clients=1)), root, message)


@pytest.mark.parametrize(
    "spec",
    [
        COCO,
        Coco(name="mine", clients=Iid()),
        Coco(name="mine", train="a.json", clients=ByList()),
        VocFolders(name="mine"),
        VocFolders(name="mine", clients=Iid()),
        FederatedStreet(name="mine"),
        YOLO,
        Yolo(name="mine", clients=ByFolder()),
        Yolo(name="mine", clients=ByList()),
    ],
    ids=lambda spec: f"{spec.kind} {getattr(getattr(spec, 'clients', None), 'kind', '')}",
)
@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_data_set_of_which_nothing_can_be_read_has_no_digest(tmp_path: Path, spec: DataSpec, folder: str) -> None:
    """Nor is there an error that only follows from the missing files."""
    (tmp_path / "empty").mkdir()
    report = check_data(spec, root_of=lambda name: tmp_path / folder, cache=tmp_path)
    assert report.data.digest == ""
    assert report.devices == ()
    assert report.errors
    for error in report.errors:
        assert re.search(r"cannot be read|no such f|expected a folder", error), error


def test_a_missing_image_leaves_no_digest_but_a_wrong_box_does_not_change_it(tmp_path: Path) -> None:
    root = write_yolo_folder(tmp_path / "set")
    whole = check_data(YOLO, root_of=lambda name: root, cache=tmp_path).data.digest
    assert len(whole) == 64
    (root / "labels/val/7.txt").write_text("9 9 9 9 9\n")
    assert len(check_data(YOLO, root_of=lambda name: root, cache=tmp_path).data.digest) == 64
    (root / "images/val/7.png").write_bytes(b"")
    assert check_data(YOLO, root_of=lambda name: root, cache=tmp_path).data.digest == ""
