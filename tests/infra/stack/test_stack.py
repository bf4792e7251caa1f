"""Detached services outlive their starter and hold their own lock. Any process can share, restart and end them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import HomeInUse, ServiceFailed
from infra.processes.ports import free_port
from infra.servers.s3 import S3Service
from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from infra.stack.services import SERVERS
from infra.stack.stack import Stack
from infra.stack.state import PortChoice, StackState, read_state, write_state
from infra.store.objects import ObjectStore
from tests.infra.processes import WithChildren, session
from tests.waiting import eventually, gone

STARTER = """
import sys
from pathlib import Path
from infra.servers.s3 import S3Service
service = S3Service(Path(sys.argv[1]), port=int(sys.argv[2]), detached=True)
service.ensure()
print(service.address, service.is_holder)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    S3Service(tmp_path / "home", detached=True).end()


def _start(home: Path, port: int) -> tuple[str, int]:
    """Start a detached S3 server from a process that then ends. Return the server's address and process id."""
    output = subprocess.check_output([sys.executable, "-c", STARTER, str(home), str(port)], text=True).split()
    running = S3Service(home).running()
    assert running is not None
    assert (running.detached, running.address, output[1]) == (True, output[0], "False")
    return output[0], running.pid


def _kill(home: Path, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: S3Service(home).running() is None, 30)


def test_a_server_outlives_its_starter_and_any_process_can_end_it(home: Path) -> None:
    port = free_port(None)
    address, pid = _start(home, port)
    assert address == f"http://127.0.0.1:{port}"
    assert os.getsid(pid) == pid
    second = S3Service(home, detached=True)
    assert second.ensure()
    assert (second.address, second.is_holder) == (address, False)
    second.stop()  # ends only what this process itself started
    assert not gone(pid)
    assert S3Service(home).end()
    assert gone(pid)
    assert S3Service(home).running() is None
    assert not S3Service(home).end()


def test_a_killed_server_is_started_again_on_its_port(home: Path) -> None:
    port = free_port(None)
    address, pid = _start(home, port)
    service = S3Service(home, detached=True)
    service.ensure()
    ObjectStore(service.resolved(Settings(home=home).s3, address)).ensure_bucket()
    _kill(home, pid)
    assert service.ensure()
    assert service.address == address
    running = service.running()
    assert running is not None
    assert (running.pid == pid, running.detached, service.is_holder) == (False, True, False)
    assert (home / "s3" / "fedbench").is_dir()


def test_a_process_with_a_reused_id_is_left_alone(home: Path) -> None:
    _, pid = _start(home, free_port(None))
    _kill(home, pid)
    stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        note = home / "services" / "s3.json"
        found = json.loads(note.read_bytes())
        note.write_text(json.dumps(found | {"pid": stray.pid}))
        (home / "services" / "s3.lock").write_text(f"{stray.pid} detached\n")
        write_state(home, StackState(up=True))
        service = S3Service(home, detached=True)
        assert service.running() is None
        assert [found.state for found in Stack(Settings(home=home)).status()] == ["crashed"] * (len(SERVERS) + 1)
        assert not service.end()
        assert Stack(Settings(home=home)).down(print) == ()
        service.ensure()
        assert stray.poll() is None
    finally:
        stray.kill()
        stray.wait()


def test_children_of_a_killed_server_end_before_the_next_one_starts(home: Path) -> None:
    service = WithChildren(home, port=free_port(None), detached=True)
    service.ensure()
    running = service.running()
    assert running is not None
    assert len(session(running.pid)) == 3  # launcher, command, its child
    _kill(home, running.pid)
    assert len(session(running.pid)) == 2
    address = service.address
    assert service.ensure()
    assert service.address == address
    assert session(running.pid) == []
    again = service.running()
    assert again is not None
    assert service.end()
    assert session(again.pid) == []


REFUSING = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Refuse(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(401)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Refuse).serve_forever()
"""


class _Protected(S3Service):
    def command(self, port: int) -> list[str]:
        return [sys.executable, "-c", REFUSING, str(port)]

    def health_headers(self) -> dict[str, str]:
        return {"Authorization": "Basic bm9ib2R5"}


def test_a_server_that_refuses_the_credentials_fails_at_once(home: Path) -> None:
    service = _Protected(home, port=free_port(None), detached=True)
    with pytest.raises(ServiceFailed, match=r"s3: http://.* refuses the credentials in .*services"):
        service.ensure()
    assert service.running() is None


def test_a_run_and_a_stack_exclude_each_other(home: Path) -> None:
    settings = Settings(home=home)
    with EmbeddedServices(settings, prefect=False) as run:
        assert run.s3 is not None
        with pytest.raises(HomeInUse, match=rf"s3: process {os.getpid()} \(a run, .* must not be opened twice"):
            Stack(settings).up(print, lambda prefect: None)
        assert not read_state(home).up
        assert [(found.state, found.run) for found in Stack(settings).status()] == [
            ("down", os.getpid()),
            ("down", None),
            ("down", None),
            ("down", None),
        ]
        assert Stack(settings).down(print) is None
        assert run.ensure() == []  # nothing had to be restarted
        with pytest.raises(HomeInUse, match="a run of"):
            S3Service(home, detached=True).ensure()
    _start(home, free_port(None))
    with pytest.raises(HomeInUse, match="fedbench down"):
        S3Service(home).ensure()


def test_runs_use_a_stack_restart_it_and_go_on_alone_when_it_is_down(home: Path) -> None:
    settings = Settings(home=home)
    address, pid = _start(home, free_port(None))
    port = int(address.rpartition(":")[2])
    ports = {"s3": PortChoice(asked=settings.ports.s3, chosen=port)}
    write_state(home, StackState(up=True, addresses={"s3": address}, ports=ports))
    with EmbeddedServices(settings, prefect=False) as run:
        assert run.uses_stack
        ObjectStore(run.s3_endpoint()).ensure_bucket()
        assert run.ensure() == []
        _kill(home, pid)
        assert run.ensure() == ["s3"]
    assert run.s3 is not None
    running = run.s3.running()
    assert running is not None  # a stack's server keeps running after the run
    named = settings.model_copy(update={"s3": settings.s3.model_copy(update={"endpoint": address})})
    with EmbeddedServices(named, prefect=False) as run:  # as in a shell that sourced stack.env
        assert run.uses_stack
        assert run.s3_endpoint().secret_key is not None
        assert Stack(settings).down(print)
        assert run.ensure() == ["s3"]
        assert not run.uses_stack
        assert run.s3_endpoint().endpoint == address
        assert run.s3 is not None
        assert run.s3.is_holder
    assert run.s3.running() is None
