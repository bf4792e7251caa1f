"""Run one cell of a suite: ``fedbench run`` in its own process, so that a crash does not end the other cells."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from flows.suite.plan import SuitePlan
from infra.processes.launch import launcher
from tasks.plain_text import plain
from tasks.spec.suite import Cell
from tasks.spec.suite_records import CellRecord

# How long a federation may take to mark its runs and stop its slots, before it is killed.
STOP_SECONDS = 30.0
_REASON_CHARACTERS = 500


async def run_cell(
    plan: SuitePlan, cell: Cell, folder: Path, slots: int | None, environment: Mapping[str, str]
) -> CellRecord:
    """Run ``cell``, or go on with it, to its end. Write its record to the store and return it.

    folder: where the cell's specification and log are written. slots: the most turns at a time; None: the machine's
    number. environment: that of the cell's process. However this process ends, the cell's process ends with it.
    """
    began, before = time.monotonic(), await asyncio.to_thread(plan.record, cell)
    folder.mkdir(parents=True, exist_ok=True)
    spec, log = folder / f"{cell.name}.yaml", folder / f"{cell.name}.log"
    spec.write_text(cell.spec.to_yaml(), encoding="utf-8")
    federation = plan.federation(cell)
    command = [sys.executable, "-P", "-m", "flows.cli", "run", str(spec), "--name", federation]
    if slots is not None:
        command += ["--slots", str(slots)]
    with log.open("ab") as output:
        start = output.tell()
        process = await asyncio.create_subprocess_exec(
            *launcher(),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment, "NO_COLOR": "1"},
            start_new_session=True,  # a terminal's Ctrl-C must reach only this process, which stops the cell
        )
        try:
            code = await process.wait()
        except BaseException:
            await _stop(process)
            raise
    record = CellRecord(
        suite_run=plan.name,
        cell=cell.name,
        spec_digest=cell.spec.digest,
        code_version=plan.code,
        federation=federation,
        state="failed" if code else "done",
        reason=_reason(log, start, code) if code else None,
        seconds=time.monotonic() - began + (before.seconds if before is not None else 0.0),
        ended=datetime.now(UTC),
    )
    await asyncio.to_thread(plan.keep, record)
    return record


async def _stop(process: asyncio.subprocess.Process) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), seconds)
            return


def _reason(log: Path, start: int, code: int) -> str:
    """Return the command's last error line in its log; without one, how its process ended."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    errors = [line.strip() for line in lines if line.startswith(("error: ", "failed: "))]
    if errors:
        return plain(errors[-1], _REASON_CHARACTERS)
    ending = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"its process {ending}; see {log}"
