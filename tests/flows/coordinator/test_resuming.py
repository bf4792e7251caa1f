"""Before it goes on, ``fedbench resume`` puts rounds aside and discards stored updates. The store is real."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.commit import clear_up, commit
from flows.coordinator.preflight import claim_name
from flows.coordinator.resuming import discard_updates, go_back, prepare
from flows.stored.leftovers import best_rounds
from flows.stored.runs import DamagedRun, StoredRun, read_history, read_runs
from infra.errors import RunLocked, StoreUnavailable
from infra.files.lock import run_lock
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store import lease
from infra.store.holding import Subject, subject_held
from infra.store.objects import ObjectStore
from tasks.errors import SpecError
from tasks.handles import Handles
from tasks.spec.plans import RoundPlan, WeightRef
from tests.flows.stored.test_runs import SPEC, handles_of, record_of

# map50_voc10 and the best round so far, for rounds 0 to 4. The weights of rounds 2, 3 and 4 are kept.
BEST = (0, 0, 2, 2, 2)


@pytest.fixture
def handles(object_store: ObjectStore, settings: Settings) -> Handles:
    """Return handles of a federation with five committed rounds and an interrupted round 5."""
    handles = handles_of(object_store, settings, "mine")
    claim_name(object_store, handles.layout, SPEC)
    for number, best in enumerate(BEST):
        record = record_of(handles, number, best_round=best, best_map50_voc10=0.1)
        handles.objects.put_json(handles.layout.plan(number), {"of": number})
        commit(handles, record)
        clear_up(handles, record)
    handles.objects.put_json(handles.layout.plan(5), open_plan(handles).model_dump(mode="json"))
    for client in ("1", "2", "3"):
        handles.objects.put_bytes(handles.layout.update_weights(5, client), b"u")
        handles.objects.put_json(handles.layout.update_record(5, client), {})
    return handles


def open_plan(handles: Handles, **fields: Any) -> RoundPlan:
    document = {
        "federation": "mine", "round": 5, "spec_digest": SPEC.digest,
        "model": WeightRef(key=handles.layout.global_weights(4), sha256="a" * 64, bytes=1), "draws": (),
        "cohort": ("1", "2", "3", "4"), "shards": (("1", "2", "3"), ("4",)), "seeds": {}, "learning_rate": 0.1,
        "created": datetime(2026, 1, 1, tzinfo=UTC), **fields,
    }  # fmt: skip
    return RoundPlan.model_validate(document)


def names(handles: Handles, folder: str = "") -> set[str]:
    """Return the keys below ``folder``, which is below the federation's root."""
    root = handles.layout.root + folder
    return {key.removeprefix(root) for key in handles.objects.list(root)}


# --- resume --from -----------------------------------------------------------------------------------------------


def test_later_rounds_are_put_aside_whole(handles: Handles) -> None:
    before = {key: handles.objects.get_bytes(key) for key in handles.objects.list(handles.layout.rounds)}
    (line,) = go_back(handles.objects, handles.layout, 2)
    assert line == f"mine: goes on from round 2; rounds put aside in {handles.layout.superseded}0001/: 3, 4, 5"
    assert [record.round for record in read_history(handles.objects, handles.layout)] == [0, 1, 2]
    assert not [name for name in names(handles, "rounds/") if name[:4] in ("0003", "0004", "0005")]
    assert names(handles, "superseded/0001/") == {
        "superseded.json", "0003/round.json", "0003/plan.json", "0003/global.safetensors", "0004/round.json",
        "0004/plan.json", "0004/global.safetensors", "0005/plan.json",
        *(f"0005/updates/{client}.{kind}" for client in "123" for kind in ("json", "safetensors")),
    }  # fmt: skip
    for key in list(before):
        there = handles.layout.put_aside(key, 1) if key[len(handles.layout.rounds) :] >= "0003" else key
        assert handles.objects.get_bytes(there) == before[key]
    record = handles.objects.get_json(handles.layout.superseded_record(1))
    assert (record["version"], record["from"], record["rounds"]) == (1, 2, [3, 4, 5])
    assert handles.objects.get_json(handles.layout.best)["round"] == 2
    # Round 3 is done again, and the federation goes back once more.
    commit(handles, record_of(handles, 3, best_round=2))
    go_back(handles.objects, handles.layout, 2)
    assert "0003/round.json" in names(handles, "superseded/0002/")
    assert "0003/round.json" in names(handles, "superseded/0001/")
    assert go_back(handles.objects, handles.layout, 2) == ["mine: nothing follows round 2"]


