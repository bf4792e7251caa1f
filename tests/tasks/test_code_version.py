"""Which sources count for a result, and which distinguish two installations."""

from __future__ import annotations

import shutil
from pathlib import Path

import tasks
from tasks.code_version import MODULE, PACKAGES, code_below, installed_code, sources


def test_sources_that_learn_count_and_sources_that_plot_do_not() -> None:
    root = Path(tasks.__file__).parent
    names = {path.relative_to(root).as_posix() for path in sources(root)}
    assert {"training/local.py", "detectors/yolo_loss.py", "spec/suite.py", "aggregate.py", "metrics/coco.py"} <= names
    assert not {name for name in names if name.startswith(("analysis/", "figures/", "portable/", "report/", "suite/"))}


def test_a_change_of_any_source_distinguishes_two_checkouts(tmp_path: Path) -> None:
    root = Path(tasks.__file__).parents[1]
    for package in PACKAGES:
        shutil.copytree(root / package, tmp_path / package)
    shutil.copyfile(root / MODULE, tmp_path / MODULE)
    assert code_below(tmp_path) == installed_code()
    for file in ("fedbench.py", "flows/round.py", "infra/turns/resident_slots.py", "tasks/figures/plots.py"):
        (tmp_path / file).write_text((root / file).read_text() + "# changed")
        assert code_below(tmp_path) != installed_code()
        shutil.copyfile(root / file, tmp_path / file)
    (tmp_path / "infra" / "more.py").touch()
    assert code_below(tmp_path) != installed_code()
