"""Examples of ``--schedule`` name the kind of the deployment: a federation and a suite may have the same name."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from flows.cli.deploying import deploy

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r'--schedule "?([\w/-]+)=')
TEXTS = {
    "help": inspect.getdoc(deploy) or "",
    "prefect.yaml": (ROOT / "prefect.yaml").read_text(),
    "operations.md": (ROOT / "docs" / "operations.md").read_text(),
    "benchmark.md": (ROOT / "docs" / "benchmark.md").read_text(),
}


@pytest.mark.parametrize("text", TEXTS)
def test_examples_of_schedules_have_full_names(text: str) -> None:
    names = EXAMPLE.findall(TEXTS[text])
    assert names
    assert all(name.startswith(("federation/", "suite/", "clean-up/")) for name in names), names
