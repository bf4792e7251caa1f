"""Handing a turn to a slot, and what becomes of turns that do not come back.

A turn whose process dies, or whose store is unreachable, is *infrastructure lost*: it says nothing about its clients
and runs again, with the same seeds, on another slot. A client's own error drops the client, with its reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from infra.errors import DeadlineExceeded, SlotLost, StoreCorrupt, StoreUnavailable
from infra.place import Place
from tasks.plain_text import REASON_LIMIT, plain
from tasks.spec.records import ClientFailure
from tasks.spec.turns import AnyRequest, TurnReply

log = logging.getLogger(__name__)

# Of a phase's turns, in ``participation``.
DEADLINES = {
    "wake_up": "wake_up_deadline",
    "request_update": "turn_deadline",
    "stop_and_eval": "evaluation_deadline",
    "sheet": "evaluation_deadline",
}
LOST = (SlotLost, StoreUnavailable, StoreCorrupt)

Finished = Callable[[], Awaitable[set[str]]]


async def hand_out(
    place: Place,
    request: AnyRequest,
    *,
    deadline: float | None = None,
    finished: Finished | None = None,
    together: bool = False,
) -> list[TurnReply]:
    """Run a turn to its end, over lost slots; the replies are those of its attempts, failures included.

    A turn whose clients are in different places is one turn at each, all at once.

    deadline: with ``finished``, seconds for each client of the turn: the client at work when they are over is dropped,
    the others run on. Without it, seconds for the whole turn: all its clients are dropped.
    finished: asks which clients of the turn have left their result in the store, so that a repeated turn does not do
    their work again.
    together: the clients leave it there together, at the turn's end, so that nobody can tell who is at work: when the
    seconds of all of them are over, all that have left nothing are dropped.
    """
    parts = await asyncio.gather(
        *(
            _hand_out(place, request.model_copy(update={"clients": clients}), deadline, finished, together)
            for clients in place.slots.split(request.clients)
        )
    )
    return [reply for replies in parts for reply in replies]


async def _hand_out(
    place: Place, request: AnyRequest, deadline: float | None, finished: Finished | None, together: bool
) -> list[TurnReply]:
    replies: list[TurnReply] = []
    attempt = 0
    waiting = request.clients
    while waiting:
        limit = deadline if deadline is None or finished is None else deadline * len(waiting)
        try:
            reply = await place.slots.run(
                place.take_turn, request.model_copy(update={"clients": waiting}), deadline=limit
            )
            replies.append(with_plain_reasons(reply))
            break
        except DeadlineExceeded:
            asked = len(waiting)
            waiting = _without(waiting, await finished()) if finished else waiting
            late, waiting = (waiting[:1], waiting[1:]) if finished and not together else (waiting, ())
            if late:
                times = f" for each of {asked} clients" if together and asked > 1 else ""
                reason = f"no answer within participation.{DEADLINES[request.phase]} ({deadline:g} s{times})"
                replies.append(_failed(request, late, "deadline", reason))
        except LOST as error:
            attempt += 1
            waiting = _without(waiting, await finished()) if finished else waiting
            why = plain(str(error))  # a resident's own words may be in it
            log.warning("%s of %s lost (attempt %d): %s", request.phase, ", ".join(waiting), attempt, why)
            if attempt > request.spec.participation.turn_retries:
                reason = f"lost {attempt} times with its slot or store: {why}"
                replies.append(_failed(request, waiting, "infrastructure-lost", reason))
                break
            for client in waiting:
                place.reporter.client_retried(request.phase, client, attempt, why)
    return replies


def with_plain_reasons(reply: TurnReply) -> TurnReply:
    """``reply`` with the reasons of its failures in one line without control characters: they go on record."""
    failures = (
        failure.model_copy(update={"reason": plain(failure.reason, REASON_LIMIT)}) for failure in reply.failures
    )
    return reply.model_copy(update={"failures": tuple(failures)}) if reply.failures else reply


def _without(clients: Sequence[str], done: set[str]) -> tuple[str, ...]:
    return tuple(client for client in clients if client not in done)


def _failed(request: AnyRequest, clients: Sequence[str], kind: str, reason: str) -> TurnReply:
    phase = "stop_and_eval" if request.phase == "sheet" else request.phase
    return TurnReply(
        failures=tuple(
            ClientFailure.model_validate({"client": client, "phase": phase, "kind": kind, "reason": reason})
            for client in clients
        )
    )


def report_failures(place: Place, failures: Sequence[ClientFailure]) -> None:
    """Tell the display who was dropped, and why."""
    for failure in failures:
        log.warning("client %s dropped in %s (%s): %s", failure.client, failure.phase, failure.kind, failure.reason)
        place.reporter.client_failed(failure.phase, failure.client, failure.kind, failure.reason)
