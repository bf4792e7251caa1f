"""One embedded service: a child process on loopback, shared by the runs of one home.

An OS lock, ``<home>/services/<name>.lock``, decides which process runs the service. The holder starts it,
waits until it answers and publishes where in ``<home>/services/<name>.json``; the others read that, and take
the lock over when the holder has ended. :meth:`Service.ensure` does whichever is due, and is called again in
the middle of a run.

The service dies with its holder, SIGKILL included: by the kernel on Linux (:mod:`infra.services.bound`);
elsewhere at exit, and after a SIGKILL by the next start, which ends a process left behind. It has a session
of its own, so that a terminal's Ctrl-C reaches only the coordinator.
"""

from __future__ import annotations

import atexit
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, ClassVar
from urllib.parse import urlsplit

import psutil
from pydantic import BaseModel, ValidationError

from infra.errors import ServiceFailed
from infra.lock import FileLock

LOOPBACK = "127.0.0.1"
LOG_LIMIT = 16_000_000  # bytes; a longer log is set aside at the next start
START_ATTEMPTS = 3
DYING_SECONDS = 1.0  # that a killed server may keep its port; runs that shared it expect the next one there
# Settings of the user's own rclone, Prefect and MLflow, and our credentials, are none of the embedded
# services'.
FOREIGN_VARIABLES = ("RCLONE_", "PREFECT_", "MLFLOW_", "FEDBENCH_")

# The kernel's parent-death signal comes when the *thread* that forked ends, so one that lives as long as the
# process starts them all, whichever thread asks.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="service-starter")
_LAUNCHER = str(Path(__file__).with_name("bound.py"))


class Publication(BaseModel):
    """``<name>.json``: the process, and its address while it answers (None before and after)."""

    port: int
    pid: int
    created: float
    address: str | None = None


