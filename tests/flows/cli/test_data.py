"""``fedbench data``: exit codes, output and files. Also pinning of data that define their own devices."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import Result

from flows.cli import runs
from flows.coordinator.preflight import pin, pin_data
from flows.views.tables import describe
from infra.settings import Settings, load_settings
from tasks.data.catalog import load_data
from tasks.data.samples import samples_digest
from tasks.errors import SpecError
from tasks.spec.clients import ByFolder, ByName
from tasks.spec.data import Bdd100k, Coco, DataSpec, FederatedStreet, Kitti, VocFolders, Yolo
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.participation import Participation
from tasks.spec.presets import preset
from tests.flows.command import fedbench
from tests.tasks.data.yolo_folder import write_yolo_folder

TINY = ("-s", "train_images=40", "-s", "test_images=5", "-s", "width=96", "-s", "height=80")
FORMS: dict[str, DataSpec] = {
    "street": FederatedStreet(name="mine"),
    "coco": Coco(name="mine"),
    "voc": VocFolders(name="mine"),
    "coco2017": Coco(name="mine"),
    "yolo": Yolo(name="mine", clients=ByFolder()),
    "bdd100k": Bdd100k(name="mine"),
    "kitti": Kitti(name="mine", clients=ByName()),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("FEDBENCH_HOME", str(home))
    monkeypatch.delenv("FEDBENCH_STREET_DIR", raising=False)
    monkeypatch.delenv("FEDBENCH_SETTINGS", raising=False)


def call(*words: object) -> Result:
    return fedbench("data", *words)


@pytest.fixture(scope="module")
def made(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the tiny data set in all forms. Return the folder with one folder for each form."""
    root = tmp_path_factory.mktemp("made")
    old = os.environ.get("FEDBENCH_HOME")
    for form in FORMS:
        result = call("make", root / form, "--form", form, "--home", home, *TINY)
        assert result.exit_code == 0, result.output
    if old is None:
        os.environ.pop("FEDBENCH_HOME", None)
    else:
        os.environ["FEDBENCH_HOME"] = old
    return root


def test_all_forms_load_as_the_same_samples(made: Path) -> None:
    found = {}
    for form, spec in FORMS.items():
        data = load_data(spec, root_of={"mine": made / form}.get, cache=made / "unused")
        parts: Any = [data.classes, *((device, samples_digest(own)) for device, own in data.train.items())]
        found[form] = [*parts, *((device, samples_digest(own)) for device, own in data.test.items())]
    assert all(found[form] == found["street"] for form in FORMS)
    assert sorted(path.name for path in made.iterdir()) == sorted(FORMS)


@pytest.mark.parametrize("form", FORMS)
def test_a_made_set_has_no_errors(made: Path, form: str, tmp_path: Path) -> None:
    result = call("check", made / form, "--picture", tmp_path / "new" / "p.png")
    assert result.exit_code == 0, result.output
    assert "5 devices · 7 classes · 40 training images" in result.output
    assert "0 errors, " in result.output
    assert "class 'table' is on device 2 only" in result.output
    with Image.open(tmp_path / "new" / "p.png") as picture:
        assert picture.width > 300


def test_visdrones_form_needs_the_names_of_its_categories(tmp_path: Path) -> None:
    result = call("make", tmp_path / "drones", "--form", "visdrone", *TINY)
    assert result.exit_code == 0, result.output
    fields = yaml.safe_load(re.findall(r"to train on it: data: (.*) in a specification", result.output)[0])
    assert fields["clients"] == {"kind": "name", "pattern": "([^/_]+)_[^/]*$", "test": "global"}
    result = call("check", tmp_path / "drones", "-s", f"classes={json.dumps(fields['classes'])}")
    assert result.exit_code == 0, result.output
    assert "5 devices · 7 classes · 40 training images" in result.output
    assert "class 'table' is on device 2 only" in result.output


def test_errors_exit_1_and_are_all_printed(made: Path, tmp_path: Path, home: Path) -> None:
    root = tmp_path / "voc[1]"
    (made / "voc").rename(root)
    try:
        images = sorted((root / "4" / "JPEGImages").iterdir())[:2]
        contents = [path.read_bytes() for path in images]
        for path in images:
            path.write_bytes(b"no image")
        result = call("check", root)
        assert result.exit_code == 1
        for path in images:
            assert f"{path}: expected a readable image" in result.output
        assert (home / "checks" / "voc[1].png").exists()
        for path, content in zip(images, contents, strict=True):
            path.write_bytes(content)
    finally:
        root.rename(made / "voc")


