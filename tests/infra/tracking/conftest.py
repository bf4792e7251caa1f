"""Fixtures for the tests of MLflow's client: a database of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an MLflow database without runs, for tests to copy: creating MLflow's schema takes seconds."""
    from tests.infra.tracking.lookup import find_run

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    assert find_run(f"sqlite:///{path}", "none", "none") is None
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    """Return the URI of a copy of the empty database, ``mlflow.db`` in the test's folder."""
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
