"""Federations whose turns go to a work pool, with a real stack and workers, started from a shell and a deployment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.states import Cancelling

from infra.files.lock import FileLock
from tests.integration.homes import TINY, Home, assert_consistent, digests, tiny
from tests.integration.stacks import PATIENCE, RunningStack, in_a_slot, running_stack
from tests.waiting import eventually

pytestmark = pytest.mark.integration

POOL = {"pools": {"turns": "gpu"}}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("pools") / "home", settings=POOL) as found:
        yield found


@pytest.fixture(scope="module")
def local(stack: RunningStack) -> list[str]:
    """Run the same federation on its own slots, with the stack's servers. Return the digests of its rounds."""
    home = stack.home
    without_pools = home.path / "local.yaml"
    without_pools.write_text("{}")
    environment = home.environment() | {"FEDBENCH_SETTINGS": str(without_pools)}
    result = home.run("run", home.spec_file(TINY), "--name", "local", "-q", timeout=PATIENCE, environment=environment)
    assert result.returncode == 0, result.stdout
    assert residents_of(stack, "local") == []
    return digests(home.records("local"))


def residents_of(stack: RunningStack, name: str) -> list[FlowRun]:
    return [run for run in stack.runs() if run.name.startswith(f"{name} · resident ")]


def ended(stack: RunningStack, run: UUID) -> FlowRun:
    assert eventually(lambda: bool((state := stack.read(run).state) and state.is_final()), PATIENCE)
    return stack.read(run)


def slots_are_free(stack: RunningStack) -> bool:
    """Return whether no process has a slot of the worker."""
    locks = [FileLock(path) for path in (stack.home.path / "slots").glob("*.lock")]
    assert locks
    taken = [lock for lock in locks if not lock.acquire()]
    for lock in locks:
        if lock not in taken:
            lock.release()
    return not taken


def task_runs(stack: RunningStack, run: UUID) -> list[TaskRun]:
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
    return stack.ask(lambda client: client.read_task_runs(flow_run_filter=wanted))


def artifacts(stack: RunningStack, run: UUID) -> dict[str, Any]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))

    async def read(client: PrefectClient) -> dict[str, Any]:
        found = await client.read_artifacts(artifact_filter=wanted)
        return {str(item.key): item.data for item in found}

    return stack.ask(read)


def test_a_run_from_the_shell_has_its_turns_in_residents(stack: RunningStack, local: list[str]) -> None:
    result = stack.home.run("run", stack.home.spec_file(TINY), "--name", "shell", timeout=PATIENCE)
    assert result.returncode == 0, result.stdout
    assert digests(assert_consistent(stack.home, "shell", rounds=3)) == local
    residents = residents_of(stack, "shell")
    assert 1 <= len(residents) <= 2
    assert eventually(lambda: all(run.state_name == "Completed" for run in residents_of(stack, "shell")), 30)
    turns = {task.name for run in residents for task in task_runs(stack, run.id)}
    expected = {f"request_update · round {number} · client {client}" for number in (1, 2, 3) for client in "345"}
    assert expected <= turns
    assert "wake_up · clients 3, 4, 5" in turns
    assert not [key for key in stack.home.keys("shell") if "/turns/" in key]
    assert eventually(lambda: slots_are_free(stack), 30)


def test_a_run_of_a_deployment_has_the_same_bits_and_shows_its_progress(stack: RunningStack, local: list[str]) -> None:
    run = ended(stack, stack.start("federation/smoke", {"spec": TINY}))
    assert run.state_name == "Completed", run.state
    assert run.name.startswith("smoke-2")
    assert {"fedbench", f"federation:{run.name}"} <= set(run.tags)
    assert digests(assert_consistent(stack.home, run.name, rounds=3)) == local
    shown = artifacts(stack, run.id)
    key = run.name.lower()
    assert shown[f"progress-{key}"] == 100.0
    assert "| 3 | 3 |" in shown[f"federation-{key}"]
    assert "[MLflow run](http://127.0.0.1" in shown[f"federation-{key}"]


