"""Federated Street's clean division: the committed list, both splits, both forms, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.data.catalog import load_data
from tasks.data.check import check_data
from tasks.data.entries import Faults
from tasks.data.export.voc import write_voc
from tasks.data.samples import FederatedData, class_counts, samples_digest
from tasks.data.street_clean import find_moved_numbers, moved_numbers
from tasks.errors import DataError
from tasks.spec.data import FederatedStreet
from tasks.spec.federation import changed_fields, with_fields
from tasks.spec.presets import STREET_CLEAN_DIGEST, STREET_DIGEST, preset


def load(root: Path, cache: Path, faults: Faults | None = None, **fields: Any) -> FederatedData:
    spec = FederatedStreet.model_validate(fields)
    return load_data(spec, root_of=lambda name: root, cache=cache, faults=faults)


def test_the_list_has_numbers_of_published_images_alone_and_each_once() -> None:
    numbers = moved_numbers()
    listed = [*numbers.to_test, *numbers.to_training]
    assert len(set(listed)) == len(listed) == 26 + 27
    assert not set(numbers.to_training.values()) & set(listed)
    assert all(len(number) == 6 and 1 <= int(number) <= 956 for number in (*listed, *numbers.to_training.values()))


def test_the_committed_list_is_the_one_that_the_rule_gives(street_dir: Path, tmp_path: Path) -> None:
    assert find_moved_numbers(street_dir, tmp_path).text == moved_numbers().text


def test_both_splits_have_the_same_sides_and_images_keep_their_devices(street_dir: Path, tmp_path: Path) -> None:
    numbers = moved_numbers()
    tests, sides = [], []
    for split in (5, 20):
        published, clean = (load(street_dir, tmp_path, split=split, division=name) for name in ("published", "clean"))
        old = {one.key: device for device, own in published.train.items() for one in own}
        new = {one.key: device for device, own in clean.train.items() for one in own}
        assert old.keys() - new.keys() == set(numbers.to_test)
        assert new.keys() - old.keys() == numbers.to_training.keys()
        assert all(new[key] == old[key] for key in old.keys() & new.keys())
        assert all(new[key] == old[like] for key, like in numbers.to_training.items())
        assert (len(new), len(clean.test["1"])) == (766, 190)
        assert len({id(own) for own in clean.test.values()}) == 1
        most = max(abs(len(own) - len(published.train[device])) for device, own in clean.train.items())
        assert most <= (2 if split == 5 else 5)
        for before, after in ((published.train, clean.train), (published.test, clean.test)):
            samples = [[one for one in {o for own in part.values() for o in own}] for part in (before, after)]
            counts = [class_counts(own, clean.classes) for own in samples]
            assert all(abs(counts[0][name] - counts[1][name]) <= 5 for name in clean.classes)
        tests.append(samples_digest(clean.test["1"]))
        sides.append(sorted(new))
    assert tests[0] == tests[1] != samples_digest(published.test["1"])
    assert sides[0] == sides[1]


def test_no_near_duplicate_crosses_the_clean_division(street_dir: Path, tmp_path: Path) -> None:
    spec = FederatedStreet(division="clean")
    report = check_data(spec, root_of=lambda name: street_dir, cache=tmp_path)
    assert (report.near_duplicates, report.errors) == (0, ())


def test_the_form_of_folders_gives_the_same_images(street_dir: Path, tmp_path: Path) -> None:
    write_voc(load(street_dir, tmp_path / "cache"), tmp_path / "street_5")
    json_form = load(street_dir, tmp_path, division="clean")
    voc = load(tmp_path, tmp_path / "cache", division="clean", form="voc")
    assert {d: samples_digest(own) for d, own in voc.train.items()} == {
        d: samples_digest(own) for d, own in json_form.train.items()
    }
    assert samples_digest(voc.test["3"]) == samples_digest(json_form.test["1"])
    assert voc.digest not in (json_form.digest, STREET_CLEAN_DIGEST)


def test_the_digest_is_another_and_the_published_one_may_stand_for_the_files(street_dir: Path, tmp_path: Path) -> None:
    for digest in (None, STREET_DIGEST, STREET_CLEAN_DIGEST):
        assert load(street_dir, tmp_path, division="clean", digest=digest).digest == STREET_CLEAN_DIGEST
    with pytest.raises(DataError, match=f"expected content digest {STREET_CLEAN_DIGEST}, found {STREET_DIGEST}"):
        load(street_dir, tmp_path, digest=STREET_CLEAN_DIGEST)
    with pytest.raises(DataError, match=f"found {STREET_DIGEST} \\(in the clean division {STREET_CLEAN_DIGEST}\\)"):
        load(street_dir, tmp_path, division="clean", digest="0" * 64)


def test_specifications_of_the_two_divisions_differ_in_this_field() -> None:
    published = preset("street5_laptop")
    clean = with_fields(published, {"data.division": "clean"}, source="x")
    assert changed_fields(published, clean) == {"data.division": ("published", "clean")}
    assert published.digest != clean.digest


def test_data_without_the_listed_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    from PIL import Image

    def entry(number: int, device: int | None) -> dict[str, Any]:
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "Images" / f"{number:06d}.jpg")
        devices = {} if device is None else {"device_1_id": "1", "device_2_id": str(device)}
        return {"image_id": f"{number:06d}", **devices, "items": [{"class": "chair", "bbox": ["1", "2", "9", "9"]}]}

    (tmp_path / "train_label.json").write_text(json.dumps([entry(number, number) for number in range(1, 6)]))
    (tmp_path / "test_label.json").write_text(json.dumps([entry(6, None)]))
    message = r"data\.division: clean needs the published images of Federated Street, found no training image 000018, "
    with pytest.raises(DataError, match=message):
        load(tmp_path, tmp_path, division="clean")
    faults = Faults(collect=True)
    data = load(tmp_path, tmp_path, faults, division="clean")
    assert (len(faults.errors), len(data.train), len(data.test["1"])) == (2, 5, 1)
    assert "found no test image 000048, " in faults.errors[1]
    assert len(load(tmp_path, tmp_path).train["1"]) == 1