def test_of_each_kind_of_error_the_first_five_are_printed_and_with_all_every_one(tmp_path: Path) -> None:
    root = write_yolo_folder(tmp_path / "many")
    (root / "labels/train/1.txt").write_text("9 0.5 0.5 0.1 0.1\n" * 150)
    (root / "labels/train/2.txt").write_text("0 0.5 0.5 0.1\n" * 2)
    few, every = call("check", root), call("check", root, "--all")
    assert few.exit_code == every.exit_code == 1
    lines = [line for line in few.output.splitlines() if "error" in line]
    first = f"error: {root}/labels/train/1.txt: line 1: expected a class from 0 to 2, found 9"
    assert [lines[0], lines[5]] == [first, "  and 145 more errors of this kind; --all lists them"]
    assert [line.partition(": expected ")[0] for line in lines[6:8]] == [
        f"error: {root}/labels/train/2.txt: line {number}" for number in (1, 2)
    ]
    assert few.output.count("error: ") == 7
    assert every.output.count("error: ") == 152
    assert "of this kind" not in every.output
    assert "152 errors, " in few.output


@pytest.mark.parametrize("overlap", [1, 6])
def test_images_that_two_lists_name_are_one_error(tmp_path: Path, overlap: int) -> None:
    root = write_yolo_folder(tmp_path / "twice")
    (root / "data.yaml").write_text("train: images/train\nval: [images/val, both.txt]\nnames: [ant, bee, cat]\n")
    (root / "both.txt").write_text("".join(f"images/train/{number}.png\n" for number in range(1, overlap + 1)))
    result = call("check", root)
    assert result.exit_code == 1
    (line,) = (line for line in result.output.splitlines() if line.startswith("error: "))
    once = "expected every image once, found it in train already"
    places = [f"{root}/labels/train/{number}.txt" for number in range(1, overlap + 1)]
    if overlap == 1:
        assert line == f"error: {places[0]}: {once}"
    else:
        assert line == f"error: {root}: val: {once}; so in 6 images: {', '.join(places[:5])}, and 1 more"
    assert "1 errors, " in result.output


