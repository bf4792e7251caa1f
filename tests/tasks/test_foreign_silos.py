"""A silo with bad answers loses only its own client, and the reason is recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from infra.turns.resident_pool import Resident
from infra.turns.resident_slots import RETURNED
from tasks.errors import FedbenchError
from tasks.spec.records import EvaluationRecord
from tasks.spec.turns import AnyRequest
from tasks.stop_and_eval import clients_by_test_set
from tasks.wake_up import wake_up
from tests.tasks.foreign_answers import CASES, Tamper, in_place
from tests.tasks.foreign_phases import PHASES, drawn, pictured, scored, taken_over
from tests.tasks.foreign_silos import (
    FOREIGN,
    SPEC,
    TEST_SIZE,
    Body,
    Content,
    ForeignSlots,
    Silos,
    info,
    memory_watched,
    sheet,
)


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    Body.read_bytes = 0
    with memory_watched():
        yield


@pytest.mark.parametrize(
    ("phase", "name", "tamper", "reason"), CASES, ids=[f"{phase}-{name}" for phase, name, _, _ in CASES]
)
def test_a_malformed_answer_drops_only_its_client(
    silos: Silos, phase: str, name: str, tamper: Tamper, reason: str
) -> None:
    silos.begin(lambda request, document: tamper(silos, request, document))
    outcome = PHASES[phase](silos, SPEC)
    failures = outcome.dropped
    assert outcome.counted == ["1", "3"]
    assert {item.client for item in failures} == {FOREIGN}
    assert re.search(reason, failures[0].reason, re.DOTALL), failures[0].reason
    assert len(failures[0].reason) <= 2000
    assert Body.read_bytes < 3_000_000


def test_without_bad_answers_all_clients_count(silos: Silos) -> None:
    silos.begin()
    outcomes = [PHASES[phase](silos, SPEC) for phase in PHASES]
    assert [(outcome.counted, outcome.dropped) for outcome in outcomes] == [(["1", "2", "3"], [])] * len(PHASES)


def test_a_turn_that_is_given_back_runs_again_without_costing_a_retry(silos: Silos) -> None:
    """A worker gives turns back when its time ends, which is nobody's fault. It takes no further turn."""
    returned = 0

    def give_back(request: AnyRequest, document: dict[str, Any]) -> bytes:
        nonlocal returned
        returned += 1
        if returned <= RETURNED - 1:
            return b'{"version": 1, "returned": "its time ends"}'
        return json.dumps(document).encode()

    silos.begin(give_back)
    outcome = drawn(silos)
    assert (outcome.counted, outcome.dropped) == (["1", "2", "3"], [])
    assert silos.notes.of("client_retried") == []
    assert returned == RETURNED  # more than a turn may be lost


def test_another_silo_does_a_failed_part_with_the_same_figures(silos: Silos) -> None:
    silos.begin()
    undisturbed = scored(silos).records[0]
    silos.begin(lambda request, document: b"[]")
    outcome = scored(silos)
    disturbed = outcome.records[0]
    assert isinstance(disturbed, EvaluationRecord)
    assert (disturbed.clients, [item.client for item in outcome.dropped]) == (("1", "3"), ["2"])
    same = {"clients": (), "seconds": 0}
    assert disturbed.model_copy(update=same) == undisturbed.model_copy(update=same)
    assert disturbed.test_size == TEST_SIZE
    # Silo 2 tries its own part twice, then another silo takes it.
    assert len(silos.notes.of("client_retried")) == 1


def test_a_client_that_gives_a_shared_test_set_another_size_is_scored_alone(silos: Silos) -> None:
    silos.begin()
    infos = [info("1").model_copy(update={"test_size": 10**6}), info("2"), info("3")]
    assert [[item.client for item in group] for group in clients_by_test_set(infos).values()] == [["1"], ["2", "3"]]


def test_a_silo_that_reports_no_load_is_recorded_as_dropped(silos: Silos) -> None:
    silos.begin(lambda request, document: b'{"version": 1, "error": "no load here"}')
    outcome = drawn(silos)
    assert outcome.counted == ["1", "3"]
    (failure,) = outcome.dropped
    assert (failure.client, failure.phase) == (FOREIGN, "check_client_resource")
    assert failure.reason.endswith("no load here")


