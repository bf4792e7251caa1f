"""Find and download models of MLflow's registry."""

from __future__ import annotations

import os
from pathlib import Path

from infra.settings_groups import S3Settings
from infra.tracking.client import answering, turn_mlflow_to

# Error codes of MLflow's servers and databases for a missing name, version or alias.
_MISSING = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
LATEST = "latest"


def fetch_registered(uri: str, store: S3Settings, name: str, version: str, folder: Path) -> Path | None:
    """Download a version of the registered model ``name`` into ``folder``. Return its path; None: there is none.

    uri: MLflow's tracking URI.
    store: holds the artifacts that MLflow keeps in S3.
    version: a number, ``latest``, or ``@alias``.

    Raises:
        TrackingUnavailable: MLflow or the artifacts' store does not answer.
    """
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    turn_mlflow_to(store)
    with answering(uri) as client:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        try:
            if version == LATEST:
                numbers = [int(found.version) for found in client.search_model_versions(f"name = '{name}'")]
                if not numbers:
                    return None
                version = str(max(numbers))
            elif version.startswith("@"):
                version = str(client.get_model_version_by_alias(name, version[1:]).version)
            # Download by location. download_artifacts has a parameter registry_uri, but MLflow 3.17.2 looks a models:/
            # address up at mlflow.get_registry_uri() anyway (ModelsArtifactRepository._get_model_uri_infos): in a test
            # it found no model at ``uri``.
            location = client.get_model_version_download_uri(name, version)
        except MlflowException as error:
            if error.error_code in _MISSING:
                return None
            raise
        return Path(download_artifacts(artifact_uri=location, dst_path=str(folder), tracking_uri=uri))


def registered_models(uri: str) -> list[str]:
    """Return the models in the registry, as ``name/version`` and ``name@alias``.

    Raises:
        TrackingUnavailable: MLflow does not answer.
    """
    found = []
    with answering(uri) as client:
        for model in client.search_registered_models():
            numbers = sorted(int(item.version) for item in client.search_model_versions(f"name = '{model.name}'"))
            found += [f"{model.name}@{alias}" for alias in sorted(model.aliases)]
            found += [f"{model.name}/{number}" for number in numbers]
    return found
