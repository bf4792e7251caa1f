"""Leftovers of a real store and of this machine: listed, counted and removed."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.commit import commit
from flows.coordinator.preflight import claim_name
from flows.stored.leftovers import CleanUp, clean, describe
from flows.stored.removal import remove_federation, remove_leftovers
from flows.stored.runs import opened_store, read_history
from infra.errors import RunLocked
from infra.files.lock import run_lock
from infra.leftovers.store import OLD_STATE, Leftover
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store import lease
from infra.store.holding import Subject, subject_held
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.errors import SpecError
from tasks.spec.plans import WeightRef
from tests.flows.stored.test_runs import SPEC, handles_of, record_of
from tests.infra.leftovers.ages import DAYS, NOW, aged


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a file that nobody can remove")
def test_leftovers_that_cannot_be_removed_are_reported_and_the_others_go(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    keys = ["clean-up/failing/1", "clean-up/failing/2"]
    for key in keys:
        object_store.put_bytes(key, b"x")
    folder = aged(tmp_path / "scratch", DAYS, None)
    paths = [Leftover(path, 1, "r", kind="path") for path in ("/proc/self/status", str(folder), str(tmp_path / "gone"))]
    objects = [Leftover(key, 1, "r") for key in [*keys, "clean-up/failing/gone"]]
    upload = Leftover(keys[0], 1, "r", kind="upload", upload_id="no-such-upload")
    failed = remove_leftovers(object_store, [*paths, upload, *objects])
    assert list(failed) == ["/proc/self/status"]
    assert "not permitted" in failed["/proc/self/status"]
    assert not folder.exists()
    assert object_store.list("clean-up/failing/") == {}


def test_leftovers_of_this_machine_go_even_if_the_store_is_gone(tmp_path: Path) -> None:
    gone = ObjectStore(S3Settings(endpoint="http://127.0.0.1:9"), outage_seconds=0.0)
    path = aged(tmp_path / "x", DAYS)
    failed = remove_leftovers(gone, [Leftover("a", 1, "r"), Leftover(str(path), 1, "r", kind="path")])
    assert list(failed) == ["a"]
    assert "127.0.0.1:9" in failed["a"]
    assert not path.exists()


def test_a_store_without_uploads_in_parts_has_no_incomplete_one(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with opened_store(settings) as objects:
        assert objects.incomplete_uploads("federations/") == []
        objects.put_json("federations/alone/spec.json", {})
    # Each command without a running stack starts a server of its own.
    assert remove_federation(settings, "alone")[0] == 1
    with opened_store(settings) as objects:
        assert objects.list("federations/") == {}


def test_incomplete_uploads_are_listed_and_ended(object_store: ObjectStore) -> None:
    s3 = object_store._s3()
    key = "clean-up/uploads/global.safetensors"
    upload = s3.create_multipart_upload(Bucket=object_store.bucket, Key=key)["UploadId"]
    s3.upload_part(Bucket=object_store.bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"123456")
    (found,) = object_store.incomplete_uploads("clean-up/uploads/")
    assert (found.key, found.upload_id, found.bytes) == (key, upload, 6)
    assert abs((datetime.now(UTC) - found.started).total_seconds()) < 3600
    assert remove_leftovers(object_store, [Leftover(key, 6, "r", kind="upload", upload_id=upload)]) == {}
    assert object_store.incomplete_uploads("clean-up/uploads/") == []


def test_a_table_has_a_row_for_each_federation_and_reason() -> None:
    leftovers = [
        Leftover("/tmp/x", 5, "scratch", kind="path"),
        Leftover("b/2", 2_000_000, "old", "b"),
        Leftover("a/1", 1, "older", "a"),
        Leftover("b/1", 1_000_000, "old", "b"),
    ]
    rows = CleanUp(True, leftovers, failed={"b/2": "no"}).rows()
    assert [tuple(row.values()) for row in rows] == [
        ("a", "older", 1, 1, 0), ("b", "old", 2, 3_000_000, 1), ("(this machine)", "scratch", 1, 5, 0),
    ]  # fmt: skip
    assert describe(leftovers) == "4 objects, 3.0 MB"
    assert describe(leftovers[:1]) == "1 object, 0.0 MB"


def stored(objects: ObjectStore, settings: Settings, name: str, rounds: int = 4) -> FederationLayout:
    """Store a federation whose objects are all kept, with round 1 as the best. Return its layout."""
    handles = handles_of(objects, settings.model_copy(update={"keep_updates": True, "keep_globals": 99}), name)
    claim_name(objects, handles.layout, SPEC)
    for number in range(rounds):
        commit(handles, record_of(handles, number, best_round=min(number, 1)))
    return handles.layout


def test_a_store_is_cleaned_federation_by_federation(object_store: ObjectStore, settings: Settings) -> None:
    kept, other, busy = (stored(object_store, settings, name) for name in ("kept", "other", "busy"))
    before = object_store.list(settings.s3.prefix)
    looked = clean(settings, apply=False, temporary=settings.home)
    assert object_store.list(settings.s3.prefix) == before
    assert {leftover.federation for leftover in looked.leftovers} == {"kept", "other", "busy"}
    with run_lock(settings.home, "busy"):
        result = clean(settings, apply=True, names=["kept", "busy"])
    assert result.notes == ["busy: running, left alone"]
    assert result.failed == {}
    went = before.keys() - object_store.list(settings.s3.prefix).keys()
    expected = {kept.global_weights(0)}
    expected |= {key for n in range(4) for key in (kept.update_weights(n, "1"), kept.update_record(n, "1"))}
    assert went == expected
    for layout in (other, busy):
        assert object_store.list(layout.root) == {key: before[key] for key in before if key.startswith(layout.root)}
    assert [record.round for record in read_history(object_store, kept)] == [0, 1, 2, 3]


def test_damaged_federations_are_left_alone_and_reported(object_store: ObjectStore, settings: Settings) -> None:
    gap, torn, newer = (stored(object_store, settings, name) for name in ("gap", "torn", "newer"))
    object_store.delete([gap.marker(1)])
    object_store.put_bytes(torn.marker(3), b"{")
    object_store.put_json(newer.best, {"version": 1})
    before = object_store.list(settings.s3.prefix)
    result = clean(settings, apply=True, names=["gap", "newer", "torn"])
    assert (result.leftovers, object_store.list(settings.s3.prefix)) == ([], before)
    assert [note.split(":")[0] for note in result.notes] == ["gap", "newer", "torn"]
    assert f"{gap.marker(1)} is missing" in result.notes[0]
    assert f"{newer.best}: expected the number of a round" in result.notes[1]
    assert torn.marker(3) in result.notes[2]


def test_an_outdated_best_json_of_a_killed_run_counts_too(object_store: ObjectStore, settings: Settings) -> None:
    layout = stored(object_store, settings, "killed", rounds=5)
    object_store.put_json(layout.best, {"version": 1, "round": 0})
    clean(settings, apply=True, names=["killed"])
    keys = object_store.list(layout.root)
    assert [number for number in range(5) if layout.global_weights(number) in keys] == [0, 1, 3, 4]


def test_states_that_a_kept_round_names_stay(object_store: ObjectStore, settings: Settings) -> None:
    """Client 1 counted in every round, client 2 in rounds 0 and 1 only. The kept rounds are 1, 2 and 3."""
    handles = handles_of(object_store, settings.model_copy(update={"keep_updates": True, "keep_globals": 99}), "mine")
    layout, states = handles.layout, {}
    claim_name(object_store, layout, SPEC)
    for number in range(4):
        for client in ("1", "2") if number < 2 else ("1",):
            stored = handles.weights.put(layout.client_state(number, client), f"{client} {number}".encode())
            states[client] = WeightRef.of(stored)
        server = WeightRef.of(handles.weights.put(layout.server_state(number), f"server {number}".encode()))
        record = record_of(handles, number, best_round=min(number, 1))
        commit(handles, record.model_copy(update={"server": server, "states": dict(states)}))
    object_store.put_bytes(layout.client_state(3, "2"), b"of an update that did not count")
    before = object_store.list(layout.root)
    result = clean(settings, apply=True, names=["mine"])
    assert (result.notes, result.failed) == ([], {})
    went = before.keys() - object_store.list(layout.root).keys()
    old = {
        layout.client_state(0, "1"),
        layout.client_state(0, "2"),
        layout.server_state(0),
        layout.client_state(3, "2"),
    }
    assert {key for key in went if layout.is_state(key)} == old
    assert {row["objects"] for row in result.rows() if row["reason"] == OLD_STATE} == {len(old)}
    assert layout.client_state(1, "2") in object_store.list(layout.root)
    # Without the record of a kept round nobody knows which states it names.
    object_store.put_bytes(layout.marker(1), b"{")
    result = clean(settings, apply=True, names=["mine"])
    assert result.leftovers == []
    assert result.notes[0].startswith(f"mine: left alone: {layout.marker(1)}: damaged")


def test_a_store_of_a_newer_version_is_not_cleaned(object_store: ObjectStore, settings: Settings) -> None:
    layout = stored(object_store, settings, "mine")
    object_store.put_json(layout.store, {"version": 2})
    with pytest.raises(SpecError, match="version: 2 is newer"):
        clean(settings, apply=True, temporary=settings.home)


def test_names_must_be_in_the_store(object_store: ObjectStore, settings: Settings) -> None:
    stored(object_store, settings, "mine", rounds=1)
    with pytest.raises(SpecError, match="yours: no such federation in the store; expected one of: mine"):
        clean(settings, apply=True, names=["mine", "yours"])
    with pytest.raises(SpecError, match="expected letters"):
        clean(settings, apply=True, names=["../mine"])
    with pytest.raises(SpecError, match="yours: no such federation"):
        remove_federation(settings, "yours")


def test_folders_of_forgotten_runs_go_only_when_asked(object_store: ObjectStore, settings: Settings) -> None:
    stored(object_store, settings, "mine", rounds=1)
    now = datetime.now(UTC)
    for name in ("mine", "forgotten", "young", "busy"):
        aged(settings.home / "runs" / name, NOW - now + (DAYS if name == "young" else 8 * DAYS), None)
    with run_lock(settings.home, "busy"):
        clean(settings, apply=True, temporary=settings.home)
        clean(settings, apply=True, names=["mine"], run_folders=True)
        assert (settings.home / "runs" / "forgotten").exists()
        result = clean(settings, apply=True, run_folders=True, temporary=settings.home)
    assert [leftover.key for leftover in result.leftovers] == [str(settings.home / "runs" / "forgotten")]
    assert result.notes == ["busy: running, left alone"]
    assert sorted(path.name for path in (settings.home / "runs").iterdir()) == ["busy", "mine", "young"]


@pytest.fixture
def elsewhere(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings of another home with the same store. Its leases are checked and renewed often."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.05)
    return settings.model_copy(update={"home": tmp_path / "another-home"})


def test_federations_running_from_another_home_are_neither_removed_nor_cleaned(
    object_store: ObjectStore, settings: Settings, elsewhere: Settings
) -> None:
    layout, other = (stored(object_store, settings, name) for name in ("mine", "other"))
    before = object_store.list(layout.root)
    holder = rf"mine: held by fedbench run on .* \(process {os.getpid()}, home {elsewhere.home}\)"
    with subject_held(object_store, elsewhere, Subject.federation(elsewhere, "mine"), "fedbench run") as held:
        with pytest.raises(RunLocked, match=holder):
            remove_federation(settings, "mine")
        for apply in (False, True):
            result = clean(settings, apply=apply, names=["mine", "other"])
            (note,) = result.notes
            assert re.match(holder, note)
            assert note.endswith("left alone")
            assert {leftover.federation for leftover in result.leftovers} == {"other"}
        held.confirm()
        now = object_store.list(layout.root)
        assert {key: size for key, size in now.items() if not key.startswith(layout.lease)} == before
    objects, _ = remove_federation(settings, "mine")
    assert objects == len(before)
    assert object_store.list(layout.root) == {}
    assert object_store.exists(other.spec)


def test_no_run_can_start_during_a_removal(object_store: ObjectStore, settings: Settings, elsewhere: Settings) -> None:
    stored(object_store, settings, "mine")
    with (
        subject_held(object_store, settings, Subject.federation(settings, "mine"), "fedbench remove"),
        pytest.raises(RunLocked, match="held by fedbench remove on"),
        subject_held(object_store, elsewhere, Subject.federation(elsewhere, "mine"), "fedbench run"),
    ):
        pytest.fail("two processes hold the federation together")
