"""``fedbench suite run --dry-run``: which cells would run. It starts and writes nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.suite.plan import SuitePlan, claim
from infra.files.lock import run_lock
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.spec.records import Decision
from tasks.spec.suite import Cell, Experiment, SuiteSpec
from tasks.spec.suite_records import CellRecord
from tests.flows.command import fedbench
from tests.flows.commands.test_dry_run import SPEC, files_below, printed
from tests.records import round_record

pytestmark = pytest.mark.usefixtures("own_environment")

SUITE = SuiteSpec(
    name="test",
    experiments=(
        Experiment(name="first", spec=SPEC, seeds=(1, 2), centralised=False),
        Experiment(name="second", spec=SPEC, seeds=(1,)),
    ),
)
BEGIN = "begin a new federation: round 0, the initial model, then rounds 1 to 2"
SHARED = "take the result of first.s1, which has the same specification"


@pytest.fixture
def plan(settings: Settings, object_store: ObjectStore) -> SuitePlan:
    """Begin the suite run ``mine``."""
    return claim(object_store, settings.s3.prefix, "mine", SUITE)


@pytest.fixture
def dry(
    tmp_path: Path, s3_home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, str]]:
    """Return a function that makes the dry run in a home with what the store has, and returns its lines by their begin.

    Nothing is started, and no file of the home changes.
    """
    monkeypatch.setenv("FEDBENCH_S3__PREFIX", settings.s3.prefix)
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail(f"started {arguments}"))
    home, below = tmp_path / "own", Path("s3", settings.s3.bucket, *settings.s3.prefix.split("/"))
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE.to_yaml())

    def make() -> dict[str, str]:
        if (s3_home / below).exists():
            shutil.copytree(s3_home / below, home / below)
        home.mkdir(exist_ok=True)
        home.chmod(0o755)
        before = files_below(home)
        text = printed("suite", "run", suite, "--name", "mine", "--dry-run", "--home", home)
        assert files_below(home) == before
        lines = text.splitlines()
        return {line.split(" ")[0]: line.partition(" ")[2].strip() for line in lines}

    return make


def keep(plan: SuitePlan, cell: Cell, state: str = "done") -> None:
    plan.keep(
        CellRecord.model_validate(
            {
                "suite_run": plan.name,
                "cell": cell.name,
                "spec_digest": cell.spec.digest,
                "code_version": plan.code,
                "federation": plan.federation(cell),
                "state": state,
                "reason": None if state == "done" else "no space left",
                "seconds": 600.0,
                "ended": datetime.now(UTC),
            }
        )
    )


def test_a_new_suite_run_would_begin_every_cell(dry: Callable[..., dict[str, str]]) -> None:
    lines = dry()
    assert lines["nothing"] == "was started or written"
    assert lines["name:"] == "mine"
    assert lines["digest:"] == SUITE.digest
    assert lines["would"] == "begin a new suite run: 3 of 3 cells to run"
    assert "about" not in lines
    cells = {name: lines[name] for name in ("first.s1", "first.s2", "second.s1-central", "second.s1")}
    assert cells == {"first.s1": BEGIN, "first.s2": BEGIN, "second.s1-central": BEGIN, "second.s1": SHARED}


def test_a_begun_one_keeps_what_is_done(
    dry: Callable[..., dict[str, str]], plan: SuitePlan, settings: Settings, object_store: ObjectStore
) -> None:
    done, failed, half = plan.to_run
    keep(plan, done)
    layout = FederationLayout(settings.s3.prefix, plan.federation(half))
    object_store.put_json(layout.spec, half.spec.model_dump(mode="json"))
    for number in range(2):
        record = round_record(number, federation=plan.federation(half), decision=Decision(stop=False, best_round=0))
        object_store.put_json(layout.marker(number), record.model_dump(mode="json"))
    keep(plan, failed, "failed")
    lines = dry()
    assert lines["would"] == "go on with a suite run: 2 of 3 cells to run"
    assert lines["first.s1"] == "keep its result"
    assert lines["first.s2"] == "go on after round 1, the last commit: rounds 2 to 2"
    assert lines["second.s1-central"] == BEGIN
    assert lines["about"].endswith("min, if each round takes as long as in the cells that are done")


def test_cells_of_another_code_would_run_again(dry: Callable[..., dict[str, str]], plan: SuitePlan) -> None:
    before = replace(plan, code="0.1.0-00000001")
    keep(before, plan.to_run[0])
    keep(before, plan.to_run[1])
    keep(plan, plan.to_run[0])
    lines = dry()
    assert lines["would"] == "go on with a suite run: 2 of 3 cells to run"
    assert lines["note:"] == (
        f"code 0.1.0-00000001 has run 1 of these cells; the installed code, {plan.code}, runs them again"
    )


def test_a_finished_one_trains_nothing(dry: Callable[..., dict[str, str]], plan: SuitePlan) -> None:
    for cell in plan.to_run:
        keep(plan, cell)
    lines = dry()
    assert lines["would"] == "keep the results of all 3 cells; the report is written again if it is out of date"
    assert lines["first.s2"] == "keep its result"


def test_another_suite_and_a_running_one_are_refused(
    tmp_path: Path, settings: Settings, dry: Callable[..., dict[str, str]], plan: SuitePlan
) -> None:
    dry()  # copies the store
    words = ("suite", "run", tmp_path / "suite.yaml", "--name", "mine", "--dry-run", "--home", tmp_path / "own")
    refused = fedbench(*words, "--seed", 9)
    assert refused.exit_code == 2
    assert "would refuse: --name mine: expected the suite that was begun under this name" in refused.stdout
    assert "error: --name mine: expected the suite that was begun under this name" in refused.stderr
    with run_lock(tmp_path / "own", "suite-mine"):
        refused = fedbench(*words)
    assert refused.exit_code == 2
    assert "error: suite mine: already running on this machine" in refused.stderr
    refused = fedbench(*words[:3], "--name", "a/b", *words[5:])
    assert refused.exit_code == 2
    assert "--name: expected letters, digits" in refused.stderr
