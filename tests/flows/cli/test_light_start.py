"""Commands that only read or start servers import no torch, nor does a coordinator before it starts its servers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "mlflow")

# Runs a command or imports modules, then prints which of the packages are imported.
SCRIPT = """
import importlib, sys
from flows.cli.app import app

heavy, (kind, *words) = sys.argv[1].split(","), sys.argv[2:]
if kind == "command":
    try:
        app(words, standalone_mode=False)
    except SystemExit:
        pass
    except Exception as error:
        assert type(error).__name__ == "Exit", error
else:
    for word in words:
        importlib.import_module(word)
print("imported:", *(name for name in heavy if name in sys.modules))
"""


@pytest.mark.parametrize(
    "words",
    [
        ("command", "--help"),
        ("command", "run", "--help"),
        ("command", "list"),
        ("command", "show", "nobody"),
        ("command", "status"),
        ("modules", "flows.coordinator.planted", "infra.stack.stack", "flows.deployments.apply"),  # of `up`
        ("modules", "flows.run", "flows.commands.arguments", "flows.views.terminal", "flows.views.tables"),  # of `run`
    ],
    ids=" ".join,
)
def test_heavy_packages_are_imported_only_when_needed(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ",".join(HEAVY), *words],
        env={**os.environ, "FEDBENCH_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:", done.stdout


def test_a_coordinator_imports_no_torchvision() -> None:
    """It aggregates and draws a YOLO network's first weights; torchvision's import takes seconds."""
    script = """
import sys
from flows.run import LEARNING
import importlib
for name in (*LEARNING, "flows.coordinator.until_done", "flows.federation"):
    importlib.import_module(name)
from tasks.detectors.initial import initial_detector
from tasks.spec.detector import YoloV3TinySpec

initial_detector(YoloV3TinySpec(), 7, seed=0, file_of=lambda name: None)
print("imported:", *(name for name in ("torchvision",) if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:", done.stdout


def test_a_slot_imports_no_prefect() -> None:
    """The client's part of each phase is in a module of its own. Prefect's import takes over a second."""
    script = """
import importlib, sys
from flows.coordinator.preflight import PRELOAD
for name in PRELOAD:
    importlib.import_module(name)
print("imported:", *(name for name in ("prefect", "mlflow", "matplotlib.pyplot") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:", done.stdout
