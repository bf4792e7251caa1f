"""The worker's side of a warm process (:mod:`infra.worker.fork_server`): start it, fork, signal and await children."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import psutil

from infra.errors import ForkServerLost

log = logging.getLogger(__name__)

START_SECONDS = 300.0  # enough to import torch, torchvision and Prefect on a slow machine under load
LOST = -int(signal.SIGKILL)  # exit code of children that ended with their server


@dataclass(frozen=True)
class ForkRequest:
    """What a child is to do.

    environment: all its variables. folder: its working folder. threads: torch's. quiet: discard its output.
    task: ``engine`` runs Prefect's engine for a run; ``crashed`` and ``cancellation`` run the hooks of a run that ended
        so. message: the state's message, for hooks.
    stored_results: whether Prefect may load results that it stored.
    """

    environment: dict[str, str]
    folder: str
    threads: int = 1
    quiet: bool = False
    task: Literal["engine", "crashed", "cancellation"] = "engine"
    message: str = ""
    stored_results: bool = False


class Child:
    """A run's process. ``returncode`` is None while a process of its group is left; it is negative after a signal."""

    def __init__(self, pid: int, server: WarmProcess) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._ended = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def terminate(self, grace: float) -> None:
        """Send SIGTERM to the group now, and SIGKILL after ``grace`` seconds."""
        self._server.signal(self.pid, signal.SIGTERM)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(grace, self.kill)

    def kill(self) -> None:
        self._server.signal(self.pid, signal.SIGKILL)

    def _end(self, code: int) -> None:
        self.returncode = code
        if self._timer is not None:
            self._timer.cancel()
        self._ended.set()


class WarmProcess:
    """One warm process. ``report``: what it reported about itself when it was ready. ``forked``: requests so far."""

    def __init__(self) -> None:
        self.report: dict[str, Any] = {}
        self.forked = 0
        self.children: dict[int, Child] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._pending: dict[int, asyncio.Future[Child]] = {}
        self._sending = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._resident = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_lost(self) -> bool:
        return self._channel is None

    async def start(self, preload: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start the process and wait until it is ready.

        Args:
            preload: Modules to import.
            environment: Its variables; None: those of this process.

        Raises:
            ForkServerLost: it ended, or was not ready in time; the worker's output has the cause.
        """
        self._channel, theirs = socket.socketpair()
        events, tell = os.pipe()
        passed = [theirs.fileno(), tell]
        # -P: a package `flows` in the user's working folder must not be imported in place of ours.
        command = [sys.executable, "-P", "-m", "infra.worker.fork_server", *map(str, passed), *preload]
        try:
            # A session of its own keeps it out of reach of a terminal's Ctrl-C.
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=passed, stdin=subprocess.DEVNULL, start_new_session=True
            )
        finally:
            theirs.close()
            os.close(tell)
        reader = asyncio.StreamReader()
        pipe = os.fdopen(events, "rb", buffering=0)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._reader = asyncio.create_task(self._listen(reader, transport))
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), START_SECONDS)
        except TimeoutError:
            await self.stop()
            raise ForkServerLost(f"the warm process was not ready after {START_SECONDS:.0f} s") from None
        self._resident = self._megabytes()

    async def fork(self, request: ForkRequest, descriptor: int | None = None) -> Child:
        """Fork a child for ``request``. It keeps ``descriptor`` open; the caller may close its own afterwards.

        Raises:
            ForkServerLost: the warm process is gone, or cannot fork.
        """
        self.forked += 1
        answer: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._pending[number := self.forked] = answer
        await self._send({"id": number, **asdict(request)}, descriptor)
        return await answer

    def signal(self, pid: int, number: int) -> None:
        # Sent in a task, which waits until the message before it is complete.
        task = asyncio.ensure_future(self._send({"pid": pid, "signal": int(number)}, None))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def is_worn(self, runs: int, megabytes: int) -> bool:
        """Return whether it has forked ``runs`` children, or has grown by ``megabytes`` since it was ready."""
        return self.forked >= runs or self._megabytes() - self._resident >= megabytes

    async def retire(self) -> None:
        """Wait until the last child has ended, then stop."""
        while self.children or self._pending:
            await asyncio.gather(*(child.wait() for child in list(self.children.values())))
            await asyncio.sleep(0)
        await self.stop()

    async def stop(self) -> None:
        """End the process and all its children now."""
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
            channel.close()
        if self._process is not None:
            try:
                await asyncio.to_thread(self._process.wait, 10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
        if self._reader is not None:
            await self._reader

    def _megabytes(self) -> int:
        try:
            return int(psutil.Process(self.pid).memory_info().rss) >> 20
        except psutil.Error:
            return 0

    async def _send(self, message: dict[str, Any], descriptor: int | None) -> None:
        body = json.dumps(message).encode()
        async with self._sending:
            try:
                await asyncio.to_thread(self._write, body, [] if descriptor is None else [descriptor])
            except OSError as error:
                self._lose()
                raise ForkServerLost("the warm process ended") from error

    def _write(self, body: bytes, descriptors: list[int]) -> None:
        channel = self._channel
        if channel is None:
            raise BrokenPipeError
        socket.send_fds(channel, [len(body).to_bytes(4, "big")], descriptors)
        channel.sendall(body)

    async def _listen(self, reader: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        try:
            while line := await reader.readline():
                self._handle(json.loads(line))
        except (OSError, ValueError) as error:
            log.error("a message of the warm process could not be read: %s", error)
        finally:
            transport.close()
            self._lose()

    def _handle(self, message: dict[str, Any]) -> None:
        match message.pop("event"):
            case "ready":
                self.report = message
                self._ready.set_result(None)
            case "started":
                child = self.children[message["pid"]] = Child(message["pid"], self)
                answer = self._pending.pop(message["id"])
                if answer.cancelled():
                    child.kill()  # nobody waits for it any more
                else:
                    answer.set_result(child)
            case "failed":
                answer = self._pending.pop(message["id"])
                if not answer.cancelled():
                    answer.set_exception(ForkServerLost(f"the warm process cannot fork: {message['error']}"))
            case "ended":
                self.children.pop(message["pid"])._end(message["code"])

    def _lose(self) -> None:
        """Fail all that waits, because the warm process is gone. The kernel kills its children."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        lost = ForkServerLost("the warm process ended")
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._pending.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(lost)
        self._pending.clear()
        for child in list(self.children.values()):
            # Where the kernel does not kill them, nobody else does. Their slots stay locked until they are gone.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child._end(LOST)
        self.children.clear()
