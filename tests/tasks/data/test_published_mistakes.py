"""Mistakes in the files of BDD100K, VisDrone and KITTI, and the error that each gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.data.catalog import load_data
from tasks.data.entries import Faults
from tasks.errors import DataError
from tasks.spec.clients import ByField, Iid
from tasks.spec.data import Bdd100k, Kitti, VisDrone
from tests.tasks.data.published_folders import (
    KITTI_END,
    bdd100k,
    label,
    write_frames,
    write_image,
    write_kitti,
    write_lines,
    write_visdrone,
)

Frames = list[dict[str, Any]]
TRAIN = r"labels/det_20/det_train\.json: "


def frame(**fields: Any) -> Callable[[Frames, Frames], object]:
    """Return an edit of the first training frame."""
    return lambda train, _: train[0].update(fields)


def first_label(**fields: Any) -> Callable[[Frames, Frames], object]:
    return lambda train, _: train[0]["labels"][0].update(fields)


BDD100K: dict[str, tuple[Callable[[Frames, Frames], object], str]] = {
    "name missing": (frame(name=None), TRAIN + r"frame 1: name: expected an image's path in UTF-8, .*, found None"),
    "name outside": (frame(name="../a.jpg"), r"frame 1: name: expected an image's path .* without \.\., found '\.\./a"),
    "name of half an emoji": (frame(name="\ud83d.jpg"), r"frame 1: name: expected an image's path in UTF-8"),
    "no image": (frame(name="x.jpg"), r"frame 1 \(x\.jpg\): .*100k/train/x\.jpg: the image cannot be read"),
    "an image twice": (frame(name="b.jpg"), r"frame 2 \(b\.jpg\): expected every image once"),
    "other size": (
        frame(size={"width": 1280, "height": 720}),
        r"expected the annotation's 1280 x 720 pixels, found 64",
    ),
    "attributes of text": (
        frame(attributes="rainy"),
        r"frame 1 \(a\.jpg\): attributes: expected a mapping, found 'rainy'",
    ),
    "attribute missing": (frame(attributes={}), r"frame 1 \(a\.jpg\): weather: missing; expected the device"),
    "attribute of numbers": (
        frame(attributes={"weather": 0.5}),
        r"attributes\.weather: expected a name or a whole number, found 0\.5",
    ),
    "attribute of other letters": (
        frame(attributes={"weather": "été"}),
        r"attributes: weather: expected a device named by letters, .*, found 'été'",
    ),
    "labels of text": (frame(labels="none"), r"frame 1 \(a\.jpg\): labels: expected a list, found 'none'"),
    "labels of an empty mapping": (frame(labels={}), r"frame 1 \(a\.jpg\): labels: expected a list, found \{\}"),
    "a label of text": (frame(labels=["car"]), r"label 1: expected a mapping with category and box2d, found 'car'"),
    "no category": (first_label(category=None), r"frame 1 \(a\.jpg\): label 1: category: expected a name, found None"),
    "a box of three": (
        first_label(box2d={"x1": 0, "y1": 0, "x2": 1}),
        r"label 1: box2d: expected four numbers x1, y1, x2",
    ),
    "a box of text": (
        first_label(box2d=dict.fromkeys(("x1", "y1", "x2", "y2"), "1")),
        r"box2d: expected four numbers x1",
    ),
    "a box of lists": (
        first_label(box2d=[0, 0, 1, 1]),
        r"box2d: expected four numbers x1, y1, x2, y2, found \[0, 0, 1, 1",
    ),
    "a box beyond numbers": (
        first_label(box2d={"x1": 0, "y1": 0, "x2": 10**400, "y2": 1}),
        r"box2d: expected four num",
    ),
    "a box turned around": (first_label(**label("car", 9, 0, 1, 8)), r"label 1: box2d: expected xmin < xmax"),
    "a box outside": (first_label(**label("car", 9, 0, 70, 8)), r"label 1: bbox: expected a box inside .* 64 x 48"),
    "a box not finite": (first_label(**label("car", 9, 0, float("inf"), 8)), r"label 1: box2d: expected four numbers"),
    "crowd of text": (
        first_label(attributes={"crowd": "yes"}),
        r"expected true or false for crowd and ignored, found 'y",
    ),
    "a class of tests only": (
        lambda _, test: test[0]["labels"].append(label("bus", 0, 0, 9, 9)),
        r"det_val\.json: frame 1 \(t\.jpg\): class 'bus' is in no training image; expected one of car, traffic sign",
    ),
    "some tests without attribute": (
        lambda _, test: test[0].update(attributes=None),
        r"det_val\.json: frame 1 \(t\.jpg\): weather: missing; expected it in every test image",
    ),
}


@pytest.mark.parametrize("case", BDD100K)
def test_mistakes_in_frames_name_file_frame_and_label(tmp_path: Path, case: str) -> None:
    edit, message = BDD100K[case]
    train, test = bdd100k(tmp_path)
    edit(train, test)
    write_frames(tmp_path, train, test)
    with pytest.raises(DataError, match=message):
        load_data(Bdd100k(name="mine", clients=ByField(field="weather")), root_of=lambda name: tmp_path, cache=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ('"frames"', "expected a list of frames, or a mapping with the list frames, found 'frames'"),
        ('{"frames": {}}', "expected a list of frames, or a mapping with the list frames"),
        ("[1]", "frame 1: expected a mapping with name and labels, found 1"),
        ('[{"name": "a", "name": "b"}]', "twice"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_files_that_are_no_frames_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    write_frames(tmp_path, *bdd100k(tmp_path))
    path = tmp_path / "labels" / "det_20" / "det_train.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=TRAIN + ".*" + message):
        load_data(Bdd100k(name="mine"), root_of=lambda name: tmp_path, cache=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "old: expected a JSON file for each image, found none"),
        ('{"name": "a", "frames": []}', r"old/a\.json: frames: expected a list of one frame, found \[\]"),
        ('{"name": 1, "frames": [{}]}', r"old/a\.json: name: expected an image's path"),
    ],
)
def test_mistakes_in_files_of_single_images(tmp_path: Path, content: str | None, message: str) -> None:
    (tmp_path / "old").mkdir()
    if content is not None:
        (tmp_path / "old" / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_data(Bdd100k(name="mine", train="old"), root_of=lambda name: tmp_path, cache=tmp_path)


def line(text: str) -> Callable[[Path], object]:
    """Return an edit that makes ``text`` the second line of a file of VisDrone's."""
    return lambda root: write_lines(root / "VisDrone2019-DET-val/annotations/0000001_02999_d_0000005.txt", "", text)


