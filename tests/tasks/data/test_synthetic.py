"""The drawn street: its contents, determinism and cache, and loading data from a specification."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.data import drawing, synthetic
from tasks.data.catalog import load_data, restrict
from tasks.data.partition import divide
from tasks.data.samples import class_counts, samples_digest
from tasks.data.street import TRAIN_LABELS, load_street
from tasks.data.street_scenes import CLASSES, GROUP_OF, STREET_IMAGES, plan_images
from tasks.data.synthetic import CONTENTS, make_synthetic_street
from tasks.errors import DataError
from tasks.spec.data import FederatedStreet, SyntheticStreet
from tests.tasks.drawn_data import drawn_data

TINY = SyntheticStreet(train_images=40, test_images=8, width=128, height=96)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cache")
    drawn_data(TINY, root)
    return root


def test_a_set_has_the_specified_images_and_all_classes(cache: Path) -> None:
    data = drawn_data(TINY, cache)
    train = [sample for samples in data.train.values() for sample in samples]
    assert data.classes == CLASSES == ("basket", "carton", "chair", "electrombile", "gastank", "sunshade", "table")
    assert (len(train), len(data.test["1"]), list(data.train)) == (40, 8, ["1", "2", "3", "4", "5"])
    assert all(class_counts(train, data.classes).values())
    assert data.test["1"] is data.test["5"]
    for sample in train:
        assert (sample.width, sample.height) == (128, 96)
        assert len(sample.labels) >= 1
        assert (sample.boxes[:, 2:] - sample.boxes[:, :2]).min() >= 3


def test_the_twenty_devices_divide_the_five_and_share_their_folder(cache: Path) -> None:
    five, twenty = drawn_data(TINY, cache), drawn_data(TINY.model_copy(update={"split": 20}), cache)
    assert five.digest == twenty.digest
    assert all(samples for samples in twenty.train.values())
    for device, group in enumerate(GROUP_OF, 1):
        keys = {sample.key for sample in five.train[str(group)]}
        assert {sample.key for sample in twenty.train[str(device)]} <= keys
    assert len(list((cache / "synthetic-street").iterdir())) == 1


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_bytes(cache: Path, tmp_path: Path) -> None:
    assert drawn_data(TINY, tmp_path).digest == drawn_data(TINY, cache).digest
    assert drawn_data(TINY.model_copy(update={"seed": 8}), tmp_path).digest != drawn_data(TINY, cache).digest


def test_a_drawn_set_is_not_drawn_again(cache: Path) -> None:
    root = make_synthetic_street(TINY, cache / "synthetic-street")
    marker = root / "marker"
    marker.touch()
    assert make_synthetic_street(TINY, cache / "synthetic-street") == root
    assert marker.exists()
    marker.unlink()


NEXT_PROCESS = """
import json, logging, sys
from pathlib import Path
from tasks.data.catalog import load_data
from tasks.spec.data import SyntheticStreet

