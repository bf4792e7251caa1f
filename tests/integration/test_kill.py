"""The kill test: SIGKILLs of random processes at random moments change no bit of the result."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.spec.records import FineTunedRecord, RoundRecord
from tests.integration.conftest import MANY_ROUNDS, FinishedRun
from tests.integration.homes import (
    PLAIN_SGD,
    TINY,
    Home,
    assert_consistent,
    assert_no_process_left,
    assert_tracked_once,
    digests,
    own_figures,
    state_digests,
    tiny,
)

pytestmark = pytest.mark.integration

SEED = 20
STUCK_SECONDS = 300.0
# Waits for a moment to kill, or for the end of the run, with its process, its output and the kills so far.
Moment = Callable[[subprocess.Popen[bytes], Path, Sequence[str], random.Random], None]


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


def kill_one(home: Home, rng: random.Random, part: str | None = None) -> str | None:
    """SIGKILL one of the run's processes. Return which, or None if there is none or it has just ended.

    part: kill one of this part of the run, as :func:`what` names it; left out, any.
    """
    try:
        processes = [process for process in home.processes() if part is None or what(process) == part]
        if not processes:
            return None
        victim = rng.choice(sorted(processes, key=lambda process: process.pid))
        name = what(victim)
        victim.kill()
    except psutil.NoSuchProcess:
        return None
    return name


def random_moments(home: Home, most: int, rounds: int) -> Moment:
    """Return a function that waits for a random moment to kill, or for the run's end.

    A quarter of the moments come after a random time, so that kills hit starts and recoveries too. The others come
    shortly after a random number of printed events, so that kills hit all phases. No moment comes later than the
    commit of the kill's share of the rounds, so that all ``most`` kills come before the last of ``rounds``, on
    machines of any speed.
    """
    layout = home.layout("tiny")

    def wait(process: subprocess.Popen[bytes], output: Path, kills: Sequence[str], rng: random.Random) -> None:
        last = home.object_path(layout.marker(1 + len(kills) * (rounds - 1) // most))
        if rng.random() < 0.25:
            lines, pause = 0, rng.uniform(0.0, 8.0)
        else:
            lines, pause = rng.randint(1, 10), rng.uniform(0.0, 0.5)
        target = printed_events(output) + lines
        wait_until(lambda: last.exists() or printed_events(output) >= target, process, output)
        end = time.monotonic() + pause
        wait_until(lambda: last.exists() or time.monotonic() >= end, process, output)

    return wait


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], output: Path) -> None:
    """Wait until ``condition`` holds, or until the run has ended."""
    deadline = time.monotonic() + STUCK_SECONDS
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline, "the run shows no progress:\n" + output.read_text()[-4000:]
        time.sleep(0.02)


def printed_events(output: Path) -> int:
    return output.read_text(encoding="utf-8").count("\n[")


@pytest.mark.slow  # the kills of SCAFFOLD below do the same to a run that has states besides
@pytest.mark.parametrize("most", [6, 20])
def test_kills_change_nothing(extended: FinishedRun, tmp_path: Path, most: int) -> None:
    home = Home(tmp_path / "home")
    assert digests(run_with_kills(TINY, home, most)) == digests(extended.records)
    home.remove_weights()


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
    undisturbed, home = undisturbed_run(kind), Home(tmp_path / "home")
    records = run_with_kills(METHODS[kind], home, most)
    assert digests(records) == digests(undisturbed)
    assert state_digests(records) == state_digests(undisturbed)
    assert all(state_digests(records)[1:])
    assert own_figures(records) == own_figures(undisturbed)
    home.remove_weights()


# The epochs take each client many seconds, so that all kills come before the last model is stored.
TUNED = tiny(max_rounds=1, fine_tuning={"epochs": 80})
TUNING = "fine-tuning the model of round 1"
TAKEN_OVER = "taken over from before the interruption"
# Parts of the run to kill during fine-tuning; None: any.
PARTS = ("prefect", "slot or fork server", "coordinator", "store", "coordinator", None)


@pytest.mark.slow
def test_kills_during_fine_tuning_change_no_model(tmp_path: Path) -> None:
    """Three kills come when fine-tuning has begun, and three when a client's model is stored."""
    home, other = Home(tmp_path / "home"), Home(tmp_path / "undisturbed")
    result = other.run("run", other.spec_file(TUNED), "--name", "alone", "--slots", 2, timeout=900)
    assert result.returncode == 0, result.stdout
    undisturbed, expected = assert_consistent(other, "alone", rounds=1), tuned_record(other, "alone")
    other.remove_weights()

    def moment(process: subprocess.Popen[bytes], output: Path, kills: Sequence[str], rng: random.Random) -> None:
        """Wait until the current process tunes, and for the last kills, until a model is stored."""
        layout = home.layout("tiny")
        stored = [home.object_path(layout.fine_tuned_update(1, info.client)) for info in undisturbed[-1].clients]

        def reached() -> bool:
            of_process = output.read_text().rpartition(": coordinator\n")[2]
            return TUNING in of_process and (len(kills) < 3 or any(path.exists() for path in stored))

        wait_until(reached, process, output)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0, 0.5))
        assert not home.object_path(layout.fine_tuned_record(1)).exists(), "fine-tuning has ended: more epochs, please"

    records = run_with_kills(TUNED, home, len(PARTS), rounds=1, wait=moment, parts=PARTS)
    assert digests(records) == digests(undisturbed)
    found = tuned_record(home, "tiny")
    assert [(update.client, update.weights.sha256, update.train_loss) for update in found.updates] == [
        (update.client, update.weights.sha256, update.train_loss) for update in expected.updates
    ]
    assert (found.model, found.dropped) == (records[-1].model, ())
    assert [item.model_copy(update={"seconds": 0}) for item in found.evaluations] == [
        item.model_copy(update={"seconds": 0}) for item in expected.evaluations
    ]
    assert found.metrics == expected.metrics
    home.remove_weights()
    output = (tmp_path / "output.txt").read_text()
    assert output.count(TUNING) >= 3
    assert TAKEN_OVER in output


