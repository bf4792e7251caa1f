"""A run's report to MLflow during the rounds, and runs whose report fails."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.coordinator.deployed import NamedServices
from flows.views import pictures, prefect_page
from flows.views.files import reported
from flows.views.mlflow_run import RunReport
from flows.views.prefect_page import RunArtifacts, show_clients
from infra.errors import StoreUnavailable
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.tracking.cell import CellRun
from infra.tracking.client import answering
from infra.tracking.federation import TAG_SUPERSEDED
from infra.views import Views
from tasks.handles import Leavings
from tasks.metrics.voc import evaluate_voc
from tasks.spec.federation import FederationSpec
from tasks.spec.records import Decision, Metrics, RoundRecord
from tests.failing_server import failing_server
from tests.infra.tracking.lookup import find_run
from tests.records import client_info, evaluation_record, round_record
from tests.tasks.metrics.scenes import CLASSES
from tests.tasks.metrics.test_scored import scored_model

SPEC = FederationSpec(max_rounds=2)


def record_of(number: int) -> RoundRecord:
    return round_record(
        number,
        spec_digest=SPEC.digest,
        metrics=Metrics(map50_voc10=0.1),
        decision=Decision(stop=False, best_round=number),
        committed=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number),
    )


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a database with MLflow's tables, once, because that takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    find_run(f"sqlite:///{path}", "fedbench", "none")
    return path


@pytest.fixture
def uri(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # MLflow writes artifacts into the working folder
    shutil.copy(database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_a_federation_that_went_back_gets_a_run_without_the_rounds_put_aside(tmp_path: Path, uri: str) -> None:
    settings = Settings(home=tmp_path, prefect_api_url="http://127.0.0.1:9/api", mlflow_tracking_uri=uri)

    def points(run: str | None) -> list[tuple[int, float]]:
        assert run is not None
        with answering(uri) as client:
            return [(point.step, point.timestamp) for point in client.get_metric_history(run, "round")]

    def opened(*records: RoundRecord) -> str | None:
        report = RunReport("street", SPEC, settings, NamedServices(settings), tmp_path / "street")
        report.open(records)
        report.close("KILLED")
        return find_run(uri, settings.mlflow_experiment, "street")

    records = [record_of(number) for number in range(3)]
    first = opened(*records)
    assert opened(*records) == opened(*records[:3]) == first
    # Round 2 was put aside and done again.
    again = records[2].model_copy(update={"committed": records[2].committed + timedelta(days=1)})
    second = opened(records[0], records[1], again)
    assert first is not None
    assert second != first
    assert points(second) == [(point.round, 1000 * point.committed.timestamp()) for point in (*records[:2], again)]
    assert [step for step, _ in points(first)] == [0, 1, 2]
    with answering(uri) as client:
        assert client.get_run(first).info.run_name == "street (superseded)"
        assert client.get_run(first).data.tags[TAG_SUPERSEDED] == "street"
    third = opened(records[0])  # rounds 1 and 2 were put aside, and none was done again
    assert third not in (first, second)
    assert points(third) == [(0, 1000 * records[0].committed.timestamp())]


def test_all_rounds_are_logged_before_the_run_ends(tmp_path: Path, uri: str) -> None:
    settings = Settings(home=tmp_path, prefect_api_url="http://127.0.0.1:9/api", mlflow_tracking_uri=uri)
    report = RunReport("street", SPEC, settings, NamedServices(settings), tmp_path / "street")
    report.open([])
    for number in range(3):
        report.round_committed(record_of(number))
    report.close("KILLED")
    run = find_run(uri, settings.mlflow_experiment, "street")
    assert run is not None
    with answering(uri) as client:
        assert [point.step for point in client.get_metric_history(run, "round")] == [0, 1, 2]
        assert client.get_run(run).info.status == "KILLED"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of each federation whose best model is registered."""
    names: list[str] = []

    def register(handles: Any, tracker: Any, name: str, *others: object) -> Any:
        names.append(name)
        return SimpleNamespace(uri=f"models:/{name}@best")

    monkeypatch.setattr("flows.views.mlflow_run.register", register)

    async def no_sheet(*arguments: object) -> None:
        return None

    monkeypatch.setattr("flows.views.pictures._sheet", no_sheet)
    monkeypatch.setattr("flows.views.pictures._analysis", lambda *arguments: {})
    monkeypatch.setattr("flows.views.pictures._plots", lambda *arguments: {})
    return names


