"""The worker jobs of a home: check and submit them, list them, cancel them."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Sequence

from infra.environment.proxies import LOOPBACK_HOSTS
from infra.errors import SettingsError
from infra.settings import Settings
from infra.slurm.commands import (
    Job,
    Partition,
    cancel_jobs,
    list_jobs,
    read_partition,
    require_programs,
    submit,
)
from infra.slurm.durations import written
from infra.slurm.environment import Servers, find_servers, job_environment, write_job_environment
from infra.slurm.script import WorkerJobs, batch_script, environment_path, job_name

END_SECONDS = 90.0  # the most that cancelled jobs may take to end
LOOK_SECONDS = 1.0


def prepared_script(settings: Settings, jobs: WorkerJobs) -> tuple[str, Servers]:
    """Check everything that a job needs. Return the batch script, and the servers that its worker connects to.

    Raises:
        SettingsError: the message names the option, program, server or setting.
        SlurmFailed: a command of Slurm fails.
    """
    jobs.check()
    require_programs()
    partition = read_partition(jobs.partition)
    check_partition(partition, jobs)
    servers = find_servers(settings)
    check_reach(servers, partition)
    return batch_script(jobs, settings.home, sys.executable), servers


def check_partition(partition: Partition, jobs: WorkerJobs) -> None:
    """Check that the partition has what the jobs ask for. Slurm would have some of them wait for ever.

    Raises:
        SettingsError: it has no GPUs, or a shorter limit of time.
    """
    if jobs.gpus and not any(node.has_gpus for node in partition.nodes):
        raise SettingsError(
            f"--gpus: expected 0, partition {partition.name} has no nodes with GPUs (gres gpu), found {jobs.gpus}"
        )
    if partition.seconds is not None and jobs.seconds > partition.seconds:
        raise SettingsError(
            f"--time: expected at most {written(partition.seconds)}, the limit of partition {partition.name}, found "
            f"{written(jobs.seconds)}"
        )


def check_reach(servers: Servers, partition: Partition) -> None:
    """Check that no server listens on loopback alone, unless all nodes are this machine.

    Raises:
        SettingsError: one does, and the partition has other hosts.
    """
    others = list(dict.fromkeys(node.host for node in partition.nodes if not _is_here(node.host, node.address)))
    if servers.on_loopback and others:
        raise SettingsError(
            f"ports.host: expected an address of this machine that the nodes of partition {partition.name} reach "
            f"({', '.join(others[:3])}{', …' if others[3:] else ''}), found servers on loopback alone: "
            f"{', '.join(servers.on_loopback)}; set ports.host in settings.yaml, then: fedbench down, fedbench up"
        )


def _is_here(host: str, address: str) -> bool:
    own = {socket.gethostname(), socket.gethostname().partition(".")[0], socket.getfqdn()}
    return host in own or address in LOOPBACK_HOSTS


def check_pool(settings: Settings, pool: str, deployment: str) -> None:
    """Check that Prefect's server has the work pool, and the ``deployment`` (``flow/deployment``) of its residents.

    Raises:
        PoolUnusable: one is missing.
        PrefectUnavailable: the server does not answer, or refuses.
    """
    from infra.stack.prefect_api import prefect_api  # imports Prefect, which `status` and `down` do not need
    from infra.turns.resident_runs import require_pool

    with prefect_api(settings):
        asyncio.run(require_pool(pool, deployment))


def submit_jobs(settings: Settings, script: str, servers: Servers) -> str:
    """Write the environment file and submit the script. Return the id of the job array.

    Raises:
        SlurmFailed: sbatch refuses.
    """
    write_job_environment(settings.home, job_environment(settings, servers))
    return submit(script)


def home_jobs(settings: Settings) -> list[Job]:
    """Return the worker jobs of this home, those that ended minutes ago included.

    Raises:
        SettingsError: Slurm's commands are missing.
        SlurmFailed: squeue fails.
    """
    require_programs()
    return list_jobs(job_name(settings.home))


def end_jobs(settings: Settings) -> tuple[Sequence[Job], Sequence[Job]]:
    """Cancel the worker jobs of this home, wait for their end, and remove the environment file.

    Returns the jobs that were cancelled, and those of them that have not ended yet.

    Raises:
        SettingsError: Slurm's commands are missing.
        SlurmFailed: a command fails.
    """
    name = job_name(settings.home)
    found = [job for job in home_jobs(settings) if job.is_open]
    left = found
    if found:
        cancel_jobs(name)
        deadline = time.monotonic() + END_SECONDS
        while (left := [job for job in list_jobs(name) if job.is_open]) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
    environment_path(settings.home).unlink(missing_ok=True)
    return found, left
