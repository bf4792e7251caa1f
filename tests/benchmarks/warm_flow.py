"""The flow whose start is measured. It imports the modules of a training flow, and its first line writes the time."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torchvision
from prefect import flow


@flow
async def first_line(marker: str) -> None:
    arrived = time.monotonic()
    temporary = Path(marker).with_suffix(".tmp")
    temporary.write_text(f"{arrived} {torch.__version__} {torchvision.__version__}")
    temporary.replace(marker)
