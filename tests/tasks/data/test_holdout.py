"""Held-out images: a seeded draw for each client by itself that keeps near-duplicates together, also in references."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tasks.data.holdout
from tasks.data.catalog import load_data
from tasks.data.check import check_data
from tasks.data.entries import Faults
from tasks.data.export.coco import write_coco
from tasks.data.holdout import drawn, hold_out, similar_groups
from tasks.data.samples import FederatedData, ImageSample
from tasks.data.similar import groups_of
from tasks.errors import DataError
from tasks.spec.data import Coco, Holdout, SyntheticStreet
from tasks.spec.federation import FederationSpec
from tasks.spec.references import is_twin, local_only, twin

STREET = SyntheticStreet(train_images=60, test_images=5, width=64, height=64)
HALF = Holdout(fraction=0.5, least=2)


def sample(content: str, path: Path = Path("x")) -> ImageSample:
    return ImageSample(path, 8, 8, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), content, content)


def hash_of(place: int, bits: int = 0) -> str:
    """Return a hash that is far from that of any other place, and ``bits`` bits away from ``place``'s own."""
    words = np.random.default_rng(place).integers(0, 2**64, 4, dtype=np.uint64)
    words[0] ^= np.uint64((1 << bits) - 1)
    return words.tobytes().hex()


def contents(samples: Iterable[ImageSample]) -> list[str]:
    return [one.content for one in samples]


def load(cache: Path, spec: Any = STREET, **fields: Any) -> FederatedData:
    return load_data(spec.model_copy(update=fields), root_of=lambda name: cache / name, cache=cache)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


# --- the draw ----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=60), st.floats(0.01, 0.5), st.integers(0, 2**32 - 1),
    st.text("abc", min_size=1, max_size=4),
)  # fmt: skip
def test_groups_stay_whole_an_image_is_left_and_the_number_is_close(
    places: list[int], fraction: float, seed: int, client: str
) -> None:
    samples = [sample(str(number)) for number in range(len(places))]
    hashes = {str(number): hash_of(place) for number, place in enumerate(places)}
    spec = Holdout(fraction=fraction, seed=seed)
    held = drawn(client, samples, spec, hashes)
    assert held == drawn(client, samples, spec, hashes)
    assert len(held) < len(samples)
    assert all((index in held) == (places.index(place) in held) for index, place in enumerate(places))
    wanted = int(fraction * len(samples) + 0.5)
    assert len(held) < max(2 * wanted, 1)
    if len(set(places)) == len(places):  # nothing is alike
        assert len(held) == min(wanted, len(samples) - 1)


def test_the_draw_depends_on_seed_and_client_alone() -> None:
    samples = [sample(str(number)) for number in range(40)]
    hashes = {str(number): hash_of(number) for number in range(40)}
    draws = [drawn(c, samples, Holdout(seed=seed), hashes) for c in ("1", "2") for seed in (1, 2)]
    assert {len(held) for held in draws} == {8}
    assert len({frozenset(held) for held in draws}) == 4
    assert drawn("1", samples, Holdout(seed=1, least=3), hashes) == draws[0]


def test_images_in_a_chain_and_of_the_same_bytes_are_one_group_and_plain_ones_are_like_no_other() -> None:
    chain = {"a": hash_of(1), "b": hash_of(1, 16), "c": hash_of(1, 32), "d": hash_of(1, 49), "e": hash_of(2)}
    samples = [sample(content) for content in "eabacdpqpx"]
    groups = similar_groups(samples, chain | {"p": None, "q": None})
    assert groups == [0, 1, 1, 1, 1, 5, 6, 7, 6, 9]  # d is 17 bits from c


def test_groups_are_those_of_pairs_in_any_order() -> None:
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 2**64, (700, 4), dtype=np.uint64)
    hashes[600:] = hashes[:100] ^ np.uint64(1 << 40)
    groups = groups_of(hashes)
    assert groups.tolist() == [*range(600), *range(100)]


# --- data --------------------------------------------------------------------------------------------------


def test_held_out_images_leave_training_and_keep_their_order(cache: Path) -> None:
    whole, held = load(cache), load(cache, holdout=HALF)
    assert (held.digest, held.test.keys()) == (whole.digest, whole.test.keys())
    assert whole.holdout == {}
    for client, samples in whole.train.items():
        parts = [contents(held.train[client]), contents(held.holdout[client])]
        assert sorted([*parts[0], *parts[1]]) == sorted(contents(samples))
        assert all(part == [one for one in contents(samples) if one in part] for part in parts)
        assert held.train[client]
    assert sum(map(len, held.holdout.values())) > 20
    assert held.scored("1", "holdout") == held.holdout["1"]
    assert held.scored("1", "test") == held.test["1"]
    assert whole.scored("1", "holdout") == ()


