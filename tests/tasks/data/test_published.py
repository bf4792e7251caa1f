"""The readers of BDD100K, VisDrone and KITTI: what they read, and that other readers find the same boxes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tasks.data.catalog import load_data
from tasks.data.entries import Faults, Parsed
from tasks.data.samples import FederatedData
from tasks.errors import DataError
from tasks.spec.clients import ByField, ByList, Iid
from tasks.spec.data import Bdd100k, DataSpec, Kitti, VisDrone
from tasks.spec.data_forms import VISDRONE_CLASSES
from tests.tasks.data import published_folders
from tests.tasks.data.published_folders import HEIGHT, WIDTH, bdd100k, label, write_frames, write_kitti, write_visdrone

Boxes = dict[str, list[tuple[str, tuple[float, ...]]]]
WEATHER = Bdd100k(name="mine", clients=ByField(field="weather"))


def load(root: Path, spec: DataSpec, faults: Faults | None = None) -> FederatedData:
    return load_data(spec, root_of=lambda name: root, cache=root, faults=faults)


def parsed_by(root: Path, spec: DataSpec, monkeypatch: pytest.MonkeyPatch) -> Parsed:
    """Return what the reader of ``spec`` found before any image was opened."""
    found: list[Parsed] = []
    with monkeypatch.context() as patch:
        patch.setattr("tasks.data.assemble.assemble", lambda root, parsed, *_, **__: found.append(parsed))
        load(root, spec)
    return found[0]


def boxes_of(data: FederatedData) -> Boxes:
    """Return the classes and boxes of all images, by the images' keys."""
    samples = {one.key: one for part in (data.train, data.test) for own in part.values() for one in own}
    return {
        key: [
            (data.classes[name], tuple(box)) for name, box in zip(one.labels.tolist(), one.boxes.tolist(), strict=True)
        ]
        for key, one in samples.items()
    }


def regions_of(parsed: Parsed) -> dict[str, list[tuple[str | None, tuple[float, ...]]]]:
    return {
        entry.key: [(region.name, region.box) for region in entry.regions]
        for entry in (*parsed.train, *parsed.test)
        if entry.regions
    }


def test_bdd100k_is_divided_by_an_attribute(tmp_path: Path) -> None:
    write_frames(tmp_path, *bdd100k(tmp_path))
    data = load(tmp_path, WEATHER)
    assert data.classes == ("car", "traffic sign")
    keys = {device: [sample.key for sample in own] for device, own in data.train.items()}
    assert keys == {"partly-cloudy": ["a", "c"], "rainy": ["b", "d"]}
    assert {device: len(own) for device, own in data.test.items()} == {"partly-cloudy": 0, "rainy": 2}
    for field, device in (("scene", "city-street"), ("timeofday", "dawn-dusk")):
        assert list(load(tmp_path, Bdd100k(name="mine", clients=ByField(field=field))).train) == [device]


def test_an_attribute_of_test_images_alone_is_one_error_that_counts_them(tmp_path: Path) -> None:
    train, test = bdd100k(tmp_path)
    for frame in test:
        frame["attributes"]["weather"] = "foggy"
    write_frames(tmp_path, train, test)
    labels = tmp_path / "labels/det_20"
    with pytest.raises(DataError) as refused:
        load(tmp_path, WEATHER)
    assert str(refused.value) == (
        f"{labels}/det_train.json: attributes: weather: expected a device from partly-cloudy to rainy, found 'foggy'; "
        "no training image is of it, so no client could be scored on it; so in 2 images: "
        f"{labels}/det_val.json: frame 1 (t.jpg), {labels}/det_val.json: frame 2 (u.jpg)"
    )
    faults = Faults(collect=True)
    load(tmp_path, WEATHER, faults)
    assert len(faults.errors) == 1


def test_a_mistake_of_many_images_is_one_error(tmp_path: Path) -> None:
    train, test = bdd100k(tmp_path)
    for frame in train[:3]:
        del frame["attributes"]["weather"]
    write_frames(tmp_path, train, [*test, *test])
    faults = Faults(collect=True)
    load(tmp_path, WEATHER, faults)
    missing, twice = faults.errors
    assert "weather: missing; expected the device that the image came from; so in 3 images: " in missing
    assert "expected every image once, found it in labels/det_20/det_val.json already; so in 2 images" in twice
    assert faults.by_kind() == [(missing,), (twice,)]


