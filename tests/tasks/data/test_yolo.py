"""The reader of YOLO's form: paths, parts, labels and devices, beside an independent reader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tasks.data.catalog import load_data
from tasks.data.check import check_data
from tasks.data.entries import Faults
from tasks.data.export.yolo import write_yolo
from tasks.data.samples import FederatedData, samples_digest
from tasks.data.yolo import load_yolo
from tasks.data.yolo_files import inside_root
from tasks.data.yolo_labels import label_file
from tasks.errors import DataError
from tasks.spec.clients import ByFolder, ByList, Iid
from tasks.spec.data import SyntheticStreet, Yolo
from tests.tasks.data.yolo_folder import HEIGHT, WIDTH, add_image, read_independently, write_yolo_folder
from tests.tasks.drawn_data import drawn_data

SPEC = Yolo(name="mine", clients=Iid(clients=2))
FOLDERS = Yolo(name="mine", clients=ByFolder())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_yolo_folder(tmp_path / "set")


def keys(data: FederatedData) -> tuple[list[str], list[str]]:
    """Return the sorted names of all training images, and of the first client's test images."""
    train = sorted(sample.path.stem for own in data.train.values() for sample in own)
    return train, [sample.path.stem for sample in next(iter(data.test.values()))]


def test_boxes_are_fractions_of_the_image_and_classes_keep_their_order(root: Path) -> None:
    data = load_yolo(root, SPEC)
    assert data.classes == ("ant", "bee", "cat")
    assert keys(data) == (list("123456"), ["7", "8"])
    sample = data.train["1"][0]
    assert (sample.width, sample.height) == (WIDTH, HEIGHT)
    np.testing.assert_allclose(sample.boxes, [[24.0, 12.0, 40.0, 36.0], [3.2, 7.2, 9.6, 12.0]], rtol=1e-6)
    assert sample.labels.tolist() == [0, 2]
    assert sample.key.startswith("images/train/")
    assert data.test["1"] is data.test["2"]


def test_polygons_become_boxes_and_empty_or_missing_files_mean_no_objects(root: Path) -> None:
    add_image(root, "images/train/1.png", "1 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n\n 0 0.5 0.5 1 1 \r\n")
    add_image(root, "images/train/2.png", "")
    add_image(root, "images/train/3.png", " \n")
    (root / "labels/train/4.txt").unlink()
    faults = Faults()
    data = load_yolo(root, SPEC, faults=faults)
    samples = {sample.path.stem: sample for own in data.train.values() for sample in own}
    np.testing.assert_allclose(samples["1"].boxes, [[16, 12, 48, 36], [0, 0, 64, 48]])
    assert [len(samples[name].labels) for name in "12345"] == [2, 0, 0, 0, 2]
    assert lines(faults)[1:] == [
        f"1 images have no label file, and count as images without objects: {root}/images/train/4.png"
    ]


@pytest.mark.parametrize("line", ["0 0.5 0.5 0 0.1", "0 0.5 0.5 0.1 0", "0 0.5 0.1 0.5 0.2 0.5 0.3"])
def test_lines_without_width_or_height_are_noted_and_left_out(root: Path, line: str) -> None:
    """Ultralytics takes them. Its conversion of VisDrone writes a few."""
    add_image(root, "images/train/1.png", f"1 0.5 0.5 0.5 0.5\n{line}\n")
    faults = Faults(collect=True)
    data = load_yolo(root, SPEC, faults=faults)
    (sample,) = (sample for own in data.train.values() for sample in own if sample.path.stem == "1")
    assert sample.labels.tolist() == [1]
    assert faults.errors == []
    assert faults.notes.emptied == [f"{root / 'labels/train/1.txt'}: line 2"]


def test_a_box_is_cut_to_its_image_up_to_rounding(root: Path) -> None:
    add_image(root, "images/train/1.png", "0 0.25 0.5 0.5015 1\n")
    boxes = {s.path.stem: s.boxes for own in load_yolo(root, SPEC).train.values() for s in own}
    np.testing.assert_allclose(boxes["1"], [[0, 0, 0.50075 * WIDTH, HEIGHT]])
    add_image(root, "images/train/1.png", "0 0.25 0.5 0.51 1\n")
    with pytest.raises(
        DataError, match=r"labels/train/1\.txt: line 1: bbox: expected a box inside the image of 64 x 48"
    ):
        load_yolo(root, SPEC)


def lines(faults: Faults) -> list[str]:
    return [str(finding) for finding in faults.notes.findings(SPEC)]


