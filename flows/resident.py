"""A resident: one flow run that holds a slot of a work pool and takes turn after turn of a federation.

It is asked for by a coordinator (:mod:`infra.turns.resident_slots`), on whose store and Prefect API it looks for
work. An idle one gives its slot back; the coordinator asks for another when there are turns again.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Annotated, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.events import Event
from pydantic import Field, TypeAdapter

from infra.errors import InfraError
from infra.files.disk import full_disk
from infra.orchestrator.stored_results import refuse_stored_results
from infra.turns.bell import Bell, coordinator_of, resident_of
from infra.turns.mailbox import MAILBOX_VERSION, Mailbox, require_session
from tasks.code_version import installed_code
from tasks.site import this_site
from tasks.spec.base import FederationName
from tasks.spec.turns import AnyRequest, EvaluationRequest, TurnReply, UpdateRequest
from tasks.take_turn import take_turn

log = logging.getLogger(__name__)

# Read when this module is imported: a worker forks its runs from a process that has loaded the code long before.
CODE = installed_code()

REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(Annotated[AnyRequest, Field(discriminator="phase")])
ALIVE_SECONDS = 5.0  # between the signs that a resident gives while a turn runs


refuse_stored_results()  # in every process that can run this flow, before its engine begins


class TurnThread:
    """The thread that computes, so that the flow's loop stays free to give signs of life.

    One for all turns, because a thread's OpenMP team and GPU handles are its own; a daemon, because a cancelled run
    must not wait for a training loop.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any], asyncio.AbstractEventLoop]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._serve, name="turns", daemon=True).start()

    async def run(self, work: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._work.put((work, future, loop))
        return await future

    def _serve(self) -> None:
        while True:
            work, future, loop = self._work.get()
            try:
                value, failure = work(), None
            except BaseException as error:
                value, failure = None, error
            loop.call_soon_threadsafe(_settle, future, value, failure)


def _settle(future: asyncio.Future[Any], value: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(value)
    else:
        future.set_exception(failure)


@flow(name="resident", flow_run_name="{federation} · resident {number} of pool {pool}", persist_result=False)
async def resident(federation: FederationName, session: str, pool: str, number: int, idle_seconds: float = 60.0) -> int:
    """Take turns until the coordinator says to go, or none came for ``idle_seconds``. Returns how many were taken.

    Raises:
        SettingsError: this worker's store or code is not the coordinator's.
    """
    site = await asyncio.to_thread(this_site)
    layout = site.layout(federation)
    await asyncio.to_thread(require_session, site.objects, layout, pool, session, CODE)
    mailbox = Mailbox(site.objects, layout, pool, session, number)
    rung = asyncio.Event()
    coordinator = coordinator_of(session)

    def heard(event: Event | None) -> None:
        rung.set()

    thread, taken = TurnThread(), 0
    async with Bell([resident_of(session, f"{pool}.{number}")], heard) as bell:

        async def tell(event: str) -> None:
            await bell.ring(coordinator, event, resident=number)

        await tell("fedbench.resident.ready")
        idle_since = time.monotonic()
        while True:
            rung.clear()
            ask = await asyncio.to_thread(mailbox.get_ask, taken + 1)
            if ask is None:
                left = idle_seconds - (time.monotonic() - idle_since)
                if left <= 0:
                    break
                await _wait(rung, min(bell.patience, left))
                continue
            if ask["phase"] == "leave":
                break
            taken += 1
            answer = await _take(ask, thread, lambda: tell("fedbench.resident.alive"))
            await asyncio.to_thread(mailbox.put_answer, taken, answer)
            await tell("fedbench.turn.answered")
            idle_since = time.monotonic()
        await tell("fedbench.resident.left")
    return taken


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


async def _take(ask: dict[str, Any], thread: TurnThread, alive: Callable[[], Any]) -> dict[str, Any]:
    """The answer to ``ask``: a reply; ``lost``, this resident failed; or ``error``, the turn itself did."""

    async def give_signs() -> None:
        while True:
            await alive()
            await asyncio.sleep(ALIVE_SECONDS)

    signs = asyncio.create_task(give_signs())
    try:
        request = REQUEST.validate_python(ask["request"])
        reply = await turn(request.phase, turn_label(request), request, thread)
        return {"version": MAILBOX_VERSION, "reply": reply.model_dump(mode="json")}
    except InfraError as error:
        return {"version": MAILBOX_VERSION, "lost": f"{type(error).__name__}: {error}"}
    except Exception as error:
        log.error("a turn failed", exc_info=True)
        full = full_disk(error, this_site().settings.home, suspected=False)
        if full is not None:  # the turn may do well at another slot
            return {"version": MAILBOX_VERSION, "lost": f"{type(full).__name__}: {full.found}"}
        return {"version": MAILBOX_VERSION, "error": "".join(traceback.format_exception(error)[-6:])}
    finally:
        signs.cancel()


def turn_label(request: AnyRequest) -> str:
    """``round 3 · clients 1, 2``: which turn a task run is."""
    shown = ", ".join(request.clients[:3]) + (f" (+{len(request.clients) - 3})" if len(request.clients) > 3 else "")
    who = f"client{'s' if len(request.clients) > 1 else ''} {shown}"
    match request:
        case UpdateRequest():
            return f"round {request.round} · {who}"
        case EvaluationRequest():
            return f"round {request.round} · part {request.part + 1} of {request.parts}"
    return who


@task(name="turn", task_run_name="{phase} · {label}", cache_policy=NO_CACHE, persist_result=False)
async def turn(phase: str, label: str, request: AnyRequest, thread: TurnThread) -> TurnReply:
    """:func:`tasks.take_turn.take_turn`, shown as a task run of its resident."""
    reply: TurnReply = await thread.run(lambda: take_turn(request))
    return reply
