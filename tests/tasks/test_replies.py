"""For any reply of a turn, each of its clients has an answer or a failure, or the turn is repeated."""

from __future__ import annotations

import re
from typing import Any

import pytest

from infra.errors import BadReply
from tasks.replies import (
    HEADER_SLACK,
    MOST_TEST_IMAGES,
    answer_limit,
    batches_of,
    checked,
    images_of,
    not_counted,
    read_reply,
)
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.plans import ClientFailure, WeightRef
from tasks.spec.training import EvaluationSpec
from tasks.spec.turns import (
    AnyRequest,
    EvaluationRequest,
    ResourceRequest,
    SheetRequest,
    TurnReply,
    UpdateRequest,
    WakeUpRequest,
)
from tests.records import evaluation_record, update_record

SPEC = FederationSpec(evaluation=EvaluationSpec(batch_size=4))
REF = {"key": "k", "sha256": "a" * 64, "bytes": 9}
COMMON: dict[str, Any] = {"federation": "f", "spec": SPEC, "clients": ("1", "2", "3")}
WAKE = WakeUpRequest(**COMMON)
UPDATE = UpdateRequest(
    **COMMON, round=3, spec_digest="b" * 64, model=WeightRef.model_validate(REF), seeds={}, learning_rate=0.1
)
PART = EvaluationRequest(
    **COMMON, round=3, model=WeightRef.model_validate(REF), test_digest="d" * 64, test_size=10, part=0, parts=2
)
SHEET = SheetRequest(**COMMON, model=WeightRef.model_validate(REF), images=3)


def info(client: str, **changes: Any) -> dict[str, Any]:
    return {
        "client": client, "train_size": 5, "test_size": 5, "test_digest": "a" * 64, "class_counts": {"car": 1},
        "host": "h", "device": "cpu", **changes,
    }  # fmt: skip


def failed(client: str, **changes: Any) -> dict[str, Any]:
    return {"client": client, "phase": "wake_up", "kind": "client-error", "reason": "bad image", **changes}


def work(**changes: Any) -> dict[str, Any]:
    return {"images": 6, "batch_losses": [4.0, 2.0], "detections": REF, **changes}


def answered(reply: TurnReply) -> tuple[list[str], dict[str, str]]:
    return [item.client for item in reply.ready], {item.client: item.reason for item in reply.failures}


NOTHING = "its turn's reply has neither an answer nor a failure for it"
NOBODY = {"1": NOTHING, "2": NOTHING, "3": NOTHING}


@pytest.mark.parametrize(
    ("document", "ready", "reasons"),
    [
        ({"ready": [info("3"), info("1"), info("2")]}, ["1", "2", "3"], {}),
        ({"ready": [info("1"), info("2")], "failures": [failed("3")]}, ["1", "2"], {"3": "bad image"}),
        # Clients that are missing, were not asked, answer twice, or have both an answer and a failure.
        ({}, [], NOBODY),
        ({"ready": [info("1"), info("2")]}, ["1", "2"], {"3": NOTHING}),
        ({"ready": [info("1"), info("4"), info("2"), info("3")]}, ["1", "2", "3"], {}),
        ({"ready": [info(c) for c in "123"], "failures": [failed("4")]}, ["1", "2", "3"], {}),
        ({"ready": [info("1"), info("2"), info("3"), info("1", train_size=7)]}, ["1", "2", "3"], {}),
        ({"ready": [info("1"), info("2"), info("3")], "failures": [failed("2")]}, ["1", "3"], {"2": "bad image"}),
        # A mistake in one client's answer drops that client.
        (
            {"ready": [info("1"), info("2", train_size="many"), info("3")]},
            ["1", "3"],
            {"2": "reply: ready: train_size: expected a whole number, found 'many'"},
        ),
        (
            {"ready": [info("1"), {"client": "2"}, info("3", extra=[])]},
            ["1"],
            {"2": "reply: ready: train_size: missing .*", "3": "reply: ready: extra: no such field; expected .*"},
        ),
        (
            {"ready": [info("1"), info("2", test_size=10**8), info("3", class_counts={"car": -0.5})]},
            ["1"],
            {"2": f"test_size: expected at most {MOST_TEST_IMAGES}, found 100000000", "3": ".*class_counts.*whole.*"},
        ),
        (
            {"ready": [info("1"), info("2"), info("3", class_counts=dict.fromkeys(map(str, range(10_001)), 1))]},
            ["1", "2"],
            {"3": "reply: ready: expected at most 10000 values in ClientInfo, found more"},
        ),
        (
            {"ready": [info("1"), info("2")], "failures": [failed("3", kind="sabotage")]},
            ["1", "2"],
            {"3": "reply: failures: kind: expected .*, found 'sabotage'"},
        ),
        # Answers of another phase do not count.
        ({"answers": [{"client": c, "load": 0, "free_memory": 1} for c in "123"]}, [], NOBODY),
    ],
)  # fmt: skip
def test_each_client_has_an_answer_or_a_failure(
    document: dict[str, Any], ready: list[str], reasons: dict[str, str]
) -> None:
    found, failures = answered(checked(WAKE, read_reply(WAKE, document)))
    assert found == ready
    assert failures.keys() == reasons.keys()
    for client, reason in reasons.items():
        assert re.fullmatch(reason, failures[client], re.DOTALL), failures[client]