@pytest.mark.parametrize("number", [0, 1, 5, 9])
def test_only_rounds_whose_weights_are_kept_can_be_resumed_from(handles: Handles, number: int) -> None:
    before = names(handles)
    says = rf"--from: expected a round whose global weights are kept \(2, 3, 4\), found {number}"
    with pytest.raises(SpecError, match=says):
        go_back(handles.objects, handles.layout, number)
    assert names(handles) == before


def test_from_the_last_round_only_the_open_round_is_put_aside(handles: Handles) -> None:
    (line,) = go_back(handles.objects, handles.layout, 4)
    assert line.endswith("superseded/0001/: 5")
    assert [record.round for record in read_history(handles.objects, handles.layout)] == [0, 1, 2, 3, 4]


def test_a_best_round_without_weights_is_reported(object_store: ObjectStore, settings: Settings) -> None:
    handles = handles_of(object_store, settings, "mine")
    claim_name(object_store, handles.layout, SPEC)
    for number, best in enumerate((0, 1, 1, 1, 4)):
        commit(handles, record := record_of(handles, number, best_round=best))
        clear_up(handles, record)
    lines = go_back(handles.objects, handles.layout, 3)
    assert len(lines) == 2
    assert lines[1].startswith("mine: round 1 is the best up to there, but its weights are no longer kept")
    assert handles.objects.get_json(handles.layout.best)["round"] == 1


# The requests: best.json, superseded.json, then for rounds 5, 4 and 3 a copy of each object, the removal of the
# marker, and the removal of the rest.
@pytest.mark.parametrize("deaths", [1, 2, 3, 9, 10, 11, 14, 15, 16, 20, 21])
def test_after_an_interruption_the_federation_is_whole_and_the_same_call_finishes(
    handles: Handles, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    """In each case the store fails at another request."""
    left = deaths
    before = {key: handles.objects.get_bytes(key) for key in handles.objects.list(handles.layout.rounds)}

    def dying(method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise StoreUnavailable("gone")
            return method(*arguments)

        return call

    for name in ("put_json", "copy", "delete"):
        monkeypatch.setattr(handles.objects, name, dying(getattr(handles.objects, name)))
    try:
        go_back(handles.objects, handles.layout, 2)
    except StoreUnavailable:
        pass
    else:
        pytest.fail(f"{deaths - left} requests only")
    done = [record.round for record in read_history(handles.objects, handles.layout)]
    assert done in ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4])
    assert best_rounds(handles.objects, handles.layout, list(handles.objects.list(handles.layout.root))) == {2}
    go_back(handles.objects, handles.layout, 2)
    assert [record.round for record in read_history(handles.objects, handles.layout)] == [0, 1, 2]
    after = {key: handles.objects.get_bytes(key) for key in handles.objects.list(handles.layout.root)}
    aside = handles.layout.superseded_folders(after)
    for key, content in before.items():
        where = [key, *(handles.layout.put_aside(key, folder) for folder in aside)]
        assert content in [after.get(name) for name in where], key


def test_a_damaged_record_is_put_aside_by_the_command_in_its_error(handles: Handles, settings: Settings) -> None:
    marker = handles.layout.marker(4)
    handles.objects.put_json(marker, {**handles.objects.get_json(marker), "bytes_up": 10**400})
    with pytest.raises(SpecError) as caught:
        read_history(handles.objects, handles.layout)
    assert f"{marker}: bytes_up: expected at most" in str(caught.value)
    assert "go on from an earlier one: fedbench resume mine --from ROUND" in str(caught.value)
    assert [(run.name, type(run)) for run in read_runs(handles.objects, settings)] == [("mine", DamagedRun)]
    go_back(handles.objects, handles.layout, 3)
    assert [record.round for record in read_history(handles.objects, handles.layout)] == [0, 1, 2, 3]
    (run,) = read_runs(handles.objects, settings)
    assert isinstance(run, StoredRun)
    assert (run.name, run.status) == ("mine", "stopped")


# --- resume --retrain ----------------------------------------------------------------------------------------------


def test_a_stored_update_is_discarded_and_no_other(handles: Handles) -> None:
    lines = discard_updates(handles.objects, handles.layout, ["2", "4"])
    assert lines == ["client 2: its update of round 5 is discarded", "client 4: no update of round 5 is stored"]
    assert names(handles, "rounds/0005/updates/") == {"1.json", "1.safetensors", "3.json", "3.safetensors"}


