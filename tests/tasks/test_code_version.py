"""What a cell of a suite is done by: sources that decide what is learned, and no others."""

from __future__ import annotations

from pathlib import Path

import tasks
from tasks.code_version import sources


def test_what_learns_counts_and_what_draws_does_not() -> None:
    root = Path(tasks.__file__).parent
    names = {path.relative_to(root).as_posix() for path in sources(root)}
    assert {"training/local.py", "detectors/yolo_loss.py", "spec/suite.py", "aggregate.py", "metrics/coco.py"} <= names
    assert not {name for name in names if name.startswith(("figures/", "report/", "suite/"))}
