"""Digests must not change: existing federations and accepted results are found by them.

A federation continues only under the digest it began with. A suite's cells and accepted results are found by their
digests. A specification pins its data by the content digest. Mark each new field with
:class:`tasks.spec.base.AddedLater`. If a change in reading data must change a content digest, say so in CHANGELOG and
change the value here.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from tasks.data.catalog import load_data
from tasks.data.samples import FederatedData, samples_digest
from tasks.data.synthetic import make_synthetic_street
from tasks.spec.base import AddedLater, Frozen, digest_fields
from tasks.spec.clients import ByField, ByList, Iid
from tasks.spec.data import Bdd100k, Coco, DataSpec, FederatedStreet, Kitti, SyntheticStreet, VisDrone, VocFolders, Yolo
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.presets import PRESETS, preset
from tasks.spec.references import local_only, twin
from tasks.spec.suite_presets import SUITES, suite_preset

# The first 16 hex digits of three digests: the federation, its centralised twin, device 1 alone.
FEDERATIONS: dict[str, tuple[str, str, str]] = {
    "synthetic5": ("e6b255e8d54bf620", "59cec3e75e0cc191", "12fe2cc43683dba3"),
    "street5": ("44ac7ab3f90bb874", "3a5c415ce0684195", "e8b4328a4ed8a158"),
    "street20": ("6eb8127d49d8a86e", "3a5c415ce0684195", "abf495633e922d96"),
    "street5_laptop": ("405ade9cd617f065", "f983ba6ea5a084cc", "44806b3677ba4096"),
    "street5_faster_rcnn": ("849b979ee48f0031", "a4b2bc87709b2cc2", "70d0e5bd8e43446c"),
    "street5_faster_rcnn_laptop": ("b5ba11b6e09ded34", "f4473706a4113f82", "a4e8758655055404"),
    "smoke": ("7d2e11f4ca930c8a", "8063fb87c57dae6c", "fb6f5a282aa388ce"),
}
# Suites that have a cell for each method: a new method changes their digests, and leaves those of the other cells.
GROWING = {"methods", "methods-smoke"}
SUITE_DIGESTS: dict[str, str] = {
    "smoke": "26384f37471390d3",
    "cpu": "bd604acfdd86a770",
    "paper": "a61bd92eaeea4ba2",
    "methods-final": "5f51b4f4b1691705",
}
# The digests of the whole content and of the first client's test set.
CONTENTS: dict[str, tuple[str, str]] = {
    "street": ("945e897efa24f78a", "a2092c3240f237e3"),
    # The images of this set have crowds. They were difficult objects before they became ignore regions.
    "coco": ("ffdc051285345179", "8aebe5488ac3f52b"),
    "coco without crowds": ("38ae9c4daa558a66", "1f4181b553f0b2ad"),
    "voc by list": ("2f18bc676657562b", "615c1bd65837a8c0"),
    "voc by folder": ("b31822687167e792", "b75395b222702057"),
    "yolo": ("2c06688a77a370fe", "642391ddc22bbafb"),
    "bdd100k": ("ae1e6ba765466e2c", "67ab7ba458fca424"),
    "visdrone": ("1b80469f0632f20d", "b1060e73e1dc0edc"),
    "kitti": ("0a412b96f1817a25", "fe95f3a8bb5217aa"),
    "federated street": ("d7f19422545e1c93", "aa284d4d6a4f99b6"),
    "federated street, clean": ("85c064002c3a6e04", "0541fcb93a6ee778"),
    "synthetic street": ("aa127d359a91c69a", "964aa66cfd092d15"),
}

WIDTH, HEIGHT = 16, 12


def first(digest: str) -> str:
    return digest[:16]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_and_their_references_keep_their_digests(name: str) -> None:
    spec = preset(name)
    found = (spec.digest, twin(spec).digest, local_only(spec, "1").digest)
    assert tuple(map(first, found)) == FEDERATIONS[name]


@pytest.mark.parametrize("name", [name for name in SUITES if name not in GROWING])
def test_suite_presets_keep_their_digests(name: str) -> None:
    assert first(suite_preset(name).digest) == SUITE_DIGESTS[name]


def test_every_preset_has_its_digests_here() -> None:
    assert (set(FEDERATIONS), set(SUITE_DIGESTS)) == (set(PRESETS), set(SUITES) - GROWING)


def test_fields_added_later_count_for_the_digest_only_if_they_are_set() -> None:
    spec, pooled = FederationSpec(), twin(FederationSpec())
    assert "pooled" not in digest_fields(spec)["data"]
    assert "pooled_devices" not in digest_fields(spec)["data"]
    # This None has been in the digest of pooled data since pooling was added.
    assert digest_fields(pooled)["data"]["pooled_devices"] is None
    clean = with_fields(preset("street5"), {"data.division": "clean"}, source="x")
    assert "division" not in digest_fields(preset("street5"))["data"]
    assert digest_fields(clean)["data"]["division"] == "clean"
    assert len({clean.digest, twin(clean).digest, *(preset(name).digest for name in PRESETS)}) == 2 + len(PRESETS)
    summed = spec.model_copy(update={"participation": spec.participation.model_copy(update={"partial_sums": True})})
    assert digest_fields(summed)["participation"]["partial_sums"] is True
    assert len({spec.digest, pooled.digest, summed.digest}) == 3


def test_fields_added_later_are_left_out_at_every_depth() -> None:
    class Inner(Frozen):
        old: int = 1
        new: Annotated[tuple[int, ...], AddedLater()] = Field((1,), description="Later.")

    class Outer(Frozen):
        one: Inner = Inner()
        many: tuple[Inner, ...] = (Inner(), Inner(new=(2,)))
        named: dict[str, Inner] = Field(default_factory=lambda: {"a": Inner()})

    assert digest_fields(Outer()) == {
        "one": {"old": 1},
        "many": [{"old": 1}, {"old": 1, "new": [2]}],
        "named": {"a": {"old": 1}},
    }


# Contents. These functions write the files byte for byte, so that the digests do not depend on an encoder's version.


def png(shade: int) -> bytes:
    """Return a grey PNG of ``WIDTH`` x ``HEIGHT`` whose pixels are stored without compression."""
    rows = (bytes([0]) + bytes([shade]) * WIDTH) * HEIGHT
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows
    stored += struct.pack(">I", zlib.adler32(rows))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(1, 7):
        (folder / f"{number:06d}.png").write_bytes(png(30 * number))


def street(root: Path) -> DataSpec:
    (root / "Images").mkdir()
    for number in range(1, 7):
        (root / "Images" / f"{number:06d}.jpg").write_bytes(png(30 * number))
    items = [{"class": "chair", "bbox": ["1", "2", "9", "10"]}, {"class": "table", "bbox": ["3", "3", "16", "12"]}]
    train = [
        {"image_id": f"{n:06d}", "device_1_id": str(n), "device_2_id": str(n), "items": items} for n in range(1, 6)
    ]
    (root / "train_label.json").write_text(json.dumps(train))
    (root / "test_label.json").write_text(json.dumps([{"image_id": "000006", "items": items}]))
    return FederatedStreet(name="mine")


def coco(root: Path, crowd: int = 1) -> DataSpec:
    write_images(root / "images")
    for file, numbers in (("train.json", range(1, 5)), ("test.json", range(5, 7))):
        images = [
            {"id": n, "file_name": f"{n:06d}.png", "width": WIDTH, "height": HEIGHT, "device": f"cam{n % 2}"}
            for n in numbers
        ]
        boxes = [
            {"id": n, "image_id": n, "category_id": 3 + n % 2, "bbox": [1, 1.5, 6, 7], "iscrowd": n % 2 * crowd}
            for n in numbers
        ]
        document = {
            "images": [image if file == "train.json" else {**image, "device": None} for image in images],
            "annotations": boxes,
            "categories": [{"id": 3, "name": "bee"}, {"id": 4, "name": "ant"}],
        }
        (root / file).write_text(json.dumps(document))
    return Coco(name="mine", clients=ByField())


def voc_folder(root: Path, names: dict[str, list[int]]) -> None:
    write_images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for part, numbers in names.items():
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{n:06d}\n" for n in numbers))
        for n in numbers:
            box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>10</ymax></bndbox>"
            (root / "Annotations" / f"{n:06d}.xml").write_text(
                f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
                f"<object><name>chair</name><difficult>{n % 2}</difficult>{box}</object></annotation>"
            )


def voc_by_list(root: Path) -> DataSpec:
    voc_folder(root, {"train": [1, 2, 3, 4], "test": [5, 6]})
    (root / "clients.yaml").write_text("a: ['000001', '000002']\nb: ['000003', '000004']\n")
    return VocFolders(name="mine", clients=ByList())


def voc_by_folder(root: Path) -> DataSpec:
    for device, train in (("2", [1, 2]), ("10", [3])):
        voc_folder(root / device, {"train": train, "test": [6]})
    return VocFolders(name="mine")


def yolo(root: Path) -> DataSpec:
    write_images(root / "images")
    (root / "labels").mkdir()
    for n in range(1, 6):  # the sixth image has no label file
        (root / "labels" / f"{n:06d}.txt").write_text(f"{n % 2} 0.5 0.5 0.25 0.5\n")
    for part, numbers in (("train", range(1, 5)), ("val", range(5, 7))):
        (root / f"{part}.txt").write_text("".join(f"./images/{n:06d}.png\n" for n in numbers))
    (root / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [bee, ant]\n")
    return Yolo(name="mine", clients=Iid(clients=2))


def bdd100k(root: Path) -> DataSpec:
    write_images(root / "images")
    for file, numbers in (("train.json", range(1, 5)), ("test.json", range(5, 7))):
        box = {"x1": 1, "y1": 1.5, "x2": 7, "y2": 9}
        labels = [{"category": "car", "box2d": box}, {"category": "car", "box2d": box, "attributes": {"crowd": True}}]
        frames = [
            {
                "name": f"{n:06d}.png",
                "attributes": {"scene": "city street"},
                "labels": labels if file == "train.json" else labels[:1],
            }
            for n in numbers
        ]
        (root / file).write_text(json.dumps(frames))
    return Bdd100k(name="mine", train="train.json", test="test.json", train_images="images", test_images="images")


def visdrone(root: Path) -> DataSpec:
    for part, numbers, more in (("train", range(1, 5), "0,0,9,9,0,0,0,0\n"), ("test", range(5, 7), "")):
        (root / part / "images").mkdir(parents=True)
        (root / part / "annotations").mkdir()
        for n in numbers:
            (root / part / "images" / f"{n % 2}_{n}.png").write_bytes(png(30 * n))
            lines = f"1,2,3,4,1,1,0,0\n2,2,5,5,1,4,0,1\n{more}"
            (root / part / "annotations" / f"{n % 2}_{n}.txt").write_text(lines)
    return VisDrone(name="mine", train="train", test="test")


def kitti(root: Path) -> DataSpec:
    write_images(root / "images")
    (root / "labels").mkdir()
    columns = "0.00 0 1.57 1.00 2.50 9.25 10.00 1 1 1 1 1 1 1"
    for n in range(1, 7):
        more = f"DontCare {columns}\n" if n < 5 else ""
        (root / "labels" / f"{n:06d}.txt").write_text(f"Car {columns}\n{more}")
    (root / "train.txt").write_text("000001\n000002\n000003\n000004\n")
    (root / "test.txt").write_text("000005\n000006\n")
    return Kitti(
        name="mine", train="train.txt", test="test.txt", images="images", labels="labels", clients=Iid(clients=2)
    )


FORMS: dict[str, Callable[[Path], DataSpec]] = {
    "street": street,
    "coco": coco,
    "coco without crowds": lambda root: coco(root, crowd=0),
    "voc by list": voc_by_list,
    "voc by folder": voc_by_folder,
    "yolo": yolo,
    "bdd100k": bdd100k,
    "visdrone": visdrone,
    "kitti": kitti,
}


def held(data: FederatedData) -> tuple[str, str]:
    return first(data.digest), first(samples_digest(next(iter(data.test.values()))))


@pytest.mark.parametrize("form", FORMS)
def test_small_data_of_each_form_keep_their_content_digests(form: str, tmp_path: Path) -> None:
    spec = FORMS[form](tmp_path)
    assert held(load_data(spec, root_of=lambda name: tmp_path, cache=tmp_path / "cache")) == CONTENTS[form]


@pytest.mark.parametrize("split", [5, 20])
@pytest.mark.parametrize("division", ["published", "clean"])
def test_federated_street_keeps_its_content_digests(
    split: int, division: str, street_dir: Path, tmp_path: Path
) -> None:
    spec = FederatedStreet.model_validate({"split": split, "division": division})
    name = "federated street" + (", clean" if division == "clean" else "")
    assert held(load_data(spec, root_of=lambda name: street_dir, cache=tmp_path)) == CONTENTS[name]


def test_the_synthetic_street_keeps_its_folder(tmp_path: Path) -> None:
    """The bytes of its images depend on the encoder's version. The folder's name and labels do not."""
    small = SyntheticStreet(train_images=40, test_images=5, width=64, height=64)
    folder = make_synthetic_street(small, tmp_path)
    assert make_synthetic_street(small.model_copy(update={"split": 20, "pooled": True}), tmp_path) == folder
    assert first(folder.name) == CONTENTS["synthetic street"][0]
    labels = hashlib.sha256((folder / "train_label.json").read_bytes()).hexdigest()
    assert first(labels) == CONTENTS["synthetic street"][1]