AT = r"VisDrone2019-DET-val/annotations/0000001_02999_d_0000005\.txt: line 2: "
DRONES = "VisDrone2019-DET-val"
VISDRONE: dict[str, tuple[Callable[[Path], object], str]] = {
    "seven columns": (
        line("1,2,3,4,1,4,0"),
        AT + "expected eight numbers left,top,width,height,score,.*, found '1,2,3",
    ),
    "blanks between": (line("1 2 3 4 1 4 0 0"), AT + "expected eight numbers"),
    "a word": (line("1,2,3,4,1,car,0,0"), AT + "expected eight numbers"),
    "category 12": (line("1,2,3,4,1,12,0,0"), AT + "category: expected 0 to 10 or 11, found 12"),
    "half a category": (line("1,2,3,4,1,1.5,0,0"), AT + "category: expected 0 to 10 or 11, found 1.5"),
    "a score of detections": (line("1,2,3,4,0.97,4,-1,-1"), AT + "score: expected 0 or 1, found 0.97"),
    "negative width": (line("9,2,-3,4,1,4,0,0"), AT + "expected xmin < xmax .* empty box 9, 2, 6, 6"),
    "a region of negative height": (line("9,2,3,-4,0,0,0,0"), AT + "expected xmin < xmax"),
    "a region that is not finite": (line("9,nan,3,4,0,0,0,0"), AT + "expected eight numbers .* found '9,nan,3,4"),
    "an underscore": (line("1_0,2,3,4,1,4,0,0"), AT + "expected eight numbers .* found '1_0,2,3,4"),
    "digits of another script": (line("٩,2,3,4,1,4,0,0"), AT + "expected eight numbers .* found '٩,2,3,4"),
    "outside": (line("60,2,30,4,1,4,0,0"), AT + "bbox: expected a box inside the image of 64 x 48 pixels, found 60"),
    "not UTF-8": (
        lambda root: (root / DRONES / "annotations/0000001_02999_d_0000005.txt").write_bytes(b"\xff\xfe1"),
        r"d_0000005\.txt: expected text in UTF-8",
    ),
    "no annotation": (
        lambda root: (root / DRONES / "annotations/0000001_02999_d_0000005.txt").unlink(),
        r"d_0000005\.txt: cannot be read",
    ),
    "no image": (
        lambda root: (root / DRONES / "images/0000001_02999_d_0000005.jpg").unlink(),
        r"d_0000005\.txt: expected one image called 0000001_02999_d_0000005 in .*images, found none",
    ),
    "two images": (
        lambda root: write_image(root / DRONES / "images/0000001_02999_d_0000005.png"),
        r"expected one image called .*, found 0000001_02999_d_0000005\.jpg and 0000001_02999_d_0000005\.png",
    ),
    "no images": (
        lambda root: shutil.rmtree(root / DRONES / "images"),
        "DET-val/images: the folder of images cannot be",
    ),
    "no annotations": (
        lambda root: shutil.rmtree(root / DRONES / "annotations"),
        "DET-val/annotations: the folder of annotations cannot be read",
    ),
}


