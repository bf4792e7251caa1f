"""One cell of a suite: ``fedbench run`` in a process of its own, so that no cell can take the others with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from flows.suite.plan import SuitePlan
from infra.processes import bound
from tasks.plain_text import plain
from tasks.spec.suite import Cell
from tasks.spec.suite_records import CellRecord

# What a federation takes at most to mark its runs and stop its slots, before it is killed.
STOP_SECONDS = 30.0
_REASON_CHARACTERS = 500


async def run_cell(
    plan: SuitePlan, cell: Cell, folder: Path, slots: int | None, environment: Mapping[str, str]
) -> CellRecord:
    """Run ``cell`` to its end, or go on with it, and keep how it ended.

    folder: of the cell's specification and log. slots: turns at a time; None: the machine's. environment: of the
    process, which ends with this one, however that ends.
    """
    began, before = time.monotonic(), await asyncio.to_thread(plan.record, cell)
    folder.mkdir(parents=True, exist_ok=True)
    spec, log = folder / f"{cell.name}.yaml", folder / f"{cell.name}.log"
    spec.write_text(cell.spec.to_yaml(), encoding="utf-8")
    federation = plan.federation(cell)
    command = [sys.executable, "-P", "-m", "flows.cli", "run", str(spec), "--name", federation]
    if slots is not None:
        command += ["--slots", str(slots)]
    launcher = [sys.executable, "-I", "-S", bound.__file__, str(os.getpid())]
    with log.open("ab") as output:
        start = output.tell()
        process = await asyncio.create_subprocess_exec(
            *launcher,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment, "NO_COLOR": "1"},
            start_new_session=True,  # a terminal's Ctrl-C is ours to hand on
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
    """What the command said last of why it failed; else how it ended."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if line.startswith(("error: ", "failed: "))]
    if said:
        return plain(said[-1], _REASON_CHARACTERS)
    ending = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"its process {ending}; see {log}"
