"""Federations whose turns run in jobs of a real Slurm cluster: two slurmd on this machine, workers in their jobs.

Jobs are cancelled in the middle of a turn and run into the end of their time. The weights must be those of the same
federation in this machine's own slots.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.homes import Home, assert_consistent, digests, tiny
from tests.integration.slurm_cluster import PARTITION, Cluster, slurm_cluster, why_not
from tests.integration.stacks import PATIENCE, RunningStack, in_a_slot, running_stack
from tests.integration.workers import Worker
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROUNDS = 3
# Turns of some seconds, so that a job can be cancelled in the middle of one. A turn that was given back costs no retry.
SPEC: dict[str, Any] = tiny(
    max_rounds=ROUNDS, training={"batch_size": 4, "local_epochs": 6}, participation={"turn_retries": 2}
)
CPU_JOBS = ("--partition", PARTITION, "--gpus", "0", "--cpus", "1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.variables.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture(scope="module")
def stack(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Start servers without workers, and make the pools. Turns of every federation go to the pool gpu."""
    settings = {"pools": {"turns": "gpu", "residents": 2, "idle_seconds": 10}}
    folder = tmp_path_factory.mktemp("stack")
    with running_stack(folder / "home", "--servers-only", settings=settings) as found:
        made = found.home.run("deploy", timeout=PATIENCE)
        assert made.returncode == 0, made.stdout
        try:
            yield found
        finally:
            found.home.run("slurm", "down", timeout=PATIENCE)


@pytest.fixture(scope="module")
def local(stack: RunningStack) -> list[str]:
    """Run the federation in this machine's own slots. Return the digests of its rounds."""
    return local_digests(stack.home, "local", ROUNDS)


def local_digests(home: Home, name: str, rounds: int) -> list[str]:
    without_pools = home.path / "local.yaml"
    without_pools.write_text("{}")
    environment = home.environment() | {"FEDBENCH_SETTINGS": str(without_pools)}
    command = ("run", home.spec_file(SPEC), "--name", name, "-q", "--max-rounds", rounds)
    result = home.run(*command, timeout=PATIENCE, environment=environment)
    assert result.returncode == 0, result.stdout
    return digests(home.records(name))