PARTS = {
    "no path": "train: images/train\nval: images/val\nnames: {0: ant, 1: bee, 2: cat}\n",
    "parents of exports": "train: ../images/train\nval: ../images/val\nnc: 3\nnames: ['ant', 'bee', 'cat']\n",
    "lists of folders": "train: [images/train]\nval: [./images/val/]\ntest:\nnames:\n- ant\n- bee\n- cat\n",
    "backslashes": "path: images\ntrain: train\nval: .\\val\nnames: [ant, bee, cat]\n",
    "absolute path": "path: {root}\ntrain: {root}/images/train\nval: images/val\nnames: [ant, bee, cat]\n",
    "text file": "train: train.txt\nval: lists/val.txt\nnames: [ant, bee, cat]\n",
    "JSON": '{{"train": "images/train", "val": "images/val", "nc": 3, "names": ["ant", "bee", "cat"]}}',
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_are_folders_lists_of_folders_or_text_files(root: Path, case: str) -> None:
    first = load_yolo(root, SPEC)
    text = PARTS[case]
    (root / "data.yaml").write_text(text.format(root=root) if "{root}" in text or case == "JSON" else text)
    (root / "train.txt").write_text("".join(f"./images/train/{number}.png\n" for number in range(1, 7)))
    (root / "lists").mkdir()
    (root / "lists" / "val.txt").write_text(f"images/val/7.png\n\n{root}/images/val/8.png\n")
    found = load_yolo(root, SPEC)
    assert keys(found) == (list("123456"), ["7", "8"])
    assert found.digest == first.digest  # the digest is that of the images, labels and names, not of their description


def test_the_digest_covers_names_parts_labels_and_images(root: Path) -> None:
    digests = [load_yolo(root, SPEC).digest]
    for old, new in (("ant, bee", "bee, ant"), ("val: images/val", "val: [images/val, images/more]")):
        add_image(root, "images/more/9.png")
        text = (root / "data.yaml").read_text()
        (root / "data.yaml").write_text(text.replace(old, new))
        digests.append(load_yolo(root, SPEC).digest)
    (root / "labels/train/1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    digests.append(load_yolo(root, SPEC).digest)
    add_image(root, "images/train/1.jpg".replace("jpg", "bmp"))
    digests.append(load_yolo(root, SPEC).digest)
    assert len(set(digests)) == 5
    assert load_yolo(root, SPEC.model_copy(update={"digest": digests[-1]})).digest == digests[-1]
    with pytest.raises(DataError, match="data set 'mine' is not the one that was asked for: expected content digest"):
        load_yolo(root, SPEC.model_copy(update={"digest": digests[0]}))


def test_val_is_the_test_set_only_without_test_and_is_never_left_out_silently(root: Path) -> None:
    def load(**fields: str) -> tuple[list[str], list[str]]:
        faults = Faults()
        spec = Yolo.model_validate({"name": "mine", "clients": {"kind": "iid", "clients": 2}, **fields})
        return keys(load_yolo(root, spec, faults=faults))[1], lines(faults)

    at = f"{root}/data.yaml: "
    assert load() == (["7", "8"], [f"{at}there is no test, so val is the test set (data.test: val)"])
    assert load(test="val") == (["7", "8"], [])
    add_image(root, "images/test/9.png")
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "test: images/test\n")
    images, (note,) = load()
    assert images == ["9"]
    assert note.startswith(f"{at}the 2 images of val are not used, because test is the test set; data.test=val scores")
    assert load(test="test") == (["9"], [])
    assert load(test="val") == (["7", "8"], [])
    (root / "data.yaml").write_text((root / "data.yaml").read_text().replace("images/test", "images/val"))
    assert load() == (["7", "8"], [])  # val is test: nothing is left out


def test_a_part_that_is_not_chosen_need_not_exist(root: Path) -> None:
    """Some tools write ``test: ../test/images`` into every data.yaml, and others null."""
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text + "test: ../test/images\n")
    with pytest.raises(DataError, match=r"test: expected a folder .* found '\.\./test/images'; data\.test=val"):
        load_yolo(root, SPEC)
    chosen = SPEC.model_copy(update={"test": "val"})
    assert keys(load_yolo(root, chosen)) == (list("123456"), ["7", "8"])
    for null in ("null", "~", ""):
        (root / "data.yaml").write_text(text.replace("path: .", f"path: {null}") + f"test: {null}\nkpt_shape: {null}\n")
        faults = Faults()
        assert keys(load_yolo(root, SPEC, faults=faults)) == (list("123456"), ["7", "8"])
        assert [line for line in lines(faults) if "val is the test set" in line]


