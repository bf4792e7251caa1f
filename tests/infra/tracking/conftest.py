"""Fixtures for the tests of MLflow's client: a database of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs. MLflow's schema takes seconds to create: once, then copied."""
    from tests.infra.tracking.lookup import find_run

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    assert find_run(f"sqlite:///{path}", "none", "none") is None
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    """Address of a copy of that database, ``mlflow.db`` in the test's folder."""
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