def test_frames_without_labels_and_labels_without_boxes_are_no_objects(tmp_path: Path) -> None:
    write_frames(tmp_path, *bdd100k(tmp_path))
    boxes = boxes_of(load(tmp_path, WEATHER))
    assert boxes["a"] == [("car", (1, 2, 30.5, 40)), ("traffic sign", (10, 10, 20, 20))]
    assert boxes["b"] == boxes["c"] == boxes["d"] == []


def test_crowds_and_categories_that_are_not_evaluated_are_ignore_regions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = bdd100k(tmp_path)
    train[2]["labels"] = [
        label("other vehicle", 0, 0, 70, 50), label("other person", 1, 1, 2, 2), label("car", 3, 3, 9, 9, ignored=True),
        label("rider", 4, 4, 9, 9, crowd=True),
    ]  # fmt: skip
    write_frames(tmp_path, train, test)
    crowd, vehicle, ignored = ("car", (0, 0, 9, 9)), ("car", (0, 0, 70, 50)), ("car", (3, 3, 9, 9))
    # No training object is a pedestrian or a rider, so nothing detects one.
    assert regions_of(parsed_by(tmp_path, WEATHER, monkeypatch)) == {"c": [vehicle, ignored], "d": [crowd]}
    named = WEATHER.model_copy(update={"classes": ("car", "traffic sign", "other vehicle", "pedestrian", "rider")})
    found = parsed_by(tmp_path, named, monkeypatch)
    assert [(thing.name, thing.box) for thing in found.train[2].things] == [("other vehicle", (0, 0, 70, 50))]
    assert regions_of(found)["c"] == [("pedestrian", (1, 1, 2, 2)), ignored, ("rider", (4, 4, 9, 9))]


def test_bdd100ks_older_files_are_the_same_data(tmp_path: Path) -> None:
    train, test = bdd100k(tmp_path)
    write_frames(tmp_path, train, test)
    expected = load(tmp_path, WEATHER)
    (tmp_path / "old").mkdir()
    for frame in train:
        name = frame["name"].removesuffix(".jpg")
        moment = {"timestamp": 10000, "objects": frame.get("labels")}
        document = {"name": name, "attributes": frame["attributes"], "frames": [moment]}
        (tmp_path / "old" / f"{name}.json").write_text(json.dumps(document))
    (tmp_path / "new.json").write_text(json.dumps({"frames": test, "config": {"categories": []}}))
    found = load(tmp_path, WEATHER.model_copy(update={"train": "old", "test": "new.json"}))
    assert boxes_of(found) == boxes_of(expected)
    assert {device: len(own) for device, own in found.train.items()} == {"partly-cloudy": 2, "rainy": 2}


def test_visdrone_is_divided_by_sequence(tmp_path: Path) -> None:
    write_visdrone(tmp_path)
    data = load(tmp_path, VisDrone(name="mine"))
    assert data.classes == VISDRONE_CLASSES
    assert {device: len(own) for device, own in data.train.items()} == {"0000002": 2, "0000007": 1}
    assert data.test["0000002"] is data.test["0000007"]
    boxes = boxes_of(data)
    assert boxes["0000002_00005_d_0000014"] == [("pedestrian", (1, 2, 31, 42)), ("car", (10, 10, 18, 19))]
    assert boxes["0000007_04999_d_0000036"] == []
    assert boxes["0000001_02999_d_0000005"] == [("motor", (0, 0, 64, 48))]


def test_what_visdrone_does_not_evaluate_is_an_ignore_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_visdrone(tmp_path)
    assert regions_of(parsed_by(tmp_path, VisDrone(name="mine"), monkeypatch)) == {
        "0000002_00005_d_0000014": [(None, (40, 30, 100, 90))],
        "0000002_00448_d_0000015": [(None, (5, 5, 10, 10)), ("car", (5, 6, 12, 14))],
    }


