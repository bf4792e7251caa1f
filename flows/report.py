"""What a run leaves behind for its readers: MLflow's run, plots, a sheet of detections.

MLflow is a view of the store. When it is unreachable the run goes on, and the missing rounds are filled in later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

from flows.registration import best_record, register
from flows.stored import require_scores
from infra.errors import InfraError, TrackingUnavailable
from infra.place import Leavings, Place
from infra.settings import Settings
from infra.tracking import TAG_FLOW_RUN_ID, TAG_FLOW_RUN_URL, EndStatus, Tracker, find_page
from tasks.errors import FedbenchError
from tasks.figures.plots import class_by_device_plot, client_losses_plot, rounds_plot
from tasks.spec.federation import FederationSpec, flatten
from tasks.spec.records import RoundRecord
from tasks.spec.turns import AnyRequest, SheetRequest, TurnReply
from tasks.turns import hand_out

log = logging.getLogger(__name__)

SHEET_IMAGES = 9


class Services(Protocol):
    """Where a run's servers are, and the settings that say so (or not)."""

    settings: Settings

    @property
    def prefect_api_url(self) -> str: ...

    @property
    def mlflow_tracking_uri(self) -> str: ...


def artifact_location(settings: Settings) -> str | None:
    """Where our own MLflow keeps files: in the store. None for a server that settings name, which has its own place."""
    return None if settings.mlflow_tracking_uri else f"s3://{settings.s3.bucket}/mlflow"