def tuned_record(home: Home, name: str) -> FineTunedRecord:
    """Return the record of fine-tuning after round 1. Check that each client has a model, whose object is intact."""
    record = FineTunedRecord.model_validate(home.document(home.layout(name).fine_tuned_record(1)))
    assert [update.client for update in record.updates] == TINY["participation"]["clients"]
    for update in record.updates:
        content = home.object_path(update.weights.key).read_bytes()
        assert hashlib.sha256(content).hexdigest() == update.weights.sha256
    return record


def run_with_kills(
    document: dict[str, Any],
    home: Home,
    most: int,
    *,
    rounds: int = MANY_ROUNDS,
    wait: Moment | None = None,
    parts: Sequence[str | None] = (),
) -> list[RoundRecord]:
    """Run the specification ``document`` in a new home, with ``most`` kills, to its end. Return its records.

    The output goes to ``output.txt`` beside the home. wait: for the moment of a kill; left out, for a random one.
    parts: of the run, for each kill; left out, any.
    """
    wait = wait or random_moments(home, most, rounds)
    output = home.path.with_name("output.txt")
    spec = home.spec_file(document)
    command = ("run", spec, "--name", "tiny", "--slots", 2, "--max-rounds", rounds)
    rng = random.Random(SEED)
    kills: list[str] = []
    starts = 0
    process: subprocess.Popen[bytes] | None = None
    try:
        while process is None or process.returncode != 0:
            process = home.start(*command, output=output)
            starts += 1
            while len(kills) < most and process.poll() is None:
                wait(process, output, kills, rng)
                part = parts[len(kills)] if parts else None
                killed = None if process.poll() is not None else kill_one(home, rng, part)
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
    records = assert_consistent(home, "tiny", rounds=rounds)
    assert_tracked_once(home, "tiny", "FINISHED", records)
    runs = home.flow_runs("tiny")
    assert {state for _, state in runs} <= {"COMPLETED", "CRASHED", "FAILED", "CANCELLED"}
    assert ("tiny", "COMPLETED") in runs
    return records
