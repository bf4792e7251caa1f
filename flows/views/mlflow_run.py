"""The report of a federation: its MLflow run, with the plots and the sheet of detections.

MLflow is a view of the store. When it is unreachable the run goes on, and the missing rounds are filled in later.
A failure here is noted in the report's ``views``, and never fails the federation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from flows.stored.runs import require_scores
from flows.views.files import FAILED_FILE, PLOTTED, WITHOUT_PLOTS
from flows.views.mlflow_data import data_sets
from flows.views.mlflow_figures import own_figures, round_figures
from flows.views.mlflow_texts import description, filter_tags, parameters
from flows.views.pictures import pictures
from flows.views.registration import best_figure, best_record, register, without_best
from infra.orchestrator.page_links import flow_run_page
from infra.settings import Settings
from infra.tracking.cell import this_cell
from infra.tracking.federation import TAG_FLOW_RUN_ID, TAG_FLOW_RUN_URL, EndStatus, Tracker, find_page
from infra.tracking.origin import origin_tags
from infra.tracking.system_metrics import SystemMetrics
from infra.views import Views
from tasks.errors import FedbenchError
from tasks.handles import Handles, Leavings
from tasks.plain_text import few_of
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord

# Names of views, for warnings.
_RUN = "MLflow's run"
_DESCRIPTION = "the description in MLflow"


class Services(Protocol):
    """The addresses of a run's servers, and the settings that may name them."""

    settings: Settings

    @property
    def prefect_api_url(self) -> str: ...

    @property
    def prefect_stays(self) -> bool: ...

    @property
    def mlflow_tracking_uri(self) -> str: ...


def artifact_location(settings: Settings) -> str | None:
    """Return the store's folder for the files of our own MLflow; None if settings name a server, which has its own."""
    return None if settings.mlflow_tracking_uri else f"s3://{settings.s3.bucket}/mlflow"


