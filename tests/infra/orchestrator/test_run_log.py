"""The log of a flow run: how a cancelled run ends in it, and lines that go to the run's page alone."""

from __future__ import annotations

import logging

import pytest

from infra.orchestrator.run_log import CalmCancellation, calm_cancellations

LEFT = "This run's process ends, and its worker sets the last state"


def logged(level: int, text: str) -> tuple[str, str]:
    """Return level and text of a record after the filter."""
    record = logging.LogRecord("prefect.flow_runs", level, __file__, 1, text, None, None)
    assert CalmCancellation().filter(record)
    return record.levelname, record.getMessage()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Finished in state Running()", ("INFO", LEFT)),
        ("Finished in state Cancelling('Flow run was cancelled.')", ("INFO", LEFT)),
        ("Finished in state Cancelled('by me')", ("INFO", "Finished in state Cancelled('by me')")),
        ("Finished in state Failed('100% lost')", ("ERROR", "Finished in state Failed('100% lost')")),
        ("Finished in state Crashed('gone')", ("ERROR", "Finished in state Crashed('gone')")),
        ("Encountered exception: Finished in state Running()", None),
    ],
)
def test_only_the_end_of_a_cancelled_run_is_no_error(text: str, expected: tuple[str, str] | None) -> None:
    assert logged(logging.ERROR, text) == (expected or ("ERROR", text))


def test_the_filter_is_installed_once() -> None:
    calm_cancellations()
    calm_cancellations()
    filters = logging.getLogger("prefect.flow_runs").filters
    assert sum(isinstance(known, CalmCancellation) for known in filters) == 1
