"""The stack's supervisor restarts dead servers on their ports, with pauses, and never while `up` or `down` runs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.files.lock import FileLock
from infra.processes.ports import free_port
from infra.servers.credentials import draw_keys
from infra.servers.s3 import S3Service
from infra.settings import Settings
from infra.stack.services import WORKERS
from infra.stack.stack import Stack
from infra.stack.state import PortChoice, StackState, read_state, stack_lock, write_state
from infra.stack.supervision import LONGEST_WAIT, STABLE_SECONDS, BackOff, Supervisor
from infra.stack.supervisor_service import SupervisorService
from infra.store.objects import ObjectStore
from tests.infra.stack.clock import Clock
from tests.waiting import eventually, gone


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Make the home of a stack with a real store. This process holds the locks of the other servers."""
    home = tmp_path / "home"
    others = [FileLock(home / "services" / f"{name}.lock") for name in ("prefect", "mlflow")]
    assert all(lock.acquire() for lock in others)
    draw_keys(home / "services")
    service = S3Service(home, port=free_port(None), detached=True)
    service.ensure()
    ObjectStore(service.resolved(Settings(home=home).s3, service.address)).ensure_bucket()
    addresses = {
        "s3": service.address,
        "prefect": "http://127.0.0.1:9/api",
        "mlflow": "http://127.0.0.1:9",
    }
    ports = {"s3": PortChoice(asked=Settings(home=home).ports.s3, chosen=service.port)}
    write_state(home, StackState(up=True, addresses=addresses, ports=ports))
    yield home
    for end in (SupervisorService(home), S3Service(home, detached=True)):
        end.end()
    for lock in others:
        lock.release()


def _pid(home: Path) -> int | None:
    """Return the process id of the store; None if it does not answer at the address that clients use."""
    running, address = S3Service(home).running(), read_state(home).addresses["s3"]
    if running is None or not S3Service(home).answers_at(address):
        return None
    assert running.address == address
    return running.pid


def _kill(home: Path) -> int:
    pid = _pid(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: S3Service(home).running() is None, 30)
    return pid


def test_a_dead_server_is_restarted_on_its_port_and_the_second_time_after_a_pause(home: Path) -> None:
    clock, before = Clock(), _pid(home)
    supervisor = Supervisor(Settings(home=home), back_off=BackOff(clock))
    assert supervisor.look()
    assert _pid(home) == before
    _kill(home)
    assert supervisor.look()
    assert _pid(home) not in (None, before)
    assert (home / "s3" / "fedbench").is_dir()
    killed = _kill(home)
    assert supervisor.look()
    assert _pid(home) is None
    assert not psutil.pid_exists(killed)  # this process's child, which has been waited for
    clock.now += 2.0
    assert supervisor.look()
    assert _pid(home) is not None


def test_a_restart_waits_for_the_servers_port(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    supervisor = Supervisor(Settings(home=home), back_off=BackOff(clock))
    port = read_state(home).ports["s3"].chosen
    _kill(home)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert supervisor.look()
        assert _pid(home) is None
    assert re.search(rf"s3 had died and did not come back, again in 2 s: s3: port {port} is taken", caplog.text)
    clock.now += 2.0
    assert supervisor.look()
    assert _pid(home) is not None


def test_nothing_is_restarted_during_up_or_down_nor_after_down(home: Path) -> None:
    supervisor = Supervisor(Settings(home=home))
    _kill(home)
    lock = stack_lock(home)
    assert lock.acquire()
    assert supervisor.look()
    lock.release()
    assert _pid(home) is None
    write_state(home, read_state(home).model_copy(update={"addresses": {}}))  # as a killed `up` leaves it
    assert supervisor.look()
    assert Stack(Settings(home=home)).down(print) == ()
    assert not supervisor.look()
    assert S3Service(home).running() is None


def test_workers_wait_for_prefects_server(home: Path) -> None:
    write_state(home, read_state(home).model_copy(update={"workers": True}))
    assert Supervisor(Settings(home=home)).look()
    assert not any((home / "logs" / f"{name}.log").exists() for name in WORKERS)


def test_the_supervisors_process_restarts_servers_and_ends_with_the_stack(home: Path) -> None:
    service = SupervisorService(home)
    service.ensure()
    before = _kill(home)
    assert eventually(lambda: _pid(home) not in (None, before), 30)
    found = {item.name: item for item in Stack(Settings(home=home)).status()}
    assert (found["s3"].state, found["supervisor"].state) == ("up", "up")
    supervisor = found["supervisor"].pid
    assert supervisor is not None
    assert eventually(lambda: "s3 had died; it is back at http://" in service.log_path.read_text(), 30)
    assert Stack(Settings(home=home)).down(print) == ("supervisor", "s3")
    assert gone(supervisor)
    assert S3Service(home).running() is None
    assert service.running() is None


def test_the_supervisor_ends_by_itself_when_the_stack_is_down(home: Path) -> None:
    service = SupervisorService(home)
    service.ensure()
    write_state(home, StackState())
    assert eventually(lambda: service.running() is None, 30)
    assert "the stack has been ended" in service.log_path.read_text()


def test_pauses_grow_and_start_again_after_a_stable_time() -> None:
    clock = Clock()
    back_off = BackOff(clock)
    assert back_off.wait("s3") == 0.0
    waits = []
    for _ in range(10):
        back_off.started("s3")
        waits.append(back_off.wait("s3"))
        clock.now += waits[-1]
        assert back_off.wait("s3") == 0.0
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, LONGEST_WAIT, LONGEST_WAIT]
    assert back_off.wait("prefect") == 0.0
    back_off.started("s3")
    clock.now += STABLE_SECONDS + 1
    back_off.started("s3")
    assert back_off.wait("s3") == 2.0


def test_the_supervisor_imports_nothing_heavy() -> None:
    script = "import sys, infra.stack.supervision; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert "infra" in loaded
    assert not loaded & {"prefect", "torch", "mlflow", "boto3", "numpy", "sqlalchemy"}