logging.basicConfig(level="WARNING", format="%(message)s")
fields, cache = sys.argv[1:]
print(load_data(SyntheticStreet.model_validate_json(fields), root_of=lambda name: None, cache=Path(cache)).digest)
"""


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: _flip(root / "Images" / "000001.jpg"),
        lambda root: (root / "Images" / "000001.jpg").unlink(),
        lambda root: _flip(root / TRAIN_LABELS),
        lambda root: _flip(root / CONTENTS),
        lambda root: (root / CONTENTS).write_text("[]"),
        lambda root: (root / CONTENTS).write_text("{}"),
        lambda root: (root / CONTENTS).unlink(),
    ],
    ids=["a bit of an image", "an image is gone", "a bit of labels", "a bit of the list", "list", "empty", "no list"],
)
def test_the_next_process_draws_a_damaged_set_again(
    damage: Callable[[Path], object], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(make_synthetic_street(TINY, cache / "synthetic-street"), tmp_path / "set")
    before = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    damage(root)
    monkeypatch.setattr(synthetic, "_compared", set())
    final = tmp_path / "street" / next((cache / "synthetic-street").iterdir()).name
    final.parent.mkdir()
    root.rename(final)
    assert make_synthetic_street(TINY, final.parent) == final
    assert {path.relative_to(final): path.read_bytes() for path in final.rglob("*") if path.is_file()} == before
    assert list(final.parent.iterdir()) == [final]


def test_a_set_with_a_flipped_bit_is_not_trained_on(cache: Path, tmp_path: Path) -> None:
    own = tmp_path / "cache"
    shutil.copytree(cache, own)
    image = next((own / "synthetic-street").iterdir()) / "Images" / "000007.jpg"
    _flip(image)
    command = [sys.executable, "-c", NEXT_PROCESS, TINY.model_dump_json(), str(own)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == drawn_data(TINY, cache).digest
    assert f"{image}: damaged in the cache; the set is drawn anew" in done.stderr


def test_two_processes_at_once_leave_only_one_whole_set(cache: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: make_synthetic_street(TINY, tmp_path), range(2))
    assert first == second
    assert list(tmp_path.iterdir()) == [first]
    expected = drawn_data(TINY, cache).digest
    assert load_street(first, 5, name="synthetic", expected_digest=expected).digest == expected


def test_old_drafts_of_killed_processes_are_removed(tmp_path: Path, cache: Path) -> None:
    name = next((cache / "synthetic-street").iterdir()).name
    old, fresh = tmp_path / f".{name}.old", tmp_path / f".{name}.fresh"
    for draft in (old, fresh):
        (draft / "Images").mkdir(parents=True)
    os.utime(old / "Images", (0, 0))
    make_synthetic_street(TINY, tmp_path)
    assert not old.exists()
    assert fresh.exists()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"{tmp_path}/file/.*: the synthetic street cannot be written"):
        make_synthetic_street(TINY, tmp_path / "file")


def test_per_device_test_sets(tmp_path: Path) -> None:
    data = drawn_data(TINY.model_copy(update={"test": "per-device", "test_images": 20, "split": 20}), tmp_path)
    assert [len(samples) for samples in data.test.values()] == [1] * 20
    assert len({samples_digest(samples) for samples in data.test.values()}) == 20


def test_default_plan_follows_streets_sizes_and_skews_classes() -> None:
    train, test = plan_images(SyntheticStreet())
    cameras = np.bincount([plan.camera for plan in train], minlength=20)
    assert tuple(cameras) == STREET_IMAGES
    groups = np.bincount(np.array(GROUP_OF)[[plan.camera for plan in train]], minlength=6)[1:]
    assert list(groups) == [212, 344, 37, 122, 50]
    assert len(test) == 191
    assert 2.3 < np.mean([len(plan.labels) for plan in train]) < 3.0
    table = CLASSES.index("table")
    assert {GROUP_OF[plan.camera] for plan in (*train, *test) if table in plan.labels} == {2}
    mixes = np.zeros((20, len(CLASSES)))
    for plan in train:
        np.add.at(mixes[plan.camera], list(plan.labels), 1)
    mixes /= mixes.sum(axis=1, keepdims=True)
    assert 0.5 * np.abs(mixes - mixes.mean(axis=0)).sum(axis=1).mean() > 0.25  # mean total variation distance


@pytest.mark.parametrize("seed", range(20))
def test_smallest_plan_has_every_class_and_every_camera(seed: int) -> None:
    train, _ = plan_images(SyntheticStreet(train_images=40, test_images=5, seed=seed))
    assert {label for plan in train for label in plan.labels} == set(range(len(CLASSES)))
    assert {plan.camera for plan in train} == set(range(20))


def test_divide_gives_integers_that_add_up() -> None:
    assert divide(765, STREET_IMAGES, least=1) == list(STREET_IMAGES)
    assert divide(10, [8, 1, 1], least=1) == [8, 1, 1]
    assert divide(4, [98, 1, 1], least=1) == [2, 1, 1]
    assert divide(3, [1, 1, 1, 1], least=0) == [1, 1, 1, 0]
    assert divide(5, [0.5, 0.25, 0.25], least=0) == [3, 1, 1]


@pytest.mark.parametrize("name", CLASSES)
def test_cut_outs_fill_their_boxes(name: str) -> None:
    """The label's box must be tight."""
    image = drawing.cut_out(name, 90, 70, np.random.default_rng(3))
    left, top, right, bottom = image.getchannel("A").point(lambda value: 255 * (value > 100)).getbbox() or (0,) * 4
    assert left <= 3
    assert top <= 3
    assert right >= 87
    assert bottom >= 67


def test_backgrounds_are_fixed_by_camera_and_in_range() -> None:
    first, again = (drawing.background(96, 64, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (64, 96, 3)
    assert first.min() >= 0
    assert first.max() <= 255
    assert np.abs(first - drawing.background(96, 64, np.random.default_rng(2))).mean() > 10


def test_images_are_jpeg_in_colour(cache: Path) -> None:
    with Image.open(drawn_data(TINY, cache).train["1"][0].path) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")


def test_the_error_of_an_unknown_folder_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data set 'mine'.*FEDBENCH_STREET_DIR.*data_roots"):
        load_data(FederatedStreet(name="mine"), root_of=lambda name: None, cache=tmp_path)


def test_named_folder_is_read_and_its_digest_checked(cache: Path) -> None:
    root = next((cache / "synthetic-street").iterdir())
    named = load_data(FederatedStreet(name="mine"), root_of={"mine": root}.get, cache=cache)
    assert named.name == "mine"
    wrong = FederatedStreet(name="mine", digest="0" * 64)
    with pytest.raises(DataError, match=f"expected content digest {'0' * 64}, found {named.digest}"):
        load_data(wrong, root_of={"mine": root}.get, cache=cache)


def test_restrict_keeps_order_and_names_unknown_clients(cache: Path) -> None:
    data = drawn_data(TINY, cache)
    part = restrict(data, ["4", "2"])
    assert list(part.train) == list(part.test) == ["2", "4"]
    assert (part.digest, part.classes) == (data.digest, data.classes)
    with pytest.raises(DataError, match="no client 9; its clients are 1, 2, 3, 4, 5"):
        restrict(data, ["1", "9"])


def test_a_draft_is_stale_only_if_nobody_holds_it(tmp_path: Path) -> None:
    old = time.time() - 2 * 3600  # every draft looks old if the clock is set ahead
    drafts = [tmp_path / f".digest.{name}" for name in ("live", "dead")]
    for draft in drafts:
        draft.mkdir()
        os.utime(draft, (old, old))
    with synthetic._held(drafts[0]):
        synthetic._remove_stale(tmp_path, "digest")
        assert drafts[0].exists()
        assert not drafts[1].exists()
    synthetic._remove_stale(tmp_path, "digest")
    assert not drafts[0].exists()
