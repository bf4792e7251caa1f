"""Two simulated machines: network, mount and UTS namespaces. Neither sees the other's files or loopback.

They need root on Linux. At the end, processes with the machine's mark in their environment are killed, and the
namespaces are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from tests import warm
from tests.integration.homes import MARK
from tests.integration.workers import registration
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ("FEDBENCH_", "PREFECT_", "MLFLOW_", "RCLONE_", "AWS_", "CUDA_")

# Set the host name, mount an empty folder over each hidden one, and run the command.
_ENTER = 'hostname "$1"; shift; while [ "$1" != -- ]; do mount -t tmpfs none "$1"; shift; done; shift; exec "$@"'


def why_not() -> str | None:
    """Return what is missing here to simulate two machines. None: nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need root on Linux"
    if any(shutil.which(program) is None for program in ("ip", "unshare", "hostname", "mount")):
        return "needs ip, unshare, hostname and mount"
    name = f"fb{uuid.uuid4().hex[:6]}"
    for command in (["ip", "netns", "add", name], ["ip", "netns", "exec", name, "unshare", "-m", "-u", "true"]):
        if (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode != 0:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            return f"{' '.join(command)}: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


LOOPBACK = "0100007F:"  # 127.0.0.1 in the format of /proc/net/tcp


@dataclass(frozen=True)
class Machine:
    """A simulated machine. hidden: folders that are empty in it."""

    name: str
    address: str
    folder: Path
    hidden: tuple[Path, ...]

    @property
    def mark(self) -> str:
        return str(self.folder)

    @property
    def _enter(self) -> list[str]:
        inside = ["unshare", "-m", "-u", "sh", "-ec", _ENTER, "sh", self.name, *map(str, self.hidden), "--"]
        return ["ip", "netns", "exec", self.name, *inside]

    @cached_property
    def _warm(self) -> warm.Warm:
        """A process inside the machine that forks fedbench's commands: each would import for seconds."""
        return warm.start_elsewhere(self._enter, self.environment({}))

    def _popen(self, arguments: Sequence[object], variables: Mapping[str, str], **files: Any) -> subprocess.Popen[Any]:
        command = [str(one) for one in arguments]
        options = {
            "env": self.environment(variables), "cwd": self.folder, "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT, "start_new_session": True, **files,
        }  # fmt: skip
        if not warm.is_ours(command):
            return subprocess.Popen([*self._enter, *command], **options)
        with warm.through(self._warm):
            return subprocess.Popen(command, **options)

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        for name in [name for name in kept if name.lower().endswith("_proxy")]:
            del kept[name]  # the machine cannot reach a proxy
        own = {"HOME": str(self.folder), "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "160", MARK: self.mark}
        return {**kept, **own, **variables}

    def run(
        self, *arguments: object, timeout: float = 900.0, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. stdout and stderr are one text."""
        with self._popen(arguments, variables or {}, stdout=subprocess.PIPE, text=True) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def start(self, *arguments: object, log: Path, **variables: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            return self._popen(arguments, variables, stdout=file)

    def listening(self) -> list[str]:
        """Return the addresses, in the kernel's form, at which the machine accepts connections from outside."""
        text = self.run("cat", "/proc/net/tcp", "/proc/net/tcp6").stdout
        rows = [line.split() for line in text.splitlines()]
        found = [row[1] for row in rows if len(row) > 3 and row[3] == "0A"]
        return [address for address in found if not address.startswith(LOOPBACK)]

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def end(self, seconds: float = 20.0) -> None:
        """Terminate all processes of the machine, and kill those that still run after ``seconds``."""
        if "_warm" in vars(self):
            self._warm.end()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.terminate()
        eventually(lambda: not self.processes(), seconds)
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.2)


@contextlib.contextmanager
def two_machines(folder: Path, *, hidden: Sequence[Path] = ()) -> Iterator[tuple[Machine, Machine]]:
    """Create two machines with a network link between them. Each has its own folder, and sees none of ``hidden``."""
    run = uuid.uuid4().hex[:6]
    names, network = (f"fb{run}a", f"fb{run}b"), int(run[:2], 16)
    addresses = tuple(f"10.213.{network}.{number}" for number in (1, 2))
    folders = [folder / side for side in ("a", "b")]
    for path in folders:
        path.mkdir(parents=True)
    machines = [
        Machine(names[side], addresses[side], folders[side], (folders[1 - side], *hidden, Path("/dev/shm")))
        for side in (0, 1)
    ]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", f"{names[0]}0", "netns", names[0], "type", "veth", "peer", f"{names[1]}0", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", f"{name}0")
            for device in ("lo", f"{name}0"):
                _ip("-n", name, "link", "set", device, "up")
        yield machines[0], machines[1]
    finally:
        for machine in machines:
            machine.end()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def stack_variables(path: Path) -> dict[str, str]:
    """Return the variables that a stack's file (``stack.env``) sets."""
    script = f'. "{path}"; exec "{sys.executable}" -c "import json, os; print(json.dumps(dict(os.environ)))"'
    found: dict[str, str] = json.loads(subprocess.check_output(["sh", "-c", script], text=True, env={}))
    return found


def start_worker(machine: Machine, home: Path, pool: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker of slots for ``pool``. Its log is ``worker.log`` in its home."""
    own = {"FEDBENCH_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    path = [machine.environment({})["PYTHONPATH"], *registration(home)]
    return machine.start(
        *(sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "fedbench-gpu"),
        log=home / "worker.log",
        **{**environment, **own, "PYTHONPATH": ":".join(path)},
    )


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
