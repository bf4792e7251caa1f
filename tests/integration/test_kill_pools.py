"""SIGKILLs of a run over work pools: killed processes are restarted, and no bit of the result changes.

``FEDBENCH_TEST_KILLS`` is the number of kills. The default keeps the test short.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from tests.integration.homes import TINY, Home, assert_consistent, digests
from tests.integration.stacks import PATIENCE, RunningStack, in_a_slot, running_stack
from tests.integration.test_residents import slots_are_free
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KILLS = int(os.environ.get("OF_FEDBENCH_TESTS_TEST_KILLS", "5"))
ROUNDS = 4 * KILLS
SEED = 7
KINDS = ("worker", "resident", "store", "prefect", "coordinator")
MOST_COORDINATORS = 4  # a run starts at most five times


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[RunningStack]:
    with running_stack(tmp_path / "home", settings={"pools": {"turns": "gpu", "lost_seconds": 30}}) as found:
        yield found


def kind_of(process: psutil.Process) -> str | None:
    """Return which part of the system the process is. None for launchers and helpers."""
    with contextlib.suppress(psutil.Error):
        line, environment = " ".join(process.cmdline()), process.environ()
        if in_a_slot(process):
            return "resident"
        if "PREFECT__FLOW_RUN_ID" in environment:
            return "coordinator" if "prefect" in line else None
        marks = {
            "serve s3": "store",
            "prefect_closed server": "prefect",
            "worker start --with-healthcheck --pool gpu": "worker",
        }
        return next((name for mark, name in marks.items() if mark in line), None)
    return None


def kill_one(stack: RunningStack, kind: str, rng: random.Random) -> bool:
    victims = [process for process in stack.home.processes() if kind_of(process) == kind]
    if not victims:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        rng.choice(sorted(victims, key=lambda process: process.pid)).kill()
        return True
    return False


def ended(stack: RunningStack, run: UUID) -> bool:
    with contextlib.suppress(Exception):  # the killed process may be the server
        state = stack.read(run).state
        return state is not None and state.is_completed()
    return False


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[str]:
    """Run the federation on slots in a home of its own. Return the digests of its rounds."""
    home = Home(tmp_path / "undisturbed")
    spec = home.spec_file({**TINY, "max_rounds": ROUNDS})
    result = home.run("run", spec, "--name", "alone", "-q", timeout=PATIENCE)
    assert result.returncode == 0, result.stdout
    return digests(home.records("alone"))


def test_kills_change_nothing(undisturbed: list[str], stack: RunningStack) -> None:
    home, rng = stack.home, random.Random(SEED)
    run = stack.start("federation/smoke", {"name": "killed", "spec": {**TINY, "max_rounds": ROUNDS}})
    assert eventually(lambda: len(home.records("killed")) > 0, PATIENCE)
    kills: list[str] = []
    deadline = time.monotonic() + PATIENCE + 60 * KILLS
    while not ended(stack, run):
        assert time.monotonic() < deadline, (kills, stack.runs_of("killed"))
        kinds = [kind for kind in KINDS if kind != "coordinator" or kills.count(kind) < MOST_COORDINATORS]
        rarest = min(kills.count(kind) for kind in kinds)
        kind = rng.choice([kind for kind in kinds if kills.count(kind) == rarest])
        if len(kills) < KILLS and kill_one(stack, kind, rng):
            kills.append(kind)
            print(f"{time.strftime('%X')} kill {len(kills)}: {kind}; {len(home.records('killed'))} rounds", flush=True)
        time.sleep(rng.uniform(0.5, 6.0))  # the stack's supervisor restarts processes that the run did not start
    print(dict(Counter(kills)))
    assert len(kills) == KILLS, "the run ended before the last kill: it needs more rounds"
    records = assert_consistent(home, "killed", rounds=ROUNDS)
    assert digests(records) == undisturbed
    assert eventually(lambda: slots_are_free(stack), 120)
    final = stack.runs_of("killed")
    assert set(final.values()) <= {"COMPLETED", "CRASHED", "FAILED", "CANCELLED"}, final
