"""Homes that several files share: an undisturbed run, with which the disturbed ones are compared."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from homes import TINY, Home

from infra.services.embedded import EmbeddedServices
from infra.settings import Settings
from tasks.spec.records import RoundRecord

# Rounds of the kill test; the undisturbed run is extended to them.
MANY_ROUNDS = 6


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended by itself, and what it printed."""

    home: Home
    name: str
    spec: Path
    result: subprocess.CompletedProcess[str]
    records: list[RoundRecord]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """Three rounds on two slots, on a fresh home."""
    home = Home(tmp_path_factory.mktemp("undisturbed") / "home")
    spec = home.spec_file(TINY)
    result = home.run("run", spec, "--name", "tiny", "--slots", 2)
    assert result.returncode == 0, result.stdout
    yield FinishedRun(home, "tiny", spec, result, home.records("tiny"))
    home.remove_weights()


@pytest.fixture(scope="session")
def shared_home(undisturbed: FinishedRun) -> Iterator[Home]:
    """The undisturbed run's home, its services held by this process, so that further runs need not start any."""
    with EmbeddedServices(Settings(home=undisturbed.home.path)):
        yield undisturbed.home


@pytest.fixture(scope="session")
def extended(undisturbed: FinishedRun, shared_home: Home) -> FinishedRun:
    """The undisturbed run, extended; while it goes on, the same command is refused."""
    command = ("run", undisturbed.spec, "--name", "tiny", "--slots", 2, "--max-rounds", MANY_ROUNDS)
    result = shared_home.run(*command)
    assert result.returncode == 0, result.stdout
    return FinishedRun(shared_home, "tiny", undisturbed.spec, result, shared_home.records("tiny"))
