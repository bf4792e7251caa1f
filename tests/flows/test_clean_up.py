"""What of a federation may go: decided over literal listings. And what dead processes leave on a disk."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.coordinator.preflight import claim_name
from flows.round import commit
from flows.stored.leftovers import CleanUp, clean, describe
from flows.stored.removal import remove_federation, remove_leftovers
from flows.stored.runs import opened_store, read_history
from infra.errors import RunLocked
from infra.files.lock import run_lock
from infra.leftovers.machine import machine_leftovers, registering_leftovers, run_folder_leftovers
from infra.leftovers.store import (
    NEVER_COMMITTED,
    NO_RECORD,
    OLD_EVALUATION,
    OLD_GLOBAL,
    OLD_UPDATE,
    SERVER_TEMPORARY,
    SUPERSEDED,
    Leftover,
    Retention,
    federation_leftovers,
    removal_steps,
    upload_leftovers,
)
from infra.settings import S3Settings, Settings
from infra.store import lease
from infra.store.holding import federation_held
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectEntry, ObjectStore
from infra.store.uploads import IncompleteUpload
from tasks.errors import SpecError
from tests.flows.stored.test_runs import SPEC, handles_of, record_of

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTES, HOURS, DAYS = (timedelta(**{unit: 1}) for unit in ("minutes", "hours", "days"))
LAYOUT = FederationLayout("federations", "mine")
COMMITTED = ["spec.json", "best.json", "sheet.png"] + [
    f"rounds/{number:04d}/{file}" for number in range(5) for file in ("plan.json", "round.json", "global.safetensors")
]
UNFINISHED = [
    "rounds/0005/plan.json",
    "rounds/0005/updates/1.safetensors",
    "rounds/0005/updates/1.json",
    "rounds/0005/global.safetensors",
    "rounds/0005/evaluations/p.safetensors",
    "rounds/0005/evaluations/1/p.safetensors",
]


def listing(names: list[str], age: timedelta) -> list[ObjectEntry]:
    return [ObjectEntry(f"federations/mine/{name}", 10, NOW - age) for name in names]


def plan(entries: list[ObjectEntry], best: int = 1, retention: Retention | None = None) -> dict[str, str]:
    """Names below the federation's root that may go, and why."""
    found = federation_leftovers(LAYOUT, entries, {best}, retention or Retention(), NOW)
    assert all(leftover.federation == "mine" and leftover.bytes == 10 for leftover in found)
    return {leftover.key.removeprefix(LAYOUT.root): leftover.reason for leftover in found}


def test_the_best_and_the_last_two_globals_stay() -> None:
    old = {f"rounds/000{number}/global.safetensors": OLD_GLOBAL for number in (0, 2)}
    assert plan(listing(COMMITTED, 2 * MINUTES)) == old
    assert plan(listing(COMMITTED, 99 * DAYS)) == old
    assert plan(listing(COMMITTED, 2 * MINUTES), best=4) == old | {"rounds/0001/global.safetensors": OLD_GLOBAL}
    assert plan(listing(COMMITTED, 2 * MINUTES), retention=Retention(keep_globals=4)) == {
        "rounds/0000/global.safetensors": OLD_GLOBAL
    }
    assert len(plan(listing(COMMITTED, 2 * MINUTES), retention=Retention(keep_globals=0))) == 2  # never under two
    both = federation_leftovers(LAYOUT, listing(COMMITTED, DAYS), {0, 2}, Retention(), NOW)
    assert [leftover.key for leftover in both] == [LAYOUT.global_weights(1)]


def test_updates_of_a_committed_round_go_unless_they_are_kept() -> None:
    updates = ["rounds/0003/updates/1.safetensors", "rounds/0003/updates/1.json"]
    kept = [name for name in COMMITTED if "global" not in name]
    assert plan(listing(kept + updates, 2 * MINUTES)) == dict.fromkeys(updates, OLD_UPDATE)
    assert plan(listing(kept + updates, 99 * DAYS), retention=Retention(keep_updates=True)) == {}


def test_evaluations_of_a_committed_round_go_after_an_hour() -> None:
    kept, parts = (
        listing([name for name in COMMITTED if "global" not in name], DAYS),
        ["rounds/0004/evaluations/p.safetensors", "rounds/0004/evaluations/1/p.safetensors"],
    )
    assert plan(kept + listing(parts, 59 * MINUTES)) == {}
    assert plan(kept + listing(parts, 61 * MINUTES)) == dict.fromkeys(parts, OLD_EVALUATION)


