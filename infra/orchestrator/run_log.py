"""The log of a flow run on Prefect's page."""

from __future__ import annotations

import logging
from typing import Any

from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler

_FINISHED = "Finished in state "  # begins the engine's last line, an error for every state but Completed
# States with which the engine leaves the end of a cancelled run to the run's worker.
_LEFT_TO_WORKER = ("Running(", "Cancelling(")


class CalmCancellation(logging.Filter):
    """Log the end of a cancelled run as information. Prefect's engine logs it as an error, ``Running()`` included.

    The engine of a run on a worker cannot know the run's last state, because the worker sets it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno == logging.ERROR and text.startswith(_FINISHED):
            state = text.removeprefix(_FINISHED)
            if state.startswith(_LEFT_TO_WORKER):
                record.msg, record.args = "This run's process ends, and its worker sets the last state", None
            elif not state.startswith("Cancelled("):
                return True
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return True


def calm_cancellations() -> None:
    """Log the end of every cancelled run of this process as information."""
    logger = logging.getLogger("prefect.flow_runs")  # of the engine and of get_run_logger
    if not any(isinstance(known, CalmCancellation) for known in logger.filters):
        logger.addFilter(CalmCancellation())


def page_log() -> logging.LoggerAdapter[Any]:
    """Return a logger that logs to the page of the current flow run alone.

    ``get_run_logger`` logs to the root logger too, so to the terminal of a command that prints the same lines.
    """
    logger = logging.getLogger("fedbench.page")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(APILogHandler())
    run = get_run_logger()
    assert isinstance(run, logging.LoggerAdapter)
    return logging.LoggerAdapter(logger, run.extra)
