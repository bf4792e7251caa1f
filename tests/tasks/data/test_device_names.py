"""Devices that are a part of the images' names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.data.catalog import load_data
from tasks.data.entries import Faults
from tasks.data.samples import FederatedData
from tasks.errors import DataError
from tasks.spec.clients import ByName
from tasks.spec.data import DataSpec, VisDrone, VocFolders
from tests.tasks.data.published_folders import write_visdrone


def load(root: Path, spec: DataSpec, faults: Faults | None = None) -> FederatedData:
    return load_data(spec, root_of=lambda name: root, cache=root, faults=faults)


def test_a_name_gives_the_device(tmp_path: Path) -> None:
    write_visdrone(tmp_path)
    for pattern, devices in (
        (r"_([a-z])_", ["d"]),
        (r"([^/_]+)\.jpg$", ["0000014", "0000015", "0000036"]),
        (r"(?P<drone>[0-9]{7})_", ["0000002", "0000007"]),
        (r"-(train|val)/", ["train"]),
    ):
        data = load(tmp_path, VisDrone(name="mine", clients=ByName(pattern=pattern, test="global")))
        assert list(data.train) == devices
    per_device = load(tmp_path, VisDrone(name="mine", clients=ByName(pattern="_([a-z])_")))
    assert [sample.key for sample in per_device.test["d"]] == ["0000001_02999_d_0000005"]
    without = load(tmp_path, VisDrone(name="mine", clients=ByName(pattern="train/images/0+([1-9])_")))
    assert without.test["2"] is without.test["7"]
    assert len(without.test["2"]) == 1


def test_a_long_name_is_not_matched(tmp_path: Path) -> None:
    write_visdrone(tmp_path)
    images, annotations = (tmp_path / "VisDrone2019-DET-train" / name for name in ("images", "annotations"))
    long = "0000007_" + "9" * 180
    (images / "0000007_04999_d_0000036.jpg").rename(images / f"{long}.jpg")
    (annotations / "0000007_04999_d_0000036.txt").rename(annotations / f"{long}.txt")
    faults = Faults(collect=True)
    load(tmp_path, VisDrone(name="mine"), faults)
    assert len(faults.errors) == 1
    assert "found none in 1 of 3: VisDrone2019-DET-train/images/0000007_999" in faults.errors[0]


def test_voc_folders_are_divided_by_name_too(one_folder: Path) -> None:
    data = load(one_folder, VocFolders(name="mine", clients=ByName(pattern=r"/([ab]|c)\.png$")))
    assert {device: [one.key for one in own] for device, own in data.train.items()} == {
        "a": ["a"],
        "b": ["b"],
        "c": ["c"],
    }
    assert data.test["a"] is data.test["c"]


WRONG: dict[str, tuple[ByName, str]] = {
    "no match in training": (
        ByName(pattern="(0000002)_", test="global"),
        r"pattern '\(0000002\)_': expected a match in the name of each training image, found none in 1 of 3: VisDrone",
    ),
    "no match anywhere": (ByName(pattern="(x)yz"), "found none in 3 of 3: .*d_0000014.jpg, .*d_0000036.jpg$"),
    "a group that matches nothing": (ByName(pattern="_(x)?d_", test="global"), "found none in 3 of 3"),
    "no client's id": (
        ByName(pattern="(DET-train/images)", test="global"),
        r"data\.clients\.pattern .*: expected a device named by letters, .* found 'DET-train/images'",
    ),
    "an empty id": (ByName(pattern="()_d_", test="global"), "expected a device named by letters, .* found ''"),
    "tests of other devices": (
        ByName(),
        r"expected a training image's device in the name of each test image, or a match in none, found another device "
        r"or no match in 1 of 1: VisDrone2019-DET-val/.*; with data\.clients\.test=global all devices share",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_pattern_that_does_not_fit_is_named_with_the_first_images(tmp_path: Path, case: str) -> None:
    write_visdrone(tmp_path)
    clients, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        load(tmp_path, VisDrone(name="mine", clients=clients))