def test_a_run_that_was_killed_and_resumed_has_everything_once(tmp_path: Path, uri: str, registered: list[str]) -> None:
    def record(number: int) -> RoundRecord:
        return record_of(number).model_copy(update={"clients": tuple(map(client_info, ("1", "2")))})

    killed = report_at(uri, tmp_path)
    killed.open([])
    killed.flow_started("first")
    killed.round_committed(record(0))
    killed.round_committed(record(1))
    killed.close("KILLED")
    resumed = report_at(uri, tmp_path)
    resumed.open([record(0), record(1)])
    resumed.flow_started("second")
    resumed.round_committed(record(2))
    handles = handles_of(resumed)
    handles.history = [record(number) for number in range(3)]
    asyncio.run(resumed.finish(handles))
    assert (killed.views.failed, resumed.views.failed) == ({}, {})
    run_id = find_run(uri, "fedbench", "street")
    assert run_id is not None
    with answering(uri) as client:
        run = client.get_run(run_id)
        assert run.inputs is not None
        names = [item.dataset.name for item in run.inputs.dataset_inputs]
        for key in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run_id, key)]
            assert len(steps) == len(set(steps)), key
    assert sorted(names) == [f"synthetic-street5 {what}" for what in ("client 1", "client 2", "test")]
    tags = run.data.tags
    assert (tags["fedbench.data"], tags["fedbench.method"]) == ("synthetic-street5", "fedavg")
    assert (tags["mlflow.source.name"], tags["prefect.flow_run_id"]) == ("fedbench run", "second")
    assert "Best round 2 of 2: map50_voc10 0.100" in tags["mlflow.note.content"]
    assert "mlflow.parentRunId" not in tags
    assert run.info.run_name == "street"
    assert registered == ["street"]


def test_without_a_map_no_model_is_registered_and_a_line_says_so(
    tmp_path: Path, uri: str, registered: list[str]
) -> None:
    report = report_at(uri, tmp_path)
    report.open([])
    handles = handles_of(report)
    handles.history = [record.model_copy(update={"metrics": Metrics(loss=0.5)}) for record in handles.history]
    messages: list[str] = []
    handles.reporter = SimpleNamespace(message=messages.append)
    assert asyncio.run(report.finish(handles)).model is None
    assert report.views.failed == {}
    assert registered == []
    assert messages == [
        "drawing the plots",
        "no model is registered: no round has a map50_voc10, so none is the best; fedbench register street --round N "
        "registers the model of round N",
    ]
    run_id = find_run(uri, "fedbench", "street")
    assert run_id is not None
    with answering(uri) as client:
        run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert not any(name.startswith("best") for name in run.data.tags)


