"""Handing a turn to a slot, and what becomes of turns that do not come back.

A turn whose process dies, or whose store is unreachable, is *infrastructure lost*: it says nothing about its clients
and runs again, with the same seeds, on another slot. So does a turn whose reply is no answer to its request
(:mod:`tasks.replies`). A client's own error drops the client, with its reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from infra.errors import BadReply, DeadlineExceeded, SlotLost, StoreCorrupt, StoreUnavailable
from infra.files.disk import require_room
from tasks.handles import Handles
from tasks.plain_text import plain
from tasks.replies import checked, failure_of
from tasks.spec.records import ClientFailure
from tasks.spec.turns import AnyRequest, TurnReply

log = logging.getLogger(__name__)

# Of a phase's turns, in ``participation``.
DEADLINES = {
    "wake_up": "wake_up_deadline",
    "check_client_resource": "wake_up_deadline",
    "request_update": "turn_deadline",
    "stop_and_eval": "evaluation_deadline",
    "sheet": "evaluation_deadline",
}
LOST = (SlotLost, StoreUnavailable, StoreCorrupt, BadReply)

Finished = Callable[[], Awaitable[set[str]]]
Accept = Callable[[AnyRequest, TurnReply], Awaitable[None]]


async def hand_out(
    handles: Handles,
    request: AnyRequest,
    *,
    deadline: float | None = None,
    finished: Finished | None = None,
    together: bool = False,
    accept: Accept | None = None,
) -> list[TurnReply]:
    """Run a turn to its end, over lost slots; the replies are those of its attempts, failures included.

    Each reply is :func:`~tasks.replies.checked`: together they have an answer or a failure for each client, except
    clients that ``finished`` named.

    A turn whose clients are in different places is one turn at each, all at once.

    deadline: with ``finished``, seconds for each client of the turn: the client at work when they are over is dropped,
    the others run on. Without it, seconds for the whole turn: all its clients are dropped.
    finished: asks which clients of the turn have left their result in the store, so that a repeated turn does not do
    their work again.
    together: the clients leave it there together, at the turn's end, so that nobody can tell who is at work: when the
    seconds of all of them are over, all that have left nothing are dropped.
    accept: takes in a reply without failures; with BadReply it refuses the reply, and the turn runs again.

    Raises:
        DiskFull: a turn was lost, and a disk of this machine is full.
    """
    parts = await asyncio.gather(
        *(
            _hand_out(handles, request.model_copy(update={"clients": clients}), deadline, finished, together, accept)
            for clients in handles.slots.split(request.clients)
        )
    )
    return [reply for replies in parts for reply in replies]


async def _hand_out(
    handles: Handles,
    request: AnyRequest,
    deadline: float | None,
    finished: Finished | None,
    together: bool,
    accept: Accept | None,
) -> list[TurnReply]:
    replies: list[TurnReply] = []
    attempt = 0
    waiting = request.clients
    while waiting:
        limit = deadline if deadline is None or finished is None else deadline * len(waiting)
        try:
            asked = request.model_copy(update={"clients": waiting})
            reply = checked(asked, await handles.slots.run(handles.take_turn, asked, deadline=limit))
            if accept is not None and not reply.failures:
                await accept(asked, reply)
            replies.append(reply)
            break
        except DeadlineExceeded:
            count = len(waiting)
            waiting = _without(waiting, await finished()) if finished else waiting
            late, waiting = (waiting[:1], waiting[1:]) if finished and not together else (waiting, ())
            if late:
                times = f" for each of {count} clients" if together and count > 1 else ""
                reason = f"no answer within participation.{DEADLINES[request.phase]} ({deadline:g} s{times})"
                replies.append(_failed(request, late, "deadline", reason))
        except LOST as error:
            await asyncio.to_thread(require_room, handles.settings.home)  # else a full disk here would drop clients
            attempt += 1
            waiting = _without(waiting, await finished()) if finished else waiting
            why = plain(str(error))  # a resident's own words may be in it
            log.warning("%s of %s lost (attempt %d): %s", request.phase, ", ".join(waiting), attempt, why)
            if attempt > request.spec.participation.turn_retries:
                if isinstance(error, BadReply):
                    kind, what = "client-error", f"{attempt} turns, none with a reply that can be used"
                else:
                    kind, what = "infrastructure-lost", f"lost {attempt} times with its slot or store"
                replies.append(_failed(request, waiting, kind, f"{what}: {why}"))
                break
            for client in waiting:
                handles.reporter.client_retried(request.phase, client, attempt, why)
    return replies


def _without(clients: Sequence[str], done: set[str]) -> tuple[str, ...]:
    return tuple(client for client in clients if client not in done)


def _failed(request: AnyRequest, clients: Sequence[str], kind: str, reason: str) -> TurnReply:
    return TurnReply(failures=tuple(failure_of(request.phase, client, reason, kind) for client in clients))


def report_failures(handles: Handles, failures: Sequence[ClientFailure]) -> None:
    """Tell the display who was dropped, and why."""
    for failure in failures:
        log.warning("client %s dropped in %s (%s): %s", failure.client, failure.phase, failure.kind, failure.reason)
        handles.reporter.client_failed(failure.phase, failure.client, failure.kind, failure.reason)
