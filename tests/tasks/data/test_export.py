"""Written data sets are read back as they were, in every form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import Field, TypeAdapter

from tasks.data.catalog import load_data
from tasks.data.export.forms import WRITERS
from tasks.data.samples import ANY_CLASS, FederatedData, ImageSample, Regions, samples_digest
from tasks.data.truth import truth_of
from tasks.errors import DataError
from tasks.spec.data import DataSpec, SyntheticStreet
from tests.tasks.drawn_data import drawn_data

SPEC: TypeAdapter[DataSpec] = TypeAdapter(Annotated[DataSpec, Field(discriminator="kind")])
TINY = SyntheticStreet(train_images=40, test_images=10, width=96, height=80)
PUBLISHED = ("bdd100k", "visdrone", "kitti")


def written(data: FederatedData, form: str, folder: Path) -> FederatedData:
    """Write ``data`` in ``form``, and read them with the fields that the writer returns."""
    fields: dict[str, Any] = {**WRITERS[form](data, folder), "name": "mine"}
    return load_data(SPEC.validate_python(fields), root_of=lambda name: folder, cache=folder)


def changed(data: FederatedData, boxes: np.ndarray[Any, Any], **others: Any) -> FederatedData:
    """Return ``data`` of one client with one training image whose objects have these boxes and the first class."""
    sample = replace(
        data.train["1"][0], boxes=boxes.astype(np.float32), labels=np.zeros(len(boxes), np.int64), **others
    )
    return replace(data, classes=data.classes[:1], train={"1": (sample,)}, test={"1": ()})


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("test", ["global", "per-device"])
def test_a_written_set_is_the_same_set(tmp_path: Path, form: str, test: Literal["global", "per-device"]) -> None:
    data = drawn_data(TINY.model_copy(update={"test": test}), tmp_path / "cache")
    found = written(data, form, tmp_path / "set")
    assert found.classes == data.classes
    assert list(found.train) == list(data.train)
    for device in data.train:
        assert samples_digest(found.train[device]) == samples_digest(data.train[device])
        assert samples_digest(found.test[device]) == samples_digest(data.test[device])
    assert (found.test["1"] is found.test["5"]) == (test == "global")


@pytest.mark.parametrize(("form", "step"), [("bdd100k", 0), ("visdrone", 1), ("kitti", 0.01)])
def test_boxes_are_rounded_as_the_form_has_them(tmp_path: Path, form: str, step: float) -> None:
    rng = np.random.default_rng(3)
    starts = rng.uniform(1, 60, (30, 2))
    boxes = np.concatenate([starts, starts + rng.uniform(2, 15, (30, 2))], axis=1)
    data = changed(drawn_data(TINY, tmp_path / "cache"), boxes)
    (sample,) = written(data, form, tmp_path / "set").train["1"]
    np.testing.assert_allclose(sample.boxes, data.train["1"][0].boxes, rtol=0, atol=step / 2 + 1e-5)


@pytest.mark.parametrize("form", PUBLISHED)
def test_a_form_refuses_what_it_cannot_hold(tmp_path: Path, form: str) -> None:
    data = drawn_data(TINY, tmp_path / "cache")
    hard = changed(data, np.array([[1, 1, 9, 9]]), difficult=np.array([True]))
    with pytest.raises(DataError, match="expected no difficult objects, which"):
        WRITERS[form](hard, tmp_path / "hard")
    if form != "bdd100k":
        other = replace(data, train={"a_b": data.train["1"]}, test={"a_b": ()})
        with pytest.raises(DataError, match="device a_b: expected a name without _"):
            WRITERS[form](other, tmp_path / "devices")
    if form == "visdrone":
        with pytest.raises(DataError, match="expected at most 10 classes in VisDrone's form, found 11"):
            WRITERS[form](replace(data, classes=tuple("abcdefghijk")), tmp_path / "classes")
    if form == "kitti":
        with pytest.raises(DataError, match="class 'traffic sign': expected a name without blanks"):
            WRITERS[form](replace(data, classes=("traffic sign",)), tmp_path / "classes")


@pytest.mark.parametrize("form", ["visdrone", "kitti"])
def test_two_images_of_one_name_are_refused(tmp_path: Path, form: str) -> None:
    data = drawn_data(TINY, tmp_path / "cache")
    (first, *_) = data.train["1"]
    twice = replace(data, train={**data.train, "1": (first, first)})
    with pytest.raises(DataError, match=r"expected a file name of its own, found another image that has 1_"):
        WRITERS[form](twice, tmp_path / "set")


OBJECT, REGION = np.array([[1, 1, 9, 9]]), [2.0, 3.0, 20.0, 30.0]


def with_regions(folder: Path, labels: list[int], boxes: list[list[float]], classes: int) -> FederatedData:
    """Return data of one image with an object of the first of ``classes`` classes, and with these ignore regions."""
    data = drawn_data(TINY, folder)
    regions = Regions(np.array(boxes, np.float32), np.array(labels, np.int64))
    return replace(changed(data, OBJECT, regions=regions), classes=data.classes[:classes])


def assert_same_truth(found: ImageSample, expected: ImageSample, classes: int) -> None:
    """Compare objects and regions, each region of any class as one of every class."""
    for one, other in zip(truth_of(found, classes), truth_of(expected, classes), strict=True):
        assert one is not None
        assert other is not None
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_a_form_without_ignore_regions_refuses_them(tmp_path: Path, form: str) -> None:
    data = with_regions(tmp_path / "cache", [ANY_CLASS], [REGION], 1)
    with pytest.raises(
        DataError, match=r"expected no ignore regions, .* found 1; the forms of COCO, BDD100K and VisDrone have them"
    ):
        WRITERS[form](data, tmp_path / "set")


@pytest.mark.parametrize("form", ["coco", "coco2017", "bdd100k", "visdrone"])
def test_ignore_regions_of_one_and_of_any_class_are_read_back(tmp_path: Path, form: str) -> None:
    boxes = [REGION, [40.0, 10.0, 60.0, 20.0], [0.0, 0.0, 96.0, 80.0]]
    data = with_regions(tmp_path / "cache", [1, ANY_CLASS, 0], boxes, 3)
    read = written(data, form, tmp_path / "set")
    (found,), (expected,) = read.train["1"], data.train["1"]
    assert read.classes == data.classes
    assert found.boxes.tolist() == OBJECT.tolist()
    assert_same_truth(found, expected, 3)
    if form == "visdrone":  # the only one of these forms with regions of any class
        assert samples_digest([found]) == samples_digest([expected])


def test_an_image_with_regions_and_no_object_is_read_back_from_bdd100k(tmp_path: Path) -> None:
    data = with_regions(tmp_path / "cache", [ANY_CLASS], [REGION], 2)
    (sample,) = data.train["1"]
    empty = replace(sample, boxes=sample.boxes[:0], labels=sample.labels[:0])
    other = replace(drawn_data(TINY, tmp_path / "cache").train["1"][1], boxes=sample.boxes, labels=sample.labels)
    data = replace(data, train={"1": (empty, other)})
    found, _ = written(data, "bdd100k", tmp_path / "set").train["1"]
    assert_same_truth(found, empty, 2)


def test_categories_that_bdd100k_does_not_evaluate_stay_classes(tmp_path: Path) -> None:
    data = replace(with_regions(tmp_path / "cache", [0], [REGION], 1), classes=("other vehicle",))
    read = written(data, "bdd100k", tmp_path / "set")
    assert read.classes == ("other vehicle",)
    assert samples_digest(read.train["1"]) == samples_digest(data.train["1"])


@pytest.mark.parametrize("labels", [[ANY_CLASS], [1, 0]], ids=["of any class", "of each class"])
def test_regions_of_any_class_are_dont_care_in_kitti(tmp_path: Path, labels: list[int]) -> None:
    data = with_regions(tmp_path / "cache", labels, [REGION] * len(labels), 2)
    (found,) = written(data, "kitti", tmp_path / "set").train["1"]
    assert found.regions is not None
    assert (found.regions.boxes.tolist(), found.regions.labels.tolist()) == ([REGION], [ANY_CLASS])
    assert found.boxes.tolist() == OBJECT.tolist()
    (file,) = (tmp_path / "set" / "training" / "label_2").iterdir()
    line = "DontCare -1 -1 -10 2.00 3.00 20.00 30.00 -1 -1 -1 -1000 -1000 -1000 -10"
    assert file.read_text().splitlines()[1:] == [line]


def test_kitti_refuses_a_region_of_one_class_and_a_class_called_dont_care(tmp_path: Path) -> None:
    data = with_regions(tmp_path / "cache", [1, 0], [REGION, [0.0, 0.0, 5.0, 5.0]], 2)
    with pytest.raises(
        DataError, match=r"ignore region 2, 3, 20, 30: expected one of any class, .* found one of carton; the forms of"
    ):
        WRITERS["kitti"](data, tmp_path / "set")
    with pytest.raises(DataError, match="class 'DontCare': expected another name"):
        WRITERS["kitti"](replace(data, classes=("DontCare", "car")), tmp_path / "classes")
