"""The check of a data set: its counts, its errors and its warnings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.data.check import DataReport, check_data
from tasks.data.similar import difference_hash, nearest, thumbnail
from tasks.errors import DataError
from tasks.spec.clients import Iid
from tasks.spec.data import Coco, FederatedStreet, Kitti, VocFolders
from tests.tasks.data.pictures import HEIGHT, WIDTH, picture
from tests.tasks.data.published_folders import write_kitti, write_lines
from tests.tasks.data.voc_folder import CHAIR, TABLE, add_image, add_lists


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a COCO folder: images 1 to 4 on devices a and b, 5 and 6 for test, class cup only on device b."""
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    for number in range(1, 7):
        picture(number).save(root / "images" / f"{number}.jpg", quality=95)
    categories = [{"id": 1, "name": "bin"}, {"id": 2, "name": "cup"}]
    for file, numbers in (("train.json", range(1, 5)), ("test.json", range(5, 7))):
        images = [
            {"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT}
            | ({"device": "ab"[n % 2]} if n < 5 else {})
            for n in numbers
        ]
        annotations = [
            {"id": 2 * n + label, "image_id": n, "category_id": label, "bbox": [label, 1, 20, 20]}
            for n in numbers
            for label in ((1, 2) if n in (3, 6) else (1,))
        ]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / file).write_text(json.dumps(document))
    return root


def check(root: Path, **options: int) -> DataReport:
    return check_data(Coco(name="mine"), root_of=lambda name: root, cache=root / "cache", **options)


def edit(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))


def test_counts(root: Path) -> None:
    report = check(root)
    assert (report.train_images, report.test_images) == (4, 2)
    assert report.boxes_by_device == {"a": {"bin": 2, "cup": 0}, "b": {"bin": 2, "cup": 1}}
    assert [(d.device, d.train_images, d.test_images) for d in report.devices] == [("a", 2, 2), ("b", 2, 2)]
    assert report.test_boxes == {"bin": 2, "cup": 1}
    assert report.errors == ()
    (warning,) = report.warnings
    assert warning == f"class 'cup' is on device b only: 1 boxes in 1 images, the first in {root}/images/3.jpg"