def test_a_client_draws_the_same_wherever_the_others_are(cache: Path) -> None:
    held = load(cache, holdout=HALF)
    alone = load(cache, holdout=HALF, local_only="2")
    assert contents(alone.train["2"]) == contents(held.train["2"])
    assert contents(alone.holdout["2"]) == contents(held.holdout["2"])
    pooled = load(cache, holdout=HALF, pooled=True, pooled_devices=("1", "4"))
    assert contents(pooled.train["all"]) == contents(held.train["1"]) + contents(held.train["4"])
    assert contents(pooled.holdout["all"]) == contents(held.holdout["1"]) + contents(held.holdout["4"])


@pytest.mark.parametrize("split", [5, 20])
def test_references_hold_out_the_federations_images(cache: Path, split: int) -> None:
    spec = FederationSpec(data=STREET.model_copy(update={"split": split, "holdout": HALF}))
    federation, centralised = load(cache, spec.data), load(cache, twin(spec).data)
    held = sorted(content for samples in federation.holdout.values() for content in contents(samples))
    assert sorted(contents(centralised.holdout["all"])) == held
    assert is_twin(spec, twin(spec))
    alone = load(cache, local_only(spec, "3").data)
    assert contents(alone.holdout["3"]) == contents(federation.holdout["3"])


def test_hashes_are_computed_once_and_a_damaged_cache_is_made_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load(cache)
    read: list[Path] = []
    plain = tasks.data.holdout.thumbnail

    def counted(path: Path) -> Any:
        read.append(path)
        return plain(path)

    monkeypatch.setattr(tasks.data.holdout, "thumbnail", counted)
    first = hold_out(data, HALF, cache=tmp_path, faults=Faults())
    count = len(read)
    assert count == 60
    again = hold_out(data, HALF, cache=tmp_path, faults=Faults())
    assert len(read) == count
    (file,) = tmp_path.iterdir()
    for damage in (b"{", b"[]", b'{"a": 3}', b'{"a": "zz"}'):
        file.write_bytes(damage)
        last = hold_out(data, HALF, cache=tmp_path, faults=Faults())
        assert len(read) == (count := count + 60)
        assert {c: contents(s) for c, s in last.holdout.items()} == {c: contents(s) for c, s in first.holdout.items()}
    assert {c: contents(s) for c, s in again.holdout.items()} == {c: contents(s) for c, s in first.holdout.items()}
    hold_out(data, HALF, cache=Path("/proc/none"), faults=Faults())  # nothing can be kept there


def test_an_image_that_cannot_be_decoded_is_an_error_that_a_check_collects(tmp_path: Path) -> None:
    Image.effect_noise((8, 8), 50).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    samples = tuple(sample(name, tmp_path / f"{name}.png") for name in ("good", "bad"))
    data = FederatedData(name="x", digest="d", classes=("a",), train={"1": samples}, test={"1": ()})
    with pytest.raises(DataError, match=r"bad\.png: expected an image"):
        hold_out(data, HALF, cache=tmp_path / "cache", faults=Faults())
    faults = Faults(collect=True)
    assert len(hold_out(data, HALF, cache=tmp_path / "cache", faults=faults).holdout["1"]) == 1
    assert len(faults.errors) == 1


def test_a_written_set_holds_out_the_same_images(cache: Path, tmp_path: Path) -> None:
    held = load(cache, holdout=HALF)
    write_coco(load(cache), tmp_path / "mine")
    coco = load_data(Coco(name="mine", holdout=HALF), root_of=lambda name: tmp_path / name, cache=cache)
    assert {c: contents(s) for c, s in coco.holdout.items()} == {c: contents(s) for c, s in held.holdout.items()}


def test_a_check_counts_held_out_images(cache: Path) -> None:
    report = check_data(STREET.model_copy(update={"holdout": HALF}), root_of=lambda name: None, cache=cache)
    held = load(cache, holdout=HALF)
    assert [(one.train_images, one.holdout_images) for one in report.devices] == [
        (len(samples), len(held.holdout[client])) for client, samples in held.train.items()
    ]
    assert not report.errors