def test_a_published_box_that_is_a_line_is_noted(tmp_path: Path) -> None:
    write_visdrone(tmp_path)
    faults, spec = Faults(), VisDrone(name="mine")
    load(tmp_path, spec, faults)
    assert len(faults.notes.emptied) == 1
    assert faults.notes.emptied[0].endswith("0000002_00448_d_0000015.txt: line 3")


def test_classes_name_visdrones_categories(tmp_path: Path) -> None:
    write_visdrone(tmp_path)
    (tmp_path / "VisDrone2019-DET-val/annotations/0000001_02999_d_0000005.txt").write_text("1,2,3,4,1,2,0,0\n")
    data = load(tmp_path, VisDrone(name="mine", classes=("one", "two", "three", "four")))
    assert boxes_of(data)["0000002_00005_d_0000014"] == [("one", (1, 2, 31, 42)), ("four", (10, 10, 18, 19))]
    assert boxes_of(data)["0000001_02999_d_0000005"] == [("two", (1, 2, 4, 6))]


def test_kitti_has_a_list_for_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kitti(tmp_path)
    spec = Kitti(name="mine", clients=Iid(clients=1))
    data = load(tmp_path, spec)
    assert data.classes == ("Car", "Pedestrian")
    assert boxes_of(data) == {
        "000000": [("Car", (1.25, 2.5, 30.75, 40))], "000001": [("Pedestrian", (10, 10, 18, 19))], "000002": [],
        "000003": [("Car", (0, 0, 63, 47))],
    }  # fmt: skip
    assert [sample.key for sample in data.test["1"]] == ["000003"]
    assert regions_of(parsed_by(tmp_path, spec, monkeypatch)) == {"000000": [(None, (40.5, 30, 70, 60))]}


PREPARE: dict[str, tuple[Callable[[Path], object], DataSpec]] = {
    "bdd100k": (lambda root: write_frames(root, *bdd100k(root)), WEATHER),
    "visdrone": (write_visdrone, VisDrone(name="mine")),
    "kitti": (write_kitti, Kitti(name="mine", clients=Iid(clients=2))),
}


@pytest.mark.parametrize("form", PREPARE)
def test_devices_come_from_a_list_or_a_division_too(tmp_path: Path, form: str) -> None:
    prepare, spec = PREPARE[form]
    prepare(tmp_path)
    keys = [sample.key for own in load(tmp_path, spec).train.values() for sample in own]
    (tmp_path / "clients.yaml").write_text(f"one: {json.dumps(keys[:1])}\ntwo: {json.dumps(keys[1:])}\n")
    listed = load(tmp_path, spec.model_copy(update={"clients": ByList()}))
    assert {device: len(own) for device, own in listed.train.items()} == {"one": 1, "two": len(keys) - 1}
    divided = load(tmp_path, spec.model_copy(update={"clients": Iid(clients=3)}))
    assert list(divided.train) == ["1", "2", "3"]
    assert divided.digest == load(tmp_path, spec).digest != listed.digest


