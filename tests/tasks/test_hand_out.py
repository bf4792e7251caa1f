"""Turns without a reply: who is asked again, who is dropped, and the reasons. Slots are real and processes do die."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.store.objects import ObjectStore
from tasks.hand_out import hand_out
from tasks.handles import set_handles
from tasks.request_update import request_update
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.plans import WeightRef
from tasks.spec.turns import TurnReply, UpdateRequest, WakeUpRequest
from tasks.stop_and_eval import Evaluations, stop_and_eval
from tests.records import client_info
from tests.tasks import phase_turns
from tests.tasks.phase_handles import Notes, make_handles, make_plan

MODEL = WeightRef(key="phases/x/rounds/0002/global.safetensors", sha256="a" * 64, bytes=1)


@dataclass
class Handed:
    replies: list[TurnReply]
    notes: Notes
    attempts: list[tuple[str, int]]

    @property
    def answered(self) -> list[str]:
        return [update.client for reply in self.replies for update in reply.updates]

    @property
    def failures(self) -> list[tuple[str, str, str]]:
        return [(item.client, item.kind, item.reason) for reply in self.replies for item in reply.failures]


@pytest.fixture
def hand(object_store: ObjectStore, tmp_path: Path) -> Any:
    def hand(
        script: Mapping[str, Sequence[str]],
        *,
        deadline: float | None = None,
        resumable: bool = True,
        retries: int = 2,
        slots: int = 2,
        wake_up: bool = False,
    ) -> Handed:
        phase_turns.write_script(tmp_path, script)
        handles, notes = make_handles(object_store, tmp_path, "turns", take_turn=phase_turns.take_turn, slots=slots)
        spec = FederationSpec(participation=Participation(turn_retries=retries))
        common: dict[str, Any] = {"federation": "turns", "spec": spec, "clients": tuple(script)}
        request: Any = WakeUpRequest(**common)
        if not wake_up:
            request = UpdateRequest(**common, round=3, spec_digest="b" * 64, model=MODEL, seeds={}, learning_rate=0.1)

        async def finished() -> set[str]:
            return {path.name for path in (tmp_path / "done").iterdir()}

        async def run() -> list[TurnReply]:
            try:
                return await hand_out(handles, request, deadline=deadline, finished=finished if resumable else None)
            finally:
                await handles.slots.close()

        return Handed(asyncio.run(run()), notes, phase_turns.attempts(tmp_path))

    return hand


def clients(handed: Handed) -> list[str]:
    return [client for client, _ in handed.attempts]


def test_a_turn_with_a_reply_is_asked_once(hand: Any) -> None:
    done = hand({"1": ["ok"], "2": ["client-error"], "3": ["ok"]})
    assert len(done.replies) == 1
    assert done.answered == ["1", "3"]
    # A client's own error is no fault of the slot: it is returned, and the turn is not repeated.
    assert done.failures == [("2", "client-error", "bad image")]
    assert clients(done) == ["1", "2", "3"]
    assert done.notes.calls == []


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        ("die", "slot 1: its process ended in the middle of a turn"),
        ("unreachable", "bucket b at http://nowhere does not answer"),
        ("corrupt", "global.safetensors: expected sha256 a, found sha256 b"),
    ],
)
def test_a_lost_turn_runs_again_on_another_slot(hand: Any, death: str, reason: str) -> None:
    done = hand({"1": [death, "ok"]})
    assert done.answered == ["1"]
    assert done.failures == []
    (_, first), (_, second) = done.attempts
    assert first != second
    assert done.notes.of("client_retried") == [("request_update", "1", 1, reason)]


@pytest.mark.parametrize(("resumable", "expected"), [(True, ["1", "2", "2", "3"]), (False, ["1", "2", "1", "2", "3"])])
def test_work_whose_result_is_in_the_store_is_not_repeated(hand: Any, resumable: bool, expected: list[str]) -> None:
    done = hand({"1": ["ok"], "2": ["die", "ok"], "3": ["ok"]}, resumable=resumable)
    assert clients(done) == expected
    assert done.failures == []
    assert {client for _, client, _, _ in done.notes.of("client_retried")} == set(expected[2:])


@pytest.mark.parametrize("retries", [0, 2])
def test_clients_whose_turn_is_always_lost_are_dropped_as_infrastructure(hand: Any, retries: int) -> None:
    done = hand({"1": ["ok"], "2": ["die"], "3": ["ok"]}, retries=retries)
    assert clients(done) == ["1"] + ["2"] * (retries + 1)
    reason = f"lost {retries + 1} times with its slot or store: slot {1 + retries % 2}"
    assert [(client, kind) for client, kind, _ in done.failures] == [
        ("2", "infrastructure-lost"), ("3", "infrastructure-lost"),
    ]  # fmt: skip
    assert all(text.startswith(reason) or "its process ended" in text for _, _, text in done.failures)
    assert {attempt for _, _, attempt, _ in done.notes.of("client_retried")} == set(range(1, retries + 1))


def test_a_deadline_drops_only_the_client_at_work(hand: Any) -> None:
    done = hand({"1": ["ok"], "2": ["hang"], "3": ["ok"]}, deadline=4.0, slots=1)
    assert clients(done) == ["1", "2", "3"]
    assert done.failures == [("2", "deadline", "no answer within participation.turn_deadline (4 s)")]
    assert done.answered == ["3"]  # client 1's reply was lost with the process, but its result is in the store
    assert done.notes.of("client_retried") == []


def test_without_results_in_the_store_a_deadline_drops_the_whole_turn(hand: Any) -> None:
    done = hand({"1": ["ok"], "2": ["hang"], "3": ["ok"]}, deadline=1.5, resumable=False, slots=1, wake_up=True)
    assert len(clients(done)) <= 2
    reason = "no answer within participation.wake_up_deadline (1.5 s)"
    assert done.failures == [(client, "deadline", reason) for client in "123"]


def test_the_test_set_of_a_hanging_evaluation_is_left_out(object_store: ObjectStore, tmp_path: Path) -> None:
    phase_turns.write_script(tmp_path, {"1": ["ok"], "2": ["hang"]})
    handles, notes = make_handles(object_store, tmp_path, "hangs", take_turn=phase_turns.take_turn, slots=2)
    spec = FederationSpec(participation=Participation(evaluation_deadline=1.5))
    clients = [
        client_info(name, train_size=1, test_size=9, test_digest="d" * 64, class_counts={"x": 1}) for name in "12"
    ]

    async def run() -> Evaluations:
        set_handles(handles)
        try:
            return await stop_and_eval.fn("hangs", spec, 3, clients, MODEL, "clients 1, 2")
        finally:
            await handles.slots.close()

    found = asyncio.run(run())
    assert (found.records, found.bytes_down, found.bytes_up) == ([], 0, 0)
    reason = "no answer within participation.evaluation_deadline (1.5 s)"
    assert [(item.client, item.phase, item.kind, item.reason) for item in found.unscored] == [
        (client, "stop_and_eval", "deadline", reason) for client in "12"
    ]
    assert len(notes.of("client_failed")) == 2


def test_a_mistake_of_the_program_ends_the_run(hand: Any) -> None:
    with pytest.raises(ZeroDivisionError, match="a mistake of the program"):
        hand({"1": ["bug"]})


def test_an_update_that_was_not_asked_for_never_counts(object_store: ObjectStore, tmp_path: Path) -> None:
    handles, notes = make_handles(object_store, tmp_path, "unasked", take_turn=phase_turns.unasked_update, slots=1)
    spec = FederationSpec()
    plan = make_plan(handles, spec, MODEL, ("1", "2", "3"))

    async def run() -> TurnReply:
        set_handles(handles)
        try:
            return await request_update.fn(spec, plan, 3, ("1", "2", "3"), "clients 1, 2, 3")
        finally:
            await handles.slots.close()

    reply = asyncio.run(run())
    assert [(update.client, update.train_loss) for update in reply.updates] == [("1", 1.0)]
    reasons = {(item.client, item.reason.removeprefix("an update that was not asked for: ")) for item in reply.failures}
    assert reasons == {
        ("2", "client 2: seed: expected 102, found 103"),
        ("3", "client 3: round: expected 3, found 4"),
    }
    assert [client for _, client, _ in notes.of("client_done")] == ["1"]
    assert {client for _, client, _, _ in notes.of("client_failed")} == {"2", "3"}