def test_a_mistake_is_reported_before_a_slot_is_taken(stack: RunningStack) -> None:
    specification = {**TINY, "data": {"kind": "federated-street", "name": "nowhere"}}
    run = ended(stack, stack.start("federation/smoke", {"name": "wrong", "spec": specification}))
    assert run.state is not None
    assert run.state.is_failed()
    assert "no folder is known for data set 'nowhere'" in str(run.state.message)
    assert residents_of(stack, "wrong") == []


def test_a_turn_that_asks_for_more_than_a_slot_has_is_refused(stack: RunningStack) -> None:
    greedy = stack.home.spec_file(tiny(training={"threads": 64}), "greedy")
    result = stack.home.run("run", greedy, "--name", "greedy", timeout=PATIENCE)
    assert result.returncode == 1, result.stdout
    assert "pool gpu: no resident starts there" in result.stdout
    assert "64 CPU threads" in result.stdout
    assert "Traceback" not in result.stdout


def test_a_cancelled_federation_gives_its_slots_back(stack: RunningStack) -> None:
    run = stack.start("federation/smoke", {"name": "cancelled", "spec": {**TINY, "max_rounds": 500}})
    assert eventually(lambda: len(stack.home.records("cancelled")) > 2, PATIENCE)
    assert not slots_are_free(stack)
    stack.ask(lambda client: client.set_flow_run_state(run, Cancelling()))
    assert ended(stack, run).state_name in ("Cancelled", "Cancelling")
    assert eventually(lambda: slots_are_free(stack), 60)
    final = {run.state_name for run in residents_of(stack, "cancelled")}
    assert final <= {"Completed", "Cancelled"}
    assert stack.tracked()["cancelled"]["status"] == "KILLED"
    log = stack.home.page_log("cancelled")
    assert "INFO Flow run was cancelled." in log
    assert not [line for line in log if not line.startswith("INFO ")], log


def test_a_resident_without_a_coordinator_fails(stack: RunningStack) -> None:
    parameters = {"federation": "nobody", "session": "none", "pool": "gpu", "number": 1, "idle_seconds": 1.0}
    lost = ended(stack, stack.start("resident/gpu", parameters))
    assert lost.state is not None
    assert lost.state.is_failed()
    assert "expected the coordinator's store" in str(lost.state.message)


@pytest.mark.slow
def test_a_second_coordinator_is_refused_and_the_dead_ones_turn_is_taken(
    stack: RunningStack, local: list[str], tmp_path: Path
) -> None:
    home, other = stack.home, Home(tmp_path / "other")
    spec = home.spec_file({**TINY, "max_rounds": 12})
    elsewhere = {
        **other.environment(),
        **stack.variables,
        "FEDBENCH_HOME": str(other.path),
        "FEDBENCH_POOLS__TURNS": "gpu",
    }
    process = home.start("run", spec, "--name", "twice", output=tmp_path / "first.txt")
    assert eventually(lambda: len(home.records("twice")) > 0, PATIENCE)
    refused = other.run("run", spec, "--name", "twice", timeout=PATIENCE, environment=elsewhere)
    assert refused.returncode == 2, refused.stdout
    assert "twice: held by fedbench run on" in refused.stdout
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait()
    result = home.run("run", spec, "--name", "twice", timeout=PATIENCE)
    assert result.returncode == 0, result.stdout
    assert digests(assert_consistent(home, "twice", rounds=12))[:4] == local


@pytest.mark.slow  # like the tests of test_kill_pools.py
def test_a_killed_resident_and_a_killed_worker_change_nothing(
    stack: RunningStack, local: list[str], tmp_path: Path
) -> None:
    home = stack.home
    run = stack.start("federation/smoke", {"name": "killed", "spec": TINY})
    assert eventually(lambda: len(home.records("killed")) > 0, PATIENCE)
    next(process for process in home.processes() if in_a_slot(process)).kill()
    assert eventually(lambda: len(home.records("killed")) > 1, PATIENCE)
    psutil.Process(stack.pid("worker")).kill()  # the stack's supervisor starts another
    assert ended(stack, run).state_name == "Completed"
    assert digests(assert_consistent(home, "killed", rounds=3)) == local
    assert eventually(lambda: slots_are_free(stack), 60)
