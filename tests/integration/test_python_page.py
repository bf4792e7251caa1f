"""Every code block of docs/python.md runs, one after the other, as in a notebook: with a running event loop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.homes import Home, assert_no_process_left

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
BLOCKS = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# What follows the blocks compares what they have found with the store, and a mistake with the commands' message.
AFTER = """
import json, os
from tasks.errors import FedbenchError
before = dict(os.environ)
try:
    fedbench.run({"max_rounds": 1, "training": {"local_epochs": -1}}, quiet=True)
except FedbenchError as error:
    mistake = str(error)
try:
    fedbench.read_run("another")
except FedbenchError as error:
    missing = str(error)
assert dict(os.environ) == before
found = {
    "status": run.status, "rounds": list(frame.index), "map": list(frame["map50_voc10"]),
    "evaluations": len(by_client), "columns": list(table.columns), "mistake": mistake, "missing": missing,
}
print("FOUND " + json.dumps(found))
"""


def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    blocks = BLOCKS.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 6
    body = "\n".join([*blocks, AFTER])
    script = tmp_path / "notebook.py"
    indented = "".join(f"    {line}" if line.strip() else line for line in body.splitlines(keepends=True))
    script.write_text(f"import asyncio\n\nasync def main():\n{indented}\n\nasyncio.run(main())\n")
    home = Home(tmp_path / "home")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=home.environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.partition("FOUND ")[2])
    records = home.records("from-python")
    assert found["status"] == "finished"
    assert found["rounds"] == [record.round for record in records] == [0, 1, 2]
    assert found["map"] == [record.metrics.map50_voc10 for record in records]
    assert found["evaluations"] == sum(len(record.evaluations) for record in records)
    assert found["columns"] == ["from-python"]
    assert "training.local_epochs" in found["mistake"]
    assert "another: no such federation in the store; expected one of: from-python" in found["missing"]
    assert_no_process_left(home)
