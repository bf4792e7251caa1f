"""``fedbench deploy`` and ``prefect deploy --all`` on a real server: pools, deployments, users' changes, runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import AwaitingRetry, Cancelled, Crashed, Pending, Running, State

from flows.coordinator.hooks import go_on
from flows.deployments.names import RECORDS, RESUMED_FLOWS
from flows.deployments.records import record_name
from flows.deployments.table import deployments
from flows.federation import federation
from infra.orchestrator.automations import NAME as AUTOMATION
from infra.servers.credentials import basic_auth
from infra.stack.crashed_runs import MOST_CRASHES, MOST_STARTS, SETTLED_SECONDS, CrashedRuns
from infra.worker.gpu_worker import GpuWorker
from tests.flows.command import fedbench
from tests.integration.homes import FEDBENCH
from tests.integration.workers import ROOT, client_variables, make_pool, prefect_server
from tests.waiting import eventually

pytestmark = pytest.mark.integration

T = TypeVar("T")
NAMES = [item.full_name for item in deployments()]
PRESET = "federation/smoke"


def ask(question: Callable[[PrefectClient], Awaitable[T]]) -> T:
    async def put() -> T:
        async with get_client() as client:
            return await question(client)

    return asyncio.run(put())


def read(name: str) -> DeploymentResponse:
    return ask(lambda client: client.read_deployment_by_name(name))


def delete(name: str) -> None:
    identifier = read(name).id
    ask(lambda client: client.delete_deployment(identifier))


def command(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command against this test's server, as a user does outside a checkout."""
    foreign = ("FEDBENCH_", "PREFECT_", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment = kept | {
        **client_variables(),
        "PREFECT_HOME": str(home / "client"),
        "FEDBENCH_HOME": str(home / "home"),
        "NO_COLOR": "1",
    }
    folder = ROOT if arguments[0] == sys.executable else home
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def first_deploy(home: Path, *arguments: str) -> str:
    done = command(home, FEDBENCH, "deploy", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def deploy(home: Path, *arguments: str) -> str:
    """Run the same command in this process, which has already imported all modules."""
    variables = {
        "FEDBENCH_HOME": str(home / "home"),
        **client_variables(),
        "COLUMNS": "160",
    }
    with mock.patch.dict(os.environ, variables):
        done = fedbench("deploy", *arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder for the commands. A new server is running, and its deployments have been made."""
    with prefect_server(tmp_path_factory.mktemp("server")):
        folder = tmp_path_factory.mktemp("user")
        would = first_deploy(folder, "--dry-run")
        assert would.count("would be made") == len(NAMES) + 3  # two pools, one automation
        assert ask(lambda client: client.read_deployments()) == []
        assert ask(lambda client: client.read_work_pools()) == []
        made = first_deploy(folder)
        assert made.count("  made  http://127.0.0.1") == len(NAMES) + 3
        assert "start one: prefect worker start --pool gpu --type fedbench-gpu" in made
        yield folder


def described(name: str) -> dict[str, Any]:
    """Return the fields of a deployment that must be the same from both commands."""
    found = read(name).model_dump(mode="json")
    limit = found["global_concurrency_limit"]
    same = ("name", "description", "tags", "entrypoint", "work_pool_name", "parameters", "parameter_openapi_schema")
    kept = {field: found[field] for field in (*same, "enforce_parameter_schema", "concurrency_options")}
    kept["pull_steps"], kept["limit"] = found["pull_steps"] or [], limit and limit["limit"]
    kept["schedules"] = [(item["slug"], item["active"], item["schedule"]["cron"]) for item in found["schedules"]]
    return kept


def test_prefects_own_command_makes_the_same(home: Path) -> None:
    ours = {name: described(name) for name in NAMES}
    for name in NAMES:
        delete(name)
    done = command(home, sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: described(name) for name in NAMES} == ours


def test_a_second_time_nothing_is_made_and_what_users_changed_stays(home: Path) -> None:
    deploy(home)  # the other command has set another version
    before = read(PRESET)
    template = ask(lambda client: client.read_work_pool("fedbench")).base_job_template
    template["variables"]["properties"]["env"]["default"] = {"MINE": "1"}
    ask(lambda client: client.update_work_pool("fedbench", WorkPoolUpdate(base_job_template=template)))
    ask(lambda client: client.update_deployment(before.id, DeploymentUpdate(job_variables={"env": {"A": "1"}})))
    again = deploy(home)
    assert again.count("there already") == len(NAMES) + 3, again
    ask(lambda client: client.update_deployment(before.id, DeploymentUpdate(version="another")))
    assert deploy(home).count("brought up to date") == 1
    after = read(PRESET)
    assert (after.id, after.version, after.job_variables) == (before.id, before.version, {"env": {"A": "1"}})
    assert ask(lambda client: client.read_work_pool("fedbench")).base_job_template == template
    assert len(ask(lambda client: client.read_automations_by_name(AUTOMATION))) == 1


def test_schedules_are_added_changed_and_ended(home: Path) -> None:
    def schedules(name: str) -> list[tuple[str, str | None, bool]]:
        return [(item.schedule.cron, item.schedule.timezone, item.active) for item in read(name).schedules]  # type: ignore[union-attr]

    assert schedules("federation/street5-laptop") == [("0 3 * * *", "UTC", False)]
    asked = ("--schedule", "street5-laptop=0 4 * * *", "--schedule", "federation/smoke=0 5 * * 1")
    printed = deploy(home, *asked, "--timezone", "Asia/Tokyo")
    assert "runs at 0 4 * * * (Asia/Tokyo)" in printed
    assert schedules("federation/street5-laptop") == [("0 4 * * *", "Asia/Tokyo", True)]
    assert schedules(PRESET) == [("0 5 * * 1", "Asia/Tokyo", True)]
    deploy(home)
    assert schedules(PRESET) == [("0 5 * * 1", "Asia/Tokyo", True)]
    deploy(home, "--schedule", "federation/smoke=off", "--schedule", "street5-laptop=off")
    assert schedules(PRESET) == [("0 5 * * 1", "Asia/Tokyo", False)]


def test_a_users_suite_is_scheduled_and_stays(home: Path) -> None:
    file = home / "suite.yaml"
    file.write_text("{name: yards, experiments: [{name: e1, spec: smoke, seeds: [1]}]}\n")
    printed = deploy(home, str(file), "--schedule", "suite/yards=0 1 * * 6")
    assert "runs at 0 1 * * 6 (UTC)" in printed
    before = read("suite/yards")
    assert before.parameters["spec"]["experiments"][0]["name"] == "e1"
    assert "suite/yards" not in deploy(home)  # without the file, the command leaves the suite alone
    assert read("suite/yards").updated == before.updated
    file.write_text("{name: yards, experiments: [{name: e2, spec: smoke, seeds: [1]}]}\n")
    assert deploy(home, str(file)).count("brought up to date") == 1
    after = read("suite/yards")
    assert after.parameters["spec"]["experiments"][0]["name"] == "e2"
    assert [item.active for item in after.schedules] == [True]


def records() -> dict[str, Any]:
    found = ask(lambda client: client.read_variables(200))
    return {item.name: item.value for item in found if item.name.startswith(RECORDS)}


def test_what_was_changed_on_the_page_stays_and_is_listed_until_it_is_reset(home: Path) -> None:
    file = home / "pages.yaml"
    file.write_text("max_rounds: 9\nseed: 1\n")
    deploy(home, str(file))
    name = "federation/pages"
    before = read(name)
    changed = DeploymentUpdate(
        parameters={"name": None, "spec": {**before.parameters["spec"], "max_rounds": 3}},
        job_variables={"env": {"MINE": "1"}},
        tags=["mine"],
        description="My words.",
        concurrency_limit=4,
        paused=True,
    )
    ask(lambda client: client.update_deployment(before.id, changed))
    times = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 7 * * *"), active=True)
    ask(lambda client: client.create_deployment_schedules(before.id, [times]))
    edited = read(name)
    kept = {
        "spec.max_rounds: 3, not 9",
        "job_variables.env.MINE: 1, not none",
        "description: My words., not The federation of pages.yaml.",
        "concurrency_limit: 4, not 1",
        "schedule: 0 7 * * * (UTC), not none",
    }
    file.write_text("max_rounds: 9\nseed: 2\n")  # the file changes another field
    for done in ("brought up to date", "there already"):
        printed = deploy(home, str(file))
        assert f"{name} {done}" in " ".join(printed.split())
        assert all(f"kept {line}" in printed for line in kept), printed
        assert "fedbench deploy --reset replaces it" in printed
    after = read(name)
    fields = ("id", "job_variables", "tags", "description", "paused", "schedules")
    assert [getattr(after, field) for field in fields] == [getattr(edited, field) for field in fields]
    assert after.global_concurrency_limit is not None
    assert after.global_concurrency_limit.limit == 4
    assert after.parameters["spec"] == {**edited.parameters["spec"], "seed": 2}

    assert "would replace spec.max_rounds: 9, was 3" in deploy(home, str(file), "--reset", "--dry-run")
    assert read(name) == after
    assert "replaced spec.max_rounds: 9, was 3" in deploy(home, str(file), "--reset")
    put_back = read(name)
    assert put_back.parameters == {"spec": {**before.parameters["spec"], "seed": 2}}
    same_again = ("id", "job_variables", "tags", "description")
    assert [getattr(put_back, field) for field in same_again] == [getattr(before, field) for field in same_again]
    assert [item.active for item in put_back.schedules] == [False]
    printed = deploy(home, str(file))
    assert not any(line in printed for line in kept)


def test_a_deployment_that_was_made_again_has_no_edits_and_the_record_of_a_deleted_one_is_removed(home: Path) -> None:
    file = home / "again.yaml"
    file.write_text("max_rounds: 3\n")
    deploy(home, str(file))
    name = "federation/again"
    assert records()[record_name(name)]["deployment"] == str(read(name).id)
    delete(name)
    file.write_text("max_rounds: 4\n")
    assert "kept spec" not in deploy(home, str(file))
    assert read(name).parameters["spec"]["max_rounds"] == 4
    assert records()[record_name(name)]["deployment"] == str(read(name).id)
    delete(name)
    deploy(home)
    assert record_name(name) not in records()
    assert record_name(PRESET) in records()


def test_a_deployment_is_scheduled_without_its_file(home: Path) -> None:
    file = home / "shapes.yaml"
    file.write_text("max_rounds: 3\n")
    deploy(home, str(file))
    file.unlink()
    before = read("federation/shapes")
    printed = deploy(home, "--schedule", "federation/shapes=0 4 * * *")
    assert "runs at 0 4 * * * (UTC)" in printed
    assert [item.active for item in read("federation/shapes").schedules] == [True]
    assert "deployment federation/shapes" in deploy(home, "--schedule", "shapes=off")
    after = read("federation/shapes")
    assert [item.active for item in after.schedules] == [False]
    fields = ("id", "parameters", "job_variables", "entrypoint", "tags", "work_pool_name", "concurrency_options")
    assert {field: getattr(after, field) for field in fields} == {field: getattr(before, field) for field in fields}
    file.write_text("max_rounds: 4\n")
    assert "kept spec" not in deploy(home, str(file))
    assert read("federation/shapes").parameters["spec"]["max_rounds"] == 4


def test_one_field_is_changed_for_one_run(home: Path) -> None:
    item = read(PRESET)
    for fields in ({"max_rounds": 1}, {"overrides": {"training.local_epochs": 2}}):
        create = partial(PrefectClient.create_flow_run_from_deployment, deployment_id=item.id, parameters=fields)
        run = ask(partial(create, state=Pending()))
        assert run.parameters == {**item.parameters, **fields}
    for wrong, says in (
        ({"max_rounds": 0}, "'max_rounds'. Failure reason: 0 is less than the minimum of 1"),
        ({"overrides": {"training.epochs": 2}}, "'training.epochs' is not valid"),
        ({"overrides": {"training.local_epochs": "two"}}, "'two' is not of type 'integer'"),
    ):
        create = partial(PrefectClient.create_flow_run_from_deployment, deployment_id=item.id, parameters=wrong)
        with pytest.raises(PrefectHTTPStatusError) as refused:
            ask(create)
        assert says in refused.value.response.json()["detail"]


def test_pools_of_silos_and_the_limit_of_coordinators(home: Path) -> None:
    (home / "home").mkdir(exist_ok=True)
    (home / "home" / "settings.yaml").write_text("pools: {silos: {'1': silo-1}, coordinator_runs: 2}\n")
    try:
        deploy(home, "--silo-pool", "silo-2")
    finally:
        (home / "home" / "settings.yaml").unlink()
    pools = {pool.name: pool for pool in ask(lambda client: client.read_work_pools())}
    assert {name: pool.type for name, pool in pools.items()} == {
        "fedbench": "process", "gpu": "fedbench-gpu", "silo-1": "fedbench-gpu", "silo-2": "fedbench-gpu",
    }  # fmt: skip
    assert pools["fedbench"].concurrency_limit == 2
    assert pools["silo-2"].base_job_template == GpuWorker.get_default_base_job_template()
    deploy(home)
    assert ask(lambda client: client.read_work_pool("fedbench")).concurrency_limit == 2


def test_a_pool_of_another_type_is_refused(home: Path) -> None:
    make_pool("silo-9", "process", {})
    done = command(home, FEDBENCH, "deploy", "--silo-pool", "silo-8", "--silo-pool", "silo-9")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: pool silo-9: expected type fedbench-gpu, found process" in done.stderr
    assert "Traceback" not in done.stderr
    assert "silo-8" not in {pool.name for pool in ask(lambda client: client.read_work_pools())}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("federation/")])
def test_a_run_is_accepted_with_the_presets_values(home: Path, name: str) -> None:
    item = read(name)
    run = ask(lambda client: client.create_flow_run_from_deployment(item.id, state=Pending()))
    assert run.parameters == item.parameters
    spec = {**item.parameters["spec"], "max_rounds": 3, "patience": None}
    named = {"name": "mine", "spec": spec}
    run = ask(lambda client: client.create_flow_run_from_deployment(item.id, parameters=named, state=Pending()))
    assert run.parameters == named


def test_a_wrong_parameter_is_refused_by_its_name(home: Path) -> None:
    item = read(PRESET)
    for fields, says in (
        ({"max_rounds": 0}, "'spec.max_rounds'. Failure reason: 0 is less than the minimum of 1"),
        ({"training": {"local_epochs": "two"}}, "'spec.training.local_epochs'. Failure reason: 'two' is not of type"),
    ):
        parameters = {"spec": {**item.parameters["spec"], **fields}}
        create = partial(PrefectClient.create_flow_run_from_deployment, deployment_id=item.id, parameters=parameters)
        with pytest.raises(PrefectHTTPStatusError) as refused:
            ask(create)
        assert says in refused.value.response.json()["detail"]


def lives(*endings: list[State[Any]]) -> list[FlowRun]:
    """Create runs of a preset's deployment and take each through its states."""
    item = read(PRESET)

    async def play(client: PrefectClient) -> list[FlowRun]:
        runs = []
        for states in endings:
            runs.append(await client.create_flow_run_from_deployment(item.id, state=Pending()))
            for state in states:
                await client.set_flow_run_state(runs[-1].id, state, force=True)
        return runs

    return ask(play)


def state_of(run: FlowRun) -> str | None:
    return ask(lambda client: client.read_flow_run(run.id)).state_name


def states_of(runs: list[FlowRun]) -> list[str | None]:
    return [state_of(run) for run in runs]


def crashed_runs() -> CrashedRuns:
    variables = client_variables()
    return CrashedRuns(variables["PREFECT_API_URL"], basic_auth(variables["PREFECT_API_AUTH_STRING"]))


def test_crashed_runs_are_resumed_once_their_workers_have_reported(home: Path) -> None:
    began: list[State[Any]] = [Running(), Crashed()]
    late = [*began, AwaitingRetry(), Crashed(message="Its worker said so again.")]
    runs = lives([Crashed()], began, late, [Running(), Cancelled()], [Running(), *[Crashed()] * (MOST_CRASHES + 1)])
    crashed, now = crashed_runs(), datetime.now(UTC)
    crashed.go_on(RESUMED_FLOWS, now)  # too early: the worker may still report
    as_they_were = ["Crashed", "Crashed", "Crashed", "Cancelled", "Crashed"]
    assert states_of(runs) == as_they_were
    assert crashed.go_on(RESUMED_FLOWS, now + timedelta(hours=2)) == []  # too late: the crash is old
    later = now + timedelta(seconds=SETTLED_SECONDS + 5)
    assert {runs[1].name, runs[2].name} <= set(crashed.go_on(RESUMED_FLOWS, later))
    assert states_of(runs) == ["Crashed", "AwaitingRetry", "AwaitingRetry", "Cancelled", "Crashed"]
    assert not {run.name for run in runs} & set(crashed.go_on(RESUMED_FLOWS, later))


def test_a_crashed_run_is_started_a_limited_number_of_times(home: Path) -> None:
    crashed, (run,) = crashed_runs(), lives([Running(), Crashed()])
    assert not crashed.go_on_with(str(run.id))
    for count in range(2, MOST_STARTS + 2):
        later = datetime.now(UTC) + timedelta(seconds=SETTLED_SECONDS + 5)
        assert crashed.go_on_with(str(run.id), later)
        assert states_of([run]) == ["AwaitingRetry" if count <= MOST_STARTS else "Crashed"], count
        ask(lambda client: client.set_flow_run_state(run.id, Running(), force=True))
        assert crashed.go_on_with(str(run.id), later)  # it is running, so there is nothing to do
        ask(lambda client: client.set_flow_run_state(run.id, Crashed(), force=True))


def test_the_hook_resumes_a_crashed_run(home: Path) -> None:
    run, cancelled = lives([Running(), Crashed()], [Running(), Cancelled()])

    async def hooks(client: PrefectClient) -> None:
        for each in (run, cancelled):
            await go_on(federation, await client.read_flow_run(each.id), Crashed())

    ask(hooks)
    assert eventually(lambda: states_of([run]) == ["AwaitingRetry"], 10 * SETTLED_SECONDS)
    assert states_of([cancelled]) == ["Cancelled"]  # a user cancelled it