def up(stack: RunningStack, *options: object) -> str:
    """Submit worker jobs. Return the id of their array."""
    result = stack.home.run("slurm", "up", *CPU_JOBS, *options, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout
    found = re.search(r"^job (\d+): ", result.stdout, re.MULTILINE)
    assert found is not None, result.stdout
    return found[1]


def log_of(stack: RunningStack, job: str) -> str:
    path = stack.home.path / "slurm" / "logs" / f"{job}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def await_workers(stack: RunningStack, cluster: Cluster, jobs: list[str]) -> None:
    for job in jobs:
        started = eventually(lambda job=job: "started!" in log_of(stack, job), PATIENCE)  # type: ignore[misc]
        assert started, log_of(stack, job) + cluster.logs()


def jobs_with_a_run(cluster: Cluster) -> list[str]:
    """Return the jobs, as ``41_2``, that have a run in one of their slots."""
    found = set()
    for process in cluster.job_processes():
        try:
            if in_a_slot(process):
                variables = process.environ()
                found.add(f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}")
        except (psutil.Error, OSError):
            continue
    return sorted(found)


def trains(home: Home, name: str, round_number: int) -> bool:
    """Return whether a turn of the round's training has been asked for and not been answered."""
    keys = [key for key in home.keys(name) if "/turns/" in key]
    asks = [key for key in keys if key.endswith("-ask.json")]
    for ask in asks:
        if ask.replace("-ask.json", "-answer.json") in keys:
            continue
        try:
            document = home.document(ask)
        except (OSError, ValueError):
            continue
        if document.get("phase") == "request_update" and document["request"]["round"] == round_number:
            return True
    return False


def test_a_dry_run_prints_the_script_and_submits_nothing(stack: RunningStack, cluster: Cluster) -> None:
    result = stack.home.run(
        "slurm", "up", *CPU_JOBS, "--workers", 2, "--time", "1:00:00", "--dry-run", timeout=PATIENCE
    )
    assert result.returncode == 0, result.stdout
    script = stack.home.path / "script.sh"
    script.write_text(result.stdout)
    assert f"#SBATCH --partition={PARTITION}\n" in result.stdout
    assert "#SBATCH --signal=B:USR1@300\n" in result.stdout
    checked = subprocess.run(["sbatch", "--test-only", str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert cluster.run("squeue", "--noheader") == ""
    assert not (stack.home.path / "slurm").exists()
    status = stack.home.run("slurm", "status", timeout=PATIENCE)
    assert (status.returncode, "no worker job" in status.stdout) == (1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-p", "nowhere", "--gpus", "0", "--time", "1:00:00"), "--partition: expected one of .*work.*, found nowhere"),
        (("-p", PARTITION, "--gpus", "1", "--time", "1:00:00"), "--gpus: expected 0, partition work has no nodes"),
        ((*CPU_JOBS, "--time", "2:00:00"), "--time: expected at most 1:00:00, the limit of partition work"),
        ((*CPU_JOBS, "--time", "0:05:00"), r"--time: expected at least 0:06:00: .*\(--lead\).* found 0:05:00"),
        (
            (*CPU_JOBS, "--time", "1:00:00", "--pool", "other"),
            "expected the work pool other .* make them: fedbench deploy",
        ),
        ((*CPU_JOBS, "--time", "90"), "--time: expected H:MM:SS, as in 8:00:00, .* found 90"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_submitted(
    stack: RunningStack, cluster: Cluster, options: tuple[str, ...], message: str
) -> None:
    result = stack.home.run("slurm", "up", *options, timeout=PATIENCE)
    assert result.returncode == (1 if "--pool" in options else 2), result.stdout
    assert re.search(message, " ".join(result.stdout.split())), result.stdout
    assert cluster.run("squeue", "--noheader") == ""


@pytest.fixture(scope="module")
def array(stack: RunningStack, cluster: Cluster) -> str:
    """Submit two worker jobs, and wait until they take turns. Return the id of their array."""
    job = up(stack, "--workers", 2, "--time", "0:50:00")
    await_workers(stack, cluster, [f"{job}_1", f"{job}_2"])
    return job


def test_credentials_are_only_in_a_private_file(stack: RunningStack, cluster: Cluster, array: str) -> None:
    file = stack.home.path / "slurm" / "worker.env"
    assert file.stat().st_mode & 0o777 == 0o600
    secrets = [
        stack.variables[name]
        for name in ("PREFECT_API_AUTH_STRING", "FEDBENCH_S3__ACCESS_KEY", "FEDBENCH_S3__SECRET_KEY")
    ]
    text = file.read_text()
    assert all(secret in text for secret in secrets)
    assert stack.variables["MLFLOW_TRACKING_PASSWORD"] not in text  # a worker has no use for it
    seen = cluster.run("scontrol", "write", "batch_script", f"{array}_1", "-")
    seen += cluster.run("scontrol", "show", "job", array)
    processes = cluster.job_processes()
    seen += "\n".join(" ".join(process.cmdline()) for process in processes)
    assert len(processes) >= 6  # of each job: its program, the worker, the warm process
    spool = b"".join(path.read_bytes() for path in (cluster.folder / "state").rglob("environment"))
    assert b"HOME=" in spool  # what Slurm keeps of the environment in which the jobs were submitted
    for secret in secrets:
        assert secret not in seen
        assert secret.encode() not in spool


def test_a_federation_has_its_turns_in_the_jobs(
    stack: RunningStack, cluster: Cluster, array: str, local: list[str]
) -> None:
    result = stack.home.run("run", stack.home.spec_file(SPEC), "--name", "jobs", timeout=PATIENCE)
    assert result.returncode == 0, result.stdout
    assert digests(assert_consistent(stack.home, "jobs", rounds=ROUNDS)) == local
    for task in (1, 2):  # one slot each, so two residents are in two jobs
        assert "jobs · resident" in log_of(stack, f"{array}_{task}")
        assert "1 slot(s), each with 1 CPU thread, no GPU" in log_of(stack, f"{array}_{task}")
    status = stack.home.run("slurm", "status", timeout=PATIENCE)
    assert status.returncode == 0, status.stdout
    assert len(re.findall(rf"^ *{array}_[12] +RUNNING +{PARTITION} +gpu +n[12] ", status.stdout, re.MULTILINE)) == 2


def test_cells_of_a_deployed_suite_spread_over_the_jobs(
    stack: RunningStack, cluster: Cluster, array: str, local: list[str], tmp_path: Path
) -> None:
    """A process worker runs the suite, whose cells send their turns to the pool of the jobs."""
    suite = tmp_path / "seeds.yaml"
    experiment = {"name": "one", "spec": {**SPEC, "max_rounds": 2}, "seeds": [1, 2], "centralised": False}
    document = {"name": "seeds", "experiments": [experiment]}
    suite.write_text(yaml.safe_dump(document))
    made = stack.home.run("deploy", suite, timeout=PATIENCE)
    assert made.returncode == 0, made.stdout
    own = {name: value for name, value in stack.variables.items() if name.startswith(("FEDBENCH_", "PREFECT_"))}
    own |= {"FEDBENCH_POOLS__TURNS": "gpu", "FEDBENCH_POOLS__RESIDENTS": "1"}
    worker = Worker(tmp_path / "coordinator", "fedbench", kind="process", **own)
    try:
        run = stack.start("suite/seeds", {"name": "spread"})
        ended = eventually(lambda: bool((state := stack.read(run).state) and state.is_final()), PATIENCE)
        assert ended, worker.text()
    finally:
        worker.kill()
    assert stack.read(run).state_name == "Completed", stack.read(run).state
    cells = {name.rpartition("/")[0] for name in _suite_federations(stack.home)}
    assert len(cells) == 2
    logs = [log_of(stack, f"{array}_{task}") for task in (1, 2)]
    assert all(any(f"{cell} · resident" in log for cell in cells) for log in logs)


def _suite_federations(home: Home) -> list[str]:
    bucket = home.path / "s3" / "fedbench" / "federations"
    return sorted(str(path.relative_to(bucket)) for path in bucket.rglob("spec.json") if "spread" in str(path))


def test_a_job_is_cancelled_in_the_middle_of_a_turn(
    stack: RunningStack, cluster: Cluster, array: str, local: list[str]
) -> None:
    output = stack.home.path / "cancelled.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Home, "environment", _with_one_resident(Home.environment))
        run = stack.home.start("run", stack.home.spec_file(SPEC), "--name", "cancelled", output=output)
    try:
        assert eventually(lambda: trains(stack.home, "cancelled", 2), PATIENCE), output.read_text()
        (job,) = jobs_with_a_run(cluster)
        cluster.run("scancel", job)
        assert run.wait(PATIENCE) == 0, output.read_text()
    finally:
        run.kill()
    assert digests(assert_consistent(stack.home, "cancelled", rounds=ROUNDS)) == local
    assert "request_update was given back and runs again" in output.read_text()
    assert cluster.show(job)["JobState"] == "CANCELLED"
    (other,) = {f"{array}_1", f"{array}_2"} - {job}
    assert cluster.show(other)["JobState"] == "RUNNING"
    assert "cancelled · resident" in log_of(stack, other)


def _with_one_resident(environment: Any) -> Any:
    return lambda home: environment(home) | {"FEDBENCH_POOLS__RESIDENTS": "1"}


def test_down_cancels_all_jobs_and_removes_the_credentials(stack: RunningStack, cluster: Cluster, array: str) -> None:
    result = stack.home.run("slurm", "down", timeout=PATIENCE)
    assert result.returncode == 0, result.stdout
    assert "1 job cancelled" in result.stdout
    assert not (stack.home.path / "slurm" / "worker.env").exists()
    assert cluster.run("squeue", "--noheader") == ""
    assert eventually(lambda: not cluster.job_processes(), 30), [
        process.cmdline() for process in cluster.job_processes()
    ]
    status = stack.home.run("slurm", "status", timeout=PATIENCE)
    assert status.returncode == 1
    assert len(re.findall(rf"^ *{array}_[12] +CANCELLED ", status.stdout, re.MULTILINE)) == 2
    assert "no worker job was waiting or running" in stack.home.run("slurm", "down", timeout=PATIENCE).stdout


def test_a_job_hands_its_turns_back_before_its_time_ends_and_is_queued_again(
    stack: RunningStack, cluster: Cluster
) -> None:
    """Slurm's shortest time is a minute, and it sends the signal up to a minute early."""
    job = f"{up(stack, '--time', '0:02:00', '--lead', '0:00:40', '--idle', '0:03:00')}_1"
    await_workers(stack, cluster, [job])
    rounds = 0
    while "its time ends" not in log_of(stack, job):
        rounds += ROUNDS
        command = ("run", stack.home.spec_file(SPEC), "--name", "limit", "--max-rounds", rounds)
        result = stack.home.run(*command, timeout=PATIENCE)
        assert result.returncode == 0, result.stdout + log_of(stack, job)
    again = stack.home.run(
        *("run", stack.home.spec_file(SPEC), "--name", "limit", "--max-rounds", rounds + 1), timeout=PATIENCE
    )
    assert again.returncode == 0, again.stdout + log_of(stack, job)
    assert digests(assert_consistent(stack.home, "limit", rounds=rounds + 1)) == local_digests(
        stack.home, "long", rounds + 1
    )
    log = log_of(stack, job)
    assert "queued again, because it had turns until now" in log
    assert int(cluster.show(job)["Restarts"]) >= 1
    # Nothing is left to do, so the job is not queued again for ever.
    assert eventually(lambda: cluster.show(job)["JobState"] == "COMPLETED", PATIENCE), log_of(stack, job)
    assert "DUE TO TIME LIMIT" not in log_of(stack, job)


def test_a_job_without_turns_ends_by_itself(stack: RunningStack, cluster: Cluster) -> None:
    job = f"{up(stack, '--time', '0:20:00', '--idle', '0:00:05')}_1"
    began = time.monotonic()
    assert eventually(lambda: cluster.show(job)["JobState"] == "COMPLETED", PATIENCE), log_of(stack, job)
    assert time.monotonic() - began >= 5
    assert "no turn for 5 s: the worker ends" in log_of(stack, job)
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"fedbench-{job}-*"))
