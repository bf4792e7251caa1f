"""``fedbench up``: a real stack that runs use. Its killed servers come back, and ``down`` leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.orchestrator.flow_runs import close_dead_runs
from infra.servers.login_page import how_to_log_in, login_path
from infra.servers.s3 import S3Service
from infra.settings_groups import S3Settings
from infra.store.objects import ObjectStore
from tests.integration.homes import TINY, Home, assert_consistent, assert_no_process_left, assert_tracked_once
from tests.integration.stacks import PATIENCE, SERVERS, RunningStack, environment_of, free_ports, running_stack
from tests.strangers import Stranger, mlflow_target, prefect_target
from tests.waiting import eventually, gone

pytestmark = pytest.mark.integration

SERVICES = (*SERVERS, "supervisor")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Start a stack in a home that already has a run. Another process has MLflow's port."""
    home = Home(tmp_path_factory.mktemp("stack") / "home")
    before = home.run("run", home.spec_file(TINY | {"max_rounds": 1}), "--name", "before", "-q", timeout=PATIENCE)
    assert before.returncode == 0, before.stdout
    asked = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", asked["mlflow"]))
        taken.listen()
        with running_stack(home.path, "--servers-only", settings={"ports": asked}) as found:
            yield found


def statuses(stack: RunningStack) -> dict[str, str]:
    return {name: run["status"] for name, run in stack.tracked().items()}


def secrets(stack: RunningStack) -> set[str]:
    return {*stack.keys.model_dump().values(), S3Service(stack.home.path).keys().secret_key}


def test_up_prints_the_addresses_and_which_port_was_taken(stack: RunningStack) -> None:
    port = stack.mlflow.rpartition(":")[2]
    assert f"mlflow: port {stack.ports['mlflow']} is taken, {port} is used instead" in stack.output
    for name in ("s3", "prefect"):
        assert f"http://127.0.0.1:{stack.ports[name]}" in stack.output
    assert f"source {stack.home.path / 'stack.env'}" in stack.output
    assert how_to_log_in(login_path(stack.home.path, "up")) in stack.output
    assert "deployments:" not in stack.output  # up --servers-only makes none
    assert stack.states() == (0, dict.fromkeys(SERVICES, "up"))