def test_an_unfinished_round_goes_when_nothing_was_written_for_long() -> None:
    kept = listing([name for name in COMMITTED if "global" not in name], 99 * DAYS)
    unfinished = dict.fromkeys(UNFINISHED[1:], NEVER_COMMITTED)  # its plan stays
    assert plan(kept + listing(UNFINISHED, 8 * DAYS)) == unfinished
    assert plan(kept + listing(UNFINISHED, 6 * DAYS)) == {}
    assert plan(kept + listing(UNFINISHED, 6 * DAYS), retention=Retention(older_than=5 * DAYS)) == unfinished
    # One young object says that somebody is at work.
    young = listing(["rounds/0005/updates/2.json"], 2 * HOURS)
    assert plan(kept + listing(UNFINISHED, 8 * DAYS) + young) == {}
    # However short the limit, it is an hour.
    assert plan(kept + listing(UNFINISHED, 59 * MINUTES), retention=Retention(older_than=timedelta(0))) == {}
    assert plan(kept + listing(UNFINISHED, 61 * MINUTES), retention=Retention(older_than=timedelta(0))) == unfinished


def test_a_federation_without_a_committed_round_loses_only_its_orphans() -> None:
    names = ["spec.json", "rounds/0000/global.safetensors", "rounds/0000/evaluations/p.safetensors"]
    assert plan(listing(names, 8 * DAYS)) == dict.fromkeys(names[1:], NEVER_COMMITTED)
    assert plan(listing(names, DAYS)) == {}
    assert plan([]) == {}


def test_objects_that_no_record_names_go_when_nothing_was_written_for_long() -> None:
    strange = [
        "note.txt",
        "rounds/0003/x.safetensors",
        "rounds/00003/global.safetensors",
        "rounds/0003/updates/deep/1.json",
        "rounds/latest/global.safetensors",
    ]
    guarded = ["rounds/x/round.json", "copy/spec.json", "old/best.json"]
    kept = [name for name in COMMITTED if "global" not in name]
    assert plan(listing(kept + strange + guarded, 8 * DAYS)) == dict.fromkeys(strange, NO_RECORD)
    assert plan(listing(kept + strange + guarded, 6 * DAYS)) == {}


def test_weights_of_rounds_put_aside_go_one_after_the_other_and_their_records_stay() -> None:
    kept = listing([name for name in COMMITTED if "global" not in name], 2 * MINUTES)
    aside = ["superseded/0001/0005/global.safetensors", "superseded/0001/0005/updates/1.safetensors"]
    records = [
        "superseded/0001/superseded.json", "superseded/0001/0005/round.json", "superseded/0001/0005/plan.json",
        "superseded/0001/0005/updates/1.json",
    ]  # fmt: skip
    assert plan(kept + listing(aside + records, 6 * DAYS)) == {}
    assert plan(kept + listing(aside + records, 8 * DAYS)) == dict.fromkeys(aside, SUPERSEDED)
    assert plan(kept + listing(aside[:1], 8 * DAYS) + listing(aside[1:], 6 * DAYS)) == {aside[0]: SUPERSEDED}
    keys = [f"{LAYOUT.root}{name}" for name in COMMITTED + aside + records]
    assert {key for key in keys if "superseded" in key} <= set(removal_steps(LAYOUT, keys)[0])


def test_the_servers_temporary_files_go_after_an_hour() -> None:
    kept = listing([name for name in COMMITTED if "global" not in name], 2 * MINUTES)
    names = ["rounds/0005/updates/.rclone_temp_put_1", ".rclone_temp_put_2"]
    assert plan(kept + listing(names, 59 * MINUTES)) == {}
    assert plan(kept + listing(names, 61 * MINUTES)) == dict.fromkeys(names, SERVER_TEMPORARY)


def test_a_federation_whose_marker_is_missing_is_left_alone() -> None:
    damaged = [name for name in COMMITTED if name != "rounds/0002/round.json"]
    assert plan(listing(damaged + UNFINISHED, 99 * DAYS)) == {}


