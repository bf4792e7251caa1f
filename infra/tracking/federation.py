"""Track a federation in one MLflow run, which is found by a tag and reopened after a kill.

The store's ``round.json`` files are the truth and MLflow a view of them. So when a call here fails with
:class:`infra.errors.TrackingUnavailable`, the federation goes on. Later the caller opens the tracker again and passes
all rounds to :meth:`Tracker.backfill`, which logs the missing rounds with the time of their commit.
Only ``MlflowClient`` is used, never the fluent API and its global active run. mlflow is imported on first
use: that takes one to two seconds.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from infra.tracking.client import TAG_FEDERATION, answers, client_at, experiment_named, page_url, run_tagged
from infra.tracking.data_sets import DataSet, log_data_sets
from infra.tracking.note import write_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAG_SPEC_DIGEST = "fedbench.spec_digest"
TAG_VERSION = "fedbench.version"
TAG_SUPERSEDED = "fedbench.superseded"
TAG_FLOW_RUN_ID = "prefect.flow_run_id"
TAG_FLOW_RUN_URL = "prefect.flow_run_url"

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
SYSTEM_METRICS = "system/"  # prefix of the figures of MLflow's monitor, which have steps of their own

# Logged with every round, in the last batch, so that a round that has it is logged completely.
_ROUND_KEY = "round"
_METRICS_PER_BATCH = 1000  # MLflow's limits, from mlflow.utils.validation
_PARAMS_PER_BATCH = 100
_PARAM_VALUE_LENGTH = 6000


@dataclass(frozen=True)
class RoundFigures:
    """A committed round, for MLflow. figures: by metric name; None and values that are not finite are left out."""

    round: int
    committed: datetime
    figures: Mapping[str, float | None]

    @property
    def milliseconds(self) -> int:
        """Time of the commit since 1970, the same on every machine."""
        committed = self.committed if self.committed.tzinfo is not None else self.committed.replace(tzinfo=UTC)
        return round(committed.timestamp() * 1000)


class Tracker:
    """The open MLflow run of one federation. Every method may raise TrackingUnavailable."""

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str, run_id: str, federation: str) -> None:
        self._client = client
        self._uri = uri
        self._federation = federation
        self.experiment_id = experiment_id
        self.run_id = run_id

    @classmethod
    def open(
        cls,
        uri: str,
        experiment: str,
        artifact_location: str | None,
        federation: str,
        spec_digest: str,
        params: Mapping[str, object],
        spec_yaml: str,
        tags: Mapping[str, str],
        title: str | None = None,
        origin: Callable[[], Mapping[str, str]] = dict,
    ) -> Tracker:
        """Find and reopen the federation's run, or create it. Each federation has exactly one run.

        ``artifact_location`` (``s3://…``; None: the server's choice) is for an experiment created now. MLflow keeps a
        parameter's first value. If it has changed since (``max_rounds`` may be raised), the new value becomes the tag
        ``fedbench.<name>``. ``title`` is the run's name, instead of the federation's. ``origin`` returns tags that only
        a new run gets.

        Raises:
            TrackingUnavailable: the server does not answer or refuses, after short retries.
        """
        texts = {name: str(value)[:_PARAM_VALUE_LENGTH] for name, value in params.items()}
        tags = {
            **tags,
            TAG_FEDERATION: federation,
            TAG_SPEC_DIGEST: spec_digest,
            TAG_VERSION: _code_version(),
        }
        with answers(uri):
            client = client_at(uri)
            experiment_id = experiment_named(client, experiment, artifact_location)
            run = run_tagged(client, experiment_id, TAG_FEDERATION, federation)
            if run is None:
                run = client.create_run(experiment_id, tags={**origin(), **tags}, run_name=title or federation)
            else:
                client.update_run(run.info.run_id, status="RUNNING")
            tracker = cls(client, uri, experiment_id, run.info.run_id, federation)
            # A kill may have come between creating the run and its parameters: log what is missing.
            logged = run.data.params
            tracker._log_params({name: text for name, text in texts.items() if name not in logged})
            changed = {name: text for name, text in texts.items() if logged.get(name, text) != text}
            tracker._set_tags({**tags, **{f"fedbench.{name}": text for name, text in changed.items()}})
        tracker.log_artifact_bytes("spec.yaml", spec_yaml.encode())
        return tracker

    def log_round(self, logged: RoundFigures) -> None:
        """Log a round's figures with the time of its commit.

        A point that is logged again with the same time stays one point. With another time it would become two.
        """
        from mlflow.entities import Metric

        step, time = logged.round, logged.milliseconds
        points = [
            Metric(key, float(value), time, step)
            for key, value in logged.figures.items()
            if value is not None and math.isfinite(value)
        ]
        points.append(Metric(_ROUND_KEY, float(step), time, step))
        with answers(self._uri):
            for start in range(0, len(points), _METRICS_PER_BATCH):
                self._client.log_batch(self.run_id, metrics=points[start : start + _METRICS_PER_BATCH])

    def logged_rounds(self) -> set[int]:
        """Return the numbers of the rounds that are logged completely."""
        with answers(self._uri):
            return {point.step for point in self._client.get_metric_history(self.run_id, _ROUND_KEY)}

    def has_other_rounds(self, rounds: Iterable[RoundFigures]) -> bool:
        """Whether a round is logged that is not among ``rounds``, because the federation has gone back since."""
        committed = {(item.round, item.milliseconds) for item in rounds}
        with answers(self._uri):
            points = self._client.get_metric_history(self.run_id, _ROUND_KEY)
        return any((point.step, point.timestamp) not in committed for point in points)

    def supersede(self) -> None:
        """End the run, and take the federation's tag from it, so that :meth:`open` makes a new one.

        MLflow cannot delete a metric's points, and two points at one step become two lines in its plots.
        """
        name = f"{self._federation} (superseded)"
        with answers(self._uri):
            self._set_tags({TAG_FEDERATION: name, TAG_SUPERSEDED: self._federation})
            self._client.update_run(self.run_id, name=name)
            self._client.set_terminated(self.run_id, "KILLED")

    def backfill(self, rounds: Iterable[RoundFigures]) -> list[int]:
        """Log those of ``rounds`` that MLflow does not have yet. Return their numbers."""
        logged = self.logged_rounds()
        missing = [item for item in rounds if item.round not in logged]
        for item in missing:
            self.log_round(item)
        return [item.round for item in missing]

    def log_artifact_bytes(self, path: str, data: bytes) -> None:
        """Write ``data`` as the artifact ``path`` (``plots/loss.png``); an older one is replaced."""
        target = PurePosixPath(path)
        folder = None if target.parent == PurePosixPath(".") else str(target.parent)
        with answers(self._uri), tempfile.TemporaryDirectory(prefix="fedbench-") as temporary:
            local = Path(temporary) / target.name
            local.write_bytes(data)
            self._client.log_artifact(self.run_id, str(local), folder)

    def log_figure(self, path: str, figure: Figure) -> None:
        """Save a matplotlib figure as the artifact ``path``; its suffix is the format."""
        with answers(self._uri):
            self._client.log_figure(self.run_id, figure, path)

    def log_reference(self, name: str, uri: str, sha256: str) -> None:
        """Refer to an object of the store: artifact ``<name>.json``, tags ``fedbench.<name>.*``."""
        document = json.dumps({"uri": uri, "sha256": sha256}, indent=2) + "\n"
        self.log_artifact_bytes(f"{name}.json", document.encode())
        with answers(self._uri):
            self._set_tags({f"fedbench.{name}.uri": uri, f"fedbench.{name}.sha256": sha256})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run. A tag of the same name is replaced."""
        with answers(self._uri):
            self._set_tags(tags)

    def log_data(self, data_sets: Iterable[DataSet]) -> None:
        """Log the run's data sets. A data set whose name the run already has is not logged again."""
        with answers(self._uri):
            log_data_sets(self._client, self.run_id, data_sets)

    def describe(self, text: str) -> None:
        """Set the description on the run's page (Markdown), unless a person has changed it there."""
        with answers(self._uri):
            write_note(self._client, self.run_id, text)

    def close(self, status: EndStatus) -> None:
        """End the MLflow run; :meth:`open` reopens it."""
        with answers(self._uri):
            self._client.set_terminated(self.run_id, status)

    @contextmanager
    def answering(self) -> Iterator[MlflowClient]:
        """Yield MLflow's client, for what has no method here. Raise failures inside as TrackingUnavailable."""
        with answers(self._uri):
            yield self._client

    def _log_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        items = [Param(name, text) for name, text in params.items()]
        for start in range(0, len(items), _PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=items[start : start + _PARAMS_PER_BATCH])

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(name, text) for name, text in tags.items()])


def find_tracker(uri: str, experiment: str, federation: str) -> Tracker | None:
    """Return the federation's run without opening it; None: there is no run.

    Raises:
        TrackingUnavailable: the server does not answer.
    """
    found = _locate(uri, experiment, federation)
    if found is None:
        return None
    return Tracker(client_at(uri), uri, found.info.experiment_id, found.info.run_id, federation)


def find_page(uri: str, experiment: str, federation: str, base: str) -> str | None:
    """Return the page of the federation's run in the MLflow UI at ``base``; None: there is no run.

    Raises:
        TrackingUnavailable: the server does not answer.
    """
    found = _locate(uri, experiment, federation)
    return None if found is None else page_url(base, found.info.experiment_id, found.info.run_id)


def _locate(uri: str, experiment: str, federation: str) -> Run | None:
    with answers(uri):
        client = client_at(uri)
        found = client.get_experiment_by_name(experiment)
        return None if found is None else run_tagged(client, found.experiment_id, TAG_FEDERATION, federation)


def _code_version() -> str:
    try:
        return version("fedbench")
    except PackageNotFoundError:
        return "unknown"
