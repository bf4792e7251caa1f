"""Commits and the clean-up after them, claims of names, and reading federations from a real store."""

from __future__ import annotations

import os
from typing import Any

import pytest

from flows.commit import clear_up, commit
from flows.coordinator.preflight import claim_name, pin_data, slot_count
from flows.round import Clock, shard_label
from flows.stored.names import listed
from flows.stored.runs import StoredRun, read_history, read_run, read_runs, require_scores, stopped
from flows.views.prefect_page import client_table, round_description
from infra.errors import SettingsError
from infra.files.lock import run_lock
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from infra.turns.local import LocalSlots
from tasks.errors import DataError, FedbenchError, SpecError
from tasks.handles import Handles
from tasks.spec.data import FederatedStreet, SyntheticStreet
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, WeightRef
from tasks.spec.records import Decision, Metrics, RoundRecord
from tasks.spec.training import TrainingSpec
from tests.records import evaluation_record, round_record
from tests.unused_handles import no_turn, nothing_left

SPEC = FederationSpec(max_rounds=5)


def handles_of(objects: ObjectStore, settings: Settings, name: str) -> Handles:
    return Handles(
        settings=settings,
        objects=objects,
        weights=WeightStore(objects, settings.home / "cache", 10),
        layout=FederationLayout(settings.s3.prefix, name),
        slots=LocalSlots(1, []),  # no slot is started, because no turn is taken
        take_turn=no_turn,
        reporter=None,  # type: ignore[arg-type]
        committed=lambda record: None,
        started=lambda run: None,
        finished=nothing_left,
    )


def record_of(handles: Handles, number: int, **decision: Any) -> RoundRecord:
    """Store global weights, an update and a part of an evaluation. Return the round's record."""
    layout = handles.layout
    stored = handles.weights.put(layout.global_weights(number), f"weights of {number}".encode())
    handles.objects.put_bytes(layout.update_weights(number, "1"), b"u")
    handles.objects.put_json(layout.update_record(number, "1"), {})
    handles.objects.put_bytes(layout.evaluation_tensors(number, "p"), b"e")
    return round_record(
        number,
        federation=layout.federation,
        spec_digest=SPEC.digest,
        model=WeightRef(key=stored.key, sha256=stored.sha256, bytes=stored.bytes),
        metrics=Metrics(map50_voc10=0.1),
        decision=Decision(**{"stop": False, "best_round": number, **decision}),
        dropped=(ClientFailure(client="2", phase="wake_up", kind="client-error", reason="bad label"),),
    )


def test_a_commit_keeps_the_best_and_the_last_two_globals(object_store: ObjectStore, settings: Settings) -> None:
    handles = handles_of(object_store, settings, "kept")
    layout = handles.layout
    for number, best in enumerate((0, 1, 1, 1, 1)):
        record = record_of(handles, number, best_round=best, best_map50_voc10=0.1)
        commit(handles, record)
        clear_up(handles, record)
    keys = object_store.list(layout.root)
    assert [number for number in range(5) if layout.global_weights(number) in keys] == [1, 3, 4]
    assert not [key for key in keys if "/updates/" in key or "/evaluations/" in key]
    assert layout.committed_rounds(keys) == [0, 1, 2, 3, 4]
    best = object_store.get_json(layout.best)
    assert (best["round"], best["weights"]["key"]) == (1, layout.global_weights(1))
    assert (best["metric"], best["value"], best["map50_voc10"]) == ("map50_voc10", 0.1, 0.1)
    history = read_history(object_store, layout)
    assert [record.round for record in history] == [0, 1, 2, 3, 4]
    assert history[3].dropped[0].reason == "bad label"


def test_updates_and_more_globals_are_kept_by_setting(object_store: ObjectStore, settings: Settings) -> None:
    handles = handles_of(object_store, settings.model_copy(update={"keep_updates": True, "keep_globals": 3}), "kept")
    for number in range(4):
        commit(handles, record_of(handles, number))
        clear_up(handles, record_of(handles, number))
    keys = object_store.list(handles.layout.root)
    assert [number for number in range(4) if handles.layout.global_weights(number) in keys] == [1, 2, 3]
    assert [number for number in range(4) if handles.layout.update_weights(number, "1") in keys] == [0, 1, 2, 3]


