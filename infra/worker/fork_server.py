"""The warm process: imports once what runs need, then forks a child for each.

    python -P -m infra.worker.fork_server REQUESTS EVENTS MODULE …

It is one thread that never calls CUDA, so that its children may. ``REQUESTS`` is a socket from which the worker's
requests come (:mod:`infra.worker.warm_process`), each with the open lock of its slot; ``EVENTS`` is a pipe that tells
the worker of starts and ends.

Not ``multiprocessing.forkserver``: that one prepares each child for ``multiprocessing`` (the worker's main module is
run again in it), and when it dies its children live on, unseen, in their slots. Here
- a child leads a session of its own, and what it leaves behind is killed and reaped before its end is told;
- children die with the server (Linux: by the kernel), and the server ends with the worker.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fedbench
from infra.processes.bound import bind
from infra.worker import engine_child

PR_SET_CHILD_SUBREAPER = 36
# What a killed process group may take to be gone; a process stuck in a driver keeps its slot by the slot's lock.
GONE_SECONDS = 10.0


class ForkServer:
    """The loop of the warm process: requests, forks, and ends."""

    def __init__(self, channel: socket.socket, events: int) -> None:
        self.channel = channel
        self.events = events
        self._running: set[int] = set()
        # Ended, but others of their group may still be there: exit code, and until when we wait.
        self._ending: dict[int, tuple[int, float]] = {}

    def tell(self, **message: Any) -> None:
        os.write(self.events, json.dumps(message).encode() + b"\n")  # far below what a pipe takes at once

    def serve(self) -> dict[str, Any] | None:
        """The request, in a child that was forked for it; None in the server, when the worker is gone."""
        awake, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(awake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        while True:
            watched: list[Any] = [self.channel, awake]
            ready, _, _ = select.select(watched, [], [], 0.05 if self._ending else None)
            if awake in ready:
                os.read(awake, 4096)
            try:
                self._reap()
                if self.channel in ready:
                    found = self._receive()
                    if found is None:
                        break
                    request, descriptors = found
                    if "signal" in request:
                        self._signal(request["pid"], request["signal"])
                    elif self._fork(request, descriptors):
                        os.close(awake)
                        os.close(wake)
                        return request
            except ConnectionError:  # the worker is gone
                break
        self._end_all()
        return None

    def _receive(self) -> tuple[dict[str, Any], list[int]] | None:
        head, descriptors, _, _ = socket.recv_fds(self.channel, 4, 1)
        while head and len(head) < 4:
            head += self.channel.recv(4 - len(head))
        if not head:
            return None
        body, size = b"", int.from_bytes(head, "big")
        while len(body) < size:
            part = self.channel.recv(size - len(body))
            if not part:
                return None
            body += part
        return json.loads(body), list(descriptors)

    def _fork(self, request: dict[str, Any], descriptors: list[int]) -> bool:
        """Whether this is the child. It keeps the slot's lock open, and so do processes that it forks."""
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self.tell(event="failed", id=request["id"], error=str(error))
            pid = -1
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.channel.close()
            os.close(self.events)
            os.setsid()
            bind(server, signal.SIGKILL)
            return True
        for descriptor in descriptors:
            os.close(descriptor)
        if pid > 0:
            self._running.add(pid)
            self.tell(event="started", id=request["id"], pid=pid)
        return False

    def _signal(self, pid: int, number: int) -> None:
        """To the whole group of ``pid``. Here, where a child's number cannot be another process's yet."""
        if pid in self._running:
            _kill_group(pid, number)

    def _reap(self) -> None:
        while self._running or self._ending:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if ended is None:
                break
            pid = ended.si_pid
            if pid in self._running:
                _kill_group(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
            _, status = os.waitpid(pid, 0)
            if pid in self._running:
                self._running.discard(pid)
                self._ending[pid] = (os.waitstatus_to_exitcode(status), time.monotonic() + GONE_SECONDS)
        for pid, (code, deadline) in list(self._ending.items()):
            if not _kill_group(pid, 0) or time.monotonic() > deadline:
                del self._ending[pid]
                self.tell(event="ended", pid=pid, code=code)

    def _end_all(self) -> None:
        signal.set_wakeup_fd(-1)
        for pid in self._running:
            _kill_group(pid, signal.SIGKILL)
        for pid in self._running:
            os.waitpid(pid, 0)
            _kill_group(pid, signal.SIGKILL)


def _kill_group(pid: int, number: int) -> bool:
    """Send a signal (0: none) to the group of ``pid``. Whether there is a process in it."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return _not_yet_leader(pid, number)
    except PermissionError:  # macOS: only zombies are left
        return False
    return True


def _not_yet_leader(pid: int, number: int) -> bool:
    """A child that was forked this very moment is in the server's own group still."""
    try:
        if os.getpgid(pid) != os.getpgrp():
            return False
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _report() -> dict[str, Any]:
    """What a worker, and a test, wants to know of a server that is to be forked."""
    torch = sys.modules.get("torch")
    maps = Path("/proc/self/maps")
    return {
        "threads": threading.active_count(),
        "cuda_initialised": bool(torch is not None and torch.cuda.is_initialized()),
        # The driver's library is loaded by the first call of CUDA, and by nothing before.
        "driver_loaded": maps.exists() and "libcuda.so" in maps.read_text(),
    }


def main() -> None:
    began = time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C; the worker alone decides what it means
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        fedbench.require_own_packages()
    except fedbench.PackageHidden as error:
        sys.exit(f"error: {error}")  # what it imports below would fail less clearly
    server = ForkServer(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    for number in sys.argv[1:3]:
        os.set_inheritable(int(number), False)
    for name in sys.argv[3:]:
        importlib.import_module(name)
    engine_child.prepare()
    gc.collect()
    gc.freeze()  # what is there now is never looked at again, so its pages stay shared
    server.tell(event="ready", seconds=time.monotonic() - began, **_report())
    request = server.serve()
    if request is not None:
        engine_child.run(request)
    os._exit(0)  # see engine_child._end; there is nothing to send


if __name__ == "__main__":
    main()