def test_images_that_are_not_read_and_label_files_of_several_images_are_noted(root: Path) -> None:
    (root / "images/train/x.HEIC").touch()
    (root / "images/train/notes.md").touch()
    add_image(root, "images/train/1.jpg")
    faults = Faults()
    assert len(keys(load_yolo(root, SPEC.model_copy(update={"test": "val"}), faults=faults))[0]) == 7
    assert lines(faults) == [
        f"{root}/data.yaml: train: 1 files have a suffix of images that are not read; write them as PNG or JPEG: "
        f"{root}/images/train/x.HEIC",
        "1 label files belong to several images, which differ in their suffix: "
        f"{root}/labels/train/1.txt (images/train/1.jpg and images/train/1.png)",
    ]
    for image in (root / "images/train").glob("*.[pj][np]g"):
        image.unlink()
    with pytest.raises(DataError, match=r"expected a folder .*, found none in .*, but .*x\.HEIC; images end in \.bmp"):
        load_yolo(root, SPEC)


def test_each_folder_with_a_file_of_its_own_is_a_device(tmp_path: Path) -> None:
    for device in ("10", "9", "b"):
        write_yolo_folder(tmp_path / device)
    (tmp_path / "other").mkdir()
    data = load_yolo(tmp_path, FOLDERS)
    assert list(data.train) == ["9", "10", "b"]
    assert [len(samples) for samples in data.train.values()] == [6, 6, 6]
    assert [sample.path.parts[-4] for samples in data.test.values() for sample in samples] == [
        "9",
        "9",
        "10",
        "10",
        "b",
        "b",
    ]
    (tmp_path / "b" / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [bee, ant, cat]\n")
    with pytest.raises(DataError, match=r"b/data\.yaml: names: expected those of .*9/data\.yaml in the same order"):
        load_yolo(tmp_path, FOLDERS)


def test_a_test_set_that_all_devices_name_is_global(tmp_path: Path) -> None:
    for device in ("a", "b"):
        write_yolo_folder(tmp_path / device, text="train: images/train\nval: ../all/images\nnames: [ant, bee, cat]\n")
    add_image(tmp_path, "all/images/x.png")
    data = load_yolo(tmp_path, FOLDERS)
    assert data.test["a"] is data.test["b"]
    assert [sample.key for sample in data.test["a"]] == ["all/images/x"]


def test_a_list_names_devices(root: Path) -> None:
    (root / "clients.yaml").write_text(
        "west: [1.png, images/train/2.png, images/train/3]\neast: [4.png, 5.png, 6.png]\n"
    )
    data = load_yolo(root, Yolo(name="mine", clients=ByList()))
    assert {device: [sample.path.stem for sample in own] for device, own in data.train.items()} == {
        "east": ["4", "5", "6"],
        "west": ["1", "2", "3"],
    }


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/train/1.jpg", "labels/train/1.txt"),
        ("a/images/b/images/1.x.jpeg", "a/images/b/labels/1.x.txt"),
        ("my_images/1.jpg", "my_images/1.txt"),
        ("train/images/1.jpg", "train/labels/1.txt"),
        ("1.jpg", "1.txt"),
    ],
)
def test_labels_are_where_ultralytics_looks_for_them(image: str, labels: str) -> None:
    assert label_file(image) == labels


@pytest.mark.parametrize(
    ("base", "value", "found"),
    [
        ("a", "b/./c", "a/b/c"), ("a", "../b", "b"), ("a", "../..", None), ("", "..", None), ("", ".", ""),
        ("a", "/etc", None), ("", "C:\\images", None), ("", "a/../../b", None), ("", "x\0y", None),
        ("a/b", "..\\c", "a/c"),
    ],
)  # fmt: skip
def test_no_path_leaves_the_data_set(tmp_path: Path, base: str, value: str, found: str | None) -> None:
    assert inside_root(tmp_path, base, value) == found
    assert inside_root(tmp_path, "x", f"{tmp_path}/y/../z") == "z"
    assert inside_root(tmp_path, "x", f"{tmp_path}/../z") is None


def test_links_to_folders_are_followed_and_a_circle_ends(root: Path) -> None:
    shutil.move(root / "images" / "train", root / "moved")
    (root / "images" / "train").symlink_to(root / "moved")
    (root / "moved" / "again").symlink_to(root / "moved")
    add_image(root, "moved/.hidden.png")
    assert keys(load_yolo(root, SPEC))[0] == list("123456")