def test_the_first_of_two_answers_counts_and_a_failure_gets_the_requests_phase() -> None:
    twice = {
        "ready": [info("1"), info("1", train_size=7)],
        "failures": [failed("2", phase="aggregate", kind="deadline")],
    }
    reply = checked(WAKE, read_reply(WAKE, twice))
    assert [(item.client, item.train_size) for item in reply.ready] == [("1", 5)]
    assert [(item.client, item.phase, item.kind) for item in reply.failures] == [
        ("2", "wake_up", "client-error"), ("3", "wake_up", "client-error"),
    ]  # fmt: skip
    long = checked(WAKE, read_reply(WAKE, {"failures": [failed("1", reason="x" * 100_000)]}))
    assert len(long.failures[0].reason) <= 2000


@pytest.mark.parametrize(
    ("request_", "document", "problem"),
    [
        (WAKE, None, "expected a mapping of fields, found NoneType"),
        (WAKE, [info("1")], "expected a mapping of fields, found list"),
        (WAKE, "ready", "expected a mapping of fields, found str"),
        (WAKE, {"ready": {"1": info("1")}}, "ready: expected a list of at most 14, found dict"),
        (WAKE, {"ready": [info("1")] * 15}, "ready: expected a list of at most 14, found a list of 15"),
        (WAKE, {"failures": [failed("9")] * 15}, "failures: expected a list of at most 14, found a list of 15"),
        (WAKE, {"ready": [7]}, "ready: .*expected a mapping of fields, found 7"),
        (WAKE, {"ready": [info("9", host=5)]}, "ready: host: expected text"),
        (WAKE, {"ready": [info(["1"])]}, "ready: client: expected text"),  # type: ignore[arg-type]
        (WAKE, {"readyy": []}, "readyy: no such field"),
        (WAKE, {"downloaded": -1}, "downloaded: expected at least 0, found -1"),
        (WAKE, {"batch_losses": [1.0]}, "batch_losses: expected a list of at most 0 numbers"),
        (PART, {}, "detections: expected an object, found none, and no failure"),
        (PART, work(detections=None), "detections: expected an object, found none"),
        (PART, work(detections={**REF, "sha256": "short"}), "detections.sha256: expected text that matches"),
        (PART, work(images=10**8), "images: expected 6, those of the part, found 100000000"),
        (PART, work(images=5), "images: expected 6"),
        (PART, work(batch_losses=[4.0]), "batch_losses: expected 2, one a batch, found 1"),
        (PART, work(batch_losses=[4.0] * 3), "batch_losses: expected a list of at most 2 numbers"),
        (PART, work(batch_losses=[4.0, "2"]), "batch_losses: expected a list of at most 2 numbers"),
        (PART, work(batch_losses=[4.0, 1e40]), r"batch_losses: expected finite numbers up to 1.4e\+39, found 1e\+40"),
        # Each loss fits a batch of four, but the last batch has two images: their mean is above an image's bound.
        (PART, work(batch_losses=[1.4e39, 1.4e39]), r"batch_losses: expected at most 3.5e.38 an image, found 4.6"),
        (PART, work(batch_losses=[4.0, float("inf")]), "batch_losses.*finite number"),
        (PART, {"failures": [failed("9")]}, "detections: expected an object, found none, and no failure"),
        (SHEET, {"images": 3}, "detections: expected an object, found none, and no failure"),
    ],
)  # fmt: skip
def test_a_reply_that_cannot_be_used_as_a_whole_is_refused(request_: AnyRequest, document: Any, problem: str) -> None:
    with pytest.raises(BadReply, match=problem):
        checked(request_, read_reply(request_, document))


