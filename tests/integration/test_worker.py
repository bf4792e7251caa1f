"""The GPU worker on a real Prefect server, started by Prefect's command: runs, slots, kills, cancellation."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from infra.worker.gpu_worker import GpuWorker
from tests.integration.attacks import REFUSED, Attack, attacker, current_access
from tests.integration.workers import Worker, alive, deploy, ended, make_pool, prefect_server, read, submit
from tests.waiting import eventually

pytestmark = pytest.mark.integration

FLOWS = ("look", "hold", "linger", "vanish")


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, UUID]]:
    """Start a server with the pool ``slots`` and a deployment of each flow on it. Yield the deployments' ids."""
    with prefect_server(tmp_path_factory.mktemp("server")):
        make_pool("slots", GpuWorker.type, GpuWorker.get_default_base_job_template())
        yield {name: deploy(f"worker_flows.py:{name}", Path(__file__).parent, "slots") for name in FLOWS}


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def worker(flows: dict[str, UUID], port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Start a worker with one CPU slot and a health check."""
    server = {"PREFECT_WORKER_WEBSERVER_PORT": str(port), "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1"}
    made = Worker(tmp_path_factory.mktemp("worker"), "slots", "--with-healthcheck", FEDBENCH_SLOTS="1", **server)
    try:
        yield made.await_ready()
    finally:
        made.kill()


def logs_of(run: UUID) -> list[str]:
    async def ask() -> list[str]:
        async with get_client() as client:
            found = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))
            return [entry.message for entry in found]

    return asyncio.run(ask())


def message_of(run: FlowRun) -> str:
    assert run.state is not None
    return run.state.message or ""


def processes_at(marker: Path) -> list[int]:
    assert eventually(marker.exists, 120)
    numbers: list[int] = json.loads(marker.read_text())
    return numbers


def test_a_run_sees_its_slot_and_its_logs_arrive(flows: dict[str, UUID], worker: Worker, tmp_path: Path) -> None:
    marker = tmp_path / "seen"
    run = submit(flows["look"], {"marker": str(marker)}, env={"MINE": "here"}, threads=1)
    done = ended(run)
    assert done.state_name == "Completed", worker.text()
    seen = json.loads(marker.read_text())
    assert (seen["slot"], seen["visible"], seen["mine"]) == ("cpu-1", "", "here")
    assert seen["threads"] == len(os.sched_getaffinity(0))
    assert seen["pid"] not in (worker.process.pid, os.getpid())
    assert done.infrastructure_pid == f"{socket.gethostname()}:{seen['pid']}"
    assert eventually(lambda: "looking around in slot cpu-1" in logs_of(run))


def test_the_worker_reports_that_it_is_healthy(worker: Worker, port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()


def test_two_runs_in_one_slot_never_overlap(flows: dict[str, UUID], worker: Worker, tmp_path: Path) -> None:
    markers = [tmp_path / "first", tmp_path / "second"]
    runs = [submit(flows["hold"], {"marker": str(marker), "seconds": 1.5}) for marker in markers]
    assert [ended(run).state_name for run in runs] == ["Completed"] * 2
    (_, end), (began, _) = sorted(json.loads(marker.with_suffix(".json").read_text()) for marker in markers)
    assert began > end


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_run_is_crashed_and_frees_its_slot(
    flows: dict[str, UUID], worker: Worker, tmp_path: Path, number: signal.Signals
) -> None:
    marker = tmp_path / "numbers"
    run = submit(flows["linger"], {"marker": str(marker)})
    child, helper = processes_at(marker)
    began = time.monotonic()
    os.kill(child, number)
    crashed = ended(run, 30)
    assert time.monotonic() - began < 15  # it takes a fraction of a second while the API answers
    assert crashed.state_name == "Crashed"
    assert f"-{int(number)}" in message_of(crashed)
    assert number != signal.SIGKILL or "SIGKILL" in message_of(crashed)
    assert eventually(lambda: not alive(helper))  # a process that the run started must not keep the slot
    hook = marker.with_suffix(".crashed")
    assert eventually(hook.exists)
    assert f"-{int(number)}" in hook.read_text()
    assert ended(submit(flows["look"], {"marker": str(tmp_path / "next")})).state_name == "Completed"


def test_a_running_run_is_cancelled(flows: dict[str, UUID], worker: Worker, tmp_path: Path) -> None:
    marker = tmp_path / "numbers"
    run = submit(flows["linger"], {"marker": str(marker)}, grace_seconds=5)
    numbers = processes_at(marker)
    assert eventually(lambda: read(run).state_name == "Running")

    async def cancel() -> None:
        async with get_client() as client:
            await client.set_flow_run_state(run, Cancelling())

    asyncio.run(cancel())
    cancelled = ended(run, 60)
    assert cancelled.state_name == "Cancelled", worker.text()
    assert not any(alive(number) for number in numbers)
    hook = marker.with_suffix(".cancelled")
    assert eventually(hook.exists)
    assert int(hook.read_text()) not in (worker.process.pid, *numbers)
    assert not marker.with_suffix(".crashed").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"threads": 4096}, ("4096 CPU threads", "no GPU")),
        ({"device": "cuda", "gpus": 1}, ("device cuda, 1 GPU", "no GPU")),
        ({"gpu_megabytes": 20000}, ("20000 MiB of GPU memory", "no GPU")),
        ({"command": "python train.py"}, ("command: expected none", "python train.py")),
    ],
    ids=["threads", "GPU", "GPU memory", "command"],
)
def test_a_run_that_requests_too_much_is_refused(
    flows: dict[str, UUID], worker: Worker, tmp_path: Path, asked: dict[str, object], words: tuple[str, ...]
) -> None:
    marker = tmp_path / "never"
    refused = ended(submit(flows["look"], {"marker": str(marker)}, **asked))
    assert refused.state_name == "Crashed"
    assert all(word in message_of(refused) for word in words), message_of(refused)
    assert not marker.exists()


def test_a_run_that_ends_without_a_final_state_is_crashed(
    flows: dict[str, UUID], worker: Worker, tmp_path: Path
) -> None:
    crashed = ended(submit(flows["vanish"], {"marker": str(tmp_path / "none")}))
    assert crashed.state_name == "Crashed"
    assert "reported no final state" in message_of(crashed)


@pytest.mark.parametrize("kind", ["block", "json"])
def test_a_run_that_another_user_sets_to_completed_runs_none_of_their_code(
    flows: dict[str, UUID], worker: Worker, tmp_path: Path, kind: str
) -> None:
    other = attacker(current_access(), tmp_path / "others", f"planted-{kind}")
    with Attack(other, kind) as attack:
        run = submit(flows["look"], {"marker": str(tmp_path / "seen")})
        refused = ended_as(run, "FAILED")
    assert attack.hit == [str(run)]
    assert REFUSED in message_of(refused)
    assert other.ran() == []
    assert not (tmp_path / "seen").exists()


def ended_as(run: UUID, kind: str) -> FlowRun:
    assert eventually(lambda: str(read(run).state_type) == f"StateType.{kind}", 60), read(run).state
    return read(run)


def test_the_warm_process_is_started_again(flows: dict[str, UUID], worker: Worker, tmp_path: Path) -> None:
    server = worker.fork_server()
    server.kill()
    assert ended(submit(flows["look"], {"marker": str(tmp_path / "seen")})).state_name == "Completed", worker.text()
    assert worker.fork_server().pid != server.pid


def test_runs_die_with_a_killed_worker_and_the_next_worker_closes_them(
    flows: dict[str, UUID], worker: Worker, tmp_path: Path
) -> None:
    marker = tmp_path / "numbers"
    run = submit(flows["linger"], {"marker": str(marker)})
    processes_at(marker)
    assert eventually(lambda: read(run).state_name == "Running")
    family = worker.family()
    assert len(family) >= 3  # the warm process, the run, its helper
    worker.kill()
    _, left = psutil.wait_procs(family, timeout=30)
    assert left == []
    assert read(run).state_name == "Running"
    successor = Worker(worker.home, "slots", FEDBENCH_SLOTS="1")
    try:
        closed = ended(run)
        assert (closed.state_name, "worker" in message_of(closed)) == ("Crashed", True)
    finally:
        successor.kill()


def test_a_stopped_worker_finishes_its_runs_and_accepts_no_more(flows: dict[str, UUID], tmp_path: Path) -> None:
    worker = Worker(tmp_path / "home", "slots", FEDBENCH_SLOTS="2", FEDBENCH_WORKER__DRAIN_SECONDS="6").await_ready()
    try:
        short, long = tmp_path / "short", tmp_path / "long"
        finishing = submit(flows["hold"], {"marker": str(short), "seconds": 3})
        lasting = submit(flows["linger"], {"marker": str(long)}, grace_seconds=3)
        processes_at(long)
        assert eventually(short.exists)
        family = worker.family()
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        late = submit(flows["look"], {"marker": str(tmp_path / "late")})
        assert worker.process.wait(90) == 0, worker.text()
        _, left = psutil.wait_procs(family, timeout=10)
        assert left == []
        assert ended(finishing).state_name == "Completed"
        assert ended(lasting).state_name == "Crashed"
        assert read(late).state_name in ("Scheduled", "Late")
    finally:
        worker.kill()