def test_of_data_that_could_not_be_read_only_errors_are_printed(made: Path, tmp_path: Path, home: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(made / "coco", root)
    for file in ("train.json", "test.json"):
        (root / file).write_text("no JSON")
    result = call("check", root)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert all(line.startswith("error: ") for line in lines[:-1])
    assert lines[-1] == f"{len(lines) - 1} errors; nothing of the data set could be read"
    assert not (home / "checks" / "set.png").exists()


def test_a_warning_lists_its_first_places_and_with_all_every_one(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(made / "coco", root)
    for image in sorted((root / "images").iterdir())[:7]:
        Image.new("RGB", Image.open(image).size).save(image)
    few, every = call("check", root).output, call("check", root, "--all").output
    start = "warning: 7 images are of one colour, or nearly so; they are not compared for near-duplicates\n  "
    places = [text.partition(start)[2].split("\nwarning: ")[0].splitlines() for text in (few, every)]
    assert places[0][5] == "  and 2 more; --all lists them"
    assert places[0][:5] == places[1][:5]
    assert len([line for line in places[1] if line.strip().startswith(str(root))]) == 7


def test_fields_change_how_a_folder_is_divided(made: Path) -> None:
    result = call("check", made / "coco", "-s", "clients.kind=dirichlet", "-s", "clients.clients=3")
    assert result.exit_code == 0, result.output
    assert "3 devices · 7 classes · 40 training images" in result.output


def test_names_that_look_like_numbers_stay_names(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("000009", "000010", "000011"):
        Image.new("RGB", (32, 32), f"#{name}").save(tmp_path / "JPEGImages" / f"{name}.png")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        text = f"<annotation><object><name>cat</name>{box}</object></annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
    (tmp_path / "ImageSets/Main/train.txt").write_text("000009\n000010\n")
    (tmp_path / "ImageSets/Main/test.txt").write_text("000011\n")
    (tmp_path / "clients.yaml").write_text("010: [000009]\nno: [000010]\n")
    result = call("check", tmp_path, "-s", "clients.kind=list")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines()[2:4]] == ["010", "no"]


def test_class_names_are_printed_unchanged(made: Path, tmp_path: Path) -> None:
    """The names contain line ends, formulas of matplotlib and markup of rich, or are very long."""
    shutil.copytree(made / "coco", tmp_path / "set")
    names = ["car\n", "a$b_$c", "[/b]", "[red]car", "car!", "$\\frac{1$", "x" * 300]
    for file in ("train.json", "test.json"):
        document = json.loads((tmp_path / "set" / file).read_text())
        for category, name in zip(document["categories"], names, strict=True):
            category["name"] = name
        (tmp_path / "set" / file).write_text(json.dumps(document))
    result = call("check", tmp_path / "set", "--picture", tmp_path / "picture.png")
    assert result.exit_code == 0, result.output
    cells = [line.split()[0] for line in result.output.splitlines() if line.strip()]
    assert set(cells) >= {"car\\n", "a$b_$c", "[/b]", "[red]car", "car!", "$\\frac{1$"}
    with Image.open(tmp_path / "picture.png") as picture:
        picture.load()


@pytest.mark.parametrize("asked", [False, True])
def test_the_report_is_printed_without_a_picture_that_cannot_be_drawn(
    made: Path, tmp_path: Path, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(counts: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("tasks.figures.plots.class_by_device_plot", broken)
    result = call("check", made / "coco", *(("--picture", tmp_path / "p.png") if asked else ()))
    assert result.exit_code == (2 if asked else 0), result.output
    assert "0 errors, " in result.output
    assert "p.png failed: RuntimeError: broken on purpose" in result.output or not asked
    assert "warning: the picture " in result.output
    assert "classes by device: " not in result.output


def test_data_of_presets_and_of_specification_files_are_checked(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBENCH_DATA_ROOTS", f'{{"mine": "{made / "coco"}"}}')
    spec = tmp_path / "mine.yaml"
    spec.write_text("data: {kind: coco, name: mine}\n")
    assert call("check", spec).exit_code == 0
    monkeypatch.setenv("FEDBENCH_STREET_DIR", str(made / "street"))
    result = call("check", "street20")
    assert result.exit_code == 1
    assert "20 devices" in result.output
    assert "error: " in result.output
    assert "expected content digest d7f19422545e" in result.output


def keys_by_part(root: Path, spec: DataSpec) -> dict[str, set[str]]:
    data = load_data(spec, root_of=lambda name: root, cache=root)
    parts = {f"{device} train": own for device, own in data.train.items()}
    parts |= {f"{device} test": own for device, own in data.test.items()}
    return {part: {one.key for one in own} for part, own in parts.items()}


def test_ignore_regions_are_counted_and_not_written_as_voc(made: Path, tmp_path: Path) -> None:
    assert "ignore region" not in call("check", made / "coco").output
    root = tmp_path / "crowds"
    shutil.copytree(made / "coco", root)
    for part, images in (("train", (1, 2)), ("test", (1,))):
        document = json.loads((root / f"{part}.json").read_text())
        for item in document["annotations"]:
            item["iscrowd"] = int(item["image_id"] in images)
        (root / f"{part}.json").write_text(json.dumps(document))
    result = call("check", root)
    assert result.exit_code == 0, result.output
    found = re.search(r"^3 images have (\d+) ignore regions, which are neither objects nor back", result.output, re.M)
    assert found is not None
    assert int(found[1]) >= 3
    refused = call("split", root, tmp_path / "voc", "--group-near-duplicates", "--to", "voc")
    assert refused.exit_code == 2
    assert "expected no ignore regions, which are not written in PASCAL VOC's form, found" in refused.output
    assert not (tmp_path / "voc").exists()
    # Regions stay with their images in a new division.
    result = call("split", root, tmp_path / "coco", "--group-near-duplicates")
    assert f"3 images have {found[1]} ignore regions" in call("check", tmp_path / "coco").output, result.output


def test_a_check_prints_how_many_test_images_are_near_duplicates(made: Path) -> None:
    result = call("check", made / "coco", "--near-bits", 0)
    assert " of 5 test images are near-duplicates of a training image\n" in result.output
    result = call("check", made / "street", "--near-bits", 256)
    assert "5 of 5 test images are near-duplicates of a training image (division: published)\n" in result.output


@pytest.mark.parametrize("to", ["bdd100k", "visdrone", "kitti"])
def test_ignore_regions_go_into_the_published_forms(made: Path, tmp_path: Path, to: str) -> None:
    """KITTI has regions of any class only: a crowd of each class with the same box."""
    root = tmp_path / "crowds"
    shutil.copytree(made / "coco", root)
    document = json.loads((root / "train.json").read_text())
    crowd = {"image_id": document["images"][0]["id"], "bbox": [4, 6, 20, 30], "area": 600, "iscrowd": 1}
    document["annotations"] += [
        {**crowd, "id": 10_000 + category["id"], "category_id": category["id"]} for category in document["categories"]
    ]
    (root / "train.json").write_text(json.dumps(document))
    result = call("split", root, tmp_path / "new", "--group-near-duplicates", "--to", to)
    assert result.exit_code == 0, result.output
    assert f"kind: {to}" in result.output
    count = 1 if to == "kitti" else len(document["categories"])
    checked = call("check", tmp_path / "new").output
    assert f"1 images have {count} ignore regions" in checked
    # Near-duplicates move, so that only the sums over training and test are equal.
    old, new = (
        sum(map(int, re.findall(r"images, (\d+) boxes", output))) for output in (call("check", root).output, checked)
    )
    assert old == new > 0


def test_a_box_that_a_form_rounds_away_is_refused(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "small"
    shutil.copytree(made / "coco", root)
    document = json.loads((root / "train.json").read_text())
    document["annotations"][0]["bbox"] = [10.1, 10.1, 0.3, 5]
    (root / "train.json").write_text(json.dumps(document))
    result = call("split", root, tmp_path / "new", "--group-near-duplicates", "--to", "visdrone")
    assert result.exit_code == 2
    assert "new: 1 boxes are empty once they are rounded as visdrone's form has them" in result.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("to", ["coco", "voc", "coco2017", "yolo"])
def test_near_duplicates_of_a_data_set_move_to_one_side(made: Path, tmp_path: Path, to: str) -> None:
    kinds = FORMS
    shutil.copytree(made / "coco", tmp_path / "set")
    document = json.loads((tmp_path / "set" / "test.json").read_text())
    image = document["images"][0]["file_name"]
    other = json.loads((tmp_path / "set" / "train.json").read_text())["images"][7]["file_name"]
    with Image.open(tmp_path / "set" / "images" / other) as picture:
        picture.save(tmp_path / "set" / "images" / image, quality=60)
    assert re.search("^[1-5] of 5 test images are near-duplicates", call("check", tmp_path / "set").output, re.M)
    result = call("split", tmp_path / "set", tmp_path / "new", "--group-near-duplicates", "--to", to)
    assert result.exit_code == 0, result.output
    assert " before, 0 now\n" in result.output
    fields = {"coco": "kind: coco", "coco2017": "kind: coco", "voc": "kind: voc-folders"}.get(to)
    fields = fields or "kind: yolo, clients: {kind: folders}"
    assert f"to train on it: data: {{{fields}, name: mine}} in a specification" in result.output
    assert re.search(r"^0 of \d test images are near-duplicates", call("check", tmp_path / "new").output, re.M)
    old, new = keys_by_part(tmp_path / "set", kinds["coco"]), keys_by_part(tmp_path / "new", kinds[to])
    old, new = ({part: {Path(key).name for key in own} for part, own in keys.items()} for keys in (old, new))
    assert set().union(*old.values()) == set().union(*new.values())
    assert old != new
    assert not set().union(*(own for part, own in new.items() if part.endswith("train"))) & new["1 test"]


def test_test_images_of_each_device_are_drawn_by_fraction_and_seed(made: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(made / "coco", whole)
    document = json.loads((whole / "test.json").read_text())
    (whole / "none.json").write_text(json.dumps(document | {"images": [], "annotations": []}))
    words = ("split", whole, "-s", "test=none.json", "--test-fraction", 0.25, "--test", "per-device")
    found = []
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        result = call(*words, tmp_path / name, "--seed", seed)
        assert result.exit_code == 0, result.output
        found.append(keys_by_part(tmp_path / name, Coco(name="mine")))
    assert found[0] == found[1] != found[2]
    for parts in found:
        for device in "12345":
            count = len(parts[f"{device} train"]) + len(parts[f"{device} test"])
            assert abs(len(parts[f"{device} test"]) - 0.25 * count) <= 0.5
    assert "5 devices · " in result.output
    # Back to one test set, and the written set can be divided anew as it is.
    result = call("split", tmp_path / "one", tmp_path / "three", "--test-fraction", 0.5, "--test", "global")
    assert result.exit_code == 0, result.output
    three = keys_by_part(tmp_path / "three", Coco(name="mine"))
    assert three["1 test"] == three["5 test"]
    assert 15 <= len(three["1 test"]) <= 25


def test_a_written_division_names_the_fields_that_a_run_needs(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "coco", tmp_path / "set")
    document = json.loads((tmp_path / "set" / "train.json").read_text())
    names = [category["name"] for category in document["categories"]][::-1]
    first = tmp_path / "set" / "images" / document["images"][0]["file_name"]
    with Image.open(first) as picture:
        exif = picture.getexif()
        exif[0x0112] = 3
        picture.save(first, exif=exif)
    fields = ("-s", "exif=applied", "-s", f"classes={json.dumps(names)}")
    result = call("split", tmp_path / "set", tmp_path / "new", "--group-near-duplicates", *fields)
    assert result.exit_code == 0, result.output
    assert f"{{kind: coco, name: mine, exif: applied, classes: {json.dumps(names)}}}" in result.output
    old, new = (
        load_data(
            Coco(name="mine", exif="applied", classes=tuple(names)),
            root_of=lambda name, root=root: tmp_path / root,  # type: ignore[misc]
            cache=tmp_path,
        )
        for root in ("set", "new")
    )
    assert {d: len(own) for d, own in old.train.items()}.keys() == new.train.keys()
    assert old.classes == new.classes == tuple(names)


def test_a_division_that_cannot_be_read_again_is_not_left(made: Path, tmp_path: Path) -> None:
    """The only training image of a class becomes a test image: in VOC's form, no file names the class then."""
    for number, name in enumerate(("bin", "cup"), 1):
        (tmp_path / "set" / "images").mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 90 + number).convert("RGB").save(tmp_path / "set" / "images" / f"{name}.png")
    images = [
        {"id": n, "file_name": f"{name}.png", "width": 32, "height": 32, "device": "a"}
        for n, name in enumerate(("bin", "cup"), 1)
    ]
    boxes = [{"id": n, "image_id": n, "category_id": n, "bbox": [1, 1, 9, 9]} for n in (1, 2)]
    categories = [{"id": n, "name": name} for n, name in enumerate(("bin", "cup"), 1)]
    for file, chosen in (("train", [1, 2]), ("test", [])):
        document = {
            "images": [one for one in images if one["id"] in chosen],
            "annotations": [one for one in boxes if one["image_id"] in chosen],
            "categories": categories,
        }
        (tmp_path / "set" / f"{file}.json").write_text(json.dumps(document))
    result = call("split", tmp_path / "set", tmp_path / "new", "--test-fraction", 0.5, "--to", "voc")
    assert result.exit_code == 2, result.output
    assert f"{tmp_path}/new/a/Annotations/" in result.output
    assert "is in no training image" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def block(output: str) -> Any:
    """Return the data block that a command has printed, as YAML."""
    lines = output.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("data:"))
    end = next(place for place, line in enumerate(lines) if line.startswith("and for the settings: data_roots: "))
    return yaml.safe_load("\n".join(lines[start:end])), yaml.safe_load(
        lines[end].removeprefix("and for the settings: ")
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_check_prints_the_data_block_that_reads_the_folder(made: Path, form: str) -> None:
    result = call("check", made / form)
    document, settings = block(result.output)
    assert settings == {"data_roots": {form: str(made / form)}}
    spec = parse_spec(document, source="printed").data
    found = load_data(spec, root_of=lambda name: made / form, cache=made / "unused")
    assert f"content digest {found.digest}" in result.output
    assert "no file in" not in result.output


def test_a_folder_that_names_no_devices_is_divided_and_the_check_says_so(tmp_path: Path) -> None:
    root = write_yolo_folder(tmp_path / "Hof Ä_2")
    result = call("check", root)
    assert result.exit_code == 0, result.output
    assert f"no file in {root} names devices: its images are divided among 5 clients (IID)" in result.output
    assert block(result.output)[0] == {
        "data": {"kind": "yolo", "name": "hof-a-2", "clients": {"kind": "iid", "clients": 5, "seed": 1}}
    }
    result = call("check", root, "-s", "clients.kind=size", "-s", "clients.clients=2")
    assert "no file in" not in result.output
    assert block(result.output)[0]["data"]["clients"]["kind"] == "size"
    result = call("split", root, tmp_path / "new", "--group-near-duplicates", "--to", "yolo")
    assert result.exit_code == 0, result.output
    assert "its images are divided among 5 clients (IID)" in result.output
    assert len(list((tmp_path / "new").glob("*/data.yaml"))) == 5


def test_yolo_has_no_difficult_objects(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "voc", tmp_path / "set")
    annotation = min((tmp_path / "set" / "1" / "Annotations").iterdir())
    text = annotation.read_text()
    assert "<difficult>0<" in text
    annotation.write_text(text.replace("<difficult>0<", "<difficult>1<", 1))
    result = call("split", tmp_path / "set", tmp_path / "new", "--group-near-duplicates", "--to", "yolo")
    assert result.exit_code == 2
    assert "expected no difficult objects, because YOLO's form cannot mark them" in result.output


def test_a_run_of_a_folder_has_its_data_and_the_settings_its_place(
    made: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBENCH_DATA_ROOTS", '{"other": "/other"}')
    ran: list[tuple[str, FederationSpec, Settings, str]] = []

    def keep(
        name: str, spec: FederationSpec, settings: Settings, *_: object, variable: str = "", found: object = None
    ) -> None:
        ran.append((name, spec, settings, variable))

    monkeypatch.setattr(runs, "_run", keep)
    result = fedbench("run", made / "yolo", "-s", "max_rounds=3", "--home", home)
    assert result.exit_code == 0, result.output
    ((name, spec, settings, variable),) = ran
    assert name == f"yolo-{spec.digest[:8]}"
    assert spec.data.model_copy(update={"digest": None}) == Yolo(name="yolo", clients=ByFolder())
    assert (spec.max_rounds, spec.detector) == (3, preset("street5_laptop").detector)
    assert block(result.output)[0] == {"data": {"kind": "yolo", "name": "yolo", "clients": {"kind": "folders"}}}
    assert settings.data_root("yolo") == load_settings().data_root("yolo") == made / "yolo"
    assert settings.data_root("other") == load_settings().data_root("other") == Path("/other")
    (assignment,) = shlex.split(variable)
    assert json.loads(assignment.removeprefix("FEDBENCH_DATA_ROOTS="))["yolo"] == str(made / "yolo")
    result = fedbench("run", made / "coco", "-s", "data.name=yolo", "--home", home)
    assert result.exit_code == 2
    assert f"data.name: yolo: the settings have the folder {made}/yolo under this name, expected {made}/coco" in (
        result.output
    )
    assert len(ran) == 1
    assert fedbench("run", made / "coco", "-q", "--home", home).output == ""


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no such thing": (("check", "nowhere"), "nowhere: no such preset or file"),
    "no data at hand": (("check", "street5"), "no folder is known for data set 'street'"),
    "folder of nothing": (("check", "{tmp}"), "expected train_label.json (street), train.json"),
    "form of a preset": (("check", "street5", "--form", "coco"), "--form coco: expected a folder, found street5"),
    "unknown field": (("check", "{made}/coco", "-s", "split=5"), "data.split: "),
    "field without value": (("check", "{made}/coco", "-s", "train"), "--set train: expected FIELD=VALUE"),
    "picture": (("check", "{made}/coco", "--picture", "{made}/coco/test.json/p.png"), "/test.json/p.png failed: "),
    "folder of several forms": (("check", "{several}"), "expected the files of one form, found those of coco and voc"),
    "folder in use": (("make", "{made}/coco"), "expected a folder that does not exist yet, or is empty"),
    "field twice": (("check", "{made}/coco", "-s", "exif=applied", "-s", "exif=as-stored"), "expected each field once"),
    "leading zero": (("make", "{tmp}/x", "-s", "seed=03"), "--set seed=03: data.seed: 03 has a leading zero"),
    "too few images": (("make", "{tmp}/x", "-s", "train_images=3"), "data.train_images: "),
    "other kind": (("make", "{tmp}/x", "-s", "kind=federated-street"), "expected synthetic-street"),
    "split of nothing": (("split", "{made}/coco", "{tmp}/x"), "expected --group-near-duplicates, --test-fraction or"),
    "no fraction": (
        ("split", "{made}/coco", "{tmp}/x", "--test-fraction", "1"),
        "--test-fraction: expected a number between 0 and 1, found 1",
    ),
    "no devices of test images": (
        ("split", "{made}/coco", "{tmp}/x", "--test-fraction", "0.2"),
        "expected the device of each test image, because a test fraction divides each device's images anew; 5 have",
    ),
    "no devices for test sets": (
        ("split", "{made}/coco", "{tmp}/x", "--group-near-duplicates", "--test", "per-device"),
        "expected the device of each test image, because each device gets a test set of its own",
    ),
    "split into a folder in use": (
        ("split", "{made}/coco", "{made}/coco", "--group-near-duplicates"),
        "expected a folder that does not exist yet, or is empty",
    ),
    "below a file": (("make", "{made}/coco/test.json/x", *TINY), "the data set cannot be written"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_exit_2(made: Path, tmp_path: Path, case: str) -> None:
    words, message = WRONG[case]
    several = tmp_path / "d" / "several"
    (several / "Annotations").mkdir(parents=True)
    (several / "train.json").touch()
    result = call(*(word.format(made=made, tmp=tmp_path, several=several) for word in words))
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_devices_that_only_the_data_define_are_pinned(made: Path, home: Path) -> None:
    settings = Settings(home=home, data_roots={"mine": made / "voc"})
    spec = FederationSpec(data=VocFolders(name="mine"))
    assert "· all clients ·" in describe(spec)
    pinned = pin_data(spec, settings)
    assert pinned.clients == pinned.participation.clients == ("1", "2", "3", "4", "5")
    assert isinstance(pinned.data, VocFolders)
    assert pinned.data.digest is not None
    assert pin_data(pinned, settings) == pinned
    assert "· 5 clients ·" in describe(pinned)
    for participation, message in (
        (Participation(clients=("2", "6")), r"participation\.clients: 6: expected devices of the 5-device split, 1 to"),
        (Participation(clients_per_round=6), r"participation\.clients_per_round: expected at most 5"),
    ):
        with pytest.raises(SpecError, match=message):
            pin_data(spec.model_copy(update={"participation": participation}), settings)


def test_devices_that_the_specification_defines_are_not_pinned(made: Path, home: Path) -> None:
    settings = Settings(home=home, data_roots={"mine": made / "street"})
    pinned = pin_data(FederationSpec(data=FederatedStreet(name="mine", split=20)), settings)
    assert pinned.participation.clients is None
    assert len(pinned.clients or ()) == 20


def test_a_run_prints_warnings_about_its_data_at_its_start(made: Path, home: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "coco", tmp_path / "set")
    document = json.loads((tmp_path / "set" / "test.json").read_text())
    document["annotations"] += [{**item, "id": item["id"] + 1000} for item in document["annotations"]]
    (tmp_path / "set" / "test.json").write_text(json.dumps(document))
    settings = Settings(home=home, data_roots={"mine": tmp_path / "set"})
    lines: list[str] = []
    spec = FederationSpec(data=Coco(name="mine"))
    pin(spec, settings, lines.append)
    (line,) = lines
    count = len(document["annotations"]) // 2
    assert line.startswith(f"data: {count} objects repeat another one of their image, with the same class and box")
    result = call("check", tmp_path / "set", "--form", "coco")
    assert f"warning: {line.removeprefix('data: ').split(' (', 1)[0]}" in result.output
    assert result.exit_code == 0
    lines.clear()
    pin(spec, settings.model_copy(update={"data_roots": {"mine": made / "coco"}}), lines.append)
    assert lines == []
