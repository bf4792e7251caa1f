"""The warm process: it imports once what runs need, then forks a child for each run.

    python -P -m infra.worker.fork_server REQUESTS EVENTS MODULE …

It has a single thread, which never calls CUDA, so that its children may. ``REQUESTS`` is a socket on which the worker
sends requests (:mod:`infra.worker.warm_process`), each with the open lock of its slot. ``EVENTS`` is a pipe on which
this process reports to the worker that children have started and ended.

``multiprocessing.forkserver`` would not do: it prepares each child for ``multiprocessing`` (which runs the worker's
main module again in it), and if it dies its children go on in their slots, where nobody knows of them. Here
- a child leads a session of its own, and processes that it leaves behind are killed and reaped before its end is
  reported;
- children die with the server (on Linux, the kernel kills them), and the server ends with the worker.
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
# The most that a killed process group may take to end. A process that is stuck in a driver still holds its slot's
# lock, and so its slot.
GONE_SECONDS = 10.0


class ForkServer:
    """The loop of the warm process: it takes requests, forks children and reports their ends."""

    def __init__(self, channel: socket.socket, events: int) -> None:
        self.channel = channel
        self.events = events
        self._running: set[int] = set()
        # Children that have ended, while others of their group may still run: exit code, and until when we wait.
        self._ending: dict[int, tuple[int, float]] = {}

    def report(self, **message: Any) -> None:
        os.write(self.events, json.dumps(message).encode() + b"\n")  # short enough for a pipe to take it whole

    def serve(self) -> dict[str, Any] | None:
        """Take requests until the worker is gone. Return the request in the child that is forked for it, else None."""
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
        """Fork. Return whether this is the child, which keeps the slot's lock open, as do processes that it forks."""
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self.report(event="failed", id=request["id"], error=str(error))
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
            self.report(event="started", id=request["id"], pid=pid)
        return False

    def _signal(self, pid: int, number: int) -> None:
        """Signal the whole group of ``pid``. Only here is it certain that no other process has that number by now."""
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
                _kill_group(pid, signal.SIGKILL)  # it is not reaped yet, so no other process has its number
            _, status = os.waitpid(pid, 0)
            if pid in self._running:
                self._running.discard(pid)
                self._ending[pid] = (os.waitstatus_to_exitcode(status), time.monotonic() + GONE_SECONDS)
        for pid, (code, deadline) in list(self._ending.items()):
            if not _kill_group(pid, 0) or time.monotonic() > deadline:
                del self._ending[pid]
                self.report(event="ended", pid=pid, code=code)

    def _end_all(self) -> None:
        signal.set_wakeup_fd(-1)
        for pid in self._running:
            _kill_group(pid, signal.SIGKILL)
        for pid in self._running:
            os.waitpid(pid, 0)
            _kill_group(pid, signal.SIGKILL)


def _kill_group(pid: int, number: int) -> bool:
    """Send a signal (0: none) to the group of ``pid``. Return whether a process is in it."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return _signal_before_session(pid, number)
    except PermissionError:  # macOS: only zombies are left
        return False
    return True


def _signal_before_session(pid: int, number: int) -> bool:
    """Signal a child that was just forked and is still in the server's own group. Return whether it is one."""
    try:
        if os.getpgid(pid) != os.getpgrp():
            return False
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _facts() -> dict[str, Any]:
    """Return what the worker and tests check: whether this process may be forked, and its children may use CUDA."""
    torch = sys.modules.get("torch")
    maps = Path("/proc/self/maps")
    return {
        "threads": threading.active_count(),
        "cuda_initialised": bool(torch is not None and torch.cuda.is_initialized()),
        # Only the first call of CUDA loads the driver's library.
        "driver_loaded": maps.exists() and "libcuda.so" in maps.read_text(),
    }


def main() -> None:
    began = time.monotonic()
    # Only the worker acts on Ctrl-C in a terminal, and on the SIGTERM that Slurm sends to all processes of a job. If
    # this process ended, its children would be killed before they have given their turns back.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        fedbench.require_own_packages()
    except fedbench.PackageHidden as error:
        sys.exit(f"error: {error}")  # what it imports below would fail less clearly
    server = ForkServer(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    for descriptor in sys.argv[1:3]:
        os.set_inheritable(int(descriptor), False)
    for name in sys.argv[3:]:
        importlib.import_module(name)
    engine_child.prepare()
    gc.collect()
    gc.freeze()  # the collector never visits these objects again, so their pages stay shared
    server.report(event="ready", seconds=time.monotonic() - began, **_facts())
    request = server.serve()
    if request is not None:
        engine_child.run(request)
    os._exit(0)  # why, engine_child._end says; no exit handler has anything to send here


if __name__ == "__main__":
    main()
