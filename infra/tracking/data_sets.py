"""Data sets as inputs of an MLflow run. Only their descriptions are logged, never their contents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CONTEXT = "mlflow.data.context"
_DIGEST_LENGTH = 36  # MLflow's limits, from mlflow.utils.validation
_NAME_LENGTH = 500


@dataclass(frozen=True)
class DataSet:
    """A data set of a run.

    context: what it is used for, as ``training``. digest: equal for equal contents; cut to 36 characters. profile:
    counts that MLflow's page shows. source: what the data set is read from.
    """

    name: str
    context: str
    digest: str
    profile: Mapping[str, object]
    source: Mapping[str, object]


def log_data_sets(client: MlflowClient, run_id: str, data_sets: Iterable[DataSet]) -> None:
    """Log those of ``data_sets`` whose names the run does not have yet as its inputs."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = client.get_run(run_id).inputs
    there = {item.dataset.name for item in inputs.dataset_inputs} if inputs is not None else set()
    new = [
        DatasetInput(
            Dataset(
                name=item.name[:_NAME_LENGTH],
                digest=item.digest[:_DIGEST_LENGTH],
                source_type="code",  # MLflow's type for data without an address that it could load
                source=json.dumps({"tags": dict(item.source)}),
                profile=json.dumps(dict(item.profile)),
            ),
            [InputTag(_CONTEXT, item.context)],
        )
        for item in data_sets
        if item.name[:_NAME_LENGTH] not in there
    ]
    if new:
        client.log_inputs(run_id, datasets=new)