def test_a_history_without_any_figure_is_a_failure(object_store: ObjectStore, settings: Settings) -> None:
    handles = handles_of(object_store, settings, "unscored")
    history = [record_of(handles, number) for number in range(3)]
    require_scores("unscored", history)  # no client had test images, so no evaluation was tried
    failures = [
        (ClientFailure(client=client, phase="stop_and_eval", kind="client-error", reason=reason),)
        for client, reason in (("1", "out of memory"), ("2", "test loss is nan"))
    ]
    failed = [
        record.model_copy(update={"dropped": dropped}) for record, dropped in zip(history[1:], failures, strict=True)
    ]
    with pytest.raises(
        FedbenchError,
        match=r"^unscored: every evaluation failed, .* no model is registered; the last failure: client 2: test loss",
    ):
        require_scores("unscored", [history[0], *failed])
    scored = evaluation_record(
        "1", test_digest="0" * 64, loss=None, map50_voc10=None, recall=None, score_threshold=0.1, seconds=0.1
    )
    require_scores("unscored", [history[0].model_copy(update={"evaluations": (scored,)}), *failed])


def test_a_name_belongs_to_one_experiment(object_store: ObjectStore, settings: Settings) -> None:
    layout = FederationLayout(settings.s3.prefix, "mine")
    claim_name(object_store, layout, SPEC)
    claim_name(object_store, layout, SPEC)
    assert object_store.get_json(layout.store) == {"version": 1}
    with pytest.raises(SpecError, match=r"mine: .*differs in: max_rounds \(was 5, now 4\)"):
        claim_name(object_store, layout, SPEC.model_copy(update={"max_rounds": 4}))
    with pytest.raises(SpecError, match=r"seed \(was 1234, now 9\)") as caught:
        claim_name(object_store, layout, SPEC.model_copy(update={"max_rounds": 8, "seed": 9}))
    assert "max_rounds (was 5, now 8)" in str(caught.value)
    claim_name(object_store, layout, SPEC.model_copy(update={"max_rounds": 8}))
    assert object_store.get_json(layout.spec)["max_rounds"] == 8


def test_a_stopped_federation_goes_on_only_if_max_rounds_grew(object_store: ObjectStore, settings: Settings) -> None:
    handles = handles_of(object_store, settings, "stops")
    longer = SPEC.model_copy(update={"max_rounds": 9})
    last = record_of(handles, 5, stop=True, reason="max_rounds")
    assert not stopped(SPEC, [])
    assert not stopped(SPEC, [record_of(handles, 4)])
    assert stopped(SPEC, [last])
    assert not stopped(longer, [last])
    assert stopped(longer, [record_of(handles, 3, stop=True, reason="target_map")])


def test_runs_are_listed_with_their_status(object_store: ObjectStore, settings: Settings) -> None:
    assert read_runs(object_store, settings) == []
    for name, rounds in (("done", 6), ("half", 2), ("busy", 1)):
        handles = handles_of(object_store, settings, name)
        claim_name(object_store, handles.layout, SPEC)
        for number in range(rounds):
            commit(handles, record_of(handles, number))
    with run_lock(settings.home, "busy"):
        runs = read_runs(object_store, settings)
    assert [(run.name, run.status, len(run.records)) for run in runs if isinstance(run, StoredRun)] == [
        ("busy", "running", 1), ("done", "finished", 6), ("half", "stopped", 2),
    ]  # fmt: skip
    with pytest.raises(SpecError, match="nobody: no such federation in the store; expected one of: busy, done, half"):
        read_run(object_store, settings, "nobody")


def test_slots_are_cores_over_threads_unless_set(settings: Settings) -> None:
    one = slot_count(settings, SPEC)
    assert one >= 1
    assert slot_count(settings.model_copy(update={"slots": 7}), SPEC) == 7
    many = FederationSpec(training=TrainingSpec(threads=one))
    assert slot_count(settings, many) == 1
    if one < 64:
        too_many = FederationSpec(training=TrainingSpec(threads=one + 1))
        with pytest.raises(SettingsError, match=rf"training\.threads: expected at most {one}, .*found {one + 1}"):
            slot_count(settings, too_many)


