"""Models are downloaded from a real registry (SQLite, artifacts in a folder) by version and alias."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import TrackingUnavailable
from infra.settings_groups import S3Settings
from infra.tracking.registered import fetch_registered, registered_models

STORE = S3Settings()


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of a registry with two versions of the model ``street``; the first one has the alias ``best``."""
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(uri)
    client.create_registered_model("street")
    for number in (1, 2):
        source = root / f"source-{number}" / "artifacts"
        source.mkdir(parents=True)
        (source / "m.safetensors").write_text(f"weights {number}")
        client.create_model_version("street", source=str(source.parent))
    client.set_registered_model_alias("street", "best", "1")
    return uri


@pytest.mark.parametrize(("version", "number"), [("1", 1), ("2", 2), ("@best", 1), ("latest", 2)])
def test_a_version_is_downloaded_whole(uri: str, tmp_path: Path, version: str, number: int) -> None:
    folder = fetch_registered(uri, STORE, "street", version, tmp_path)
    assert folder is not None
    assert [path.read_text() for path in tmp_path.rglob("*.safetensors")] == [f"weights {number}"]
    assert (folder / "artifacts" / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "version"),
    [("street", "3"), ("street", "@worst"), ("nobody", "1"), ("nobody", "@best"), ("nobody", "latest")],
)
def test_a_version_that_the_registry_does_not_have_is_none(uri: str, tmp_path: Path, name: str, version: str) -> None:
    assert fetch_registered(uri, STORE, name, version, tmp_path) is None


def test_the_registry_is_listed(uri: str) -> None:
    assert registered_models(uri) == ["street@best", "street/1", "street/2"]


def test_a_registry_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrackingUnavailable, match="check mlflow_tracking_uri"):
        fetch_registered("http://127.0.0.1:9", STORE, "street", "1", tmp_path)
