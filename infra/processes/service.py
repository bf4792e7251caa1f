"""One embedded service: a process on loopback, shared by the runs of one home.

An OS lock, ``<home>/services/<name>.lock``, decides which process runs the service. The holder starts it,
waits until it answers, and publishes its address in ``<home>/services/<name>.json``. The others read that, and
take the lock over when the holder has ended. :meth:`Service.ensure` does what is needed, and is called again
during a run.

The service ends with its holder, even if that is killed. On Linux the kernel ends it (:mod:`infra.processes.bound`).
Elsewhere the holder ends it at exit, and after a SIGKILL the next start ends the process left behind. The service has
a session of its own, so that a terminal's Ctrl-C reaches only the coordinator.

A *detached* service (those of ``fedbench up``) outlives its starter, and holds the lock itself, because it inherits the
open lock file. So the kernel knows whether it lives; a process id could be another process's by now.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from infra.errors import HomeInUse, ServiceFailed
from infra.files.lock import FileLock
from infra.processes.definition import ServiceDefinition
from infra.processes.holder import STARTING, ServiceHolder, find_holder
from infra.processes.launch import end_group, launch
from infra.processes.logs import last_lines
from infra.processes.ports import LOOPBACK, await_free_port, bindable, free_port
from infra.processes.publication import (
    Publication,
    end_left_behind,
    end_session,
    publication_of,
    read_publication,
    write_publication,
)

log = logging.getLogger(__name__)

TAIL_LINES = 8  # of the log, in the error message of a service that did not come up
START_ATTEMPTS = 3
STOP_SECONDS = 10.0  # time for a service to end after SIGTERM
START_GRACE = 30.0  # time for another process to finish starting a detached service
REFUSED = frozenset({401, 403})  # HTTP statuses for wrong credentials
DYING_SECONDS = 1.0  # time for which a killed server may keep its port and lock


class Service(ServiceDefinition):
    """Base of the embedded services. Subclasses override the parts of :class:`ServiceDefinition`.

    Not for use in a child forked from the process that holds it.
    """

    def __init__(self, home: Path, *, port: int | None = None, host: str = LOOPBACK, detached: bool = False) -> None:
        """port: used if it is free; None: the port of the last start. host: address to listen at."""
        super().__init__(home, host)
        self.detached = detached
        self._wanted_port = port
        self._publication = self.folder / f"{self.name}.json"
        self._lock = FileLock(self.folder / f"{self.name}.lock")
        self._guard = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self._address: str | None = None
        self._attempts = 0
        self._stopping = False
        self._owner = os.getpid()

    @property
    def address(self) -> str:
        """URL of the service that :meth:`ensure` found or started."""
        if self._address is None:
            raise ServiceFailed(f"{self.name}: not started")
        return self._address

    @property
    def last_address(self) -> str:
        """URL at which :meth:`ensure` found the service, or at which it is expected if it did not come up."""
        found = self._published()
        return self._address or self.address_at(found.port if found is not None else self._wanted_port or 0)

    @property
    def port(self) -> int:
        """Port of the service that :meth:`ensure` found or started."""
        if self._address is None or self._port is None:
            raise ServiceFailed(f"{self.name}: not started")
        return self._port

    @property
    def is_holder(self) -> bool:
        return self._lock.held

    def running(self) -> ServiceHolder | None:
        """Return the current holder, whether or not the service answers; None: nobody holds it."""
        return find_holder(self._lock, self._published, self.address_at)

    def is_alive(self) -> bool:
        """Whether the process that this object started is running. False if another run holds the service."""
        return self._process is not None and self._process.poll() is None

    def answers(self, timeout: float = 5.0) -> bool:
        """Whether the service answers at its address within ``timeout`` seconds."""
        return self._address is not None and self.answers_at(self._address, timeout)

    def ensure(self) -> bool:
        """Make sure that the service answers: start it, restart it (on its port if free), or find another run's.

        Return whether this call started a process or the address has changed.

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
        """Second half of :meth:`ensure`: wait until the service answers. One that ends early gets another port."""
        with self._guard:
            deadline = time.monotonic() + self.start_seconds
            while time.monotonic() < deadline:
                if self._stopping:  # by another thread, which waits for this one to leave
                    raise ServiceFailed(f"{self.name}: stopped while it was coming up")
                if self._lock.held:
                    if self._came_up():
                        return
                elif self._shares():
                    return
                else:
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

    def end(self, grace: float = STOP_SECONDS) -> bool:
        """End a detached service, whoever started it: with SIGTERM, and with SIGKILL after ``grace`` seconds.

        Return whether there was one. A run's own service is left alone.
        """
        with self._guard:
            deadline = time.monotonic() + START_GRACE
            while (running := self.running()) is not None and running.starting and time.monotonic() < deadline:
                time.sleep(0.1)
            if running is not None and (running.starting or not running.detached):
                return False
            if running is not None:
                end_session(running.pid, grace)
                # A process counts as dead once its first thread has ended; its files stay open until the last one has.
                deadline = time.monotonic() + DYING_SECONDS
                while self._lock.is_taken() and time.monotonic() < deadline:
                    time.sleep(0.02)
            found = self._published()
            if found is not None:
                self._withdraw(found)
                end_left_behind(found)  # the children of one that was killed
            self._address = None
            return running is not None

    # Implementation.

    def _shares(self) -> bool:
        """Whether the service of another process answers.

        Raises:
            HomeInUse: a run holds it and a stack asks for it, or the other way round.
        """
        running, found = self.running(), self._published()
        if running is None or found is None or running.address is None:
            return False
        if running.detached != self.detached:
            raise HomeInUse(
                f"{self.name}: process {running.pid}, a run of {self.home}, has it open"
                if self.detached
                else f"{self.name}: process {running.pid} belongs to a stack; try again, or end it: fedbench down"
            )
        if not self._accepts(running.address):
            return False
        if running.address != self._address and self._takes_anybody(running.address):
            raise HomeInUse(
                f"{self.name}: process {running.pid}, of an older fedbench, runs a server that asks for no "
                "credentials; wait for it to end, or end it, and start again"
            )
        self._port, self._address = found.port, running.address
        return True

    def _take_over(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not self._lock.acquire(note=STARTING if self.detached else ""):
            return
        try:
            found = self._published()
            if found is not None:
                self._withdraw(found)  # nobody must use the dead service's address for the new one
                end_left_behind(found)
                await_free_port(found.port, DYING_SECONDS, self.host)
            self._port = self._wanted_port or (found.port if found is not None else None)
            self._spawn()
        except BaseException:
            self.stop()  # otherwise :meth:`end` would wait for a start that has failed
            raise

    def _spawn(self) -> None:
        self._attempts += 1
        if self.keeps_port and self._wanted_port is not None:
            self._port = self._wanted_port
            if bindable(self._port, self.host) is None:
                self._fail(f"port {self._port} is taken by another process")
        self.prepare()
        self.log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = free_port(self._port, self.host)
        self._process = launch(
            self.command(self._port),
            self.environment(self._port),
            folder=self.folder,
            log_path=self.log_path,
            group=self.has_children,
            lock=self._lock.descriptor if self.detached else None,
        )
        atexit.unregister(self.stop)
        atexit.register(self.stop)
        self._publish(None)

    def _came_up(self) -> bool:
        if not self.is_alive():
            status = self._process.returncode if self._process is not None else None
            if status == -signal.SIGKILL:
                # Somebody killed it, so another attempt may succeed. Runs that use it expect the same port.
                self._attempts -= 1
            else:
                self._port = None  # most likely taken by another process between our check and the bind
            if self._attempts >= START_ATTEMPTS:
                self._fail(f"ended with status {status}, {self._attempts} times")
            self._spawn()
            return False
        assert self._port is not None
        address = self.address_at(self._port)
        # A foreign process at the port would answer too, but then ours cannot bind and ends: check both.
        if not (self._accepts(address) and self.is_alive()):
            return False
        if self._address != address or self._attempts:
            self._address = address
            self._publish(address)
        if self.detached:
            self._lock.release()  # the service holds it itself
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

    def _accepts(self, address: str) -> bool:
        """Whether the service answers at ``address``.

        Raises:
            ServiceFailed: it refuses our credentials.
        """
        status = self._ask(address, 5.0)
        if status in REFUSED and self.health_headers():
            self._fail(f"{address} refuses the credentials in {self.folder}")
        return status in self.healthy

    def _published(self) -> Publication | None:
        return read_publication(self._publication)

    def _publish(self, address: str | None) -> None:
        if self._process is None or self._port is None:
            return
        write_publication(self._publication, publication_of(self._process.pid, self._port, address))

    def _withdraw(self, found: Publication) -> None:
        write_publication(self._publication, found.model_copy(update={"address": None}))

    def _end_process(self, grace: float) -> None:
        if self._process is not None:
            end_group(self._process, grace)
            try:
                self._publish(None)
            except OSError:  # a full disk: the next holder finds a dead process there, and no lock
                log.info("%s: %s still names the ended process", self.name, self._publication)
            self._process = None

    def _fail(self, reason: str) -> None:
        tail = "\n".join(last_lines(self.log_path, TAIL_LINES)[0])
        self.stop()
        raise ServiceFailed(f"{self.name}: {reason}; log {self.log_path}" + (f" ends:\n{tail}" if tail else ""))
