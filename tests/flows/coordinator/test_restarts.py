"""Errors after which a federation restarts by itself, how often, and after which pause."""

from __future__ import annotations

import httpx
import pytest

from flows.coordinator.restarts import LONGEST_PAUSE, MAX_RESTARTS, Restarts
from infra.errors import (
    InfraError,
    PoolUnusable,
    RunLocked,
    ServiceFailed,
    SettingsError,
    StoredResultRefused,
    StoreUnavailable,
)
from tasks.errors import DataError


@pytest.mark.parametrize(
    "error", [StoreUnavailable("no answer"), ServiceFailed("s3: gone"), httpx.ConnectError("refused")]
)
def test_a_federation_restarts_after_passing_errors_a_limited_number_of_times(error: Exception) -> None:
    restarts, pauses = Restarts(), []
    while restarts.allow(error):
        pauses.append(restarts.pause)
        assert restarts.message(error) == f"{error}: going on from the last commit (restart {len(pauses)})"
    assert pauses == [min(number, LONGEST_PAUSE) for number in range(1, MAX_RESTARTS + 1)]


@pytest.mark.parametrize(
    "error",
    [
        SettingsError("no"),
        PoolUnusable("no"),
        RunLocked("no"),
        StoredResultRefused("no"),
        DataError("no"),
        ValueError("no"),
    ],
)
def test_a_federation_ends_after_errors_that_would_happen_again(error: Exception) -> None:
    restarts = Restarts()
    assert not restarts.allow(error)
    assert restarts.count == 0


def test_the_cause_of_an_error_counts() -> None:
    error = RuntimeError("a task failed\nwith many lines")
    error.__cause__ = InfraError("the store is away")
    restarts = Restarts()
    assert restarts.allow(error)
    assert restarts.message(error) == "a task failed: going on from the last commit (restart 1)"
