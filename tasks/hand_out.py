"""Hand a turn to a slot, and run it again when it is lost.

A turn whose process dies, or whose store is unreachable, is *infrastructure lost*. Its clients are not at fault: it
runs again, with the same seeds, on another slot. So does a turn whose reply does not answer its request
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
from tasks.spec.plans import ClientFailure
from tasks.spec.turns import AnyRequest, TurnReply

log = logging.getLogger(__name__)

# The field of ``participation`` that holds the deadline of a phase's turns.
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
    """Run a turn to its end, again if it is lost. Return the replies of all attempts, failures included.

    Each reply has passed :func:`~tasks.replies.checked`. Together they hold an answer or a failure for each client,
    except for the clients that ``finished`` returned. A turn whose clients belong to several work pools becomes
    one turn for each pool; these run at the same time.

    deadline: seconds. With ``finished`` they are for each client of the turn: when they are over, the client at work is
        dropped and the others run on. Without it they are for the whole turn, and all its clients are dropped.
    finished: returns the clients whose result is in the store already. A repeated turn leaves them out.
    together: the clients' results are stored together at the turn's end, so that nobody can tell which client is at
        work. When the seconds of all clients are over, every client without a stored result is dropped.
    accept: receives each reply without failures. If it raises BadReply, the turn runs again.

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
            # If this machine's disk is full, stop here: the clients are not at fault.
            await asyncio.to_thread(require_room, handles.settings.home)
            attempt += 1
            waiting = _without(waiting, await finished()) if finished else waiting
            why = plain(str(error))  # may hold text that a resident wrote
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
    """Log and display each client that was dropped, and why."""
    for failure in failures:
        log.warning("client %s dropped in %s (%s): %s", failure.client, failure.phase, failure.kind, failure.reason)
        handles.reporter.client_failed(failure.phase, failure.client, failure.kind, failure.reason)