def test_all_errors_are_collected_each_with_its_file(root: Path) -> None:
    (root / "images" / "1.jpg").unlink()
    cut = root / "images" / "2.jpg"
    cut.write_bytes(cut.read_bytes()[:-20])
    inner = root / "images" / "4.jpg"
    picture(4).save(inner, format="PNG")  # a good header before damaged pixels
    data = inner.read_bytes()
    inner.write_bytes(data[: len(data) // 2] + bytes(20) + data[len(data) // 2 + 20 :])
    edit(root, "test.json", "[1, 1, 20, 20]", "[1, 1, 20, -2]")
    edit(root, "test.json", '"bbox": [1, 1, 20, 20]', '"bbox": [90, 1, 20, 20]')
    edit(root, "train.json", '"name": "cup"', '"name": "mug"')
    report = check(root)
    text = "\n".join(report.errors)
    for expected in (
        "images/1.jpg: the image cannot be read",
        "images/2.jpg: the image is truncated",
        "images/4.jpg: expected an image that can be decoded",
        "test.json: annotation 11: bbox: expected xmin < xmax",
        "test.json: annotation 13: bbox: expected a box inside the image",
        "test.json: image 6 (6.jpg): class 'cup' is in no training image; expected one of bin, mug",
    ):
        assert expected in text
    assert len(report.errors) == 6


def test_a_device_without_images_and_a_broken_label_file_are_errors(root: Path) -> None:
    (root / "train_label.json").write_text("[]")
    shutil.copyfile(root / "train_label.json", root / "test_label.json")
    (root / "Images").mkdir()
    report = check_data(FederatedStreet(), root_of=lambda name: root, cache=root)
    assert "test_label.json: expected a list of at least one image" in "\n".join(report.errors)
    assert "device_2_id: no images of device 1, 2, 3, 4, 5; expected some of each" in "\n".join(report.errors)
    assert report.boxes_by_device.keys() == {"1", "2", "3", "4", "5"}


def test_unreadable_training_labels_make_no_error_or_warning_of_what_follows(root: Path) -> None:
    (root / "train.json").write_text("{")
    report = check(root)
    (error,) = report.errors
    assert "train.json: expected JSON" in error
    assert report.warnings == ()


def test_classes_without_training_boxes_are_one_warning(root: Path) -> None:
    edit(root, "train.json", '"categories": [', '"categories": [{"id": 8, "name": "mug"}, {"id": 9, "name": "pot"}, ')
    assert "2 classes have no training box: 'mug', 'pot'" in check(root).warnings
    edit(root, "train.json", ', {"id": 9, "name": "pot"}', "")
    assert "class 'mug' has no training box" in check(root).warnings


@pytest.mark.parametrize("content", ["<annotation>", "<x/>"])
def test_an_annotation_that_is_no_xml_leaves_no_digest_and_no_other_error(tmp_path: Path, content: str) -> None:
    for name in "abt":
        add_image(tmp_path, name, CHAIR)
    add_lists(tmp_path, "a\nb", "t")
    (tmp_path / "Annotations" / "a.xml").write_text(content)
    spec = VocFolders(name="mine", clients=Iid(clients=2))
    report = check_data(spec, root_of=lambda name: tmp_path, cache=tmp_path)
    (error,) = report.errors
    assert "a.xml: expected " in error
    assert report.data.digest == ""


@pytest.mark.parametrize("document", [[], {"images": {}, "annotations": [], "categories": []}])
def test_a_file_that_is_no_annotation_leaves_no_digest(root: Path, document: object) -> None:
    (root / "test.json").write_text(json.dumps(document))
    report = check(root)
    assert len(report.errors) == 1
    assert report.data.digest == ""


def test_wrong_lists_make_no_errors_of_what_follows(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    write_lines(tmp_path / "ImageSets" / "train.txt", "training/image_2/000000.png")
    report = check_data(Kitti(name="mine"), root_of=lambda name: tmp_path, cache=tmp_path)
    (error,) = report.errors
    assert "train.txt: line 1: expected an image's name, found" in error
    assert report.warnings == ()


def test_without_test_images_or_objects_in_them_a_warning_says_what_a_run_lacks(root: Path) -> None:
    text = (root / "test.json").read_text()
    document = json.loads(text)
    (root / "test.json").write_text(json.dumps(document | {"annotations": []}))
    assert "none of the 2 test images has an object: a run has no mAP, and so no best round" in check(root).warnings
    (root / "test.json").write_text(json.dumps(document | {"annotations": [], "images": []}))
    assert "there is no test image: a run has neither figures nor a best round" in check(root).warnings


def test_images_of_the_same_bytes_are_reported_with_whether_their_boxes_agree(root: Path) -> None:
    shutil.copyfile(root / "images" / "1.jpg", root / "images" / "2.jpg")
    shutil.copyfile(root / "images" / "1.jpg", root / "images" / "6.jpg")
    report = check(root)
    assert report.near_duplicates == 1
    warnings = [message for message in report.warnings if "same bytes" in message]
    assert warnings == [
        "3 images are the same bytes, in training and in test; their boxes differ: "
        f"{root}/images/2.jpg (train, device a), {root}/images/1.jpg (train, device b), {root}/images/6.jpg (test)"
    ]


def test_groups_of_the_same_bytes_are_summed_up_those_on_both_sides_first(root: Path) -> None:
    shutil.copyfile(root / "images" / "1.jpg", root / "images" / "3.jpg")
    shutil.copyfile(root / "images" / "4.jpg", root / "images" / "6.jpg")
    (same,) = (finding for finding in check(root).findings if "same bytes" in finding.summary)
    assert same.summary == (
        "2 groups of images are the same bytes, 1 of them in training and in test or held out; the boxes differ in 2"
    )
    assert [item.partition(";")[0] for item in same.items] == [
        "2 images are the same bytes, in training and in test",
        "2 images are the same bytes",
    ]


def test_data_of_which_nothing_could_be_read_have_no_figures(root: Path) -> None:
    for file in ("train.json", "test.json"):
        (root / file).write_text("no JSON")
    report = check(root)
    assert not report.was_read
    assert len(report.errors) >= 2


def test_near_duplicates_across_train_and_test_are_reported(root: Path) -> None:
    picture(3).resize((WIDTH // 2, HEIGHT // 2)).resize((WIDTH, HEIGHT)).save(root / "images" / "5.jpg", quality=60)
    report = check(root)
    (message,) = (message for message in report.warnings if "near-duplicate" in message)
    assert report.near_duplicates == 1
    assert report.warnings[0] == message
    assert message.startswith("1 of 2 test images are near-duplicates of a training image (at most 16 of 256 bits")
    assert f": {root}/images/5.jpg (test) is near {root}/images/3.jpg (train, device b): " in message
    assert not any("near-duplicate" in message for message in check(root, near_bits=0).warnings)
    near = check(root, near_bits=256).findings[0]
    assert near.summary.startswith("2 of 2 test images are near-duplicates")
    bits = [int(item.rsplit(": ", 1)[1].split()[0]) for item in near.items]
    assert bits == sorted(bits)


def test_difficult_and_absent_classes(root: Path) -> None:
    folder = root.parent / "voc"
    add_image(folder, "a", CHAIR, TABLE)
    add_image(folder, "b", CHAIR)
    add_lists(folder, "a\n", "b\n")
    spec = VocFolders(name="mine", clients=Iid(clients=1))
    report = check_data(spec, root_of=lambda name: folder, cache=root / "cache")
    place = f"{folder}/JPEGImages/a.jpg (train, device 1): 1 of 2"
    assert f"1 objects in 1 images are difficult; evaluation ignores them: {place}" in report.warnings
    assert (report.ignore_regions, report.images_with_regions) == (0, 0)
    edit(root, "train.json", '{"id": 2, "name": "cup"}', '{"id": 2, "name": "cup"}, {"id": 5, "name": "ufo"}')
    assert "class 'ufo' has no training box" in check(root).warnings


def test_ignore_regions_are_counted_and_are_no_boxes(root: Path) -> None:
    def make_crowds(file: str, *annotations: int, crowd: int = 1) -> None:
        document = json.loads((root / file).read_text())
        for index in annotations:
            document["annotations"][index]["iscrowd"] = crowd
        (root / file).write_text(json.dumps(document))

    def boxes(report: DataReport) -> tuple[int, int]:
        training = sum(device.all_boxes for device in report.devices)
        return training, sum(report.test_boxes.values())

    before = check(root)
    assert boxes(before) == (5, 3)
    assert (before.ignore_regions, before.images_with_regions) == (0, 0)
    make_crowds("train.json", 2, 3)  # both of image 3
    make_crowds("test.json", 0)
    report = check(root)
    assert report.errors == ()
    assert boxes(report) == (3, 2)
    assert (report.ignore_regions, report.images_with_regions) == (3, 2)
    assert not any("difficult" in message for message in report.warnings)


def test_equal_images_with_other_regions_are_reported_to_differ(root: Path) -> None:
    shutil.copyfile(root / "images" / "1.jpg", root / "images" / "5.jpg")
    (same,) = (message for message in check(root).warnings if "same bytes" in message)
    assert "their boxes differ" not in same
    document = json.loads((root / "test.json").read_text())
    document["annotations"].append({"id": 99, "image_id": 5, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 1})
    (root / "test.json").write_text(json.dumps(document))
    (other,) = (message for message in check(root).warnings if "same bytes" in message)
    assert "their boxes differ" in other


def test_another_content_is_an_error_and_a_missing_folder_is_refused(root: Path) -> None:
    report = check_data(Coco(name="mine", digest="0" * 64), root_of=lambda name: root, cache=root)
    assert any(f"expected content digest {'0' * 64}" in message for message in report.errors)
    with pytest.raises(DataError, match="no folder is known for data set 'mine'"):
        check_data(Coco(name="mine"), root_of=lambda name: None, cache=root)


def test_hash_of_a_gradient_by_hand(tmp_path: Path) -> None:
    """If an image gets brighter to the right, no left neighbour is brighter. In its mirror image, all are."""
    gradient = np.tile(np.arange(0, 255, 15, dtype=np.uint8), (16, 1))
    for name, pixels, bits in (("up", gradient, 0), ("down", gradient[:, ::-1], 256)):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{name}.png")
        assert np.bitwise_count(difference_hash(thumbnail(tmp_path / f"{name}.png"))).sum() == bits


def test_nearest_agrees_with_counting_bits_one_by_one() -> None:
    rng = np.random.default_rng(1)
    queries, hashes = (rng.integers(0, 2**64, (count, 4), dtype=np.uint64) for count in (600, 37))
    indices, distances = nearest(queries, hashes)
    for query, index, distance in list(zip(queries, indices, distances, strict=True))[::40]:
        slow = [sum((int(a) ^ int(b)).bit_count() for a, b in zip(query, other, strict=True)) for other in hashes]
        assert (slow.index(min(slow)), min(slow)) == (index, distance)


def test_real_street_has_five_equal_images_and_frames_seen_in_training(street_dir: Path) -> None:
    report = check_data(FederatedStreet(), root_of=lambda name: street_dir, cache=Path("unused"))
    assert report.errors == ()
    (same,) = (message for message in report.warnings if "same bytes" in message)
    assert same.startswith("5 images are the same bytes; their boxes differ: ")
    assert all(f"{number}.jpg" in same for number in ("000500", "000594", "000658", "000735", "000751"))
    assert any(message.startswith("class 'table' is on device 2 only: 102 boxes") for message in report.warnings)
    assert report.findings[0].summary.startswith("36 of 191 test images are near-duplicates of a training image")
    assert len(report.findings[0].items) == report.near_duplicates == 36
