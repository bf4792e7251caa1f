"""MLflow tracking: one MLflow run per federation, found again by a tag after a kill and reopened.

The store's ``round.json`` files are the truth and MLflow a view of them. So every call here may fail with
:class:`infra.errors.TrackingUnavailable` and the federation goes on: later the caller opens the tracker again
and gives all records to :meth:`Tracker.backfill`, which logs the missing rounds with their commit's time.
Only ``MlflowClient`` is used, never the fluent API and its global active run. mlflow is imported on first
use: that takes one to two seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from infra.errors import TrackingUnavailable
from infra.files.disk import full_disk
from infra.files.sqlite_files import damaged_tracking, says_damaged
from infra.files.sqlite_urls import sqlite_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAG_FEDERATION = "fedbench.federation"
TAG_SPEC_DIGEST = "fedbench.spec_digest"
TAG_VERSION = "fedbench.version"
TAG_SUPERSEDED = "fedbench.superseded"
TAG_FLOW_RUN_ID = "prefect.flow_run_id"
TAG_FLOW_RUN_URL = "prefect.flow_run_url"

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]

# Logged with every round, in the last batch: a round that has it is logged whole.
_ROUND_KEY = "round"
_MAPS = ("map50_voc10", "map50_voc07", "map50_coco", "map_coco")
_METRICS_PER_BATCH = 1000  # MLflow's limits, from mlflow.utils.validation
_PARAMS_PER_BATCH = 100
_PARAM_VALUE_LENGTH = 6000
_PART_LENGTH = 100  # of a metric's name, of which MLflow takes 250 characters
_DIGEST_LENGTH = 12
_DIGEST_END = re.compile(rf"-x[0-9a-f]{{{_DIGEST_LENGTH}}}$")

# About five seconds until a server that refuses is given up; MLflow's own defaults wait for minutes.
_CLIENT_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def mlflow_environment(endpoint: str | None, region: str, access_key: str, secret_key: str) -> dict[str, str]:
    """Environment for writing artifacts to S3: endpoint, credentials, short retries, no telemetry."""
    environment = {
        **_CLIENT_ENVIRONMENT,
        "AWS_DEFAULT_REGION": region,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
    }
    if endpoint is not None:
        environment["MLFLOW_S3_ENDPOINT_URL"] = endpoint
    return environment


def round_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """The flat metrics of a dumped ``RoundRecord``; the UI makes a section of each prefix before a slash.

    Losses are means per image, ``seconds/*`` wall time, ``bytes/*`` totals over the cohort, ``class/*`` VOC 2010
    AP at IoU 0.5, ``class_coco/*`` COCO AP at IoU 0.50 to 0.95, ``class_recall/*`` recall. A value that the record
    has as null is left out.
    """
    metrics, plan, decision = record["metrics"], record["plan"], record["decision"]
    seconds: dict[str, float] = record["seconds"]
    values: dict[str, float | None] = {
        "train/loss": metrics["train_loss"],
        **{f"global/{name}": metrics[name] for name in ("loss", *_MAPS, "recall")},
        **{f"unweighted/{_unweighted_part(name)}": value for name, value in metrics["unweighted"].items()},
        **{f"class/{metric_part(name)}": value for name, value in metrics["per_class"].items()},
        **{f"class_coco/{metric_part(name)}": value for name, value in metrics["per_class_coco"].items()},
        **{f"class_recall/{metric_part(name)}": value for name, value in metrics["per_class_recall"].items()},
        "best/round": decision["best_round"],
        "best/map50_voc10": decision["best_map50_voc10"],
        "bytes/up": record["bytes_up"],
        "bytes/down": record["bytes_down"],
        **{f"seconds/{metric_part(phase)}": value for phase, value in seconds.items()},
        "seconds/round": sum(seconds.values()),
        "clients/ready": len(record["clients"]),
        "clients/updates": len(record["updates"]),
        "clients/dropped": len(record["dropped"]),
    }
    if decision["best_metric"] != "map50_voc10":
        values[f"best/{decision['best_metric']}"] = decision["best_value"]
    if plan is not None:
        values["clients/cohort"] = len(plan["cohort"])
        values["train/learning_rate"] = plan["learning_rate"]
    for update in record["updates"]:
        client = f"client/{update['client']}"
        values[f"{client}/loss"] = update["train_loss"]
        values[f"{client}/images"] = update["train_size"]
        values[f"{client}/seconds"] = update["seconds"]
    if len(record["evaluations"]) > 1:  # one shared test set: the same figures as global/*
        for evaluation in record["evaluations"]:
            for client in evaluation["clients"]:
                values[f"client/{client}/test_loss"] = evaluation["loss"]
                values |= {f"client/{client}/{name}": evaluation[name] for name in (*_MAPS, "recall")}
    return {name: float(value) for name, value in values.items() if value is not None}


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
    ) -> Tracker:
        """Find the federation's run and reopen it, or create it; exactly one run a federation.

        ``artifact_location`` (``s3://…``; None: the server's choice) is for an experiment created now.
        MLflow keeps a parameter's first value: where a reopened run has another one (``max_rounds`` may be
        raised), the new value becomes the tag ``fedbench.<name>``.

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
        with _answers(uri):
            client = _client(uri)
            experiment_id = experiment_named(client, experiment, artifact_location)
            run = run_tagged(client, experiment_id, TAG_FEDERATION, federation)
            if run is None:
                run = client.create_run(experiment_id, tags=tags, run_name=federation)
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

    def log_round(self, step: int, timestamp_ms: int, metrics: Mapping[str, float | None]) -> None:
        """Log a round's metrics; None and numbers that are not finite are left out.

        ``timestamp_ms`` must be the time of the round's commit: the same point logged again with the same
        timestamp is one point, with another timestamp it would be two.
        """
        from mlflow.entities import Metric

        points = [
            Metric(key, float(value), timestamp_ms, step)
            for key, value in metrics.items()
            if value is not None and math.isfinite(value)
        ]
        points.append(Metric(_ROUND_KEY, float(step), timestamp_ms, step))
        with _answers(self._uri):
            for start in range(0, len(points), _METRICS_PER_BATCH):
                self._client.log_batch(self.run_id, metrics=points[start : start + _METRICS_PER_BATCH])

    def log_record(self, record: Mapping[str, Any]) -> None:
        """Log a dumped ``RoundRecord`` (:func:`round_metrics`) with its own ``committed`` time."""
        self.log_round(record["round"], _milliseconds(record["committed"]), round_metrics(record))

    def logged_rounds(self) -> set[int]:
        """Numbers of the rounds that are logged whole."""
        with _answers(self._uri):
            return {point.step for point in self._client.get_metric_history(self.run_id, _ROUND_KEY)}

    def has_other_rounds(self, records: Iterable[Mapping[str, Any]]) -> bool:
        """Whether a round is logged that is none of the dumped ``RoundRecord``: the federation went back since."""
        committed = {(record["round"], _milliseconds(record["committed"])) for record in records}
        with _answers(self._uri):
            points = self._client.get_metric_history(self.run_id, _ROUND_KEY)
        return any((point.step, point.timestamp) not in committed for point in points)

    def supersede(self) -> None:
        """End the run, and give up its place as the federation's: :meth:`open` then makes a new one.

        MLflow cannot take a metric's points back, and two points at one step are two lines in its plots.
        """
        name = f"{self._federation} (superseded)"
        with _answers(self._uri):
            self._set_tags({TAG_FEDERATION: name, TAG_SUPERSEDED: self._federation})
            self._client.update_run(self.run_id, name=name)
            self._client.set_terminated(self.run_id, "KILLED")

    def backfill(self, records: Iterable[Mapping[str, Any]]) -> list[int]:
        """Log those of the dumped ``RoundRecord`` that MLflow does not have yet; returns their rounds."""
        logged = self.logged_rounds()
        missing = [record for record in records if record["round"] not in logged]
        for record in missing:
            self.log_record(record)
        return [record["round"] for record in missing]

    def log_artifact_bytes(self, path: str, data: bytes) -> None:
        """Write ``data`` as the artifact ``path`` (``plots/loss.png``); an older one is replaced."""
        target = PurePosixPath(path)
        folder = None if target.parent == PurePosixPath(".") else str(target.parent)
        with _answers(self._uri), tempfile.TemporaryDirectory(prefix="fedbench-") as temporary:
            local = Path(temporary) / target.name
            local.write_bytes(data)
            self._client.log_artifact(self.run_id, str(local), folder)

    def log_figure(self, path: str, figure: Figure) -> None:
        """Save a matplotlib figure as the artifact ``path``; its suffix is the format."""
        with _answers(self._uri):
            self._client.log_figure(self.run_id, figure, path)

    def log_reference(self, name: str, uri: str, sha256: str) -> None:
        """Refer to an object of the store: artifact ``<name>.json``, tags ``fedbench.<name>.*``."""
        document = json.dumps({"uri": uri, "sha256": sha256}, indent=2) + "\n"
        self.log_artifact_bytes(f"{name}.json", document.encode())
        with _answers(self._uri):
            self._set_tags({f"fedbench.{name}.uri": uri, f"fedbench.{name}.sha256": sha256})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; one of the same name is replaced."""
        with _answers(self._uri):
            self._set_tags(tags)

    def close(self, status: EndStatus) -> None:
        """End the MLflow run; :meth:`open` reopens it."""
        with _answers(self._uri):
            self._client.set_terminated(self.run_id, status)

    @contextmanager
    def answering(self) -> Iterator[MlflowClient]:
        """MLflow's client, for what has no method here; whatever fails inside is raised as TrackingUnavailable."""
        with _answers(self._uri):
            yield self._client

    def _log_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        items = [Param(name, text) for name, text in params.items()]
        for start in range(0, len(items), _PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=items[start : start + _PARAMS_PER_BATCH])

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(name, text) for name, text in tags.items()])


def find_run(uri: str, experiment: str, federation: str) -> str | None:
    """Id of the federation's MLflow run; None when there is none.

    Raises:
        TrackingUnavailable: the server does not answer.
    """
    found = _locate(uri, experiment, federation)
    return None if found is None else found.info.run_id


def find_page(uri: str, experiment: str, federation: str, base: str) -> str | None:
    """Page of the federation's run in the MLflow UI at ``base``; None when there is no run.

    Raises:
        TrackingUnavailable: the server does not answer.
    """
    found = _locate(uri, experiment, federation)
    return None if found is None else page_url(base, found.info.experiment_id, found.info.run_id)


def page_url(base: str, experiment_id: str, run_id: str) -> str:
    """Page of a run in the MLflow UI that is served at ``base`` (``http://127.0.0.1:5000``)."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


@contextmanager
def answering(uri: str) -> Iterator[MlflowClient]:
    """A client of the server at ``uri``; whatever fails inside is raised as TrackingUnavailable."""
    with _answers(uri):
        yield _client(uri)


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def experiment_named(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """Id of the experiment, made if there is none, with its files at ``artifact_location``.

    Raises:
        TrackingUnavailable: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was first
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingUnavailable(
            f"MLflow experiment {name!r} was deleted: restore it (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}) or set another mlflow_experiment"
        )
    return str(found.experiment_id)


def run_tagged(client: MlflowClient, experiment_id: str, tag: str, value: str) -> Run | None:
    """The first run of the experiment with this value of ``tag``."""
    runs = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{tag}` = '{value}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return runs[0] if runs else None


def _locate(uri: str, experiment: str, federation: str) -> Run | None:
    with _answers(uri):
        client = _client(uri)
        found = client.get_experiment_by_name(experiment)
        return None if found is None else run_tagged(client, found.experiment_id, TAG_FEDERATION, federation)


@contextmanager
def _answers(uri: str) -> Iterator[None]:
    """Every way in which tracking fails (server, database, artifact store), as TrackingUnavailable."""
    for name, value in _CLIENT_ENVIRONMENT.items():  # before mlflow's first import, which reads them
        os.environ.setdefault(name, value)
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, Boto3Error, BotoCoreError, ClientError, OSError) as error:
        first_line = next(iter(str(error).splitlines()), "") or type(error).__name__
        where = re.sub(r"//[^/@]*@", "//***@", uri)  # a database URI may carry a password
        database = sqlite_path(uri)
        if database is not None:  # the home's, whose store has the files too
            full = full_disk(error, database.parent, suspected=isinstance(error, ClientError | Boto3Error))
            if full is not None:
                raise TrackingUnavailable(
                    f"MLflow at {where}: {full.found}; the run goes on, and MLflow gets what it lacks when the run's "
                    "command is given again and there is room"
                ) from error
            if says_damaged(error):
                raise TrackingUnavailable(damaged_tracking(database)) from error
        raise TrackingUnavailable(
            f"MLflow at {where} failed: {first_line}; check mlflow_tracking_uri and the server"
        ) from error


def _code_version() -> str:
    try:
        return version("fedbench")
    except PackageNotFoundError:
        return "unknown"


def _milliseconds(moment: datetime | str) -> int:
    parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)  # the same timestamp on every machine
    return round(parsed.timestamp() * 1000)


def metric_part(name: str) -> str:
    """``name`` as one part of a metric's name: other names have other parts, whichever names there are.

    A name of at most 100 characters that MLflow takes is its own part: letters, digits, ``_``, ``-``, ``.``, ``:`` and
    spaces, with neither a dot nor a space at an end. In any other name ``_`` stands for what MLflow does not take, and
    ``-x`` and 12 digits of the name's sha256 follow: ``car!`` is ``car_-xe3214ece4878``. The same holds for a name that
    itself ends like that.
    """
    cleaned = re.sub(r"[^\w.\- :]", "_", name).strip(". ")
    if cleaned == name and 0 < len(name) <= _PART_LENGTH and not _DIGEST_END.search(name):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_LENGTH]
    return f"{cleaned[: _PART_LENGTH - len(digest) - 2] or '_'}-x{digest}"


def _unweighted_part(name: str) -> str:
    """As :func:`metric_part`, of a figure (``loss``) or of a figure by class (``per_class/car``: ``per_class_car``)."""
    figure, slash, class_name = name.partition("/")
    return f"{figure}_{metric_part(class_name)}" if slash else metric_part(figure)
