"""The suite ``smoke`` with a cell that fails: it is killed and resumed. Its report, and its runs in MLflow."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from flows.views.mlflow_texts import cell_title
from infra.store.sealed import seal
from infra.store.suite_layout import ReferenceLayout, SuiteLayout
from tasks.spec.suite import cells_of, load_suite
from tasks.spec.suite_presets import suite_preset
from tasks.spec.suite_records import AcceptedResult, CellRecord, SuiteResult
from tests.integration.homes import TINY, Home, assert_no_process_left
from tests.waiting import eventually

pytestmark = pytest.mark.integration

# Every client is dropped because its loss is not finite, so the round fails.
DIVERGES = {
    **TINY,
    "detector": {"kind": "yolov3-tiny", "width": 64, "height": 64},
    "participation": {"clients": ["4", "5"]},
    "training": {"batch_size": 4, "optimizer": {"kind": "sgd", "lr": 10.0}, "clip_norm": None},
}
FAILING = {"name": "diverges", "spec": DIVERGES, "seeds": [1], "centralised": False}
CELLS = {
    *("yolov3-tiny.s1", "yolov3-tiny.s2", "laptop.s1"),
    *("laptop.s1-central", "laptop.s1-local-1", "laptop.s1-local-2"),
}
LAYOUT = SuiteLayout("federations", "first")
OTHER_CODE = "0.1.0-00000001"


@dataclass(frozen=True)
class Finished:
    """A suite run that was killed once, and the output of the command that resumed and finished it."""

    home: Home
    output: str
    code: int
    done_before: dict[str, CellRecord]
    path: Path

    def records(self) -> dict[str, CellRecord]:
        return records_of(self.home)

    def result(self) -> SuiteResult:
        return SuiteResult.model_validate(self.home.document(LAYOUT.result))

    def object(self, key: str) -> bytes:
        return self.home.object_path(key).read_bytes()


def records_of(home: Home) -> dict[str, CellRecord]:
    files = sorted(home.object_path(LAYOUT.cells).glob("*.json"))
    records = [CellRecord.model_validate(home.document(f"{LAYOUT.cells}{path.name}")) for path in files]
    return {record.cell: record for record in records}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    home = Home(tmp_path_factory.mktemp("suite"))
    smoke = suite_preset("smoke").model_dump(mode="json")
    path = home.spec_file({**smoke, "experiments": [*smoke["experiments"], FAILING]}, "suite")
    command = ("suite", "run", path, "--name", "first")
    process = home.start(*command, output=home.path / "killed.txt")
    assert eventually(lambda: bool(records_of(home)), 300)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert children
    psutil.wait_procs(children, timeout=30)
    assert_no_process_left(home)
    before = {name: record for name, record in records_of(home).items() if record.state == "done"}
    assert before
    failing = next(cell for cell in cells_of(load_suite(path)) if cell.experiment == "diverges")
    of_other_code = home.object_path(LAYOUT.cell(failing.spec.digest, OTHER_CODE))
    of_other_code.write_text("{}")
    done = home.run(*command, timeout=600)
    of_other_code.unlink()
    return Finished(home, done.stdout, done.returncode, before, path)


def test_a_killed_suite_resumes_where_it_stopped(finished: Finished) -> None:
    records = finished.records()
    assert set(records) == CELLS | {"diverges.s1"}
    for name, record in finished.done_before.items():
        assert records[name] == record  # it was not run again
    assert all(records[name].state == "done" for name in CELLS)
    assert_no_process_left(finished.home)


def test_a_failed_cell_does_not_stop_the_others(finished: Finished) -> None:
    record = finished.records()["diverges.s1"]
    assert record.state == "failed"
    assert "loss is" in (record.reason or "")
    assert finished.code == 1
    assert "failed: cell diverges.s1 failed: " in finished.output
    assert "7 of 7 cells" in finished.output


def test_it_says_that_cells_of_other_code_run_again(finished: Finished) -> None:
    assert f"note: code {OTHER_CODE} has run 1 of these cells; the installed code, " in finished.output


def test_the_result_has_every_run_with_its_rounds(finished: Finished) -> None:
    result = finished.result()
    assert [(cell.role, cell.device) for cell in result.cells] == [
        ("federated", None),
        ("federated", None),
        ("federated", None),
        ("centralised", None),
        ("local-only", "1"),
        ("local-only", "2"),
    ]
    assert [failed.cell for failed in result.failed] == ["diverges.s1"]
    assert result.missing == ()
    for cell in result.cells:
        assert [point.round for point in cell.points] == [0, 1, 2]
        assert cell.last.passes == pytest.approx(2)
        assert cell.last.figures["loss"] is not None


def test_the_report_is_on_this_machine_and_in_the_store(finished: Finished) -> None:
    folder = finished.home.path / "suites" / "first" / "report"
    files = {path.name for path in folder.iterdir()}
    assert {"report.html", "rounds.csv", "table.tex"} <= files
    for file in files:
        assert finished.object(LAYOUT.report(file)) == (folder / file).read_bytes()
    page = (folder / "report.html").read_text()
    assert "laptop" in page
    assert "diverges.s1" in page


def test_mlflow_has_a_parent_with_the_federations_below_it(finished: Finished) -> None:
    client = MlflowClient(f"sqlite:///{finished.home.path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fedbench")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parent = next(run for run in runs if run.data.tags.get("fedbench.suite_run") == "first")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(CELLS) + 1
    by_name = {run.info.run_name: run for run in children}
    for cell in finished.result().cells:
        run = by_name[cell_title(cell.experiment, cell.role, cell.seed, cell.device)]
        assert run.data.tags["fedbench.cell"] == cell.name
        assert run.data.tags["fedbench.federation"] == cell.federation
        assert run.data.tags["fedbench.role"] == cell.role
        assert run.data.metrics["final/loss"] == pytest.approx(cell.last.figures["loss"])
    assert parent.info.status == "FAILED"  # one cell has no result
    # The failed cell is below the parent too, because it was from its start.
    assert {run.data.tags["fedbench.cell"] for run in children} == CELLS | {"diverges.s1"}
    means = client.get_metric_history(parent.info.run_id, "average_precision/map50_voc10/yolov3-tiny mean")
    assert sorted(point.step for point in means) == [0, 1, 2]  # once each, though the suite was killed
    seeds = [cell for cell in finished.result().cells if cell.experiment == "yolov3-tiny"]
    last = [cell.last.figures["map50_voc10"] or 0.0 for cell in seeds]
    assert max(means, key=lambda point: point.step).value == pytest.approx(sum(last) / 2)


def test_only_the_best_model_of_each_experiment_is_registered(finished: Finished) -> None:
    client = MlflowClient(f"sqlite:///{finished.home.path / 'mlflow.db'}")
    registered = {model.name for model in client.search_registered_models()}
    federated = [cell for cell in finished.result().cells if cell.role == "federated"]
    by_experiment = {name: {cell.federation for cell in federated if cell.experiment == name} for name in
                     ("yolov3-tiny", "laptop")}  # fmt: skip
    assert [len(registered & names) for names in by_experiment.values()] == [1, 1]
    assert len(registered) == 2


def test_show_list_and_report_read_the_store_and_run_nothing(finished: Finished, tmp_path: Path) -> None:
    shown = finished.home.run("suite", "show", "first")
    assert shown.returncode == 0, shown.stdout
    assert "laptop" in shown.stdout
    assert "failed: diverges.s1" in shown.stdout
    listed = finished.home.run("suite", "list")
    assert "6/7" in listed.stdout
    written = finished.home.run("suite", "report", "first", "--out", tmp_path / "report")
    assert written.returncode == 0, written.stdout
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    unknown = finished.home.run("suite", "show", "second")
    assert unknown.returncode == 2
    assert "second: no such suite run in the store; expected one of: first" in unknown.stdout


def test_an_exported_suite_run_goes_on_in_another_home_and_runs_nothing_again(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = Home(tmp_path_factory.mktemp("moved"))
    file = home.path.with_name("cells.json")
    exported = finished.home.run("suite", "export", "first", file)
    assert exported.returncode == 0, exported.stdout
    assert f"exported {len(CELLS)} cells" in exported.stdout
    # The suite without the failing experiment, which has no finished cell.
    imported = home.run("suite", "import", file, "--suite", "smoke")
    assert imported.returncode == 0, imported.stdout
    assert f"imported {len(CELLS)} cells into suite run first" in imported.stdout
    assert "not done yet" not in imported.stdout
    done = home.run("suite", "run", "smoke", "--name", "first")
    assert done.returncode == 0, done.stdout
    assert "begins" not in done.stdout
    assert "6 of 6 cells imported, run on " in home.run("suite", "show", "first").stdout
    written = home.run("suite", "report", "first")
    assert written.returncode == 0, written.stdout
    report, original = (one.path / "suites" / "first" / "report" for one in (home, finished.home))
    assert "6 of 6 cells imported" in (report / "report.html").read_text()
    assert (report / "rounds.csv").read_bytes() == (original / "rounds.csv").read_bytes()
    assert [path.name for path in home.object_path("federations").iterdir()] == ["_suites"]  # no federation
    assert home.run("accept", "first").returncode == 0
    assert_no_process_left(home)


@pytest.mark.slow
def test_a_result_that_is_worse_than_the_accepted_one_fails(finished: Finished) -> None:
    home, again = finished.home, ("suite", "run", finished.path, "--name", "first")
    assert home.run("accept", "first", "--incomplete", "--note", "as it is").returncode == 0
    # Improve the accepted figures, so that the same result is now worse.
    key = ReferenceLayout("federations", "smoke").accepted
    accepted = AcceptedResult.model_validate(home.document(key))
    better = accepted.result.model_dump(mode="json")
    for cell in better["cells"]:
        cell["points"][-1]["figures"]["map50_voc10"] = 0.9
    document = {**accepted.model_dump(mode="json"), "result": better}
    home.object_path(key).write_bytes(seal(AcceptedResult.model_validate(document).model_dump(mode="json")))
    worse = home.run(*again)
    assert worse.returncode == 1
    said = next(line for line in worse.stdout.splitlines() if "map50_voc10" in line and "0.9" in line)
    assert "yolov3-tiny federated" in said
