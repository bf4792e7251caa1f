"""Ctrl-C loses no committed round and leaves no process behind, and the resumed run reaches the same weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import FinishedRun
from tests.integration.homes import TINY, Home, assert_consistent, assert_no_process_left, assert_tracked_once, digests
from tests.waiting import eventually
from tests.warm import cold

pytestmark = pytest.mark.integration


def test_ctrl_c_and_resume(undisturbed: FinishedRun, tmp_path: Path) -> None:
    home, output = Home(tmp_path / "home"), tmp_path / "output.txt"
    process = home.start("run", home.spec_file(TINY), "--name", "tiny", "--slots", 2, output=output)
    try:
        assert eventually(
            lambda: process.poll() is not None or "round 2 request_update starts" in output.read_text(), 120
        )
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole process group
        assert process.wait(timeout=60) == 130, output.read_text()
    finally:
        process.kill()
        process.wait()
    text = output.read_text()
    assert f"go on with: fedbench resume tiny --home {home.path}" in " ".join(text.split()).replace("Go", "go")
    assert "Traceback" not in text
    assert_no_process_left(home)
    records = home.records("tiny")
    assert [record.round for record in records] == [0, 1]
    assert_tracked_once(home, "tiny", "KILLED", records)
    states = dict(home.flow_runs("tiny"))
    assert states.keys() == {"tiny", "tiny · initial model", "tiny · round 1", "tiny · round 2"}
    assert {states["tiny"], states["tiny · round 2"]} <= {"CANCELLED", "CRASHED"}

    resumed = home.run("resume", "tiny", "--slots", 2)
    assert resumed.returncode == 0, resumed.stdout
    assert "resumed: round 1 is committed, going on from there" in resumed.stdout
    finished = assert_consistent(home, "tiny", rounds=3)
    assert finished[:2] == records
    assert digests(finished) == digests(undisturbed.records)
    assert_tracked_once(home, "tiny", "FINISHED", finished)
    assert_no_process_left(home)
    home.remove_weights()


@pytest.mark.parametrize("to", [os.kill, os.killpg], ids=["process", "group"])
def test_sigterm_in_a_round_ends_the_run_with_the_line_that_goes_on(
    tmp_path: Path, to: Callable[[int, int], None]
) -> None:
    """Prefect would handle SIGTERM itself while a flow runs."""
    home, output = Home(tmp_path / "home"), tmp_path / "output.txt"
    process = home.start("run", home.spec_file(TINY), "--name", "tiny", "--slots", 1, output=output)
    try:
        assert eventually(
            lambda: process.poll() is not None or "round 1 request_update starts" in output.read_text(), 120
        )
        to(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 130, output.read_text()
    finally:
        process.kill()
        process.wait()
    text = output.read_text()
    assert f"Go on with: fedbench resume tiny --home {home.path}" in " ".join(text.split())
    assert "Traceback" not in text
    assert "TerminationSignal" not in text
    assert_no_process_left(home)
    records = home.records("tiny")
    assert [record.round for record in records] == [0]
    assert_tracked_once(home, "tiny", "KILLED", records)
    assert {state for _, state in home.flow_runs("tiny")} <= {"COMPLETED", "CANCELLED", "CRASHED"}
    home.remove_weights()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_run_at_once_while_services_start(tmp_path: Path, number: signal.Signals) -> None:
    home, output = Home(tmp_path / "home"), tmp_path / "output.txt"
    with cold():  # its imports take seconds, as a user's do
        process = home.start("run", home.spec_file(TINY), "--name", "tiny", output=output)
    try:
        assert eventually(lambda: process.poll() is not None or "starting services" in output.read_text(), 60)
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == 130, output.read_text()
    finally:
        process.kill()
        process.wait()
    assert "fedbench resume tiny" in output.read_text()
    assert "Traceback" not in output.read_text()
    assert_no_process_left(home)
