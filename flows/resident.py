"""A resident: one flow run that holds a slot of a work pool and takes one turn of a federation after another.

A coordinator starts it (:mod:`infra.turns.resident_slots`). The resident receives its turns through the coordinator's
store and Prefect API. An idle resident gives its slot back; the coordinator starts another when there are turns again.
A resident whose worker ends finishes its turn and leaves. If its process is ended first, it gives the turn back.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from infra.worker.leases import asked_to_leave
from tasks.code_version import installed_code
from tasks.plain_text import few_of
from tasks.site import this_site
from tasks.spec.base import FederationName
from tasks.spec.turns import AnyRequest, EvaluationRequest, TurnReply, UpdateRequest
from tasks.take_turn import take_turn

log = logging.getLogger(__name__)

# Read at import: a worker forks its runs from a process that has loaded the code, which may have changed on disk since.
CODE = installed_code()

REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(Annotated[AnyRequest, Field(discriminator="phase")])
ALIVE_SECONDS = 5.0  # between a resident's signs of life during a turn


refuse_stored_results()  # in every process that can run this flow, before its engine starts


class TurnThread:
    """The thread that runs the turns, so that the flow's event loop stays free to send signs of life.

    One thread runs all turns, because a new one would need its own OpenMP team and GPU handles. It is a daemon,
    because a cancelled run must not wait for a training loop.
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
    """Take turns until the coordinator dismisses this resident, its worker ends, or no turn came for ``idle_seconds``.

    Returns the number of turns taken.

    Raises:
        SettingsError: this worker has another store or other code than the coordinator.
    """
    site = await asyncio.to_thread(this_site)
    layout = site.layout(federation)
    await asyncio.to_thread(require_session, site.objects, layout, pool, session, CODE)
    mailbox = Mailbox(site.objects, layout, pool, session, number)
    rung = asyncio.Event()
    coordinator = coordinator_of(session)

    def on_event(event: Event | None) -> None:
        rung.set()

    thread, taken = TurnThread(), 0
    async with Bell([resident_of(session, f"{pool}.{number}")], on_event) as bell:

        async def send(event: str) -> None:
            await bell.ring(coordinator, event, resident=number)

        await send("fedbench.resident.ready")
        idle_since = time.monotonic()
        while True:
            rung.clear()
            if asked_to_leave(site.settings.home):
                log.info("its worker ends: no further turn is taken")
                break
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
            try:
                answer = await _take(ask, thread, lambda: send("fedbench.resident.alive"))
            except BaseException:  # cancelled or terminated; a failure of the turn is an answer
                # Without await: this process is about to be killed.
                with contextlib.suppress(InfraError):
                    mailbox.give_back(taken, "its process was asked to end")
                raise
            await asyncio.to_thread(mailbox.put_answer, taken, answer)
            await send("fedbench.turn.answered")
            idle_since = time.monotonic()
        await send("fedbench.resident.left")
    return taken


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


async def _take(ask: dict[str, Any], thread: TurnThread, alive: Callable[[], Any]) -> dict[str, Any]:
    """Take the turn of ``ask`` and return its answer.

    The answer has the turn's ``reply``; or ``lost``, if this resident failed; or ``error``, if the turn itself failed.
    """

    async def send_signs() -> None:
        while True:
            await alive()
            await asyncio.sleep(ALIVE_SECONDS)

    signs = asyncio.create_task(send_signs())
    try:
        request = REQUEST.validate_python(ask["request"])
        reply = await turn(request.phase, turn_label(request), request, thread)
        return {"version": MAILBOX_VERSION, "reply": reply.model_dump(mode="json")}
    except InfraError as error:
        return {"version": MAILBOX_VERSION, "lost": f"{type(error).__name__}: {error}"}
    except Exception as error:
        log.error("a turn failed", exc_info=True)
        full = full_disk(error, this_site().settings.home, suspected=False)
        if full is not None:  # the turn may succeed at another slot
            return {"version": MAILBOX_VERSION, "lost": f"{type(full).__name__}: {full.found}"}
        return {"version": MAILBOX_VERSION, "error": "".join(traceback.format_exception(error)[-6:])}
    finally:
        signs.cancel()


def turn_label(request: AnyRequest) -> str:
    """Return the label of a turn's task run, as ``round 3 · clients 1, 2``."""
    who = f"client{'s' if len(request.clients) > 1 else ''} {few_of(request.clients)}"
    match request:
        case UpdateRequest():
            return f"round {request.round} · {who}"
        case EvaluationRequest():
            return f"round {request.round} · part {request.part + 1} of {request.parts}"
    return who


@task(name="turn", task_run_name="{phase} · {label}", cache_policy=NO_CACHE, persist_result=False)
async def turn(phase: str, label: str, request: AnyRequest, thread: TurnThread) -> TurnReply:
    """Call :func:`tasks.take_turn.take_turn` in ``thread``, as a task run of the resident."""
    reply: TurnReply = await thread.run(lambda: take_turn(request))
    return reply