def test_a_part_of_an_evaluation_succeeds_or_fails_for_all_its_clients() -> None:
    good = checked(PART, read_reply(PART, work(downloaded=5)))
    assert (good.images, good.batch_losses, good.downloaded, good.failures) == (6, (4.0, 2.0), 5, ())
    bad = checked(PART, read_reply(PART, work(failures=[failed("2", reason="diverged"), failed("9")])))
    assert bad.detections is None
    assert [(item.client, item.phase, item.reason) for item in bad.failures] == [
        (client, "stop_and_eval", "diverged") for client in "123"
    ]


def test_a_slot_that_returns_something_else_is_refused() -> None:
    others: tuple[Any, ...] = (None, {"ready": []}, WAKE)
    for reply in others:
        with pytest.raises(BadReply, match="expected a reply, found"):
            checked(WAKE, reply)


def test_the_parts_of_an_evaluation_cover_the_test_set() -> None:
    for size in (1, 3, 4, 5, 8, 10, 1001):
        for parts in range(1, min(7, -(-size // 4)) + 1):
            requests = [
                PART.model_copy(update={"test_size": size, "part": part, "parts": parts}) for part in range(parts)
            ]
            assert sum(images_of(request) for request in requests) == size
            batches = sorted(number for request in requests for number in batches_of(request))
            assert batches == list(range(-(-size // 4)))


def test_an_answer_may_be_as_large_as_its_request_needs() -> None:
    def limit(request: AnyRequest, count: int, **changes: Any) -> int:
        clients = tuple(str(number) for number in range(count))
        return answer_limit(request.model_copy(update={"clients": clients, **changes}))

    sums = SPEC.model_copy(update={"participation": Participation(partial_sums=True)})
    for request in (WAKE, UPDATE, PART, SHEET, ResourceRequest(**COMMON)):
        assert limit(request, 1) < 1_200_000
        assert limit(request, 10_000) <= 10 << 20
    assert limit(PART, 1, test_size=40_000) - limit(PART, 1) > 5000 * 30  # characters of a float and its line
    assert limit(UPDATE, 100, spec=sums) - limit(UPDATE, 100) == 100 * 100 * 96


@pytest.mark.parametrize(
    ("request_", "answer", "expected"),
    [
        (WAKE, {"ready": [info(client) for client in "123"]}, (0, 0)),
        (UPDATE, {"failures": [failed("1")]}, (3 * 9, 3 * (9 + HEADER_SLACK))),
        (PART, work(), (3 * 9, 9)),
        (PART, {"failures": [failed("1")]}, (3 * 9, 0)),
        (SHEET, {"detections": REF}, (3 * 9, 9)),
    ],
)
def test_the_bytes_that_a_turn_reports_are_limited_to_what_it_can_move(
    request_: AnyRequest, answer: dict[str, Any], expected: tuple[int, int]
) -> None:
    # The sum of two such figures would exceed the bound in a round's record, and the round could not be committed.
    reply = checked(request_, read_reply(request_, {**answer, "downloaded": 10**18, "uploaded": 10**18}))
    assert (reply.downloaded, reply.uploaded) == expected
    small = checked(request_, read_reply(request_, {**answer, "downloaded": 0, "uploaded": 0}))
    assert (small.downloaded, small.uploaded) == (0, 0)


def test_no_client_is_recorded_as_counted_and_as_dropped() -> None:
    update = update_record("1", federation="f", round=3)
    evaluation = evaluation_record("2", test_size=1, loss=None, map50_voc10=None, recall=None, score_threshold=0.1)
    phases = ("wake_up", "check_client_resource", "request_update", "aggregate", "stop_and_eval")
    dropped = [ClientFailure.model_validate(failed(client, phase=phase)) for client in ("1", "2") for phase in phases]
    kept = not_counted(dropped, [update], [evaluation])
    # Failures in other phases stay: client 1 has no evaluation, client 2 no update.
    assert [(item.client, item.phase) for item in kept] == [("1", phases[4])] + [("2", phase) for phase in phases[:4]]