def test_an_independent_reader_finds_the_same_boxes(root: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for number in range(1, 7):
        sizes = rng.uniform(0.01, 0.5, (9, 2))
        centres = rng.uniform(sizes / 2, 1 - sizes / 2)
        rows = zip(rng.integers(0, 3, 9), np.hstack([centres, sizes]), strict=True)
        text = "".join(f"{label} {' '.join(f'{value:.6f}' for value in box)}\n" for label, box in rows)
        add_image(root, f"images/train/{number}.png", text)
    expected = read_independently(root / "data.yaml")
    data = load_yolo(root, SPEC)
    samples = [sample for own in data.train.values() for sample in own]
    assert {sample.path.name for sample in samples} == expected.keys()
    for sample in samples:
        assert [data.classes[label] for label in sample.labels] == [name for name, _ in expected[sample.path.name]]
        np.testing.assert_allclose(sample.boxes, [box for _, box in expected[sample.path.name]], atol=1e-4)


@pytest.mark.parametrize("test", ["global", "per-device"])
def test_a_written_set_is_read_as_the_same_boxes_to_the_bit(tmp_path: Path, test: str) -> None:
    spec = SyntheticStreet.model_validate(
        {"train_images": 40, "test_images": 5, "width": 97, "height": 83, "test": test}
    )
    data = drawn_data(spec, tmp_path / "cache")
    write_yolo(data, tmp_path / "yolo")
    found = load_yolo(tmp_path / "yolo", FOLDERS)
    assert found.classes == data.classes
    assert len({id(samples) for samples in found.test.values()}) == (1 if test == "global" else 5)
    for device, samples in data.train.items():
        assert samples_digest(found.train[device]) == samples_digest(samples)
        assert samples_digest(found.test[device]) == samples_digest(data.test[device])
    expected = read_independently(tmp_path / "yolo" / "1" / "data.yaml")
    assert expected.keys() == {sample.path.name for sample in data.train["1"]}


def test_validation_is_another_key_of_val(root: Path) -> None:
    expected = load_yolo(root, SPEC)
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text.replace("val:", "validation:"))
    assert load_yolo(root, SPEC).digest == expected.digest
    assert load_yolo(root, SPEC.model_copy(update={"test": "val"})).digest == expected.digest
    (root / "data.yaml").write_text(f"{text}validation: images/val\n")  # both name the same
    assert load_yolo(root, SPEC).digest == expected.digest


@pytest.mark.parametrize(("shape", "columns"), [("[2, 3]", "0.4 0.4 2 0 0 0"), ("[3, 2]", "0.4 0.4 0.5 0.5 0 0")])
def test_keypoints_are_left_out_where_the_file_declares_them(root: Path, shape: str, columns: str) -> None:
    box = "0 0.5 0.5 0.25 0.5"
    (root / "labels/train/1.txt").write_text(f"{box} {columns}\n{box}\n")
    with (root / "data.yaml").open("a") as file:
        file.write(f"kpt_shape: {shape}\n")
    data = load_yolo(root, SPEC)
    (sample,) = (one for own in data.train.values() for one in own if one.key.endswith("/1"))
    assert sample.boxes.tolist() == [[24, 12, 40, 36]] * 2
    assert sample.labels.tolist() == [0, 0]


def test_the_same_columns_without_kpt_shape_are_a_polygon(root: Path) -> None:
    (root / "labels/train/1.txt").write_text("0 0.5 0.5 0.25 0.5 0.4 0.4 0.5 0.5 0 0\n")
    data = load_yolo(root, SPEC)
    (sample,) = (one for own in data.train.values() for one in own if one.key.endswith("/1"))
    assert sample.boxes.tolist() == [[0, 0, 32, 24]]  # around the points (0.5, 0.5), (0.25, 0.5), …, (0, 0)


def test_a_check_counts_and_collects(root: Path) -> None:
    (root / "labels/train/1.txt").write_text("0 0.5 0.5 0.1 0.1\n5 0.5 0.5 0.1 0.1\n0 9 9 9 9\n")
    report = check_data(SPEC, root_of=lambda name: root, cache=root / "cache")
    assert report.errors == (
        f"{root}/labels/train/1.txt: line 2: expected a class from 0 to 2, found 5",
        f"{root}/labels/train/1.txt: line 3: expected fractions of the image's size, from 0 to 1, found '9 9 9 9'",
    )
    assert (report.train_images, report.test_images) == (6, 2)
    assert "there is no test, so val is the test set" in " ".join(report.warnings)
    assert "class 'bee' has no training box" in report.warnings


def test_names_stay_texts_as_written(root: Path) -> None:
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames:\n  0: no\n  1: 010\n  2: null\n")
    assert load_data(SPEC, root_of=lambda name: root, cache=root).classes == ("no", "010", "null")
    (root / "data.yaml").write_text(
        json.dumps({"train": "images/train", "val": "images/val", "names": {"0": "a", "1": "b", "2": "c"}})
    )
    assert load_yolo(root, SPEC).classes == ("a", "b", "c")
    assert load_yolo(root, SPEC.model_copy(update={"classes": ("c", "b", "a")})).train["1"][0].labels.tolist() == [2, 0]
