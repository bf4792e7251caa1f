"""Homes that several files share, with an undisturbed run that the disturbed ones are compared with."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from tasks.data.catalog import load_data
from tasks.spec.federation import load_spec
from tasks.spec.records import RoundRecord
from tests import warm
from tests.conftest import scope
from tests.integration.databases import set_origin
from tests.integration.homes import PLOTS, TINY, Home, tiny

# Rounds of the kill test and of the undisturbed run that it is compared with.
MANY_ROUNDS = 6
# The scope of tests whose undisturbed run starts cold; tests of another one spare its 20 CPU seconds of imports.
COLD = "undisturbed, extended"


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended by itself, and its output."""

    home: Home
    name: str
    spec: Path
    result: subprocess.CompletedProcess[str]
    records: list[RoundRecord]
    open_to_others: tuple[str, ...] = ()


def images_of(run: FinishedRun) -> list[Path]:
    """Return the files of the run's own images, in order. Other tests leave damaged data sets in the same home."""
    data = load_data(load_spec(run.spec).data, root_of=lambda name: None, cache=run.home.path / "cache" / "data")
    samples = [sample for part in (data.train, data.test) for client in part.values() for sample in client]
    return sorted({sample.path for sample in samples})


def pytest_configure(config: pytest.Config) -> None:
    """Start the warm process before pytest-xdist starts its workers, so that these are forked from it too."""
    if sys.platform == "linux" and config.getoption("numprocesses", None):
        warm.install()


@pytest.fixture(scope="session", autouse=True)
def databases(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give new homes copies of databases that are made once for all of pytest's processes."""
    base = tmp_path_factory.getbasetemp()
    set_origin((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "databases")


@pytest.fixture(scope="session", autouse=True)
def warm_process() -> None:
    """Start commands by forks of a process that has imported the large packages."""
    if sys.platform == "linux":
        warm.install()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """Run three rounds on two slots, in a new home that other users may enter, with a umask that opens files to all.

    In the scope of :data:`COLD`, its processes start from the beginning, as a user's do: their hashes have other seeds
    than those of the runs that are compared with it.
    """
    home = Home(tmp_path_factory.mktemp("undisturbed") / "home", databases=False)  # as in a user's first run
    home.path.chmod(0o777)
    spec = home.spec_file(TINY)
    with warm.cold() if scope(os.environ["PYTEST_CURRENT_TEST"]) == COLD else contextlib.nullcontext():
        result = home.run("run", spec, "--name", "tiny", "--slots", 2, umask=0, environment=home.environment() | PLOTS)
    assert result.returncode == 0, result.stdout
    yield FinishedRun(home, "tiny", spec, result, home.records("tiny"), tuple(home.open_to_others()))
    home.remove_weights()


@pytest.fixture(scope="session")
def shared_home(undisturbed: FinishedRun) -> Iterator[Home]:
    """Yield the undisturbed run's home. This process keeps its services up, so that further runs need not start any."""
    with EmbeddedServices(Settings(home=undisturbed.home.path)):
        yield undisturbed.home


@pytest.fixture(scope="session")
def one_slot(shared_home: Home) -> FinishedRun:
    """Run the same experiment on one slot. A loader process prepares its images."""
    spec = shared_home.spec_file(tiny(training={"loader_workers": 1}), "workers")
    result = shared_home.run("run", spec, "--name", "workers", "--slots", 1, "-q")
    assert result.returncode == 0, result.stdout
    return FinishedRun(shared_home, "workers", spec, result, shared_home.records("workers"))


@pytest.fixture(scope="session")
def extended(one_slot: FinishedRun) -> FinishedRun:
    """Extend the run on one slot by more rounds, on two slots."""
    home, spec = one_slot.home, one_slot.spec
    result = home.run("run", spec, "--name", one_slot.name, "--slots", 2, "--max-rounds", MANY_ROUNDS)
    assert result.returncode == 0, result.stdout
    return FinishedRun(home, one_slot.name, spec, result, home.records(one_slot.name))
