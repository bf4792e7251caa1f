"""Fedbench runs no code that another user wrote to Prefect's server, neither in runs' states nor in the database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.clean_up import clean_up
from flows.coordinator.planted import own
from infra.errors import StoredResultRefused
from infra.orchestrator.stored_results import accept_stored_results, refuse_stored_results
from infra.processes.publication import read_publication
from infra.servers.credentials import FILE, read_keys
from infra.servers.exposed import hold_back, report
from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from tests.integration.attacks import (
    REFUSED,
    Attack,
    Attacker,
    assert_held_back,
    attacker,
    current_access,
    found_in,
    plant_in_database,
)
from tests.integration.homes import TINY, Home
from tests.integration.workers import read
from tests.planted import forget_modules

pytestmark = pytest.mark.integration

KINDS = ("pickle", "json", "named", "parsed", "block")


@pytest.fixture(scope="module")
def bare_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Yield a home without runs. This process keeps its services up."""
    home = Home(tmp_path_factory.mktemp("bare") / "home")
    with EmbeddedServices(Settings(home=home.path)):
        yield home


@pytest.fixture(scope="module")
def other(bare_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacker]:
    """Yield an attacker who can write to that home's Prefect server. This process uses the same server."""
    folder, services = tmp_path_factory.mktemp("others"), bare_home.path / "services"
    publication = read_publication(services / "prefect.json")
    assert publication is not None
    auth = read_keys(services).prefect_auth if (services / FILE).exists() else None
    with (
        temporary_settings({PREFECT_API_URL: publication.address, PREFECT_API_AUTH_STRING: auth}),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.syspath_prepend(str(folder))
        yield attacker(current_access(), folder)


def new_run() -> FlowRun:
    async def make() -> FlowRun:
        async with get_client() as client:
            return await client.create_flow_run(clean_up)

    return asyncio.run(make())


def begin(run: FlowRun) -> None:
    asyncio.run(run_flow(clean_up, flow_run=run))  # type: ignore[arg-type]


@pytest.mark.parametrize("when", ["before its process looks", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_set_to_completed_fails_with_one_line(other: Attacker, kind: str, when: str) -> None:
    run = new_run()
    other.plant(str(run.id), kind)
    with pytest.raises(StoredResultRefused, match=REFUSED) as error:
        begin(run if when == "after" else read(run.id))
    assert other.ran() == []
    state = read(run.id).state
    assert state is not None
    assert (state.name, state.message, state.data) == ("Failed", str(error.value), None)
    assert "\n" not in str(error.value)


def test_without_the_guard_the_same_runs_code(other: Attacker) -> None:
    """Without the guard, planted code does run, so the tests of this file can fail."""
    accept_stored_results()
    try:
        run = new_run()
        other.plant(str(run.id), "block")
        with contextlib.suppress(Exception):
            begin(run)
        assert other.ran() == ["pickle.ran"]
    finally:
        refuse_stored_results()
        forget_modules()
        other.plants["pickle"].marker.unlink()


def test_values_pass_in_memory_and_stored_ones_are_computed_again(other: Attacker, tmp_path: Path) -> None:
    """A flow with stored results gets the same values from its tasks, but uses no results of an earlier run."""
    calls = tmp_path / "calls"

    @task(persist_result=True, cache_policy=INPUTS)
    def double(number: int) -> int:
        with calls.open("a") as file:
            file.write(".")
        return 2 * number

    @flow(persist_result=True, result_storage=tmp_path)
    def some() -> list[int]:
        return [double(2), double.submit(3).result()]

    assert [some(), some()] == [[4, 6]] * 2
    assert calls.read_text() == "...."
    accept_stored_results()
    try:
        assert some() == [4, 6]
    finally:
        refuse_stored_results()
    assert calls.read_text() == "...."


def test_plants_in_a_database_are_found_and_disabled(other: Attacker, tmp_path: Path) -> None:
    made = plant_in_database(other)
    findings, path = hold_back(other.api, own(Settings(home=tmp_path)), tmp_path)
    assert path is not None
    text = "\n".join(report(findings, path))
    assert [words for words in found_in(made) if words not in text] == []
    assert "\x1b" not in text
    assert_held_back(other, made)
    assert f"touch {other.folder / 'command.ran'}" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    again, _ = hold_back(other.api, own(Settings(home=tmp_path)), tmp_path)
    assert {(finding.kind, finding.done) for finding in again} == {
        ("automation", "disabled"),
        ("work pool", ""),
        ("deployment", "paused"),
        ("block", ""),
        ("variable", ""),
    }


def test_a_run_of_the_command_line_ends_with_one_line(other: Attacker, bare_home: Home) -> None:
    with Attack(other, "pickle") as attack:
        result = bare_home.run("run", bare_home.spec_file(TINY), "--name", "attacked", "--slots", 1)
    assert attack.hit, result.stdout
    assert result.returncode == 1, result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("failed:")]
    assert REFUSED in line
    assert "Traceback" not in result.stdout
    assert other.ran() == []
