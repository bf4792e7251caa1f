"""A forked run has the Prefect settings of its own variables and files. Prefect's own code reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Prepares like the warm process, enters like a child, and prints whether the settings were read again.
CHILD = """
import json, os, sys
import prefect.engine
from prefect.settings import get_current_settings
from infra.worker import engine_child
engine_child.prepare()
before = get_current_settings()
engine_child.enter({**os.environ, **json.loads(sys.argv[1])}, sys.argv[2], 1, quiet=False)
after = get_current_settings()
print(json.dumps([after is not before, after.logging.level, after.api.url]))
"""


def entered(folder: Path, **variables: str) -> list[object]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = kept | {
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": "http://a/api",
    }
    command = [sys.executable, "-c", CHILD, json.dumps(variables), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("variables", "toml", "expected"),
    [
        ({"PREFECT__FLOW_RUN_ID": "x", "MINE": "1"}, "", [False, "INFO", "http://a/api"]),
        ({"PREFECT_LOGGING_LEVEL": "ERROR"}, "", [True, "ERROR", "http://a/api"]),
        ({"PREFECT_API_URL": "http://b/api"}, "", [True, "INFO", "http://b/api"]),
        ({}, '[logging]\nlevel = "ERROR"\n', [True, "ERROR", "http://a/api"]),
    ],
    ids=["the same", "a variable", "another server", "a file"],
)
def test_settings_are_read_again_only_if_they_differ(
    tmp_path: Path, variables: dict[str, str], toml: str, expected: list[object]
) -> None:
    if toml:
        (tmp_path / "prefect.toml").write_text(toml)
    assert entered(tmp_path, **variables) == expected
