"""The real warm process: its children, their ends and signals, and its replacement. Only one test imports torch."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from infra.errors import ForkServerLost
from infra.files.lock import FileLock
from infra.worker.forks import Forks
from infra.worker.warm_process import LOST, Child, ForkRequest
from tests.waiting import came_true, eventually, gone

ROOT = Path(__file__).resolve().parents[3]
# Replaces Prefect's engine, the module that a child runs.
ENGINE = """
import json, os, subprocess, sys, time
from pathlib import Path
what = os.environ["WHAT"]
if what == "report":
    Path("report").write_text(json.dumps([os.getcwd(), sys.path[0], dict(os.environ), os.getsid(0)]))
elif what == "linger":
    helper = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    Path("numbers.tmp").write_text(json.dumps([os.getpid(), helper.pid]))
    Path("numbers.tmp").replace("numbers")
    time.sleep(600)
elif what == "stubborn":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("numbers").touch()
    time.sleep(600)
sys.exit({"seven": 7, "words": "that was it"}.get(what))
"""


@pytest.fixture(autouse=True)
def our_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the warm process import this checkout, and a package of the test's in place of Prefect."""
    fake = tmp_path / "path" / "prefect"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "engine.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "path"), str(ROOT)]))


def request(folder: Path, what: str) -> ForkRequest:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH")}
    return ForkRequest({**kept, "WHAT": what}, str(folder))


def with_forks(use: Callable[[Forks], Awaitable[None]], *preload: str, runs: int = 100, megabytes: int = 500) -> None:
    async def run() -> None:
        forks = Forks(preload, runs=runs, megabytes=megabytes)
        try:
            await use(forks)
        finally:
            await forks.stop()

    asyncio.run(run())


async def lingering(forks: Forks, folder: Path, descriptor: int | None = None) -> tuple[Child, int]:
    """Fork a child that starts a process of its own. Return the child, and that process's id."""
    child = await forks.fork(request(folder, "linger"), descriptor)
    await came_true((folder / "numbers").exists)
    pid, helper = json.loads((folder / "numbers").read_text())
    assert pid == child.pid
    return child, helper


@pytest.mark.parametrize(("what", "code"), [("nothing", 0), ("seven", 7), ("words", 1)])
def test_a_child_ends_with_the_engines_exit_code(tmp_path: Path, what: str, code: int) -> None:
    async def use(forks: Forks) -> None:
        child = await forks.fork(request(tmp_path, what))
        assert await child.wait() == code

    with_forks(use)


def test_a_child_has_the_runs_variables_and_folder_and_its_own_session(tmp_path: Path) -> None:
    async def use(forks: Forks) -> None:
        asked = request(tmp_path, "report")
        child = await forks.fork(asked)
        assert await child.wait() == 0
        folder, first, variables, session = json.loads((tmp_path / "report").read_text())
        assert (folder, first, session) == (str(tmp_path), str(tmp_path), child.pid)
        assert variables.items() >= asked.environment.items()
        assert "PYTEST_CURRENT_TEST" not in variables  # the worker's own variables are not inherited

    with_forks(use)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_killed_child_has_ended_only_when_all_its_processes_are_gone(tmp_path: Path, number: signal.Signals) -> None:
    async def use(forks: Forks) -> None:
        child, helper = await lingering(forks, tmp_path)
        began = time.monotonic()
        os.kill(child.pid, number)
        assert await child.wait() == -number
        assert gone(child.pid)
        assert gone(helper)
        assert time.monotonic() - began < 10

    with_forks(use)


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    async def use(forks: Forks) -> None:
        child = await forks.fork(request(tmp_path, "stubborn"))
        await came_true((tmp_path / "numbers").exists)
        child.terminate(0.3)
        assert await child.wait() == -signal.SIGKILL

    with_forks(use)


def test_the_child_holds_the_slots_lock_until_it_ends(tmp_path: Path) -> None:
    async def use(forks: Forks) -> None:
        lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
        assert lock.acquire()
        child, _ = await lingering(forks, tmp_path, lock.descriptor)
        lock.release()
        assert not other.acquire()
        child.kill()
        await child.wait()
        assert other.acquire()

    with_forks(use)


def test_children_die_with_the_warm_process_and_a_new_one_is_started(tmp_path: Path) -> None:
    async def use(forks: Forks) -> None:
        child, helper = await lingering(forks, tmp_path)
        server = await forks.start()
        os.kill(server.pid, signal.SIGKILL)
        assert await child.wait() == LOST
        await came_true(lambda: gone(child.pid) and gone(helper))
        assert await (await forks.fork(request(tmp_path, "seven"))).wait() == 7
        assert (await forks.start()).pid != server.pid

    with_forks(use)


def test_stopping_ends_all_processes(tmp_path: Path) -> None:
    pids: list[int] = []

    async def use(forks: Forks) -> None:
        child, helper = await lingering(forks, tmp_path)
        pids.extend([child.pid, helper, (await forks.start()).pid])

    with_forks(use)
    assert eventually(lambda: all(gone(pid) for pid in pids))  # a killed process may take a moment to end


def test_a_warm_process_that_cannot_import_is_an_error(tmp_path: Path) -> None:
    async def use(forks: Forks) -> None:
        with pytest.raises(ForkServerLost):
            await forks.start()

    with_forks(use, "no_such_module_anywhere")


def test_the_warm_process_is_replaced_after_some_runs_and_ends_with_its_last(tmp_path: Path) -> None:
    async def use(forks: Forks) -> None:
        first = await forks.start()
        child, _ = await lingering(forks, tmp_path)
        assert forks.server is first
        await (await forks.fork(request(tmp_path, "nothing"))).wait()
        await came_true(lambda: forks.server is not first)
        assert await (await forks.fork(request(tmp_path, "seven"))).wait() == 7
        assert not gone(first.pid)  # its run goes on
        child.kill()
        await child.wait()
        await came_true(lambda: gone(first.pid))

    with_forks(use, runs=2)


GROWING = """
kept = [bytearray(100) for _ in range(10)]
import os
os.register_at_fork(before=lambda: kept.append(bytearray(os.urandom(1 << 20) * 40)))
"""


def test_the_warm_process_is_replaced_when_it_has_grown(tmp_path: Path) -> None:
    (tmp_path / "path" / "growing.py").write_text(GROWING)

    async def use(forks: Forks) -> None:
        first = await forks.start()
        await (await forks.fork(request(tmp_path, "nothing"))).wait()
        await came_true(lambda: forks.server is not first)

    with_forks(use, "growing", megabytes=20)


QUICKER_AT_LEAST = 20


def test_a_child_starts_much_faster_than_an_interpreter_with_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm process has one thread and has not initialised CUDA; otherwise it must not fork."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True)
    fresh = time.monotonic() - began

    async def use(forks: Forks) -> None:
        server = await forks.start()
        assert server.report["threads"] == 1
        assert server.report["cuda_initialised"] is False
        assert server.report["driver_loaded"] is False
        seconds = []
        for _ in range(5):
            began = time.monotonic()
            child = await forks.fork(ForkRequest({"PATH": os.environ["PATH"]}, str(tmp_path), quiet=True))
            seconds.append(time.monotonic() - began)
            child.kill()
            await child.wait()
        assert min(seconds) * QUICKER_AT_LEAST < fresh

    with_forks(use, "torch", "torchvision")