def test_other_federations_and_what_is_outside_the_prefix_are_not_looked_at() -> None:
    others = ["federations/mine-too/note.txt", "federations/store.json", "mlflow/1/x", "federations-old/mine/note.txt"]
    entries = [ObjectEntry(key, 10, NOW - 99 * DAYS) for key in others]
    assert federation_leftovers(LAYOUT, entries + listing(COMMITTED[:3], 99 * DAYS), set(), Retention(), NOW) == []
    assert federation_leftovers(LAYOUT, entries, set(), Retention(), NOW) == []


def test_uploads_go_after_an_hour() -> None:
    key = LAYOUT.global_weights(5)
    uploads = [
        IncompleteUpload(key, "old", 7, NOW - 61 * MINUTES),
        IncompleteUpload(key, "young", 7, NOW - 59 * MINUTES),
        IncompleteUpload("mlflow/1/x", "other", 7, NOW - 99 * DAYS),
    ]
    (found,) = upload_leftovers(LAYOUT, uploads, NOW)
    assert (found.key, found.upload_id, found.bytes, found.kind) == (key, "old", 7, "upload")


def test_a_federation_is_removed_so_that_what_is_left_is_one_still() -> None:
    keys = [f"{LAYOUT.root}{name}" for name in COMMITTED + UNFINISHED]
    steps = removal_steps(LAYOUT, [*keys, "federations/other/spec.json"])
    assert sorted(key for step in steps for key in step) == sorted(keys)
    assert [step[0] for step in steps[1:]] == [*(LAYOUT.marker(number) for number in (4, 3, 2, 1, 0)), LAYOUT.spec]
    assert all(len(step) == 1 for step in steps[1:])


def aged(path: Path, age: timedelta, content: bytes | None = b"12345") -> Path:
    """A file, or a folder (None), that was written so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir(mode=0o700)
        (path / "inner").write_bytes(b"123")
    else:
        path.write_bytes(content)
    written = (NOW - age).timestamp()
    for each in [*path.glob("*"), path]:
        os.utime(each, (written, written))
    return path


def test_what_dead_processes_left_on_this_machine(tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    gone = [
        aged(home / "cache" / "weights" / "00" / "a.tmp", 61 * MINUTES),
        aged(home / "cache" / "data" / "synthetic-street" / ".abc.x1", 61 * MINUTES, None),
        aged(home / "s3" / "fedbench" / "federations" / ".rclone_temp_put_1", 61 * MINUTES),
        aged(temporary / "fedbench-abcd_123", 8 * DAYS, None),
    ]
    aged(home / "cache" / "weights" / "00" / "b.tmp", 59 * MINUTES)
    aged(home / "cache" / "weights" / "00" / "c.safetensors", 99 * DAYS)
    aged(home / "cache" / "data" / "synthetic-street" / "abc", 99 * DAYS, None)
    aged(home / "s3" / "fedbench" / "federations" / ".rclone_temp_put_2", 59 * MINUTES)
    aged(temporary / "fedbench-abcd_124", 6 * DAYS, None)
    aged(temporary / "fedbench-of-mine", 99 * DAYS, None)
    aged(temporary / "fedbench-settings", 99 * DAYS)
    aged(temporary / "fedbench-abcd_125", 99 * DAYS, None).chmod(0o755)
    (temporary / "fedbench-abcd_126").symlink_to(home)
    found = machine_leftovers(home, temporary, embedded_store=True, older_than=7 * DAYS, now=NOW)
    assert sorted(leftover.key for leftover in found) == sorted(map(str, gone))
    assert {leftover.bytes for leftover in found} == {3, 5}
    other = machine_leftovers(home, temporary, embedded_store=False, older_than=timedelta(0), now=NOW)
    # A store elsewhere is not under this home; and a scratch folder is given a day, however short the limit.
    assert sorted(Path(leftover.key).name for leftover in other) == [
        ".abc.x1",
        "a.tmp",
        "fedbench-abcd_123",
        "fedbench-abcd_124",
    ]


def test_folders_of_runs(tmp_path: Path) -> None:
    folder = aged(tmp_path / "runs" / "mine", 8 * DAYS, None)
    (found,) = run_folder_leftovers(folder, "mine", 7 * DAYS, NOW)
    assert (found.key, found.bytes, found.federation) == (str(folder), 3, "mine")
    assert run_folder_leftovers(folder, "mine", 9 * DAYS, NOW) == []
    assert registering_leftovers(folder, "mine", NOW) == []
    half = aged(folder / "registering", 61 * MINUTES, None)
    (found,) = registering_leftovers(folder, "mine", NOW)
    assert found.key == str(half)
    assert run_folder_leftovers(folder, "mine", 7 * DAYS, NOW) == []  # something in it is young


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a file that nobody can remove")
def test_what_cannot_be_removed_is_said_and_the_others_go(object_store: ObjectStore, tmp_path: Path) -> None:
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


def test_a_store_that_is_gone_keeps_nothing_else_from_going(tmp_path: Path) -> None:
    gone = ObjectStore(S3Settings(endpoint="http://127.0.0.1:9"), outage_seconds=0.0)
    path = aged(tmp_path / "x", DAYS)
    failed = remove_leftovers(gone, [Leftover("a", 1, "r"), Leftover(str(path), 1, "r", kind="path")])
    assert list(failed) == ["a"]
    assert "127.0.0.1:9" in failed["a"]
    assert not path.exists()


def test_a_store_that_has_had_no_upload_in_parts_has_no_incomplete_one(tmp_path: Path) -> None:
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


@pytest.fixture
def settings(s3_settings: S3Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """A place whose store has a prefix of the test's own."""
    return Settings(home=tmp_path, s3=s3_settings.model_copy(update={"prefix": f"clean-up/{request.node.name}"}))


