"""A silo that answers anything drops its own client, with the reason on record, and nobody else."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from foreign_answers import CASES, Tamper, in_place
from foreign_silos import (
    CLIENTS,
    FOREIGN,
    SPEC,
    TEST_SIZE,
    Body,
    Content,
    Silos,
    info,
    make_silos,
    memory_watched,
    sheet,
)

from tasks.aggregate import aggregate_updates
from tasks.check_client_resource import check_client_resource
from tasks.draw_sheet import read_sheet
from tasks.errors import FedbenchError
from tasks.request_update import request_update, stored_updates
from tasks.spec.records import ClientFailure, EvaluationRecord
from tasks.spec.turns import AnyRequest, SheetRequest, TurnReply, UpdateRequest
from tasks.stop_and_eval import clients_by_test_set, stop_and_eval
from tasks.turns import hand_out
from tasks.wake_up import wake_up


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> Silos:
    return make_silos(tmp_path_factory.mktemp("coordinator"))


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    Body.read_bytes = 0
    with memory_watched():
        yield


def awake(silos: Silos) -> tuple[list[str], list[ClientFailure]]:
    ready, failures = asyncio.run(wake_up.fn("foreign", SPEC, CLIENTS, 2))
    return [item.client for item in ready], failures


def updated(silos: Silos) -> tuple[list[str], list[ClientFailure]]:
    async def ask() -> list[TurnReply]:
        return await asyncio.gather(*(request_update.fn(SPEC, silos.plan, 3, (name,), name) for name in CLIENTS))

    replies = asyncio.run(ask())
    updates = [update for reply in replies for update in reply.updates]
    _, counted, dropped = aggregate_updates(silos.place, SPEC, silos.plan, updates)
    return [item.client for item in counted], [item for reply in replies for item in reply.failures] + dropped


def evaluated(silos: Silos) -> tuple[EvaluationRecord | None, list[ClientFailure]]:
    infos = [info(name) for name in CLIENTS]
    evaluation, failures, _, _ = asyncio.run(stop_and_eval.fn("foreign", SPEC, 3, infos, silos.model, "all"))
    return evaluation, failures


def scored(silos: Silos) -> tuple[list[str], list[ClientFailure]]:
    evaluation, failures = evaluated(silos)
    return list(evaluation.clients) if evaluation else [], failures


COUNTED = {"wake_up": awake, "request_update": updated, "stop_and_eval": scored}


@pytest.mark.parametrize(
    ("phase", "name", "tamper", "reason"), CASES, ids=[f"{phase}-{name}" for phase, name, _, _ in CASES]
)
def test_a_malformed_answer_drops_its_client_alone(
    silos: Silos, phase: str, name: str, tamper: Tamper, reason: str
) -> None:
    silos.begin(lambda request, document: tamper(silos, request, document))
    counted, failures = COUNTED[phase](silos)
    assert counted == ["1", "3"]
    assert {item.client for item in failures} == {FOREIGN}
    assert re.search(reason, failures[0].reason, re.DOTALL), failures[0].reason
    assert len(failures[0].reason) <= 2000
    assert Body.read_bytes < 3_000_000


def test_undisturbed_all_count(silos: Silos) -> None:
    silos.begin()
    assert [COUNTED[phase](silos) for phase in COUNTED] == [(["1", "2", "3"], [])] * 3
    assert evaluated(silos)[0] is not None


def test_a_part_is_done_elsewhere_with_the_same_figures(silos: Silos) -> None:
    silos.begin()
    undisturbed, _ = evaluated(silos)
    silos.begin(lambda request, document: b"[]")
    disturbed, failures = evaluated(silos)
    assert undisturbed is not None
    assert disturbed is not None
    assert (disturbed.clients, [item.client for item in failures]) == (("1", "3"), ["2"])
    same = {"clients": (), "seconds": 0}
    assert disturbed.model_copy(update=same) == undisturbed.model_copy(update=same)
    assert disturbed.test_size == TEST_SIZE
    # Two attempts at silo 2 with its own part, and one of the next silo.
    assert len(silos.notes.of("client_retried")) == 1


def test_who_claims_anothers_test_set_in_another_size_is_scored_alone(silos: Silos) -> None:
    silos.begin()
    infos = [info("1").model_copy(update={"test_size": 10**6}), info("2"), info("3")]
    assert [[item.client for item in group] for group in clients_by_test_set(infos).values()] == [["1"], ["2", "3"]]


def test_a_silo_that_gives_no_load_is_on_record(silos: Silos) -> None:
    silos.begin(lambda request, document: b'{"version": 1, "error": "no load here"}')
    infos = [info(name) for name in CLIENTS]
    plan = asyncio.run(check_client_resource.fn("foreign", SPEC, 3, infos, silos.model))
    assert plan.cohort == ("1", "3")
    (failure,) = plan.draws[0].failures
    assert (failure.client, failure.phase) == (FOREIGN, "check_client_resource")
    assert failure.reason.endswith("no load here")


def test_without_a_majority_the_classes_must_be_named(silos: Silos) -> None:
    def others(request: AnyRequest, document: dict[str, Any]) -> bytes:
        document["reply"]["ready"][0]["class_counts"] = {"x": 1}
        return json.dumps(document).encode()

    silos.begin(others)
    with pytest.raises(FedbenchError, match=r"expected the same classes at every client, found 1: car, van; 2: x"):
        asyncio.run(wake_up.fn("foreign", SPEC, ("1", "2"), 2))


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
    request = SheetRequest(federation="foreign", spec=SPEC, clients=(FOREIGN,), model=silos.model, images=3)
    found: list[bytes] = []

    async def accept(asked: AnyRequest, reply: TurnReply) -> None:
        assert isinstance(asked, SheetRequest)
        found.append(await asyncio.to_thread(read_sheet, silos.place, asked, reply))

    replies = asyncio.run(hand_out(silos.place, request, accept=accept))
    reasons = [item.reason for reply in replies for item in reply.failures]
    if problem is None:
        assert (found, reasons) == ([content], [])
    else:
        assert found == []
        assert re.search(problem, reasons[0])


@pytest.mark.parametrize("record", [b"[" * 500_000, b"null", b"\xff", 300_000_000, b'{"version": 1}', b"{}" * 20_000])
def test_a_strange_record_in_the_store_is_not_taken_over(silos: Silos, record: Content) -> None:
    silos.begin()
    updated(silos)
    layout = silos.place.layout
    for client in CLIENTS:
        reply = silos.honest(_update_request(silos, client))
        silos.store.put_json(layout.update_record(3, client), reply["updates"][0])
    assert list(stored_updates(silos.place, silos.plan)) == ["1", "2", "3"]
    silos.store.client.objects[layout.update_record(3, FOREIGN)] = record
    assert list(stored_updates(silos.place, silos.plan)) == ["1", "3"]


def _update_request(silos: Silos, client: str) -> Any:
    return UpdateRequest(
        federation="foreign", spec=SPEC, clients=(client,), round=3, spec_digest=SPEC.digest, model=silos.model,
        seeds={}, learning_rate=0.1,
    )  # fmt: skip