def test_credentials_are_only_in_private_files(stack: RunningStack) -> None:
    processes = stack.home.processes()
    assert len(processes) >= 6  # S3, Prefect, the supervisor; MLflow: launcher, command, uvicorn
    lines = [Path(f"/proc/{process.pid}/cmdline").read_bytes().decode() for process in processes]
    logs = [path.read_text(errors="replace") for path in (stack.home.path / "logs").iterdir()]
    assert len(logs) == len(SERVICES)
    for secret in secrets(stack):
        assert not any(secret in text for text in (*lines, *logs, stack.output))
    services = stack.home.path / "services"
    assert services.stat().st_mode & 0o777 == 0o700
    for path in (*services.iterdir(), stack.home.path / "stack.env"):
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_servers_refuse_requests_without_credentials(stack: RunningStack) -> None:
    for path, body in (("/api/flow_runs/filter", {}), ("/api/2.0/mlflow/experiments/search?max_results=1", None)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            stack.call(path, body, known=False)
        assert caught.value.code == 401
    targets = {
        "prefect": prefect_target(stack.prefect, stack.keys.prefect_auth),
        "mlflow": mlflow_target(stack.mlflow),
    }
    assert len(targets["prefect"].routes) > 150
    found = Stranger().try_all("before", targets)  # the name of a run
    assert found == {name: [] for server in targets for name in (server, f"{server} sockets")}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(stack.variables["FEDBENCH_S3__ENDPOINT"])
    assert caught.value.code in (400, 403)  # an unsigned request


def test_the_earlier_run_is_in_the_stacks_servers(stack: RunningStack) -> None:
    assert statuses(stack) == {"before": "FINISHED"}
    assert stack.runs_of("before")["before"] == "COMPLETED"
    listed = stack.home.run("list").stdout
    assert any(line.split()[:2] == ["before", "finished"] for line in listed.splitlines())


def test_up_again_changes_nothing_even_if_two_run_at_once(stack: RunningStack, tmp_path: Path) -> None:
    before = stack.pids()
    both = [stack.home.start("up", "--servers-only", output=tmp_path / f"{number}.txt") for number in (1, 2)]
    assert [process.wait(PATIENCE) for process in both] == [0, 0]
    for number in (1, 2):
        output = (tmp_path / f"{number}.txt").read_text()
        assert "is up already; nothing was changed" in output
        port = stack.mlflow.rpartition(":")[2]
        assert f"mlflow: port {stack.ports['mlflow']} is taken, {port} is used instead" in output
    assert stack.pids() == before


def test_a_run_uses_the_stack_and_leaves_it_running(stack: RunningStack) -> None:
    before = stack.pids()
    spec = stack.home.spec_file(TINY | {"max_rounds": 1})
    result = stack.home.run("run", spec, "--name", "through", "-q", timeout=PATIENCE)
    assert result.returncode == 0, result.stdout
    assert "model: models:/through@best" in result.stdout
    *_, command, prefect, mlflow = result.stdout.splitlines()
    assert command.startswith("pages: fedbench ui through ")
    assert prefect.strip().startswith(f"{stack.prefect}/v2/runs/flow-run/")
    assert mlflow.strip().startswith(f"{stack.mlflow}/#/experiments/")
    assert stack.pids() == before
    assert stack.states() == (0, dict.fromkeys(SERVICES, "up"))
    assert statuses(stack) == {"before": "FINISHED", "through": "FINISHED"}
    assert stack.runs_of("through")["through · round 1"] == "COMPLETED"


def test_open_runs_of_a_federation_are_closed_even_before_they_have_their_name(stack: RunningStack) -> None:
    """Prefect names the run of a round when it starts, so Ctrl-C can leave one with a name that Prefect drew."""

    def make(kind: str, **fields: object) -> str:
        return str(stack.call(f"/api/{kind}/", fields)["id"])

    flow, pending = make("flows", name="round"), {"type": "PENDING"}
    federation = make("flow_runs", flow_id=flow, name="ended", state={"type": "CRASHED"})
    step = make("task_runs", flow_run_id=federation, task_key="round", dynamic_key="0")
    made = {
        name: make("flow_runs", flow_id=flow, name=name, state=pending, parent_task_run_id=parent)
        for name, parent in (("mellow-degu", step), ("ended · round 1", step), ("ended-too", None), ("degu", None))
    }
    assert stack.ask(lambda _: close_dead_runs("ended", interrupted=True)) == 2
    states = {name: stack.call(f"/api/flow_runs/{run}")["state"]["type"] for name, run in made.items()}
    for run in made.values():
        stack.call(f"/api/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    assert states == {
        "mellow-degu": "CANCELLED", "ended · round 1": "CANCELLED", "ended-too": "PENDING", "degu": "PENDING",
    }  # fmt: skip


def test_ui_and_serve_use_the_stacks_servers_too(stack: RunningStack, tmp_path: Path) -> None:
    before = stack.pids()
    pages = tmp_path / "pages.txt"
    with _until_interrupted(stack.home, "ui", "through", "--no-browser", output=pages) as ui:
        assert eventually(lambda: ui.poll() is not None or "Ctrl-C ends it" in pages.read_text(), PATIENCE)
    assert f"{stack.prefect}/v2/runs/flow-run/" in pages.read_text()
    assert f"{stack.mlflow}/#/experiments/" in pages.read_text()
    login = login_path(stack.home.path, "ui")
    assert how_to_log_in(login) in pages.read_text()
    page = login.read_text()
    assert f'action="{stack.prefect}/fedbench-login"' in page
    link = (
        f"http://{stack.keys.mlflow_auth}@{stack.mlflow.removeprefix('http://')}/fedbench-login?to=%2F%23%2Fexperiments"
    )
    assert f'href="{link}' in page
    (port,) = free_ports(1)
    served = tmp_path / "served.txt"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers() -> bool:
        try:
            return bool(opener.open(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200)
        except OSError:
            return False

    with _until_interrupted(stack.home, "serve", "through", "--port", port, output=served) as server:
        assert eventually(lambda: server.poll() is not None or answers(), PATIENCE)
    assert "through, round " in served.read_text()
    assert not any(secret in text for secret in secrets(stack) for text in (pages.read_text(), served.read_text()))
    assert stack.pids() == before
    assert stack.states() == (0, dict.fromkeys(SERVICES, "up"))


def test_commands_in_a_shell_that_sourced_the_file_use_the_stack(stack: RunningStack) -> None:
    beside = Path(sys.executable).parent
    script = f"""
    source {stack.home.path}/stack.env
    export PATH={beside}:$PATH
    {sys.executable} -m prefect flow-run ls --limit 20
    {sys.executable} -m mlflow experiments search
    fedbench list
    fedbench deploy --dry-run
    fedbench up --servers-only
    """
    result = subprocess.run(
        ["bash", "-ec", script],
        env=stack.home.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "through" in result.stdout
    assert "fedbench" in result.stdout
    assert any(line.split()[:2] == ["through", "finished"] for line in result.stdout.splitlines())
    assert "deployment federation/smoke" in result.stdout
    assert "is up already; nothing was changed" in result.stdout
    assert "is set, so runs here use" not in result.stderr


def test_logs_are_shown(stack: RunningStack) -> None:
    shown = stack.home.run("logs", "-n", "5").stdout
    assert all(f"{name:11} | " in shown for name in SERVICES)
    only = stack.home.run("logs", "s3", "-n", "1000").stdout
    assert "Starting s3 server" in only
    assert " | " not in only


def test_killed_servers_come_back_by_themselves(stack: RunningStack) -> None:
    before = stack.pids()
    os.kill(before["mlflow"], signal.SIGKILL)  # its launcher: the server itself is left behind
    for name in ("s3", "prefect"):
        os.kill(before[name], signal.SIGKILL)
    assert eventually(lambda: not set(stack.pids().values()) & set(before.values()), PATIENCE)
    assert eventually(lambda: stack.states() == (0, dict.fromkeys(SERVICES, "up")), PATIENCE)
    lines = [line for line in stack.home.run("logs", "supervisor").stdout.splitlines() if "had died" in line]
    names = {"s3": "FEDBENCH_S3__ENDPOINT", "prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI"}
    assert len(lines) == len(SERVERS)
    for name in SERVERS:
        assert any(line.endswith(f"{name} had died; it is back at {stack.variables[names[name]]}") for line in lines)
    assert statuses(stack) == {"before": "FINISHED", "through": "FINISHED"}


def test_without_the_supervisor_killed_servers_stay_crashed_until_the_next_up(stack: RunningStack) -> None:
    before, addresses = stack.pids(), stack.variables
    for pid in (stack.pid("supervisor"), before["prefect"]):
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda pid=pid: gone(pid), 20)  # type: ignore[misc]
    assert stack.states() == (1, {"s3": "up", "prefect": "crashed", "mlflow": "up", "supervisor": "crashed"})
    os.kill(before["mlflow"], signal.SIGKILL)  # its launcher: the server itself is left behind
    os.kill(before["s3"], signal.SIGKILL)
    assert eventually(lambda: stack.states() == (1, dict.fromkeys(SERVICES, "crashed")), 60)
    result = stack.home.run("up", "--servers-only", timeout=PATIENCE)
    assert result.returncode == 0, result.stdout
    assert stack.states() == (0, dict.fromkeys(SERVICES, "up"))
    assert environment_of(stack.home) == addresses  # ports and credentials
    assert not set(stack.pids().values()) & set(before.values())
    assert statuses(stack) == {"before": "FINISHED", "through": "FINISHED"}
    assert stack.runs_of("through")["through"] == "COMPLETED"
    s3 = S3Service(stack.home.path, detached=True)
    s3.ensure()
    store = ObjectStore(s3.resolved(S3Settings(), s3.address))
    assert store.exists(stack.home.layout("through").marker(1))


def test_a_run_goes_on_when_the_stack_is_ended_and_no_process_is_left(stack: RunningStack, tmp_path: Path) -> None:
    output = tmp_path / "run.txt"
    run = stack.home.start("run", stack.home.spec_file(TINY | {"max_rounds": 2}), "--name", "alone", output=output)
    try:
        assert eventually(lambda: run.poll() is not None or "request_update: client" in output.read_text(), PATIENCE)
        ended = set(stack.pids().values())
        result = stack.home.run("down", timeout=PATIENCE)
        what = "supervisor, mlflow, prefect, s3"
        assert (result.returncode, result.stdout) == (0, f"down: ended {what}; data are kept in {stack.home.path}\n")
        assert all(map(gone, ended))
        assert not (stack.home.path / "stack.env").exists()
        assert run.wait(PATIENCE) == 0, output.read_text()
    finally:
        run.kill()
        run.wait()
    assert output.read_text().splitlines()[-1].startswith("pages: fedbench ui alone ")  # the stack's pages are gone
    assert_no_process_left(stack.home)
    records = assert_consistent(stack.home, "alone", rounds=2)
    assert_tracked_once(stack.home, "alone", "FINISHED", records)
    assert_tracked_once(stack.home, "through", "FINISHED", stack.home.records("through"))
    assert {state for _, state in stack.home.flow_runs("through")} == {"COMPLETED"}
    again = stack.home.run("down", timeout=PATIENCE)
    assert (again.returncode, again.stdout) == (0, "is down already; nothing was running\n")
    assert stack.states() == (1, dict.fromkeys(SERVICES, "down"))


@contextlib.contextmanager
def _until_interrupted(home: Home, *arguments: object, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command in the background during the block. Then end it with Ctrl-C, and check that it exits with 0."""
    process = home.start(*arguments, output=output)
    try:
        yield process
        assert process.poll() is None, output.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0, output.read_text()
    finally:
        process.kill()
        process.wait()