def stored(objects: ObjectStore, settings: Settings, name: str, rounds: int = 4) -> FederationLayout:
    """A federation of which everything was kept; round 1 is the best."""
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


def test_damaged_federations_are_left_alone_and_said(object_store: ObjectStore, settings: Settings) -> None:
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


def test_best_json_of_before_a_kill_counts_too(object_store: ObjectStore, settings: Settings) -> None:
    layout = stored(object_store, settings, "killed", rounds=5)
    object_store.put_json(layout.best, {"version": 1, "round": 0})
    clean(settings, apply=True, names=["killed"])
    keys = object_store.list(layout.root)
    assert [number for number in range(5) if layout.global_weights(number) in keys] == [0, 1, 3, 4]


def test_a_store_of_a_newer_version_is_not_cleaned(object_store: ObjectStore, settings: Settings) -> None:
    layout = stored(object_store, settings, "mine")
    object_store.put_json(layout.store, {"version": 2})
    with pytest.raises(SpecError, match="version: 2 is newer"):
        clean(settings, apply=True, temporary=settings.home)


def test_names_must_be_there(object_store: ObjectStore, settings: Settings) -> None:
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
    """Another home with the same store, which looks and renews often."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.05)
    return settings.model_copy(update={"home": tmp_path / "another-home"})


def test_what_another_home_runs_is_neither_removed_nor_cleaned(
    object_store: ObjectStore, settings: Settings, elsewhere: Settings
) -> None:
    layout, other = (stored(object_store, settings, name) for name in ("mine", "other"))
    before = object_store.list(layout.root)
    holder = rf"mine: held by fedbench run on .* \(process {os.getpid()}, home {elsewhere.home}\)"
    with federation_held(object_store, elsewhere, "mine", "fedbench run") as held:
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


def test_whoever_removes_is_not_interfered_with(
    object_store: ObjectStore, settings: Settings, elsewhere: Settings
) -> None:
    stored(object_store, settings, "mine")
    with (
        federation_held(object_store, settings, "mine", "fedbench remove"),
        pytest.raises(RunLocked, match="held by fedbench remove on"),
        federation_held(object_store, elsewhere, "mine", "fedbench run"),
    ):
        pytest.fail("two at once")


def test_the_note_of_whoever_cleans_up_makes_nothing_young() -> None:
    old = listing(COMMITTED + UNFINISHED, 8 * DAYS)
    note = ObjectEntry(f"{LAYOUT.lease}00000002-ab.json", 10, NOW)
    assert plan([*old, note]) == plan(old)
    assert NEVER_COMMITTED in plan(old).values()
    assert removal_steps(LAYOUT, [entry.key for entry in [*old, note]]) == removal_steps(
        LAYOUT, [entry.key for entry in old]
    )