class RunReport:
    """The MLflow run and the plots of one federation, over all of its attempts."""

    def __init__(
        self,
        name: str,
        spec: FederationSpec,
        settings: Settings,
        services: Services,
        folder: Path,
        again: str | None = None,
        deployment: str | None = None,
    ) -> None:
        """again: the command that makes the report of the finished federation once more. deployment: what started it.

        If this process runs a cell of a suite, the MLflow run is named for it and is below the suite's, and no model is
        registered: the suite registers the best of each experiment.
        """
        self.name, self.spec, self.settings, self.services, self.folder = (
            name,
            spec,
            settings,
            services,
            folder,
        )
        self._tracker: Tracker | None = None
        self._uri: str | None = None  # the tracker's
        self._cell = this_cell()
        self._tags: dict[str, str] = {**filter_tags(spec), **(self._cell.all_tags if self._cell is not None else {})}
        self._deployment = deployment
        self._again = again = again or f"fedbench report {name}"
        self._ui = again.replace("fedbench report", "fedbench ui", 1)
        self._prefect: str | None = None  # the flow run's page, if its server goes on after this command
        self._committed: list[RoundRecord] = []
        self._described: set[str] = set()  # clients whose data MLflow has
        self._metrics: SystemMetrics | None = None
        self.views = Views(again, folder / FAILED_FILE)
        self.model: str | None = None  # URI of the registered model, once there is one
        self.pages: tuple[str, ...] = ()  # of the finished run, in Prefect and MLflow, if their servers go on
        # A round is logged while the next one runs. If the run is killed before that, the next attempt logs the round.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._logging: Future[None] | None = None

    def open(self, history: Sequence[RoundRecord]) -> None:
        """Find or make the MLflow run, and log the committed rounds that it lacks.

        A federation that went back to an earlier round gets a new run.
        """
        self._wait()
        monitored = self._metrics is not None
        self._stop_metrics()
        with self.views.showing(_RUN):
            self._open_with(history)
            if monitored:
                self._start_metrics()

    def _open_with(self, history: Sequence[RoundRecord]) -> Tracker:
        self._committed, self._described = list(history), set()
        rounds = list(map(round_figures, history))
        self._tracker = self._open()
        if self._tracker.has_other_rounds(rounds):
            self._tracker.supersede()
            self._tracker = self._open()
        self._tracker.backfill(rounds)
        self._log_data(self._tracker)
        self._describe(self._tracker)
        return self._tracker

    def _log_data(self, tracker: Tracker) -> None:
        """Log the data of those clients of the committed rounds that MLflow does not have yet."""
        clients = {info.client: info for record in self._committed for info in record.clients}
        if clients.keys() - self._described:
            with self.views.showing("the data sets in MLflow"):
                tracker.log_data(data_sets(self.spec, list(clients.values()), self._committed[-1].evaluations))
                self._described = set(clients)

    def _describe(self, tracker: Tracker) -> None:
        with self.views.showing(_DESCRIPTION):
            tracker.describe(description(self.name, self.spec, self._committed, prefect=self._prefect, ui=self._ui))

    def _start_metrics(self) -> None:
        if self._tracker is not None and self._uri is not None and self.settings.mlflow_system_metrics:
            with self.views.showing("the system metrics in MLflow"):
                self._metrics = SystemMetrics(self._uri, self._tracker.run_id)

    def _stop_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.stop()
            self._metrics = None

    def _open(self) -> Tracker:
        self._uri = self.services.mlflow_tracking_uri
        return Tracker.open(
            uri=self._uri,
            experiment=self.settings.mlflow_experiment,
            artifact_location=artifact_location(self.services.settings),
            federation=self.name,
            spec_digest=self.spec.digest,
            params=parameters(self.spec),
            spec_yaml=self.spec.to_yaml(),
            tags=self._tags,
            title=self._cell.title if self._cell is not None else None,
            origin=self._origin,
        )

    def _origin(self) -> dict[str, str]:
        if self._deployment is not None:
            return origin_tags(f"federation/{self._deployment}", "JOB")
        return origin_tags("fedbench run", "LOCAL")

    def flow_started(self, flow_run_id: str) -> None:
        """Link the MLflow run to Prefect's, and log this machine's load from now on.

        If Prefect's server ends with this command, the command that serves the page takes the place of its address.
        """
        page = flow_run_page(self.services.prefect_api_url, flow_run_id)
        self._prefect = page if self.services.prefect_stays else None
        self._tags = {**self._tags, TAG_FLOW_RUN_ID: flow_run_id, TAG_FLOW_RUN_URL: self._prefect or self._ui}
        if self._tracker is not None:
            with self.views.showing("the link to Prefect in MLflow"):
                self._tracker.set_tags(self._tags)
                self._start_metrics()

    def round_committed(self, record: RoundRecord) -> None:
        """Begin to log a round, once the previous round has been logged."""
        self._wait()
        self._logging = self._thread.submit(self._log, record)

    def _wait(self) -> None:
        last, self._logging = self._logging, None
        if last is not None:
            last.result()

    def _log(self, record: RoundRecord) -> None:
        if self._tracker is not None:
            with self.views.showing(_RUN):  # finish() logs a round that is missing
                self._tracker.log_round(round_figures(record))
                self._committed.append(record)
                self._log_data(self._tracker)

    async def finish(self, handles: Handles) -> Leavings:
        """Draw the plots and the sheet, register the best model, and end the MLflow run as FINISHED.

        With the setting ``plots: false`` nothing is drawn. If every evaluation failed, no round is the best: no model
        is registered, and the MLflow run ends as FAILED. Without a mAP, as without an object in the test images, none
        is the best either, and no model is registered.
        """
        self._wait()
        history = handles.history
        files: dict[str, bytes] = {}
        if self.settings.plots:
            handles.reporter.message("drawing the plots")
            files = await pictures(self.name, self.spec, handles, self.views)
        page = self._track(handles, history, files)
        # The plot of rounds is written last: a folder that has it has the other files, or names those that failed.
        kept = files if self.settings.plots else {WITHOUT_PLOTS: f"{self._again} draws the plots.\n".encode()}
        for file, data in reversed(kept.items()):
            with self.views.showing(f"writing {file}"):
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / file).write_bytes(data)
                if file == PLOTTED:
                    (self.folder / WITHOUT_PLOTS).unlink(missing_ok=True)
        prefect = self._prefect if self.services.prefect_stays else None  # the stack may have been ended meanwhile
        self.pages = tuple(address for address in (prefect, page) if address is not None)
        return Leavings(files, self.model, page, drawn=self.settings.plots)

    def _track(self, handles: Handles, history: Sequence[RoundRecord], files: Mapping[str, bytes]) -> str | None:
        """Log all that MLflow lacks, and end its run. Return the URL of the run's page; None without a server."""
        showing, best, tracker = self.views.showing, best_record(history), None
        self._stop_metrics()
        with showing(_RUN):
            if (
                self._tracker is None or self._uri != self.services.mlflow_tracking_uri
            ):  # its server has changed: a stack was stopped
                tracker = self._open_with(history)
            else:
                self._tracker.backfill(map(round_figures, history))
                tracker = self._tracker
        if tracker is None:
            return None  # the server does not answer, and each further request to it takes seconds
        self._committed = list(history)
        self._log_data(tracker)
        self._describe(tracker)
        with showing("plots in MLflow"):
            for file, data in files.items():
                tracker.log_artifact_bytes(f"plots/{file}", data)
        if handles.tuned is not None:
            with showing("the fine-tuned models' figures in MLflow"):
                tracker.log_artifact_bytes("fine-tuned.json", handles.tuned.model_dump_json(indent=2).encode())
                values = own_figures(handles.tuned.shown, "fedbench.fine_tuned").items()
                tracker.set_tags(
                    {name.replace("/", "."): f"{value:.6g}" for name, value in values if value is not None}
                )
        scored = _scored(self.name, history)
        if scored and not self.spec.strategy.shared_model:
            handles.reporter.message(without_shared_model(self.name, self.spec, best))
        elif scored and best_figure(history) is None:
            handles.reporter.message(without_best(self.name, history))
        elif scored:
            with showing("the reference to the best weights in MLflow"):
                uri = f"s3://{handles.objects.bucket}/{best.model.key}"
                tracker.log_reference("best", uri, best.model.sha256)
            if self._cell is None:
                with showing("registering the best model"):
                    handles.reporter.message("registering the best model")
                    self.model = register(handles, tracker, self.name, self.spec, self.folder).uri
        with showing("the end of MLflow's run"):
            tracker.close("FINISHED" if scored else "FAILED")
        uri = self.services.mlflow_tracking_uri
        if uri.startswith("http"):
            with showing("MLflow's page"):
                return find_page(uri, self.settings.mlflow_experiment, self.name, uri)
        return None

    def close(self, status: EndStatus) -> None:
        """End the MLflow run as FAILED or KILLED."""
        self._wait()
        self._stop_metrics()
        if self._tracker is not None:
            with self.views.showing("the end of MLflow's run"):
                self._tracker.close(status)  # first, because a worker kills a cancelled run that does not end soon
                self._describe(self._tracker)


def without_shared_model(name: str, spec: FederationSpec, best: RoundRecord) -> str:
    """Return why no model is registered, and how to use those of the clients."""
    own = [f"{name}@{info.client}" for info in best.clients]
    return (
        f"no model is registered: strategy.kind {spec.strategy.kind} has no complete shared model. The clients' own "
        f"are {few_of(own)}, for fedbench evaluate, predict, serve, save-model and register"
    )


def _scored(name: str, history: Sequence[RoundRecord]) -> bool:
    try:
        require_scores(name, history)
    except FedbenchError:
        return False
    return True
