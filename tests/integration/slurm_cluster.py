"""A Slurm cluster on this machine: Debian's slurmctld and munged, and two slurmd, all in a folder of its own.

Its ports, sockets and keys are its own too, so it does not meet other daemons of Slurm or munge. It needs root on
Debian, because its daemons switch to the users of jobs; missing packages are installed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.integration.stacks import free_ports
from tests.waiting import eventually

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scancel", "squeue", "sinfo", "scontrol", "munged")
NODES = ("n1", "n2")
NODE_CPUS = 2
PARTITION = "work"

CONFIGURATION = """
ClusterName=fedbench-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
OverTimeLimit=0
KillWait=60
MinJobAge=600
MailProg=/bin/true
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} RealMemory=4000
PartitionName={partition} Nodes={nodes} Default=YES MaxTime=1:00:00 State=UP
"""


def why_not() -> str | None:
    """Return why there can be no cluster here, after installing what is missing. None: there can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing and not Path("/etc/debian_version").exists():
        return f"needs Slurm and munge ({', '.join(missing)} not found), which are installed here only on Debian"
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # RUNLEVEL=1: the packages' scripts start no daemons.
        environment["RUNLEVEL"] = "1"
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return f"{' '.join(command)}: {(done.stderr or done.stdout)[-300:].strip()}"
    return None


@dataclass
class Cluster:
    """A running cluster. ``folder`` holds its configuration, state and logs."""

    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def configuration(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables by which Slurm's commands find this cluster."""
        return {"SLURM_CONF": str(self.configuration)}

    def run(self, *command: str) -> str:
        """Run a command of Slurm. Return its output."""
        done = subprocess.run(
            command, env={**os.environ, **self.variables}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def show(self, job: str) -> dict[str, str]:
        """Return the fields that scontrol prints about a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def logs(self) -> str:
        return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-1500:]}" for log in self.folder.glob("*.log"))

    def start(self, *command: str) -> None:
        log = self.folder / f"{Path(command[0]).name}-{len(self.daemons)}.out"
        with log.open("ab") as output:
            self.daemons.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **self.variables},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            )

    def stop(self) -> None:
        """Cancel all jobs, then end the daemons, the last started first."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.run("scancel", "--user=root")
            eventually(lambda: not self.run("squeue", "--noheader"), 60)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait(20)
        for left in self.job_processes():
            with contextlib.suppress(psutil.Error):
                left.send_signal(signal.SIGKILL)

    def job_processes(self) -> list[psutil.Process]:
        """Return the processes in the jobs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                variables = process.environ()
                if variables.get("SLURM_CONF") == str(self.configuration) and "SLURM_JOB_ID" in variables:
                    found.append(process)
        return found


def _port_range(count: int) -> int:
    """Return the first of ``count`` free ports in a row."""
    for first in range(21000, 29000, 10):
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster of two nodes with ``NODE_CPUS`` CPUs each, whatever this machine has; then end it."""
    cluster = Cluster(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir(exist_ok=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    first = _port_range(len(NODES))
    cluster.configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname(),
            folder=folder,
            port=free_ports(1)[0],
            nodes=f"n[1-{len(NODES)}]",
            first=first,
            last=first + len(NODES) - 1,
            cpus=NODE_CPUS,
            partition=PARTITION,
        )
    )
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    # --force: the folder may be below one that others can write to, such as /tmp.
    files = ("socket", "key-file", "log-file", "pid-file", "seed-file")
    names = ("munge.socket", "munge.key", "munged.log", "munged.pid", "munged.seed")
    options = [f"--{option}={folder / name}" for option, name in zip(files, names, strict=True)]
    try:
        cluster.start("munged", "--foreground", "--force", *options)
        assert eventually((folder / "munge.socket").exists, 30), cluster.logs()
        cluster.start("slurmctld", "-D", "-c")
        for node in NODES:
            cluster.start("slurmd", "-D", "-N", node)
        deadline = time.monotonic() + 120
        while not _ready(cluster):
            assert time.monotonic() < deadline, cluster.logs()
            time.sleep(0.5)
        yield cluster
    finally:
        cluster.stop()


def _ready(cluster: Cluster) -> bool:
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    done = subprocess.run(command, env={**os.environ, **cluster.variables}, capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.split() == ["idle"] * len(NODES)