def test_a_suites_cell_is_below_its_parent_from_the_start_and_registers_no_model(
    tmp_path: Path, uri: str, registered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = CellRun("laptop · seed 1", {"fedbench.suite": "smoke", "fedbench.cell": "laptop.s1"}, "parent")
    for name, value in cell.variables().items():
        monkeypatch.setenv(name, value)
    report = report_at(uri, tmp_path)
    report.open([])
    run_id = find_run(uri, "fedbench", "street")
    assert run_id is not None
    with answering(uri) as client:
        run = client.get_run(run_id)
    assert run.info.run_name == "laptop · seed 1"
    assert run.data.tags["mlflow.parentRunId"] == "parent"
    assert run.data.tags["fedbench.cell"] == "laptop.s1"
    assert asyncio.run(report.finish(handles_of(report))).model is None
    assert registered == []


@pytest.mark.parametrize("stays", [True, False])
def test_a_run_has_no_link_to_a_server_that_ends_with_the_command(tmp_path: Path, uri: str, stays: bool) -> None:
    settings = Settings(home=tmp_path, mlflow_tracking_uri=uri, mlflow_system_metrics=False)
    services = SimpleNamespace(
        settings=settings, prefect_api_url="http://127.0.0.1:9/api", prefect_stays=stays, mlflow_tracking_uri=uri
    )
    report = RunReport("street", SPEC, settings, services, tmp_path, "fedbench report street --home /h")
    report.open([])
    report.flow_started("1")
    report.close("KILLED")
    run_id = find_run(uri, "fedbench", "street")
    assert run_id is not None
    with answering(uri) as client:
        run = client.get_run(run_id)
    link = "http://127.0.0.1:9/v2/runs/flow-run/1" if stays else "fedbench ui street --home /h"
    assert run.data.tags["prefect.flow_run_url"] == link
    assert link in run.data.tags["mlflow.note.content"]
    assert any("http" in value for value in run.data.tags.values()) is stays
    assert not any(key.startswith("system/") for key in run.data.metrics)


# --- a failing view does not fail the federation ------------------------------------------------------------


class Warnings:
    """A reporter that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


@pytest.fixture
def report(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunReport:
    """Return a report whose best model can be registered, and whose pictures take no time to draw."""
    monkeypatch.setattr(
        "flows.views.mlflow_run.register", lambda *arguments: SimpleNamespace(uri="models:/street@best")
    )
    for plot in ("rounds_plot", "class_by_device_plot", "client_losses_plot"):
        monkeypatch.setattr(f"flows.views.pictures.{plot}", lambda history: Figure((1, 1)))

    async def sheet(*arguments: object) -> bytes:
        return b"sheet"

    monkeypatch.setattr("flows.views.pictures._sheet", sheet)
    monkeypatch.setattr("flows.views.pictures._analysis", lambda *arguments: {"errors.png": b"errors"})
    return report_at(uri, tmp_path)


def report_at(uri: str, folder: Path) -> RunReport:
    settings = Settings(home=folder, prefect_api_url="http://127.0.0.1:9/api", mlflow_tracking_uri=uri)
    return RunReport("street", SPEC, settings, NamedServices(settings), folder / "street")


def handles_of(report: RunReport) -> Any:
    return SimpleNamespace(
        history=[record_of(number) for number in range(3)],
        objects=SimpleNamespace(bucket="fedbench"),
        reporter=Warnings(),
        views=report.views,
        tuned=None,
    )


def finished(report: RunReport) -> Leavings:
    """Make the whole report of a run: open it, report the rounds, and finish it."""
    handles = handles_of(report)
    report.open(handles.history[:1])
    report.flow_started("run")
    for record in handles.history[1:]:
        report.round_committed(record)
    return asyncio.run(report.finish(handles))


ALL = {"rounds.png", "class-by-device.png", "client-losses.png", "sheet.png", "errors.png"}
# The broken function, the views that fail because of it, and the missing files.
BROKEN: dict[str, tuple[str, set[str], set[str]]] = {
    "plot of rounds": ("flows.views.pictures.rounds_plot", {"rounds.png"}, {"rounds.png"}),
    "plot of classes": (
        "flows.views.pictures.class_by_device_plot",
        {"class-by-device.png"},
        {"class-by-device.png"},
    ),
    "plot of losses": ("flows.views.pictures.client_losses_plot", {"client-losses.png"}, {"client-losses.png"}),
    "sheet": ("flows.views.pictures._sheet", {"sheet.png"}, {"sheet.png"}),
    "detections": (
        "flows.views.pictures._analysis",
        {"the plots of the best model's detections"},
        {"errors.png"},
    ),
    "opening MLflow's run": ("infra.tracking.federation.Tracker.open", {"MLflow's run"}, set()),
    "metrics": ("flows.views.mlflow_run.round_figures", {"MLflow's run"}, set()),
    "tags": ("infra.tracking.federation.Tracker.set_tags", {"the link to Prefect in MLflow"}, set()),
    "reference": (
        "infra.tracking.federation.Tracker.log_reference",
        {"the reference to the best weights in MLflow"},
        set(),
    ),
    "registration": ("flows.views.mlflow_run.register", {"registering the best model"}, set()),
    "end of MLflow's run": ("infra.tracking.federation.Tracker.close", {"the end of MLflow's run"}, set()),
}


def broken(*arguments: object, **options: object) -> None:
    raise ZeroDivisionError("broken on purpose")


@pytest.mark.parametrize("case", BROKEN)
def test_one_broken_part_of_the_report_does_not_affect_the_others(
    report: RunReport, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, failed, missing = BROKEN[case]
    with monkeypatch.context() as patch:
        patch.setattr(target, broken)
        leavings = finished(report)
    assert set(report.views.failed) == failed
    assert all("ZeroDivisionError: broken on purpose" in reason for reason in report.views.failed.values())
    assert set(leavings.plots) == ALL - missing
    assert {path.name for path in report.folder.glob("*.png")} == ALL - missing
    # Make the report again, like `fedbench report street`.
    again = report_at(report.settings.mlflow_tracking_uri or "", report.folder.parent)
    assert asyncio.run(again.finish(handles_of(again))).model == "models:/street@best"
    assert again.views.failed == {}
    run = find_run(again.settings.mlflow_tracking_uri or "", "fedbench", "street")
    assert run is not None
    with answering(again.settings.mlflow_tracking_uri or "") as client:
        found = client.get_run(run)
        assert found.info.status == "FINISHED"
        assert [point.step for point in client.get_metric_history(run, "round")] == [0, 1, 2]
        assert {file.path.removeprefix("plots/") for file in client.list_artifacts(run, "plots")} == ALL


def test_the_best_models_detections_are_drawn_if_the_store_has_them(
    settings: Settings, object_store: ObjectStore
) -> None:
    layout = FederationLayout(settings.s3.prefix, "street")
    scored = scored_model(4, sets=1)
    (images,) = scored.sets
    found = evaluate_voc(images.truth, images.detections, CLASSES, score_threshold=0.2, max_per_class=3)
    evaluation = evaluation_record(*images.clients, test_digest=images.digest, per_class=found.per_class)
    history = [record_of(0), record_of(1).model_copy(update={"evaluations": (evaluation,)})]
    handles: Any = SimpleNamespace(objects=object_store, layout=layout, history=history)
    assert pictures._analysis("street", handles) == {}
    object_store.put_bytes(layout.detections(1), scored.to_bytes())
    plots = pictures._analysis("street", handles)
    assert list(plots) == ["precision-recall.png", "confusion.png", "errors.png"]
    assert all(data.startswith(b"\x89PNG") for data in plots.values())


def test_nothing_is_drawn_where_the_settings_say_so_and_a_report_draws_it_later(report: RunReport) -> None:
    drawing = report.settings
    report.settings = drawing.model_copy(update={"plots": False})
    leavings = finished(report)
    assert (leavings.plots, leavings.drawn, leavings.model) == ({}, False, "models:/street@best")
    assert [path.name for path in report.folder.iterdir()] == ["without-plots.txt"]
    assert (report.folder / "without-plots.txt").read_text() == "fedbench report street draws the plots.\n"
    assert reported(report.folder)
    assert not report.views.failed
    report.settings = drawing
    assert finished(report).drawn
    assert {path.name for path in report.folder.iterdir()} == ALL


def test_a_folder_that_cannot_be_written_is_a_warning(report: RunReport) -> None:
    report.folder.write_text("in the way")
    finished(report)
    assert set(report.views.failed) == {f"writing {file}" for file in ALL}


@pytest.fixture
def server() -> Iterator[str]:
    with failing_server() as address:
        yield address


@pytest.mark.parametrize("kind", ["answers 500", "is gone"])
def test_plots_are_drawn_even_if_mlflow_fails(
    report: RunReport, server: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lost = report_at(server if kind == "answers 500" else "http://127.0.0.1:9", report.folder.parent)
    leavings = finished(lost)
    assert (leavings.model, leavings.page) == (None, None)
    assert set(leavings.plots) == ALL
    (line, hint) = lost.views.lines()
    assert line.startswith("MLflow's run failed: MLflow at http://127.0.0.1:")
    assert hint.endswith("fedbench report street draws and tracks it again")


def test_a_federation_goes_on_even_if_its_prefect_page_fails(server: str) -> None:
    """Every artifact of a federation is sent to a server that refuses it."""
    history = [record_of(number) for number in range(3)]
    views = Views("again")
    handles: Any = SimpleNamespace(views=views)

    async def show() -> None:
        shown = RunArtifacts("street", SPEC, views)
        await shown.begin(history[:1])
        await show_clients(handles, history[1])
        await shown.round_committed(history)
        await shown.finish(history, Leavings({"sheet.png": b"no picture"}, None, None))

    with temporary_settings({PREFECT_API_URL: f"{server}/api"}):
        asyncio.run(show())
    assert set(views.failed) == {
        "the progress on Prefect's page",
        "the table of clients on Prefect's page",
        "the sheet of detections on Prefect's page",
        "the summary on Prefect's page",
    }


def test_the_summary_is_made_without_a_plot_that_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.figures.plots.rounds_plot", broken)
    views = Views()
    text = prefect_page.summary("street", [record_of(0)], Leavings({}, None, None), views)
    assert "| 0 | 0 |" in text
    assert set(views.failed) == {"the plot of rounds on Prefect's page"}
    views = Views()
    assert text == prefect_page.summary("street", [record_of(0)], Leavings({}, None, None, drawn=False), views)
    assert not views.failed


def test_a_store_that_fails_during_the_report_ends_the_attempt(
    report: RunReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is then started again, and the federation goes on."""

    def gone(*arguments: object) -> None:
        raise StoreUnavailable("bucket fedbench does not answer")

    monkeypatch.setattr("flows.views.mlflow_run.register", gone)
    with pytest.raises(StoreUnavailable):
        finished(report)
