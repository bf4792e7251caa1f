"""MLflow's client: its environment, its errors, and how experiments and runs are found.

mlflow is imported on first use: that takes one to two seconds.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from infra.environment.certificates import MLFLOW, refused_certificate
from infra.errors import TrackingUnavailable
from infra.files.disk import full_disk
from infra.files.sqlite_files import damaged_tracking, says_damaged
from infra.files.sqlite_urls import sqlite_path
from infra.plain_text import first_line
from infra.settings_groups import S3Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAG_FEDERATION = "fedbench.federation"

# MLflow's page has two modes, "Model training" and "GenAI". Some versions choose it by this tag of the experiment, and
# guess it without the tag; a guess has "inferred" in its name. The page of 3.17 ignores the tag: it takes the mode from
# its address, else the one that was chosen last in this browser, at first GenAI.
MODEL_TRAINING_PAGE = "workflowType=machine_learning"
_KIND, _MODEL_TRAINING, _GUESS = "mlflow.experimentKind", "custom_model_development", "inferred"

_PART_LENGTH = 100  # characters; MLflow allows 250 in a metric's name
_DIGEST_LENGTH = 12
_DIGEST_END = re.compile(rf"-x[0-9a-f]{{{_DIGEST_LENGTH}}}$")

# Give up after about five seconds when a server refuses. MLflow's own defaults wait for minutes.
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
    """Return the environment for writing artifacts to S3: endpoint, credentials, short retries, no telemetry."""
    environment = {
        **_CLIENT_ENVIRONMENT,
        "AWS_DEFAULT_REGION": region,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        # Otherwise boto3 sends a file over TLS in chunks without a length, which some stores refuse (rclone does).
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    if endpoint is not None:
        environment["MLFLOW_S3_ENDPOINT_URL"] = endpoint
    return environment


def turn_mlflow_to(store: S3Settings) -> None:
    """Let MLflow's client in this process read and write files in ``store``, if it has keys."""
    if store.access_key is not None and store.secret_key is not None:
        access_key, secret_key = store.access_key.get_secret_value(), store.secret_key.get_secret_value()
        os.environ.update(mlflow_environment(store.endpoint, store.region, access_key, secret_key))


def page_url(base: str, experiment_id: str, run_id: str) -> str:
    """Return the page of a run in the MLflow UI that is served at ``base`` (``http://127.0.0.1:5000``)."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{MODEL_TRAINING_PAGE}"


@contextmanager
def answering(uri: str) -> Iterator[MlflowClient]:
    """Yield a client of the server at ``uri``. Raise failures inside as TrackingUnavailable."""
    with answers(uri):
        yield client_at(uri)


def client_at(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def experiment_named(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """Return the id of the experiment. Make it if there is none, with its files at ``artifact_location``.

    MLflow's page opens it as "Model training", unless a person has chosen another mode there.

    Raises:
        TrackingUnavailable: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location, tags={_KIND: _MODEL_TRAINING})
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
    if _GUESS in found.tags.get(_KIND, _GUESS):
        with suppress(MlflowException):  # a server may refuse it to a user who may add runs
            client.set_experiment_tag(found.experiment_id, _KIND, _MODEL_TRAINING)
    return str(found.experiment_id)


def run_tagged(client: MlflowClient, experiment_id: str, tag: str, value: str) -> Run | None:
    """Return the first run of the experiment with this value of ``tag``; None: there is none."""
    runs = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{tag}` = '{value}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return runs[0] if runs else None


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Raise failures of tracking inside (server, database, artifact store) as TrackingUnavailable."""
    for name, value in _CLIENT_ENVIRONMENT.items():  # before mlflow's first import, which reads them
        os.environ.setdefault(name, value)
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, Boto3Error, BotoCoreError, ClientError, OSError) as error:
        where = re.sub(r"//[^/@]*@", "//***@", uri)  # a database URI may carry a password
        database = sqlite_path(uri)
        if database is not None:  # the home's own, whose store also has MLflow's files
            full = full_disk(error, database.parent, suspected=isinstance(error, ClientError | Boto3Error))
            if full is not None:
                raise TrackingUnavailable(
                    f"MLflow at {where}: {full.found}; the run goes on; once there is room, give the run's command "
                    "again to log what MLflow lacks"
                ) from error
            if says_damaged(error):
                raise TrackingUnavailable(damaged_tracking(database)) from error
        if (words := refused_certificate(error, uri, MLFLOW)) is not None:
            raise TrackingUnavailable(f"MLflow: {words}") from error
        raise TrackingUnavailable(
            f"MLflow at {where} failed: {first_line(error)}; check mlflow_tracking_uri and the server"
        ) from error


def metric_part(name: str) -> str:
    """Return ``name`` as one part of a metric's name. Different names have different parts.

    A name of at most 100 characters that MLflow accepts stays as it is: letters, digits, ``_``, ``-``, ``.``, ``:`` and
    spaces, with neither a dot nor a space at an end. In any other name ``_`` replaces what MLflow does not accept, and
    ``-x`` and 12 digits of the name's sha256 are added: ``car!`` becomes ``car_-xe3214ece4878``. They are also added to
    a name that ends like that itself.
    """
    cleaned = re.sub(r"[^\w.\- :]", "_", name).strip(". ")
    if cleaned == name and 0 < len(name) <= _PART_LENGTH and not _DIGEST_END.search(name):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_LENGTH]
    return f"{cleaned[: _PART_LENGTH - len(digest) - 2] or '_'}-x{digest}"
