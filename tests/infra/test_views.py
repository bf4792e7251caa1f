"""Failures of views: most are warnings, but some must end the federation."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from prefect.exceptions import Abort, CancelledRun, Pause, PausedRun

from infra.errors import (
    HomeInUse,
    RunLocked,
    SlotLost,
    StoreCorrupt,
    StoreRefused,
    StoreUnavailable,
    TrackingUnavailable,
)
from infra.views import Views

WARNED: dict[str, tuple[Exception, str]] = {
    "a mistake in drawing": (KeyError("car"), "KeyError: 'car'"),
    "a text that cannot be drawn": (ValueError("can't measure length\nof multiline text"), "ValueError: can't measure"),
    "no message": (ZeroDivisionError(), "ZeroDivisionError"),
    "too large": (MemoryError("400 GiB"), "MemoryError: 400 GiB"),
    "a full disk": (OSError(28, "No space left on device", "rounds.png"), "OSError: [Errno 28] No space left"),
    "MLflow": (TrackingUnavailable("MLflow at http://x failed: 500"), "MLflow at http://x failed: 500"),
    "a slot": (SlotLost("the slot's process died"), "the slot's process died"),
    "weights that are not kept": (StoreCorrupt("0003/global.safetensors is missing"), "0003/global.safetensors is"),
    "commands of the terminal": (RuntimeError("begin\x1b[2Jend"), "RuntimeError: begin\\x1b[2Jend"),
    "many at once": (ExceptionGroup("two", [ValueError("a"), ValueError("b")]), "ExceptionGroup: two"),
}
PASSED: dict[str, BaseException] = {
    "Ctrl-C": KeyboardInterrupt(),
    "exit": SystemExit(3),
    "cancellation": asyncio.CancelledError(),
    "Prefect's abort": Abort("now"),
    "Prefect's pause": Pause("now"),
    "a cancelled run": CancelledRun("now"),
    "a paused run": PausedRun("now"),
    "a store that does not answer": StoreUnavailable("bucket b does not answer"),
    "a store that refuses": StoreRefused("no"),
    "a lost lease": RunLocked("lost"),
    "a home in use": HomeInUse("held"),
    "an interrupt among errors": BaseExceptionGroup("two", [KeyboardInterrupt(), ValueError("a")]),
}


@pytest.mark.parametrize("case", WARNED)
def test_a_failure_is_a_warning_with_its_reason_in_one_line(case: str, caplog: pytest.LogCaptureFixture) -> None:
    error, reason = WARNED[case]
    views = Views("fedbench report tiny")
    after: list[str] = []
    with caplog.at_level(logging.WARNING):
        with views.showing("rounds.png"):
            raise error
        after.append("the rest is done")
    assert after
    said: list[str] = []
    views.tell(said.append)
    assert said[0].startswith(f"rounds.png failed: {reason}")
    assert said[1:] == ["no result is lost; fedbench report tiny draws and tracks it again"]
    assert said[0].isprintable()
    (logged,) = caplog.records
    assert logged.exc_info is not None  # the traceback is in the log


@pytest.mark.parametrize("case", PASSED)
def test_errors_that_must_end_the_federation_pass_through(case: str) -> None:
    views = Views()
    with pytest.raises(type(PASSED[case])), views.showing("rounds.png"):
        raise PASSED[case]
    assert views.lines() == []


def test_a_later_success_removes_the_failure() -> None:
    views = Views("again")
    for error in (ValueError("first"), ValueError("second")):
        with views.showing("MLflow's run"):
            raise error
    assert views.lines()[0] == "MLflow's run failed: ValueError: second"
    with views.showing("sheet.png"):
        pass
    assert len(views.lines()) == 2
    with views.showing("MLflow's run"):
        pass
    assert views.lines() == []


def test_failures_are_kept_in_a_file_for_later_commands(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "tiny" / "report.json"
    views = Views("again", file)
    with views.showing("sheet.png"):
        raise ValueError("no")
    views.keep()
    assert json.loads(file.read_text()) == {"version": 1, "failed": {"sheet.png": "ValueError: no"}}
    later = Views("again", file)
    assert later.recall()
    assert later.lines() == views.lines()
    with later.showing("sheet.png"):
        pass
    later.keep()
    assert not Views("again", file).recall()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"failed": 3}', '{"failed": ["a"]}', "\xff"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(content, encoding="latin-1")
    assert not Views("again", file).recall()
    assert not Views("again", tmp_path / "nothing.json").recall()


def test_a_record_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    Views("again", tmp_path / "file" / "report.json").keep()