def test_a_named_data_set_is_pinned_by_its_content(settings: Settings) -> None:
    small = FederationSpec(data=SyntheticStreet(train_images=40, test_images=5, width=64, height=64))
    assert pin_data(small, settings) == small  # drawn from the specification's own fields, so there is nothing to pin
    drawn = next((settings.home / "cache" / "data" / "synthetic-street").iterdir())
    named = FederationSpec(data=FederatedStreet())
    pinned = pin_data(named, settings.model_copy(update={"street_dir": drawn}))
    assert isinstance(pinned.data, FederatedStreet)
    assert pinned.data.digest is not None
    assert pin_data(pinned, settings.model_copy(update={"street_dir": drawn})) == pinned
    (drawn / "Images" / "extra.jpg").write_bytes(b"not listed")
    assert pin_data(pinned, settings.model_copy(update={"street_dir": drawn})) == pinned
    with pytest.raises(DataError, match="no folder is known for data set 'street'"):
        pin_data(named, settings)


def test_the_table_of_a_round_has_every_client_and_why_one_was_dropped(
    object_store: ObjectStore, settings: Settings
) -> None:
    record = record_of(handles_of(object_store, settings, "table"), 1)
    assert [(row["client"], row["dropped"]) for row in client_table(record)] == [("2", "client-error")]
    assert "\n* client 2 dropped: client-error: bad label" in round_description(record)
    many = record.model_copy(update={"dropped": record.dropped * 12})
    assert round_description(many).endswith("\n* and 2 more; the log of the federation's run has all")
    assert shard_label(["3"]) == "client 3"
    assert shard_label(["1", "2", "5", "7", "9"]) == "clients 1, 2, 5 and 2 more"


def test_a_clock_gives_each_phase_its_own_time() -> None:
    clock = Clock()
    for phase in ("a", "b"):
        clock.lap(phase)
    assert list(clock.laps) == ["a", "b"]
    assert all(0 <= seconds < 60 for seconds in clock.laps.values())


def test_the_names_most_like_the_wanted_one_are_listed() -> None:
    assert listed([], "street") == "(none yet)"
    assert listed(["yards", "street"], "stret") == "yards, street; did you mean street?"
    names = [f"run-{number}" for number in range(40)] + ["street5-0a1b"]
    text = listed(names, "street5")
    assert text.startswith("street5-0a1b, ")
    assert text.endswith(", and 31 more; did you mean street5-0a1b?")


def test_a_commit_has_the_weights_on_the_disk_before_the_marker(
    object_store: ObjectStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = handles_of(object_store, settings, "flushed")
    steps: list[str] = []
    fsync, put_bytes = os.fsync, object_store.put_bytes

    def synced(descriptor: int) -> None:
        steps.append("sync " + os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/flushed/")[2])
        fsync(descriptor)

    def put(key: str, body: bytes) -> None:
        steps.append("put " + key.rpartition("/flushed/")[2])
        put_bytes(key, body)

    record = record_of(handles, 1)
    server, own = (handles.layout.server_state(1), handles.layout.client_state(0, "1"))
    states = {key: WeightRef.of(handles.weights.put(key, key.encode())) for key in (server, own)}
    record = record.model_copy(update={"server": states[server], "states": {"1": states[own]}})
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(object_store, "put_bytes", put)
    commit(handles, record)
    weights, marker = "rounds/0001/global.safetensors", "rounds/0001/round.json"
    in_round = [step for step in steps if "rounds" in step]
    assert in_round == [
        f"sync {weights}", "sync rounds/0001/server.safetensors", "sync rounds/0000/state/1.safetensors",
        "sync rounds/0001", "sync rounds", "sync rounds/0000/state", "sync rounds/0000", "sync rounds",
        f"put {marker}", f"sync {marker}", "sync rounds/0001",
    ]  # fmt: skip
    assert steps[-1] == "put best.json"  # written last, because it can be derived from the marker
