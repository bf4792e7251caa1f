"""An unusable model is never committed: which updates are dropped for it, in which order, and which are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.utilities.annotations import quote
from safetensors.torch import load_file, save, save_file

import flows.new_model
import tasks.aggregate
from flows.new_model import NewModel, usable_model
from infra.store.objects import ObjectStore
from tasks.aggregate import aggregate
from tasks.errors import FedbenchError
from tasks.handles import Handles, set_handles
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.plans import ClientFailure, UpdateRecord, WeightRef
from tasks.spec.records import EvaluationRecord
from tasks.stop_and_eval import Evaluations
from tasks.strategies.base import ServerResult, ServerRound
from tasks.strategies.fedavg import FedAvg
from tasks.strategies.sums import Sums
from tasks.usable import distance, largest_update, model_fault
from tests.records import evaluation_record
from tests.tasks.phase_handles import make_handles, make_plan, make_update, put_state

SPEC = FederationSpec()
COHORT = ("1", "2", "3", "4", "5")
# The loss of a model with a larger value than this is not finite.
LARGEST = 1e9


def evaluation(*clients: str, loss: float | None = 1.5) -> EvaluationRecord:
    return evaluation_record(*clients, test_size=3, loss=loss, map50_voc10=0.1, recall=0.1, score_threshold=0.1)


def failure(client: str, kind: str, reason: str) -> ClientFailure:
    return ClientFailure.model_validate({"client": client, "phase": "stop_and_eval", "kind": kind, "reason": reason})


def diverged(*clients: str) -> list[ClientFailure]:
    return [failure(client, "model-diverged", "test loss is nan at batch 1") for client in clients]


class Round:
    """Round 3 with five clients and their stored updates. On its test set, the loss of some models is not finite."""

    def __init__(self, objects: ObjectStore, folder: Path, name: str) -> None:
        self.handles, self.notes = make_handles(objects, folder, name)
        self.spec = SPEC
        self.start = {"w": torch.zeros(4), "bn.running_var": torch.ones(2), "n": torch.tensor(0)}
        model = put_state(self.handles, self.handles.layout.global_weights(2), self.start)
        self.plan = make_plan(self.handles, SPEC, model, COHORT)
        self.scored: list[str] = []
        self.laps: list[str] = []

    def update(self, client: str, value: float, var: float = 1.0) -> UpdateRecord:
        state = {
            "w": torch.full((4,), value), "bn.running_var": torch.full((2,), var), "n": torch.tensor(int(client)),
        }  # fmt: skip
        weights = put_state(self.handles, self.handles.layout.update_weights(3, client), state)
        return make_update(self.handles, self.plan, client, weights, train_size=int(client))

    async def evaluate(self, model: WeightRef, updates: Sequence[UpdateRecord], suffix: str) -> Evaluations:
        self.scored.append(suffix)
        state = load_file(self.handles.weights.get(model.key, model.sha256, model.bytes).path)
        rootless = float(state["bn.running_var"].min()) < 0
        if rootless or any(float(tensor.abs().max()) > LARGEST for tensor in state.values()):
            return Evaluations([], diverged(*COHORT), 7, 3)
        return Evaluations([evaluation(*COHORT)], [], 7, 3)

    def run(self, updates: Sequence[UpdateRecord], dropped: Sequence[ClientFailure] = ()) -> NewModel:
        async def run() -> NewModel:
            set_handles(self.handles)
            return await usable_model(
                self.handles, self.spec, self.plan, updates, dropped, self.evaluate, self.laps.append
            )

        return asyncio.run(run())

    def bits(self, new: NewModel) -> bytes:
        return save(load_file(self.handles.weights.get(new.model.key, new.model.sha256, new.model.bytes).path))


@pytest.fixture
def round3(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_name: str) -> Round:
    async def without_a_task_run(*arguments: Any) -> Any:  # a task run would need Prefect's server
        return await aggregate.fn(*(item.unquote() if isinstance(item, quote) else item for item in arguments))

    monkeypatch.setattr(flows.new_model, "aggregate", without_a_task_run)
    return Round(object_store, tmp_path, f"usable-{own_name}")


def test_a_usable_model_is_aggregated_once(round3: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.new_model, "largest_update", None)  # no norm may be computed
    updates = [round3.update(client, float(client)) for client in COHORT]
    new = round3.run(updates)
    assert (new.updates, new.dropped, new.unscored) == (updates, [], [])
    assert (round3.scored, round3.laps, new.bytes_down, new.bytes_up) == ([""], ["aggregate", "stop_and_eval"], 7, 3)


def test_only_the_update_that_spoils_the_model_is_dropped(round3: Round) -> None:
    good = [round3.update(client, float(client)) for client in "1245"]
    expected = round3.bits(round3.run(good))
    round3.scored, round3.laps = [], []
    spoiler = round3.update("3", 1e38)
    new = round3.run([*good, spoiler])
    assert new.updates == good
    assert round3.bits(new) == expected
    (dropped,) = new.dropped
    assert (dropped.client, dropped.phase, dropped.kind) == ("3", "aggregate", "client-error")
    assert dropped.reason == (
        "the new global model of 5 updates cannot be used (test loss is nan at batch 1); this update is the farthest "
        "from the last model (L2 norm 2e+38)"
    )
    assert new.unscored == []  # no client is dropped for the evaluation that failed
    assert round3.scored == ["", " · attempt 2"]
    assert round3.laps == ["aggregate", "stop_and_eval"] * 2
    assert (new.bytes_down, new.bytes_up) == (14, 6)
    assert ("aggregate", "3", "client-error", dropped.reason) in round3.notes.of("client_failed")
    # The decision depends only on the plan and the stored updates, so a resumed round decides the same.
    again = round3.run([*good, spoiler])
    assert (again.updates, again.dropped, round3.bits(again)) == (new.updates, new.dropped, expected)


def test_statistics_that_spoil_the_model_are_found_too(round3: Round) -> None:
    updates = [round3.update(client, 100.0) for client in "1234"]
    new = round3.run([*updates, round3.update("5", 0.0, var=1e30)])
    assert [item.client for item in new.dropped] == ["5"]


def test_a_small_update_cannot_have_the_others_dropped(round3: Round) -> None:
    # This update is nearer to the last model than any honest one, but the mean variance has no square root.
    updates = [round3.update(client, 100.0) for client in "1234"]
    new = round3.run([*updates, round3.update("5", 0.0, var=-10.0)])
    assert [(item.client, item.reason) for item in new.dropped] == [
        ("5", "client 5: tensor bn.running_var: expected variances of at least 0, found -10")
    ]
    assert new.updates == updates


def test_the_largest_updates_are_dropped_first_until_the_model_is_usable(round3: Round) -> None:
    values = {"1": 2e12, "2": 1.0, "3": 5e20, "4": 1e15, "5": 1.0}
    round3.spec = FederationSpec(participation=Participation(min_updates=2))
    new = round3.run([round3.update(client, value) for client, value in values.items()])
    assert [item.client for item in new.dropped] == ["3", "4", "1"]
    assert [update.client for update in new.updates] == ["2", "5"]
    assert round3.scored == ["", " · attempt 2", " · attempt 3", " · attempt 4"]
    assert "of 3 updates" in new.dropped[2].reason


def test_a_round_that_loses_its_quorum_ends_with_the_command_to_go_on(round3: Round) -> None:
    values = {"1": 1.0, "2": 1.0, "3": 5e20, "4": 1e15, "5": 2e13}
    before = [failure("9", "deadline", "no answer")]
    with pytest.raises(FedbenchError) as caught:
        round3.run([round3.update(client, value) for client, value in values.items()], before)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith(
        "round 3: 2 of 5 updates came, participation.min_updates is 3; missing: client 9 (deadline): no answer; "
        "client 3 (client-error): the new global model of 5 updates cannot be used"
    )
    name = round3.plan.federation
    assert text.endswith(f"train again: fedbench resume {name} --retrain 3 --retrain 4 --retrain 5")


def test_a_round_without_a_quorum_of_valid_updates_ends_with_the_command_to_go_on(round3: Round) -> None:
    """The invalid updates are in the store, so the round would fail again in the same way."""
    bad = [round3.update(client, float("nan")) for client in "124"]
    name = round3.plan.federation
    for updates, says in (
        ([*bad, round3.update("3", 1.0), round3.update("5", 1.0)], r"2 of 5 updates came"),
        (bad, "no update counts"),
    ):
        with pytest.raises(
            FedbenchError, match=f"{says}.* fedbench resume {name} --retrain 1 --retrain 2 --retrain 4$"
        ):
            round3.run(updates)


def test_a_partial_sum_is_dropped_whole(round3: Round) -> None:
    round3.spec = FederationSpec(participation=Participation(min_updates=2))
    plan = round3.plan = round3.plan.model_copy(update={"partial_sums": True, "shards": (("1", "2"), ("3", "4", "5"))})
    updates = []
    for members, value in zip(plan.shards, (3.0, 1e38), strict=True):
        state = {**round3.start, "w": torch.full((4,), value)}
        weights = put_state(round3.handles, round3.handles.layout.partial_sum(3, members[0]), state)
        updates += [make_update(round3.handles, plan, client, weights, shard=members) for client in members]
    new = round3.run(updates)
    assert [update.client for update in new.updates] == ["1", "2"]
    assert [item.client for item in new.dropped] == ["3", "4", "5"]
    assert {item.reason.rpartition("(")[2] for item in new.dropped} == {
        "L2 norm 2e+38, with 2 other clients in its partial sum)"
    }
    assert round3.scored == ["", " · attempt 2"]


def test_an_invalid_update_is_recorded_with_those_that_spoil_the_model(round3: Round) -> None:
    updates = [round3.update("1", 1.0), round3.update("2", float("nan")), round3.update("3", 1e20)]
    new = round3.run([*updates, round3.update("4", 1.0), round3.update("5", 1.0)])
    assert [item.client for item in new.dropped] == ["2", "3"]
    assert [update.client for update in new.updates] == ["1", "4", "5"]


def test_a_model_that_is_not_finite_is_neither_stored_nor_evaluated(
    round3: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflowing(FedAvg):
        def new_model(self, sums: Sums, round: ServerRound) -> ServerResult:
            state = sums.take()
            return ServerResult({**state, "w": state["w"] * 1e38 * 1e38 if state["w"].max() > 2 else state["w"]})

    monkeypatch.setattr(tasks.aggregate, "build_strategy", lambda spec: Overflowing(spec.strategy, spec.training))
    updates = [round3.update(client, float(client)) for client in COHORT]
    stored: list[int] = []
    store_global = tasks.aggregate.store_global

    def watched(handles: Handles, number: int, state: Any) -> WeightRef:
        stored.append(number)
        return store_global(handles, number, state)

    monkeypatch.setattr(tasks.aggregate, "store_global", watched)
    round3.spec = FederationSpec(participation=Participation(min_updates=1))
    new = round3.run(updates)
    assert [item.client for item in new.dropped] == ["5", "4", "3"]
    assert "cannot be used (not all of its values are finite)" in new.dropped[0].reason
    assert (round3.scored, stored) == ([" · attempt 4"], [3])


# --- how an unusable model is recognised -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluations", "unscored", "fault"),
    [
        ([evaluation("1")], [], None),
        ([evaluation("1")], diverged("2"), None),  # one client's evaluation against another's
        ([evaluation("1")], diverged("2", "3"), "test loss is nan at batch 1"),
        ([evaluation("1", "2")], diverged("3", "4"), None),
        ([], diverged("1", "2"), "test loss is nan at batch 1"),
        ([], [failure("1", "deadline", "late"), *diverged("2")], "test loss is nan at batch 1"),
        ([evaluation("1", loss=None)], [], "the test loss is not finite"),
        # No client could evaluate the model, which is no reason to drop an update.
        ([], [], None),
        ([], [failure("1", "deadline", "late"), failure("2", "infrastructure-lost", "lost 3 times")], None),
        ([], [failure("1", "client-error", "its test set has changed")], None),
    ],
)
def test_only_a_loss_that_is_not_finite_makes_a_model_unusable(
    evaluations: list[EvaluationRecord], unscored: list[ClientFailure], fault: str | None
) -> None:
    assert model_fault(evaluations, unscored) == fault


def test_one_silo_cannot_save_a_model_that_is_unusable_for_the_others(round3: Round) -> None:
    good = [round3.update(client, float(client)) for client in "1245"]
    honest = round3.evaluate

    async def evaluate(model: WeightRef, updates: Sequence[UpdateRecord], suffix: str) -> Evaluations:
        found = await honest(model, updates, suffix)
        unscored = [item for item in found.unscored if item.client != "3"]
        return replace(found, records=found.records or [evaluation("3")], unscored=unscored)

    round3.evaluate = evaluate  # type: ignore[method-assign]
    new = round3.run([*good, round3.update("3", 1e38)])
    assert (new.updates, [item.client for item in new.dropped]) == (good, ["3"])


def test_a_distance_is_taken_in_float64_over_all_floating_tensors(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    save_file({"w": torch.full((1 << 20, 3), 1e38), "v": torch.tensor(3.0), "n": torch.tensor(9)}, paths[0])
    save_file({"w": torch.full((1 << 20, 3), 0.0), "v": torch.tensor(0.0), "n": torch.tensor(0)}, paths[1])
    assert distance(*paths) == pytest.approx(1e38 * (3 * (1 << 20)) ** 0.5)
    save_file({"w": torch.tensor([3.0, 0.0]), "v": torch.tensor(4.0), "n": torch.tensor(9)}, paths[0])
    save_file({"w": torch.tensor([0.0, 0.0]), "v": torch.tensor(0.0), "n": torch.tensor(0)}, paths[1])
    assert distance(*paths) == 5.0
    assert distance(paths[0], paths[0]) == 0.0


def test_of_equally_far_updates_the_first_in_client_order_is_the_largest(round3: Round) -> None:
    updates = [round3.update(client, 2.0) for client in COHORT]
    assert largest_update(round3.handles, round3.plan, updates[::-1])[0] == [updates[0]]