class Service:
    """Base of the embedded services. Subclasses say what runs and how it answers.

    Not for use in a child forked from the process that holds it.
    """

    name: ClassVar[str]
    health_path: ClassVar[str] = "/"
    healthy: ClassVar[frozenset[int]] = frozenset({200})  # HTTP statuses that count as an answer
    start_seconds: ClassVar[float] = 60.0  # for one start, on a slow and loaded machine
    patience_seconds: ClassVar[float] = 15.0  # a live process that does not answer for so long is restarted
    has_children: ClassVar[bool] = False  # its command starts processes of its own

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.folder = self.home / "services"
        self.log_path = self.home / "logs" / f"{self.name}.log"
        self._lock = FileLock(self.folder / f"{self.name}.lock")
        self._guard = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self._address: str | None = None
        self._attempts = 0
        self._stopping = False
        self._owner = os.getpid()

    # What a subclass says.

    def command(self, port: int) -> list[str]:
        """Absolute path of the program and its arguments. No secrets: ``ps`` shows them."""
        raise NotImplementedError

    def environment(self, port: int) -> dict[str, str]:
        """Variables for the service at ``port``, on top of this process's."""
        return {}

    def prepare(self) -> None:
        """Folders and files that the service needs; called by the holder before each start."""

    def address_at(self, port: int) -> str:
        return f"http://{LOOPBACK}:{port}"

    # What the rest uses.

    @property
    def address(self) -> str:
        """URL of the service that :meth:`ensure` found or started."""
        if self._address is None:
            raise ServiceFailed(f"{self.name}: not started")
        return self._address

    @property
    def is_holder(self) -> bool:
        return self._lock.held

    def is_alive(self) -> bool:
        """The process that this object started is running (of a service that another run holds: False)."""
        return self._process is not None and self._process.poll() is None

    def answers(self, timeout: float = 5.0) -> bool:
        """The service answers at its address within ``timeout`` seconds."""
        return self._address is not None and self._healthy(self._address, timeout)

    def ensure(self) -> bool:
        """Have the service answering: start it, restart it (on its port if that is free), or find another
        run's.

        Returns whether this call started a process or the address is another than before.

        Raises:
            ServiceFailed: it did not come up; the message has the end of its log.
        """
        with self._guard:
            before, process = self._address, self._process
            self.begin()
            self.complete()
            return self._process is not process or self._address != before

    def begin(self) -> None:
        """First half of :meth:`ensure`: start what must be started, without waiting for it to answer."""
        with self._guard:
            self._attempts = 0
            if not self._lock.held:
                self._take_over()
            elif not (self.is_alive() and self._answers_patiently()):
                self._end_process(grace=1.0)
                self._spawn()

    def complete(self) -> None:
        """Second half of :meth:`ensure`: wait until it answers, trying again on another port if it ends
        early.
        """
        with self._guard:
            deadline = time.monotonic() + self.start_seconds
            while time.monotonic() < deadline:
                if self._stopping:  # by another thread, which waits for this one to leave
                    raise ServiceFailed(f"{self.name}: stopped while it was coming up")
                if self._lock.held:
                    if self._came_up():
                        return
                else:
                    found = self._published()
                    if found is not None and found.address is not None and self._healthy(found.address, 5.0):
                        self._port, self._address = found.port, found.address
                        return
                    self._take_over()
                time.sleep(0.1)
            self._fail(f"does not answer after {self.start_seconds:.0f} s")

    def stop(self) -> None:
        """End the service if this process runs it, and free the lock. Runs that shared it start it again."""
        if self._owner != os.getpid():
            return
        self._stopping = True
        with self._guard:
            self._stopping = False
            self._address = None
            if self._lock.held:
                self._end_process(grace=5.0)
                self._lock.release()

    # How.

    def _take_over(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not self._lock.acquire():
            return
        found = self._published()
        if found is not None:
            self._port = found.port
            _end_left_behind(found)
            _await_free_port(found.port, DYING_SECONDS)
        self._spawn()

    def _spawn(self) -> None:
        self._attempts += 1
        self.prepare()
        self.log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = _free_port(self._port)
        group = ["--group"] if self.has_children else []
        launcher = [sys.executable, "-I", "-S", _LAUNCHER, *group, str(os.getpid())]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN_VARIABLES)}
        environment.update(self.environment(self._port))
        with _open_log(self.log_path) as log:
            self._process = _STARTER.submit(
                subprocess.Popen,
                [*launcher, *self.command(self._port)],
                env=environment,
                cwd=self.folder,  # Prefect and MLflow read and write files of the working folder
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            ).result()
        atexit.unregister(self.stop)
        atexit.register(self.stop)
        self._publish(None)

    def _came_up(self) -> bool:
        if not self.is_alive():
            status = self._process.returncode if self._process is not None else None
            if status == -signal.SIGKILL:
                # Somebody's doing, which says nothing against another attempt; runs that use it expect the same port.
                self._attempts -= 1
            else:
                self._port = None  # most likely somebody took it between our look and its bind
            if self._attempts >= START_ATTEMPTS:
                self._fail(f"ended with status {status}, {self._attempts} times")
            self._spawn()
            return False
        assert self._port is not None
        address = self.address_at(self._port)
        # A foreign process at the port would answer too, but then ours cannot bind and ends: look at both.
        if not (self._healthy(address, 5.0) and self.is_alive()):
            return False
        if self._address != address or self._attempts:
            self._address = address
            self._publish(address)
        return True

    def _answers_patiently(self) -> bool:
        deadline = time.monotonic() + self.patience_seconds
        while self.is_alive() and not self._stopping:
            if self.answers():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        return False

    def _healthy(self, address: str, timeout: float) -> bool:
        parts = urlsplit(address)
        # http.client knows no proxies: a proxy of the environment must not be asked for loopback.
        connection = http.client.HTTPConnection(parts.hostname or LOOPBACK, parts.port, timeout=timeout)
        try:
            connection.request("GET", self.health_path)
            return connection.getresponse().status in self.healthy
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _published(self) -> Publication | None:
        try:
            return Publication.model_validate_json(self._publication.read_bytes())
        except (OSError, ValidationError):
            return None

    def _publish(self, address: str | None) -> None:
        if self._process is None or self._port is None:
            return
        try:
            created = psutil.Process(self._process.pid).create_time()
        except psutil.NoSuchProcess:
            created = 0.0
        document = Publication(port=self._port, pid=self._process.pid, created=created, address=address)
        write_private(self._publication, document.model_dump_json())

    @property
    def _publication(self) -> Path:
        return self.folder / f"{self.name}.json"

    def _end_process(self, grace: float) -> None:
        if self._process is not None:
            _end_group(self._process, grace)
            self._publish(None)
            self._process = None

    def _fail(self, reason: str) -> None:
        tail = _tail(self.log_path)
        self.stop()
        raise ServiceFailed(f"{self.name}: {reason}; log {self.log_path}" + (f" ends:\n{tail}" if tail else ""))


def write_private(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all, readable by its owner only (0600)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def _free_port(preferred: int | None) -> int:
    for port in (preferred, 0):
        if port is not None and (bound := _bindable(port)) is not None:
            return bound
    raise ServiceFailed(f"no free port on {LOOPBACK}")


def _bindable(port: int) -> int | None:
    """``port`` (0: any) when it can be bound at the moment."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _await_free_port(port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _bindable(port) is None and time.monotonic() < deadline:
        time.sleep(0.02)


def _open_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def _tail(path: Path, lines: int = 8) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _end_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """End the process and its group: asked first, then by force."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        if process.poll() is None:
            try:
                os.killpg(process.pid, number)
                process.wait(seconds)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _end_left_behind(found: Publication) -> None:
    """End the service of a holder that died: its process id may be another process's by now, so it is
    verified.
    """
    try:
        process = psutil.Process(found.pid)
        ours = abs(process.create_time() - found.created) < 1.0
        if ours and any(str(found.port) in argument for argument in process.cmdline()):
            os.killpg(found.pid, signal.SIGKILL)
            process.wait(10)
    except (psutil.Error, ProcessLookupError, PermissionError):
        return