class RunReport:
    """The MLflow run and the plots of one federation, over all of its attempts."""

    def __init__(self, name: str, spec: FederationSpec, settings: Settings, services: Services, folder: Path) -> None:
        self.name, self.spec, self.settings, self.services, self.folder = (
            name,
            spec,
            settings,
            services,
            folder,
        )
        self._tracker: Tracker | None = None
        self._uri: str | None = None  # the tracker's
        self._tags: dict[str, str] = {}
        self.model: str | None = None  # URI of the registered model, once there is one
        # MLflow gets a round while the next one goes on. A run that is killed meanwhile fills it in when it goes on.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._logging: Future[None] | None = None

    def open(self, history: Sequence[RoundRecord]) -> None:
        """Find or make the MLflow run, and give it the committed rounds that it lacks.

        A federation that went back to an earlier round gets a new run.
        """
        self._wait()
        records = [record.model_dump(mode="json") for record in history]
        try:
            self._tracker = self._open()
            if self._tracker.has_other_rounds(records):
                self._tracker.supersede()
                self._tracker = self._open()
            self._tracker.backfill(records)
        except TrackingUnavailable as error:
            log.warning("MLflow: %s", error)

    def _open(self) -> Tracker:
        self._uri = self.services.mlflow_tracking_uri
        return Tracker.open(
            uri=self._uri,
            experiment=self.settings.mlflow_experiment,
            artifact_location=artifact_location(self.services.settings),
            federation=self.name,
            spec_digest=self.spec.digest,
            params=flatten(self.spec.model_dump(mode="json")),
            spec_yaml=self.spec.to_yaml(),
            tags=self._tags,
        )

    def flow_started(self, flow_run_id: str) -> None:
        """Link the MLflow run to Prefect's."""
        base = self.services.prefect_api_url.removesuffix("/api")
        self._tags = {TAG_FLOW_RUN_ID: flow_run_id, TAG_FLOW_RUN_URL: f"{base}/runs/flow-run/{flow_run_id}"}
        try:
            if self._tracker is not None:
                self._tracker.set_tags(self._tags)
        except TrackingUnavailable as error:
            log.warning("MLflow: %s", error)

    def round_committed(self, record: RoundRecord) -> None:
        """Log a round; returns before it is logged, but not before the last one is."""
        self._wait()
        self._logging = self._thread.submit(self._log, record)

    def _wait(self) -> None:
        last, self._logging = self._logging, None
        if last is not None:
            last.result()

    def _log(self, record: RoundRecord) -> None:
        try:
            if self._tracker is not None:
                self._tracker.log_record(record.model_dump(mode="json"))
        except TrackingUnavailable as error:
            log.warning("MLflow: round %d will be filled in later: %s", record.round, error)

    async def finish(self, place: Place) -> Leavings:
        """Plots, sheet, the best model in MLflow's registry; the MLflow run is ended FINISHED.

        If every evaluation failed, no round is the best: no model is registered, and the MLflow run is ended FAILED.
        """
        self._wait()
        history: list[RoundRecord] = place.history
        files = self._draw(history)
        try:
            files["sheet.png"] = await self._sheet(place, history)
        except (FedbenchError, InfraError) as error:
            log.warning("no sheet of detections: %s", error)
        self.folder.mkdir(parents=True, exist_ok=True)
        best = best_record(history)
        try:
            if self._tracker is None or self._uri != self.services.mlflow_tracking_uri:  # a stack was ended
                self.open(history)
            if self._tracker is not None:
                self._tracker.backfill([record.model_dump(mode="json") for record in history])
                for file, data in files.items():
                    self._tracker.log_artifact_bytes(f"plots/{file}", data)
                if _scored(self.name, history):
                    uri = f"s3://{place.objects.bucket}/{best.model.key}"
                    self._tracker.log_reference("best", uri, best.model.sha256)
                    self._register(place, self._tracker)
                    self._tracker.close("FINISHED")
                else:
                    self._tracker.close("FAILED")
        except TrackingUnavailable as error:
            log.warning("MLflow: %s", error)
        for file, data in reversed(files.items()):
            (self.folder / file).write_bytes(data)
        return Leavings(files, self.model, self._page())

    def _page(self) -> str | None:
        """The run's page of MLflow's server, if there is one."""
        uri = self.services.mlflow_tracking_uri
        if not uri.startswith("http"):
            return None
        try:
            return find_page(uri, self.settings.mlflow_experiment, self.name, uri)
        except TrackingUnavailable as error:
            log.warning("MLflow: %s", error)
            return None

    def _register(self, place: Place, tracker: Tracker) -> None:
        place.reporter.message("registering the best model")
        try:
            self.model = register(place, tracker, self.name, self.spec, self.folder).uri
        except (FedbenchError, InfraError) as error:
            log.warning("the best model is not registered; the same command tries it again: %s", error)

    def close(self, status: EndStatus) -> None:
        """End the MLflow run as FAILED or KILLED."""
        self._wait()
        try:
            if self._tracker is not None:
                self._tracker.close(status)
        except TrackingUnavailable as error:
            log.warning("MLflow: %s", error)

    def _draw(self, history: Sequence[RoundRecord]) -> dict[str, bytes]:
        counts = {info.client: info.class_counts for info in history[-1].clients}
        files = {
            "rounds.png": _png(rounds_plot(history)),
            "class-by-device.png": _png(class_by_device_plot(counts)),
        }
        if len(history) > 1:
            files["client-losses.png"] = _png(client_losses_plot(history))
        return files

    async def _sheet(self, place: Place, history: Sequence[RoundRecord]) -> bytes:
        best = best_record(history)
        tested = [info.client for info in best.clients if info.test_size]
        if not tested:
            raise FedbenchError("no client has test images")
        # Here, because a finished run is printed without torch.
        from tasks.draw_sheet import read_sheet

        sheets: list[bytes] = []

        async def accept(asked: AnyRequest, reply: TurnReply) -> None:
            assert isinstance(asked, SheetRequest)
            sheets.append(await asyncio.to_thread(read_sheet, place, asked, reply))

        reasons = []
        for client, *_ in place.slots.split(tested):  # a place that fails leaves it to the next one
            request = SheetRequest(
                federation=self.name, spec=self.spec, clients=(client,), model=best.model, images=SHEET_IMAGES
            )
            deadline = self.spec.participation.evaluation_deadline
            for reply in await hand_out(place, request, deadline=deadline, accept=accept):
                reasons += [f"client {failure.client}: {failure.reason}" for failure in reply.failures]
            if sheets:
                return sheets[0]
        raise FedbenchError("; ".join(reasons))


def _scored(name: str, history: Sequence[RoundRecord]) -> bool:
    try:
        require_scores(name, history)
    except FedbenchError:
        return False
    return True


def _png(figure: Figure) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