def test_classes_that_differ_without_a_majority_are_an_error(silos: Silos) -> None:
    def others(request: AnyRequest, document: dict[str, Any]) -> bytes:
        document["reply"]["ready"][0]["class_counts"] = {"x": 1}
        return json.dumps(document).encode()

    silos.begin(others)
    with pytest.raises(FedbenchError, match=r"expected the same classes at every client, found 1: car, van; 2: x"):
        silos.runner.run(wake_up.fn("foreign", SPEC, ("1", "2"), 2))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (sheet(), None),
        (sheet()[:60], "expected an RGB picture in PNG"),
        (b"GIF89a" + bytes(100), "expected an RGB picture in PNG"),
        (sheet()[:16] + (60_000).to_bytes(4, "big") * 2 + sheet()[24:], "expected an RGB picture in PNG"),
        (300_000_000, r"expected at most \d+ bytes, found 300000000"),
    ],
    ids=["good", "torn", "gif", "huge", "300 MB"],
)
def test_a_sheet_that_cannot_be_shown_is_refused(silos: Silos, content: Content, problem: str | None) -> None:
    silos.begin(lambda request, document: in_place(content)(silos, request, document))
    outcome = pictured(silos)
    reasons = [item.reason for item in outcome.dropped]
    if problem is None:
        assert (outcome.counted, reasons) == (["1", "2", "3"], [])
    else:
        assert outcome.counted == ["1", "3"]
        assert re.search(problem, reasons[0])


@pytest.mark.parametrize("record", [b"[" * 500_000, b"null", b"\xff", 300_000_000, b'{"version": 1}', b"{}" * 20_000])
def test_a_strange_record_in_the_store_is_not_taken_over(silos: Silos, record: Content) -> None:
    silos.begin(lambda request, document: record)
    assert taken_over(silos).counted == ["1", "3"]


async def absent(slots: ForeignSlots, resident: Resident) -> None:
    """Do nothing, as if no worker took the resident's run."""


async def broken(slots: ForeignSlots, resident: Resident) -> None:
    slots._lose(resident, "no such folder")


async def leaving(slots: ForeignSlots, resident: Resident) -> None:
    """Start the resident. It leaves when it is rung for a turn, as if it had been idle for too long."""
    resident.welcome()


@pytest.mark.parametrize(
    ("conduct", "reason"),
    [
        (absent, r"no answer within participation.wake_up_deadline \([01].*s\)"),
        (broken, "lost 2 times with its slot or store: pool silo-2: no resident starts there: no such folder"),
        (leaving, "lost 2 times with its slot or store: pool silo-2: 5 residents left without taking the turn"),
    ],
)
@pytest.mark.parametrize("phase", ["wake_up", "check_client_resource"])
def test_only_the_silo_whose_residents_take_no_turn_is_dropped(
    silos: Silos,
    phase: str,
    conduct: Callable[[ForeignSlots, Resident], Awaitable[None]],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual, usual_ring = ForeignSlots._submit, ForeignSlots._ring

    async def submit(slots: ForeignSlots, resident: Resident) -> None:
        await (conduct if resident.pool.name == f"silo-{FOREIGN}" else usual)(slots, resident)

    async def ring(slots: ForeignSlots, resident: Resident, event: str) -> None:
        if resident.pool.name == f"silo-{FOREIGN}":
            slots._lose(resident, "it was idle", left=True)
        else:
            await usual_ring(slots, resident, event)

    monkeypatch.setattr(ForeignSlots, "_submit", submit)
    monkeypatch.setattr(ForeignSlots, "_ring", ring)
    silos.begin()
    participation = SPEC.participation.model_copy(update={"wake_up_deadline": 0.5})
    outcome = PHASES[phase](silos, SPEC.model_copy(update={"participation": participation}))
    assert outcome.counted == ["1", "3"]
    (failure,) = outcome.dropped
    assert failure.client == FOREIGN
    assert re.fullmatch(reason, failure.reason), failure.reason
