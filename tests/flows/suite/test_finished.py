"""A finished suite run is printed again at once, unless something that its report shows has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.suite.accepted import accept
from flows.suite.finished import FILE, REPORT, note_reported, reported_result
from flows.suite.handles import suite_folder
from flows.suite.plan import SuitePlan
from infra.settings import Settings
from infra.store.objects import ObjectStore
from infra.store.suite_layout import SuiteLayout
from tasks.spec.suite import SuiteSpec
from tasks.spec.suite_records import SuiteResult
from tests.flows.suite.test_moving import RUN, SUITE, Machine, record_of

pytestmark = pytest.mark.usefixtures("own_environment")

HEAVY = ("torch", "torchvision", "mlflow", "prefect", "matplotlib")


class Reported:
    """A suite run of which all cells are done, with a report on this machine and the note of it."""

    def __init__(self, objects: ObjectStore, settings: Settings) -> None:
        self.machine, self.settings, self.objects = Machine(objects, settings), settings, objects
        self.folder = suite_folder(settings, RUN)
        self.plan: SuitePlan = self.machine.plan()
        self.machine.finish([cell.name for cell in self.plan.to_run])
        self.report()

    def report(self) -> None:
        result = self.machine.result()
        self.objects.put_json(self.plan.layout.result, result.model_dump(mode="json"))
        (self.folder / REPORT).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / REPORT).write_text("<html>")
        note_reported(self.folder, SUITE, result, self.objects, self.settings.s3.prefix, compare=True)

    def found(self, suite: SuiteSpec = SUITE, *, compare: bool = True) -> SuiteResult | None:
        return reported_result(self.objects, self.settings.s3.prefix, RUN, suite, self.folder, compare=compare)

    def fail_a_cell(self) -> None:
        self.plan.keep(record_of(self.plan, self.plan.to_run[0], state="failed"))

    def lose_a_cell(self) -> None:
        cell = self.plan.to_run[0]
        self.objects.delete([self.plan.layout.cell(cell.spec.digest, self.plan.code)])

    def change_the_result(self) -> None:
        result = self.machine.result().model_copy(update={"target": 0.9})
        self.objects.put_json(self.plan.layout.result, result.model_dump(mode="json"))

    def tear_the_result(self) -> None:
        self.objects.put_bytes(self.plan.layout.result, b"{")

    def accept_it(self) -> None:
        accept(self.objects, self.settings.s3.prefix, RUN, by="ada", note="")


@pytest.fixture
def reported(object_store: ObjectStore, command_settings: Settings) -> Reported:
    return Reported(object_store, command_settings)


def test_the_result_is_found_while_nothing_has_changed(reported: Reported) -> None:
    expected = reported.machine.result()
    found = reported.found()
    assert found is not None
    assert found.cells == expected.cells
    reported.accept_it()
    reported.report()  # the comparison with the accepted result is in it
    assert reported.found() is not None


CHANGES: dict[str, Callable[[Reported], object]] = {
    "a cell failed": Reported.fail_a_cell,
    "a cell is gone": Reported.lose_a_cell,
    "another result": Reported.change_the_result,
    "a torn result": Reported.tear_the_result,
    "another accepted result": Reported.accept_it,
    "no report": lambda reported: (reported.folder / REPORT).unlink(),
    "no note": lambda reported: (reported.folder / FILE).unlink(),
    "a torn note": lambda reported: (reported.folder / FILE).write_text("{"),
    "no suite run": lambda reported: reported.objects.delete([SuiteLayout(reported.settings.s3.prefix, RUN).suite]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_lets_the_suite_run_again(reported: Reported, change: str) -> None:
    assert reported.found() is not None
    CHANGES[change](reported)
    assert reported.found() is None


def test_another_suite_rule_code_or_comparison_lets_it_run_again(
    reported: Reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reported.found(SUITE.model_copy(update={"target": 0.4})) is None
    assert reported.found(SUITE.model_copy(update={"experiments": ()})) is None
    assert reported.found(compare=False) is None
    monkeypatch.setattr("flows.suite.finished.code_version", lambda: "0.1.0-00000000")
    assert reported.found() is None


# Runs the command, then prints which of the packages are imported.
SCRIPT = """
import sys
from flows.cli.app import app

heavy, words = sys.argv[1].split(","), sys.argv[2:]
app(words, standalone_mode=False)
print("imported:", *(name for name in heavy if name in sys.modules))
"""


def test_the_command_prints_it_without_a_server_of_pages_and_without_heavy_packages(
    reported: Reported, tmp_path: Path
) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.to_yaml())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ",".join(HEAVY), "suite", "run", str(path), "--name", RUN],
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{RUN} is finished; nothing was left to do." in done.stdout
    assert f"report: {reported.folder / REPORT}" in done.stdout
    assert "0.200" in done.stdout  # the last score of the cells
    assert "starting services" not in done.stdout
    assert done.stdout.splitlines()[-1] == "imported:", done.stdout
    assert not (reported.settings.home / "prefect.db").exists()
