"""Flows for a worker's runs. They are copied to another folder and import nothing of fedbench."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger


def mark_cancelled(flow: Any, flow_run: Any, state: Any) -> None:
    Path(flow_run.parameters["marker"]).with_suffix(".cancelled").write_text(str(os.getpid()))


def mark_crashed(flow: Any, flow_run: Any, state: Any) -> None:
    Path(flow_run.parameters["marker"]).with_suffix(".crashed").write_text(state.message)


@flow
async def look(marker: str) -> None:
    """Write the slot, devices, threads and variables that this run sees."""
    import torch

    get_run_logger().info("looking around in slot %s", os.environ["FEDBENCH_SLOT"])
    seen = {
        "pid": os.getpid(),
        "slot": os.environ["FEDBENCH_SLOT"],
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "threads": torch.get_num_threads(),
        "mine": os.environ.get("MINE"),
        "arguments": sys.argv[:1],
    }
    Path(marker).write_text(json.dumps(seen))


@flow
async def hold(marker: str, seconds: float) -> None:
    """Write when this run began and ended, by the machine's monotonic clock."""
    began = time.monotonic()
    Path(marker).write_text("began")
    await asyncio.sleep(seconds)
    Path(marker).with_suffix(".json").write_text(json.dumps([began, time.monotonic()]))


@flow(on_cancellation=[mark_cancelled], on_crashed=[mark_crashed])
def linger(marker: str) -> None:
    """Write the ids of this process and of one that it started, and keep running."""
    helper = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    temporary = Path(marker).with_suffix(".tmp")
    temporary.write_text(json.dumps([os.getpid(), helper.pid]))
    temporary.replace(marker)
    time.sleep(600)


@flow
async def vanish(marker: str) -> None:
    """End the process with status 0 before it has reported a final state."""
    os._exit(0)
