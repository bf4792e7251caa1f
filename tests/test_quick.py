"""``make quick`` chooses the tests that are nearest to a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import quick


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, text in {
        "tests/tasks/data/test_coco.py": "import json\n",
        "tests/tasks/data/test_readings.py": "from tasks.data.coco import load_coco\n",
        "tests/tasks/data/test_voc.py": "from tasks.data import voc\n",
        "tests/infra/test_views.py": "import infra.views\n",
        "tests/integration/test_run.py": "from tasks.data.coco import load_coco\n",
        "tests/test_top.py": "import top\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["tasks/data/coco.py"], ["tests/tasks/data/test_coco.py", "tests/tasks/data/test_readings.py"]),
        (["tasks/data/voc.py"], ["tests/tasks/data/test_voc.py"]),
        (["tasks/data/voc.py", "tests/infra/test_views.py"],
         ["tests/infra/test_views.py", "tests/tasks/data/test_voc.py"]),
        (["top.py", "infra/views.py", "README.md"], ["tests/infra/test_views.py", "tests/test_top.py"]),
        (["tests/integration/test_run.py", "docs/words.md", "tests/tasks/data/test_gone.py"], []),
    ],
)  # fmt: skip
def test_the_nearest_come_first(root: Path, changed: list[str], expected: list[str]) -> None:
    assert quick.nearest(changed, root) == expected


def test_the_files_that_always_run_exist() -> None:
    assert all((quick.ROOT / file).is_file() for file in quick.ALWAYS)
