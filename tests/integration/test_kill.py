"""The kill test: SIGKILLs of random processes at random moments change no bit of the result."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.spec.records import RoundRecord
from tests.integration.conftest import MANY_ROUNDS, FinishedRun
from tests.integration.homes import (
    PLAIN_SGD,
    TINY,
    Home,
    assert_consistent,
    assert_no_process_left,
    assert_tracked_once,
    digests,
    state_digests,
    tiny,
)

pytestmark = pytest.mark.integration

SEED = 20
STUCK_SECONDS = 120.0


def what(process: psutil.Process) -> str:
    """Return which part of a run the process is, for the test's output."""
    line = " ".join(process.cmdline())
    marks = {
        "serve s3": "store",
        "prefect_closed server": "prefect",
        "bound.py": "launcher",
        "resource_tracker": "resource tracker",
        "forkserver": "slot or fork server",
        "fedbench": "coordinator",
    }
    return next((name for mark, name in marks.items() if mark in line), line[:40])


def kill_one(home: Home, rng: random.Random) -> str | None:
    """SIGKILL one of the run's processes. Return which, or None if there is none or it has just ended."""
    processes = sorted(home.processes(), key=lambda process: process.pid)
    if not processes:
        return None
    victim = rng.choice(processes)
    try:
        name = what(victim)
        victim.kill()
    except psutil.NoSuchProcess:
        return None
    return name


def wait_for_moment(process: subprocess.Popen[bytes], output: Path, rng: random.Random) -> None:
    """Wait for the next moment to kill, or for the run's end.

    A quarter of the moments come after a random time, so that kills hit starts and recoveries too. The others come
    shortly after a random number of printed events, so that kills hit all phases on machines of any speed.
    """
    if rng.random() < 0.25:
        lines, pause = 0, rng.uniform(0.0, 8.0)
    else:
        lines, pause = rng.randint(1, 10), rng.uniform(0.0, 0.5)
    target = printed_events(output) + lines
    deadline = time.monotonic() + STUCK_SECONDS
    while process.poll() is None and printed_events(output) < target:
        assert time.monotonic() < deadline, "the run shows no progress:\n" + output.read_text()[-4000:]
        time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=pause)


def printed_events(output: Path) -> int:
    return output.read_text(encoding="utf-8").count("\n[")


@pytest.mark.slow  # the kills of SCAFFOLD below do the same to a run that has states besides
@pytest.mark.parametrize("most", [6, 20])
def test_kills_change_nothing(extended: FinishedRun, tmp_path: Path, most: int) -> None:
    assert digests(run_with_kills(TINY, tmp_path, most)) == digests(extended.records)


# Methods with a state of the server, or of clients. In SCAFFOLD's rounds one client is not drawn and keeps its state.
METHODS: dict[str, dict[str, Any]] = {
    "scaffold": tiny(strategy={"kind": "scaffold"}, training=PLAIN_SGD, participation={"clients_per_round": 2}),
    "fedadam": tiny(strategy={"kind": "fedadam"}),
    "ditto": tiny(strategy={"kind": "ditto"}, participation={"clients_per_round": 2}),
}


@pytest.fixture(scope="module")
def undisturbed_run(shared_home: Home) -> Callable[[str], list[RoundRecord]]:
    """Return a function that runs a method of :data:`METHODS` once, undisturbed, and returns the run's records."""

    @functools.cache
    def run(kind: str) -> list[RoundRecord]:
        spec = shared_home.spec_file(METHODS[kind], kind)
        result = shared_home.run("run", spec, "--name", kind, "--slots", 2, "--max-rounds", MANY_ROUNDS, "-q")
        assert result.returncode == 0, result.stdout
        return assert_consistent(shared_home, kind, rounds=MANY_ROUNDS)

    return run


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("scaffold", 6),
        *(pytest.param(kind, 6, marks=pytest.mark.slow) for kind in METHODS if kind != "scaffold"),
        *(pytest.param(kind, 20, marks=pytest.mark.slow) for kind in METHODS),
    ],
)
def test_kills_change_no_state(
    undisturbed_run: Callable[[str], list[RoundRecord]], tmp_path: Path, kind: str, most: int
) -> None:
    undisturbed = undisturbed_run(kind)
    records = run_with_kills(METHODS[kind], tmp_path, most)
    assert digests(records) == digests(undisturbed)
    assert state_digests(records) == state_digests(undisturbed)
    assert all(state_digests(records)[1:])
    assert own_figures(records) == own_figures(undisturbed)


def own_figures(records: list[RoundRecord]) -> list[Any]:
    """Return the figures of each client's own model by round, without the times."""
    return [[item.model_copy(update={"seconds": 0}) for item in record.personal] for record in records]


def run_with_kills(document: dict[str, Any], folder: Path, most: int) -> list[RoundRecord]:
    """Run the specification ``document`` in a new home, with ``most`` kills, to its end. Return its records."""
    home, output = Home(folder / "home"), folder / "output.txt"
    spec = home.spec_file(document)
    command = ("run", spec, "--name", "tiny", "--slots", 2, "--max-rounds", MANY_ROUNDS)
    rng = random.Random(SEED)
    kills: list[str] = []
    starts = 0
    process: subprocess.Popen[bytes] | None = None
    try:
        while process is None or process.returncode != 0:
            process = home.start(*command, output=output)
            starts += 1
            while len(kills) < most and process.poll() is None:
                wait_for_moment(process, output, rng)
                killed = None if process.poll() is not None else kill_one(home, rng)
                if killed is not None:
                    kills.append(killed)
                    with output.open("a", encoding="utf-8") as file:
                        file.write(f"--- kill {len(kills)} at {time.strftime('%X')}: {killed}\n")
                if killed == "coordinator":
                    process.wait()
            process.wait(timeout=STUCK_SECONDS)
            assert process.returncode in (0, -signal.SIGKILL), (kills, output.read_text()[-4000:])
    finally:
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print(f"{starts} starts; {dict(Counter(kills))}")
    assert len(kills) == most, "the run ended before the last kill: it needs more rounds"
    assert "\nfailed:" not in output.read_text()
    assert_no_process_left(home)
    records = assert_consistent(home, "tiny", rounds=MANY_ROUNDS)
    assert_tracked_once(home, "tiny", "FINISHED", records)
    runs = home.flow_runs("tiny")
    assert {state for _, state in runs} <= {"COMPLETED", "CRASHED", "FAILED", "CANCELLED"}
    assert ("tiny", "COMPLETED") in runs
    home.remove_weights()
    return records
