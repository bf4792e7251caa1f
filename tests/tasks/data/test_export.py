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
from tasks.data.samples import ANY_CLASS, FederatedData, Regions, samples_digest
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


@pytest.mark.parametrize("form", WRITERS)
def test_only_cocos_form_holds_ignore_regions(tmp_path: Path, form: str) -> None:
    regions = Regions(np.array([[2, 3, 20, 30]], np.float32), np.array([ANY_CLASS]))
    data = changed(drawn_data(TINY, tmp_path / "cache"), np.array([[1, 1, 9, 9]]), regions=regions)
    if form.startswith("coco"):
        found = written(data, form, tmp_path / "set").train["1"][0].regions
        assert found is not None
        assert (found.boxes.tolist(), found.labels.tolist()) == ([[2, 3, 20, 30]], [0])  # one crowd of each class
    else:
        with pytest.raises(DataError, match=r"expected no ignore regions, .* found 1; COCO's form has crowds"):
            WRITERS[form](data, tmp_path / "set")