def test_discarding_and_putting_aside_survive_a_power_failure(
    handles: Handles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies are synced before the round's marker is removed. A folder is synced after an update is removed."""
    steps: list[str] = []
    fsync, delete, root = os.fsync, handles.objects.delete, handles.layout.root

    def synced(descriptor: int) -> None:
        steps.append("sync " + os.readlink(f"/proc/self/fd/{descriptor}").partition(root)[2])
        fsync(descriptor)

    def deleted(keys: Any) -> None:
        names = [key.removeprefix(root) for key in keys]
        steps.extend(f"delete {name}" for name in names)
        delete(keys)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(handles.objects, "delete", deleted)
    discard_updates(handles.objects, handles.layout, ["2"])
    updates = "rounds/0005/updates"
    assert steps == [
        f"delete {updates}/2.json", f"sync {updates}", f"delete {updates}/2.safetensors", f"sync {updates}",
    ]  # fmt: skip
    del steps[:]
    go_back(handles.objects, handles.layout, 3)
    gone = steps.index("delete rounds/0004/round.json")
    for name in ("superseded.json", "0004/round.json", "0004/global.safetensors", "0004"):
        assert f"sync superseded/0001/{name}" in steps[:gone]


def test_a_partial_sum_is_discarded_with_the_records_of_all_its_clients(handles: Handles) -> None:
    layout = handles.layout
    handles.objects.put_json(layout.plan(5), open_plan(handles, partial_sums=True).model_dump(mode="json"))
    handles.objects.delete(list(handles.objects.list(layout.updates(5))))
    for client, shard in (("1", ["1", "3"]), ("2", ["2"]), ("3", ["1", "3"])):
        handles.objects.put_json(layout.update_record(5, client), {"shard": shard})
        handles.objects.put_bytes(layout.partial_sum(5, shard[0]), b"s")
    (line,) = discard_updates(handles.objects, layout, ["3"])
    assert line == "client 3: its update of round 5 is discarded, with those of 1 in the same partial sum"
    assert names(handles, "rounds/0005/updates/") == {"2.json", "_sum-2.safetensors"}
    # A record with clients outside of its turn removes no other client's record.
    handles.objects.put_json(layout.update_record(5, "1"), {"shard": ["1", "4", "../x"]})
    handles.objects.put_json(layout.update_record(5, "4"), {"shard": ["4"]})
    discard_updates(handles.objects, layout, ["1"])
    assert names(handles, "rounds/0005/updates/") == {"2.json", "_sum-2.safetensors", "4.json"}


@pytest.mark.parametrize(
    "record", [b"[" * 9_000, b"null", b"\xff", b"{}" * 20_000, b'{"shard": ["1", "2", "3"], "version": 1'.ljust(10**6)]
)
def test_an_unreadable_record_is_discarded_too(handles: Handles, record: bytes) -> None:
    handles.objects.put_bytes(handles.layout.update_record(5, "2"), record)
    (line,) = discard_updates(handles.objects, handles.layout, ["2"])
    assert line == "client 2: its update of round 5 is discarded"
    assert names(handles, "rounds/0005/updates/") == {"1.json", "1.safetensors", "3.json", "3.safetensors"}


def test_only_clients_of_an_open_round_can_be_retrained(handles: Handles) -> None:
    with pytest.raises(SpecError, match=r"--retrain: expected a client of round 5 \(1, 2, 3, 4\), found 9"):
        discard_updates(handles.objects, handles.layout, ["1", "9"])
    assert "1.json" in names(handles, "rounds/0005/updates/")
    handles.objects.delete([handles.layout.plan(5)])
    with pytest.raises(
        SpecError, match="--retrain: expected a federation with an open round, found none after round 4"
    ):
        discard_updates(handles.objects, handles.layout, ["1"])


def test_nothing_changes_while_the_federation_runs(
    handles: Handles, settings: Settings, s3_settings: S3Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    own = Settings(home=tmp_path, s3=s3_settings.model_copy(update={"prefix": settings.s3.prefix}))
    before = names(handles)
    with run_lock(tmp_path, "mine"):
        for asked in ({"from_round": 2, "retrain": []}, {"from_round": None, "retrain": ["1"]}):
            with pytest.raises(RunLocked, match="mine: already running"):
                prepare(own, "mine", **asked)
    elsewhere = own.model_copy(update={"home": tmp_path / "elsewhere"})
    with subject_held(handles.objects, elsewhere, Subject.federation(elsewhere, "mine"), "fedbench run"):
        for asked in ({"from_round": 2, "retrain": []}, {"from_round": None, "retrain": ["1"]}):
            with pytest.raises(RunLocked, match=rf"mine: held by fedbench run on .* home {tmp_path}/elsewhere"):
                prepare(own, "mine", **asked)
    handles.objects.delete(list(handles.objects.list(handles.layout.lease)))
    with pytest.raises(SpecError, match="--from, --retrain: expected one of them"):
        prepare(own, "mine", from_round=2, retrain=["1"])
    with pytest.raises(SpecError, match="other: no such federation"):
        prepare(own, "other", from_round=2, retrain=[])
    assert names(handles) == before
    spec, lines = prepare(own, "mine", from_round=None, retrain=["1"])
    assert (spec, len(lines)) == (SPEC, 1)