@pytest.mark.parametrize("case", VISDRONE)
def test_mistakes_of_visdrone_name_file_and_line(tmp_path: Path, case: str) -> None:
    edit, message = VISDRONE[case]
    write_visdrone(tmp_path)
    edit(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data(VisDrone(name="mine"), root_of=lambda name: tmp_path, cache=tmp_path)


def row(text: str) -> Callable[[Path], object]:
    return lambda root: write_lines(root / "training/label_2/000002.txt", text)


ROW = r"training/label_2/000002\.txt: line 1: "
KITTI: dict[str, tuple[Callable[[Path], object], str]] = {
    "fourteen columns": (
        row("Car 0 0 0 1 2 3 4 1 1 1 1 1 1"),
        ROW + "expected the 15 columns type truncated .*, found 14",
    ),
    "a detection": (
        row(f"Car 0 0 0 1 2 3 4 {KITTI_END} 0.9"),
        ROW + "expected the 15 columns .*, found 16: .*; a 16th column is the score of a detection",
    ),
    "a word": (row(f"Car 0 0 0 1 2 three 4 {KITTI_END}"), ROW + "expected the 15 columns"),
    "a type of two words": (row(f"traffic sign 0 0 0 1 2 3 4 {KITTI_END}"), ROW + "expected the 15 columns"),
    "turned around": (row(f"Car 0 0 0 9 2 3 4 {KITTI_END}"), ROW + "expected xmin < xmax .* empty box 9, 2, 3, 4"),
    "not finite": (row(f"DontCare 0 0 0 1 2 inf 4 {KITTI_END}"), ROW + "expected the 15 columns .* found 15"),
    "an underscore": (row(f"Car 0 0 0 1 2 3_0 4 {KITTI_END}"), ROW + "expected the 15 columns .* found 15"),
    "digits of another script": (row(f"Car 0 0 0 1 2 ٣ 4 {KITTI_END}"), ROW + "expected the 15 columns .* found 15"),
    "outside": (row(f"Car 0 0 0 1 2 3 90 {KITTI_END}"), ROW + "bbox: expected a box inside the image of 64 x 48"),
    "no labels": (
        lambda root: (root / "training/label_2/000002.txt").unlink(),
        r"label_2/000002\.txt: cannot be read",
    ),
    "no image": (
        lambda root: (root / "training/image_2/000002.png").unlink(),
        r"ImageSets/train\.txt: 000002: expected one image called 000002 in .*image_2, found none",
    ),
    "in both lists": (
        lambda root: write_lines(root / "ImageSets/val.txt", "000001"),
        r"label_2/000001\.txt: expected every image once, found it in ImageSets/train\.txt already",
    ),
    "no list": (lambda root: (root / "ImageSets/val.txt").unlink(), r"ImageSets/val\.txt: cannot be read"),
    "a path in a list": (
        lambda root: write_lines(root / "ImageSets/val.txt", "../000003"),
        r"ImageSets/val\.txt: line 1: expected an image's name, found '\.\./000003'",
    ),
    "a class of tests only": (
        lambda root: write_lines(root / "training/label_2/000003.txt", f"Van 0 0 0 1 2 3 4 {KITTI_END}"),
        r"000003\.txt: class 'Van' is in no training image; expected one of Car, Pedestrian",
    ),
    "an empty list": (
        lambda root: write_lines(root / "ImageSets/train.txt"),
        "expected one of .none.$",
    ),
}


@pytest.mark.parametrize("case", KITTI)
def test_mistakes_of_kitti_name_file_and_line(tmp_path: Path, case: str) -> None:
    edit, message = KITTI[case]
    write_kitti(tmp_path)
    edit(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data(Kitti(name="mine", clients=Iid(clients=2)), root_of=lambda name: tmp_path, cache=tmp_path)


def test_all_mistakes_are_collected_and_usable_images_are_kept(tmp_path: Path) -> None:
    write_visdrone(tmp_path)
    folder = tmp_path / "VisDrone2019-DET-train" / "annotations"
    write_lines(folder / "0000002_00005_d_0000014.txt", "1,2,30,40,2,1,0,0", "nothing", "1,2,30,40,1,1,0,0")
    (folder / "0000007_04999_d_0000036.txt").unlink()
    faults = Faults(collect=True)
    data = load_data(VisDrone(name="mine"), root_of=lambda name: tmp_path, cache=tmp_path, faults=faults)
    assert len(faults.errors) == 3
    assert {device: [len(one.labels) for one in own] for device, own in data.train.items()} == {
        "0000002": [1, 0], "0000007": [0],
    }  # fmt: skip
