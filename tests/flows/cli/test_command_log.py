"""The log of a command, and log messages that must not reach the terminal."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli.shared import log_kept, log_to
from infra.settings import Settings


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raises = root.handlers, root.level, logging.raiseExceptions
    for name in ("PREFECT_LOGGING_ROOT_HANDLERS", "MLFLOW_CONFIGURE_LOGGING"):
        monkeypatch.setenv(name, "false")  # log_to sets it; monkeypatch restores it after the test
    yield
    root.handlers, logging.raiseExceptions = handlers, raises
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.parametrize("verbose", [0, 1])
def test_prefects_errors_about_sending_logs_are_printed_only_with_verbose(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], verbose: int
) -> None:
    log_to(tmp_path / "run.log", Settings(home=tmp_path), verbose)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        worker = APILogWorker.instance()
        worker.send({"message": "x"})
        APILogWorker.drain_all(timeout=60)
    assert ("Error logging to API" in capfd.readouterr().err) is bool(verbose)


def test_the_log_of_the_time_before_the_name_is_in_the_runs_log(tmp_path: Path) -> None:
    logger = logging.getLogger("flows.coordinator.preflight")
    with log_kept() as log:
        logger.warning("data: %d images have no object", 3)
    path = log_to(tmp_path / "runs" / "a" / "run.log", Settings(home=tmp_path))
    logger.warning("later")
    assert "images" not in path.read_text()
    log.write()
    lines = path.read_text().splitlines()
    assert [line.partition("preflight: ")[2] for line in lines] == ["later", "data: 3 images have no object"]


# Runs in a process of its own, because MLflow sets up its logging when it is imported.
MLFLOW_FAILS = """
import logging, sys
from pathlib import Path
from flows.cli.shared import log_kept, log_to
from infra.settings import Settings
log_to(Path(sys.argv[1]), Settings(home=Path(sys.argv[2])))
import mlflow
for name in ("mlflow.store.db.utils", "alembic.runtime.migration", "sqlalchemy.engine"):
    logging.getLogger(name).info("of no interest")
    try:
        raise OSError("database or disk is full")
    except OSError:
        logging.getLogger(name).exception("The following exception is caught.")
"""


def test_mlflows_messages_go_to_the_log_only(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MLFLOW_FAILS, str(tmp_path / "run.log"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
    log = (tmp_path / "run.log").read_text()
    assert log.count("OSError: database or disk is full") == 3
    assert "of no interest" not in log
