"""The interface that runs turns, and its implementation with warm processes of this machine, one for each slot.

A turn is a module-level function and one picklable argument. ``LocalSlots`` runs it in one of ``count`` processes of
this machine. Residents on work pools implement :class:`TurnRunner` too, so callers need not know which one they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from typing import Any, Protocol, TypeVar

import psutil

from infra.environment.imports import keep_folder_out_of_imports
from infra.errors import DeadlineExceeded, SlotLost

Argument = TypeVar("Argument")
Reply = TypeVar("Reply")


class TurnRunner(Protocol):
    """What runs turns, ``count`` at a time; further ones wait for a free slot."""

    count: int

    async def run(
        self, turn: Callable[[Argument], Reply], argument: Argument, *, deadline: float | None = None
    ) -> Reply:
        """Run ``turn`` with ``argument`` in a free slot and return its reply.

        Raises:
            SlotLost: the process that ran the turn died.
            BadReply: the answer is not a reply, or reports that the turn failed. Only residents raise it.
            DeadlineExceeded: ``deadline`` seconds passed; the process has been ended.
        """
        ...

    def split(self, clients: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Return ``clients`` in groups, in their order: one turn can serve the clients of one group only."""
        ...

    async def open(self, coordinator: str) -> None:
        """Prepare for turns of the federation's flow run ``coordinator``."""
        ...

    async def close(self) -> None: ...


def _end_with_parent() -> None:
    """End this process when the coordinator dies: nobody would receive what it trains."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _start_slot(environment: dict[str, str]) -> None:
    # Ctrl-C in a terminal reaches the whole process group; the coordinator alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    _end_with_parent()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT for the processes that are started in this context: they inherit this thread's signal mask.

    Ctrl-C would end the fork server in the middle of its imports, with a traceback.
    """
    resource_tracker.ensure_running()  # starting it in this context would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _submit_first(executor: ProcessPoolExecutor) -> Future[int]:
    """Submit the first task, which starts the executor's process, and the fork server if that is gone."""
    with _interrupts_blocked():
        return executor.submit(os.getpid)


class _Slot:
    """One slot: an executor with one process, made again when the process is lost."""

    def __init__(self, number: int, context: Any, environment: dict[str, str]) -> None:
        self.number = number
        self._context = context
        self._environment = environment
        self._executor: ProcessPoolExecutor | None = None
        self._pid: int | None = None

    async def run(self, turn: Callable[[Any], Any], argument: Any, deadline: float | None) -> Any:
        try:
            if self._executor is None:
                self._executor = ProcessPoolExecutor(
                    1, mp_context=self._context, initializer=_start_slot, initargs=(self._environment,)
                )
                # In a thread, because the first slot waits for the fork server's imports.
                started = await asyncio.to_thread(_submit_first, self._executor)
                self._pid = await asyncio.wrap_future(started)
            future = asyncio.wrap_future(self._executor.submit(turn, argument))
            # A caller that stopped waiting must not cause a warning about an exception that nobody retrieved.
            future.add_done_callback(lambda finished: finished.cancelled() or finished.exception())
            done, _ = await asyncio.wait({future}, timeout=deadline)
        except (BrokenProcessPool, EOFError, ConnectionError) as error:
            self.end()
            raise SlotLost(f"slot {self.number}: its process ended before the turn began") from error
        except asyncio.CancelledError:
            self.end()
            raise
        if not done:
            self.end()
            raise DeadlineExceeded(f"over its deadline of {deadline:g} s; its process was ended")
        try:
            return future.result()
        except (BrokenProcessPool, EOFError, ConnectionError) as error:
            self.end()
            raise SlotLost(f"slot {self.number}: its process ended in the middle of a turn") from error

    def end(self) -> None:
        """Kill the process, if there is one. Nothing else stops a training loop at once."""
        executor, pid = self._executor, self._pid
        self._executor = self._pid = None
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)


def start_fork_server(preload: Sequence[str]) -> Any:
    """Start the fork server, which imports ``preload``, unless it runs. Return its context without waiting for it."""
    keep_folder_out_of_imports(os.environ)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with _interrupts_blocked():
        forkserver.ensure_running()
    return context


def end_fork_server() -> None:
    """Kill this process's fork server, for a run that ends before it has slots.

    In the middle of its imports, the server would not notice that this process has ended.
    """
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("multiprocessing.forkserver" in word for word in child.cmdline()):
                child.kill()


class LocalSlots:
    """A :class:`TurnRunner` of ``count`` processes on this machine, forked from a server that has imported ``preload``.

    environment: variables for the slots alone; this process need not have them.
    """

    def __init__(self, count: int, preload: Sequence[str], environment: dict[str, str] | None = None) -> None:
        context = start_fork_server(preload)
        self.count = count
        self._slots = [_Slot(number, context, dict(environment or {})) for number in range(1, count + 1)]
        self._free: asyncio.Queue[_Slot] | None = None

    def _queue(self) -> asyncio.Queue[_Slot]:
        if self._free is None:
            self._free = asyncio.Queue()
            for slot in self._slots:
                self._free.put_nowait(slot)
        return self._free

    async def run(
        self, turn: Callable[[Argument], Reply], argument: Argument, *, deadline: float | None = None
    ) -> Reply:
        free = self._queue()
        slot = await free.get()
        try:
            reply: Reply = await slot.run(turn, argument, deadline)
            return reply
        finally:
            # The slot goes to the end of the queue: a lost turn is repeated in another slot if one is free.
            free.put_nowait(slot)

    def split(self, clients: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return (tuple(clients),)

    async def open(self, coordinator: str) -> None:
        pass

    async def close(self) -> None:
        for slot in self._slots:
            slot.end()