@pytest.mark.parametrize("form", PREPARE)
def test_labels_and_images_are_in_the_digest(tmp_path: Path, form: str) -> None:
    prepare, spec = PREPARE[form]
    prepare(tmp_path)
    digests = {load(tmp_path, spec).digest}
    labels = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".txt", ".json") and path.stat().st_size)
    labels[-1].write_text(labels[-1].read_text() + "\n")
    digests.add(load(tmp_path, spec).digest)
    image = min(path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png"))
    published_folders.write_image(image.with_stem("other"))
    image.with_stem("other").replace(image)
    digests.add(load(tmp_path, spec).digest)
    assert len(digests) == 3


# Other readers.


def short_bdd100k(root: Path) -> Boxes:
    """Return the boxes of BDD100K's two files that are objects, as the short scripts of many projects read them."""
    found: Boxes = {}
    for part in ("train", "val"):
        for frame in json.loads((root / f"labels/det_20/det_{part}.json").read_text()):
            found[frame["name"][:-4]] = [
                (item["category"], (item["box2d"]["x1"], item["box2d"]["y1"], item["box2d"]["x2"], item["box2d"]["y2"]))
                for item in frame.get("labels") or []
                if item.get("box2d") and not item["attributes"].get("crowd")
            ]
    return found


def short_visdrone(root: Path, names: tuple[str, ...]) -> Boxes:
    """Return the boxes of VisDrone's files that are objects, with one table of numbers for each file."""
    found: Boxes = {}
    for path in root.glob("VisDrone2019-DET-*/annotations/*.txt"):
        lines = [line.rstrip(",") for line in path.read_text().splitlines()]
        table = np.array([line.split(",") for line in lines], dtype=np.float64).reshape(-1, 8)
        table = table[(table[:, 4] == 1) & (table[:, 5] > 0) & (table[:, 5] < 11) & (table[:, 2:4] > 0).all(1)]
        table[:, 2:4] += table[:, :2]
        found[path.stem] = [(names[int(row[5]) - 1], tuple(row[:4])) for row in table]
    return found


def torchvisions_kitti(root: Path, link: Path) -> Boxes:
    """Return the boxes that torchvision reads, by the image's name, without DontCare."""
    datasets = pytest.importorskip("torchvision.datasets")
    (link / "Kitti").mkdir(parents=True)
    (link / "Kitti" / "raw").symlink_to(root)
    kitti = datasets.Kitti(str(link))
    return {
        Path(path).stem: [(item["type"], tuple(item["bbox"])) for item in kitti[i][1] if item["type"] != "DontCare"]
        for i, path in enumerate(kitti.images)
    }


def random_boxes(rng: np.random.Generator, count: int) -> list[list[int]]:
    """Return random boxes inside the images: left, top, right, bottom."""
    starts = rng.integers(0, (WIDTH - 9, HEIGHT - 9), (count, 2))
    return np.concatenate([starts, starts + rng.integers(1, 9, (count, 2))], axis=1).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_a_second_reader_finds_the_same_boxes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    driving, drones, kitti = (tmp_path / name for name in ("driving", "drones", "kitti"))
    train, test = bdd100k(driving)
    for frame in (*train, *test):
        frame["labels"] = [
            label(str(rng.choice(["car", "bus"])), *(edge + 0.25 for edge in box), crowd=bool(rng.random() < 0.2))
            for box in random_boxes(rng, 12)
        ] + [{"category": "lane", "poly2d": []}]
    write_frames(driving, train, test)
    assert boxes_of(load(driving, WEATHER)) == short_bdd100k(driving)

    write_visdrone(drones)
    for path in drones.glob("*/annotations/*.txt"):
        rows = [(x, y, right - x, bottom - y, *rng.integers((2, 12))) for x, y, right, bottom in random_boxes(rng, 40)]
        path.write_text("".join(f"{','.join(map(str, row))},0,1{',' * int(rng.integers(2))}\n" for row in rows))
    assert boxes_of(load(drones, VisDrone(name="mine"))) == short_visdrone(drones, VISDRONE_CLASSES)

    write_kitti(kitti)
    for path in (kitti / "training" / "label_2").iterdir():
        names = rng.choice(["Car", "Pedestrian", "Person_sitting", "DontCare"], 12)
        boxes = [" ".join(f"{edge + 0.5:.2f}" for edge in box) for box in random_boxes(rng, 12)]
        pairs = zip(names, boxes, strict=True)
        path.write_text("".join(f"{n} 0.00 0 1.85 {box} {published_folders.KITTI_END}\n" for n, box in pairs))
    found = boxes_of(load(kitti, PREPARE["kitti"][1]))
    assert found == torchvisions_kitti(kitti, tmp_path / "link")


def test_visdrones_numbers_may_have_blanks_around_them(tmp_path: Path) -> None:
    write_visdrone(tmp_path)
    plain = load(tmp_path, VisDrone(name="mine"))
    for path in tmp_path.rglob("annotations/*.txt"):
        path.write_text(path.read_text().replace(",", " , "))
    found = load(tmp_path, VisDrone(name="mine"))
    assert boxes_of(found) == boxes_of(plain)
    assert found.digest != plain.digest
