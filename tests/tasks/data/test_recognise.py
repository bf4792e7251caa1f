"""The form of a folder of data is recognised by its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.data.catalog import load_data
from tasks.data.check import check_data
from tasks.data.coco import load_coco
from tasks.data.export.coco import COCO_2017, write_coco
from tasks.data.export.forms import WRITERS
from tasks.data.recognise import FORMS, recognise
from tasks.data.samples import FederatedData, samples_digest
from tasks.errors import SpecError
from tasks.spec.clients import ByField, ByFolder, ByList, ByName, Iid
from tasks.spec.data import (
    Bdd100k,
    Coco,
    DataSpec,
    FederatedStreet,
    Kitti,
    SyntheticStreet,
    VisDrone,
    VocFolders,
    Yolo,
)
from tests.tasks.data.published_folders import bdd100k, write_frames, write_kitti, write_visdrone
from tests.tasks.data.roboflow_folder import write_roboflow
from tests.tasks.data.voc_folder import CHAIR, add_image, add_lists
from tests.tasks.data.yolo_folder import write_yolo_folder
from tests.tasks.drawn_data import drawn_data

SMALL = SyntheticStreet(train_images=40, test_images=5, width=96, height=80)
OWN_LAYOUT = {
    "train": "annotations/instances_train2017.json",
    "test": "annotations/instances_val2017.json",
    "train_images": "train2017",
    "test_images": "val2017",
}


@pytest.fixture
def drawn(tmp_path: Path) -> FederatedData:
    return drawn_data(SMALL, tmp_path / "cache")


def test_each_written_form_is_recognised_and_read_to_the_same_boxes(drawn: FederatedData, tmp_path: Path) -> None:
    for form, write in WRITERS.items():
        write(drawn, tmp_path / form)
    expected: dict[str, DataSpec] = {
        "coco": Coco(name="mine"),
        "coco2017": Coco.model_validate({"name": "mine", **OWN_LAYOUT}),
        "voc": VocFolders(name="mine"),
        "yolo": Yolo(name="mine", clients=ByFolder()),
        "bdd100k": Bdd100k(name="mine"),
        "visdrone": VisDrone(name="mine"),
        "kitti": Kitti(name="mine", clients=ByName()),
    }
    assert set(expected) == set(WRITERS)
    for form, spec in expected.items():
        found = recognise(tmp_path / form, "mine")
        assert found == spec
        data = load_data(found, root_of=lambda name, form=form: tmp_path / form, cache=tmp_path)  # type: ignore[misc]
        assert {device: samples_digest(own) for device, own in data.train.items()} == {
            device: samples_digest(own) for device, own in drawn.train.items()
        }
        assert samples_digest(data.test["1"]) == samples_digest(drawn.test["1"])


def test_cocos_own_layout_is_found_without_options(drawn: FederatedData, tmp_path: Path) -> None:
    write_coco(drawn, tmp_path, COCO_2017)
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    stated = load_coco(tmp_path, Coco.model_validate({"name": "mine", **OWN_LAYOUT}))
    assert load_coco(tmp_path, Coco(name="mine")).digest == stated.digest
    (tmp_path / "images").mkdir()
    for part in ("train2017", "val2017"):
        (tmp_path / part).rename(tmp_path / "images" / part)
    found = recognise(tmp_path, "mine")
    assert isinstance(found, Coco)
    assert (found.train_images, found.test_images) == ("images/train2017", "images/val2017")
    assert sum(map(len, load_coco(tmp_path, Coco(name="mine")).train.values())) == 40


@pytest.mark.parametrize(
    ("parts", "test"),
    [(("train", "valid", "test"), "test"), (("train", "valid"), "valid"), (("train", "test"), "test")],
    ids=["all", "without test", "without valid"],
)
def test_roboflows_layout_of_coco_is_recognised_and_read(tmp_path: Path, parts: tuple[str, ...], test: str) -> None:
    root = write_roboflow(tmp_path / "set", parts)
    found = recognise(root, "mine")
    assert found == Coco(
        name="mine",
        train="train/_annotations.coco.json",
        test=f"{test}/_annotations.coco.json",
        train_images="train",
        test_images=test,
        clients=Iid(),
    )
    read = load_coco(root, found.model_copy(update={"clients": Iid(clients=1)}))
    assert read.classes == ("chair", "table")  # not the project's category
    assert [sample.path.name for sample in read.train["1"]] == ["a.png", "b.png"]
    assert [sample.path.name for sample in read.test["1"]] == ["t.png" if test == "test" else "v.png"]
    (sample, _) = read.train["1"]
    assert sample.boxes.tolist() == [[5, 4, 15, 24.5], [10, 4, 20, 24.5]]
    assert sample.labels.tolist() == [0, 1]
    assert load_coco(root, Coco(name="mine", clients=Iid(clients=1))).digest == read.digest


def test_a_check_says_which_images_of_roboflows_layout_are_not_used(tmp_path: Path) -> None:
    root = write_roboflow(tmp_path / "set")
    spec = Coco(name="mine", clients=Iid(clients=1))
    line = f"{root}: the images of valid are not used, because test is the test set; data.test=valid/_annotations"
    report = check_data(spec, root_of=lambda name: root, cache=tmp_path)
    assert report.errors == ()
    assert any(warning.startswith(line) for warning in report.warnings), report.warnings
    both = {"test": "valid/_annotations.coco.json", "test_images": "valid"}
    stated = spec.model_copy(update={"train": "train/_annotations.coco.json", "train_images": "train", **both})
    report = check_data(stated, root_of=lambda name: root, cache=tmp_path)
    assert (report.errors, report.test_images) == ((), 1)
    assert not any("are not used" in warning for warning in report.warnings)


def test_the_street_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "train_label.json").write_text("[]")
    assert recognise(tmp_path, "mine") == FederatedStreet(name="mine")


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_devices_come_from_a_list_or_a_field_else_images_are_divided(tmp_path: Path, form: str) -> None:
    if form == "coco":
        (tmp_path / "train.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}]}))
    elif form == "voc":
        add_image(tmp_path, "a", CHAIR)
        add_lists(tmp_path, "a\n", "")
    else:
        write_yolo_folder(tmp_path)
    assert getattr(recognise(tmp_path, "mine"), "clients", None) == Iid(clients=5)
    if form == "coco":
        (tmp_path / "train.json").write_text('{"images": [{"id": 1, "device" : "b"}]}')
    elif form == "voc":
        add_image(tmp_path, "a", CHAIR, extra="<device>b</device>")
    if form != "yolo":
        assert getattr(recognise(tmp_path, "mine"), "clients", None) == ByField()
    (tmp_path / "clients.yaml").write_text("b: [a]\n")
    assert getattr(recognise(tmp_path, "mine"), "clients", None) == ByList()


@pytest.mark.parametrize("form", ["bdd100k", "visdrone", "kitti"])
def test_devices_of_published_forms_come_from_a_list_or_names(tmp_path: Path, form: str) -> None:
    if form == "bdd100k":
        write_frames(tmp_path, *bdd100k(tmp_path))
        expected: object = ByField(field="scene")
    elif form == "visdrone":
        write_visdrone(tmp_path)
        expected = ByName(test="global")
    else:
        write_kitti(tmp_path)
        expected = Iid()
    assert getattr(recognise(tmp_path, "mine"), "clients", None) == expected
    if form == "bdd100k":
        write_frames(tmp_path, [], [])
        assert getattr(recognise(tmp_path, "mine"), "clients", None) == Iid()
    (tmp_path / "clients.yaml").write_text("b: [a]\n")
    assert getattr(recognise(tmp_path, "mine"), "clients", None) == ByList()


def test_blank_lines_of_windows_in_a_list_of_kitti_are_no_names(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    lists = tmp_path / "ImageSets" / "train.txt"
    lists.write_bytes(b"a_000000\r\n\r\nb_000001\r\n")
    assert getattr(recognise(tmp_path, "mine"), "clients", None) == ByName()
    lists.write_bytes(b"a_000000\r\n000001\r\n")
    assert getattr(recognise(tmp_path, "mine"), "clients", None) == Iid()


def test_a_yolo_file_of_another_name_is_found_by_its_keys(tmp_path: Path) -> None:
    write_yolo_folder(tmp_path)
    (tmp_path / "data.yaml").rename(tmp_path / "ants.yml")
    (tmp_path / "other.yaml").write_text("names: [a]\n")
    (tmp_path / "none.yaml").write_text("")
    found = recognise(tmp_path, "mine")
    assert isinstance(found, Yolo)
    assert found.file == "ants.yml"


def test_a_folder_of_no_form_or_of_several_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected ") as refused:
        recognise(tmp_path, "mine")
    for form, known in FORMS.items():
        assert f"{known.needs} ({form})" in str(refused.value)
    write_yolo_folder(tmp_path)
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(SpecError, match=r"expected the files of one form, found those of coco and yolo$"):
        recognise(tmp_path, "mine")
    assert recognise(tmp_path, "mine", "coco").kind == "coco"
    assert recognise(tmp_path, "mine", "voc") == VocFolders(name="mine")  # the user names the form
    with pytest.raises(SpecError, match=r"nowhere: cannot be read: No such file"):
        recognise(tmp_path / "nowhere", "mine")


def test_every_form_names_its_kind() -> None:
    for form, known in FORMS.items():
        assert known.default("mine").kind == known.kind, form
