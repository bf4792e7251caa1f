"""Homes for runs with faults: copies of a warm home, on their own file systems if possible, with or without a stack."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from .proxy import Proxy

FEDBENCH = Path(sys.executable).parent / "fedbench"
HOOK = Path(__file__).resolve().parent / "hook"
MARK = "FAULTS_HOME"  # in the environment of every process of a home, orphans too, so that they can be found
SIZE = "300m"  # of a home's own file system
FOREIGN = ("FEDBENCH_", "PREFECT_", "MLFLOW_", "RCLONE_", "AWS_", "FAULTS_")
PATIENCE = 240.0  # seconds after which a command counts as hanging


class Place:
    """A ``FEDBENCH_HOME`` in ``folder``. The hook writes the syncs of its processes to ``folder/synced.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.synced = folder / "synced.jsonl"
        self.proxy: Proxy | None = None

    @property
    def bucket(self) -> Path:
        """Return the folder in which the embedded store keeps each object as a file."""
        return self.home / "s3" / "fedbench"

    def create(self, template: Path | None) -> None:
        """Create the home as a copy of ``template``, or empty if there is none."""
        self.remove()
        self.home.mkdir(parents=True)
        _mount(self.home)
        self.home.chmod(0o700)
        if template is not None:
            shutil.copytree(template, self.home, dirs_exist_ok=True, symlinks=True)

    def remove(self) -> None:
        """Kill its remaining processes and remove it."""
        self.kill_all()
        if self.proxy is not None:
            self.proxy.close()
            self.proxy = None
        if os.path.ismount(self.home):
            subprocess.run(["umount", "-l", self.home], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self, *, proxied: bool = False) -> dict[str, str]:
        """Return the variables of its commands. proxied: their store is the proxy in front of the stack's store."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        own = {
            "FEDBENCH_HOME": str(self.home),
            "FEDBENCH_MIN_FREE_MEGABYTES": "1",
            "FEDBENCH_SLOTS": "2",
            "FEDBENCH_POOLS__LOST_SECONDS": "15",
            "COLUMNS": "160",
            "NO_COLOR": "1",
            "PYTHONPATH": str(HOOK),
            "FAULTS_SYNCED": str(self.synced),
            MARK: str(self.home),
        }
        if proxied:
            assert self.proxy is not None
            keys = json.loads((self.home / "services" / "s3-keys.json").read_bytes())
            own |= {
                "FEDBENCH_S3__ENDPOINT": self.proxy.address,
                "FEDBENCH_S3__ACCESS_KEY": keys["access_key"],
                "FEDBENCH_S3__SECRET_KEY": keys["secret_key"],
            }
        return kept | own

    def start(
        self, *arguments: object, output: Path, pools: bool = False, proxied: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start ``fedbench`` in the background. pools: its turns go to the stack's work pool."""
        more = {"FEDBENCH_POOLS__TURNS": "gpu"} if pools else {}
        with output.open("ab") as file:
            return subprocess.Popen(
                [FEDBENCH, *map(str, arguments)],
                env=self.environment(proxied=proxied) | more,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *arguments: object, output: Path, pools: bool = False, proxied: bool = False) -> int | None:
        """Run the command to its end. Return its status, or None if it hung and was killed."""
        return ended(self.start(*arguments, output=output, pools=pools, proxied=proxied))

    # A stack.

    def up(self, output: Path) -> None:
        """Run ``fedbench up``, with a proxy in front of its store for workers and runs.

        Raises:
            RuntimeError: the stack did not start.
        """
        settings = self.home / "settings.yaml"
        if not settings.exists():
            settings.write_text(f"ports: {json.dumps(_free_ports())}\n")
            settings.chmod(0o600)
        if self.proxy is None:
            # The settings fix the store's port, so the proxy can start before the store.
            port = json.loads(settings.read_text().partition(":")[2])["s3"]
            self.proxy = Proxy(("127.0.0.1", port))
        environment = self.environment() | {"FAULTS_S3": self.proxy.address}
        with output.open("ab") as file:
            process = subprocess.Popen(
                [FEDBENCH, "up"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        status = ended(process)
        if status != 0:
            raise RuntimeError(f"fedbench up ended with {status}: {output.read_text()[-2000:]}")

    # Processes.

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of this home."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(self.home):
                    found.append(process)
        return found

    def kill_all(self) -> int:
        """SIGKILL all processes at once, as a power loss does. Return how many there were."""
        killed: set[int] = set()
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    killed.add(process.pid)
            time.sleep(0.02)
        return len(killed)


def ended(process: subprocess.Popen[bytes], seconds: float = PATIENCE) -> int | None:
    """Wait until the process ends. Return its status, or kill its group and return None if it hangs."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def part_of(process: psutil.Process, command: int) -> str | None:
    """Return which part of a run or stack the process is. None for launchers and helpers. command: coordinator's id."""
    if process.pid == command:
        return "coordinator"
    line, parent = process.cmdline(), process.parent()
    words = " ".join(line)
    if parent is not None and parent.cmdline() == line and ("forkserver" in words or "fork_server" in words):
        return "slot"
    marks = {
        "serve s3": "store",
        "prefect_closed server": "prefect",
        "mlflow server": "mlflow",
        "--pool gpu": "worker",
        "supervis": "supervisor",
    }
    if "bound.py" in words:
        return None
    return next((name for mark, name in marks.items() if mark in words), None)


def _free_ports() -> dict[str, int]:
    import socket

    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return {name: probe.getsockname()[1] for name, probe in zip(("s3", "prefect", "mlflow"), probes, strict=True)}


def _mount(folder: Path) -> bool:
    """Mount a small file system at ``folder``. Return whether that succeeded."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "fedbench-faults", str(folder)]
    try:
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def can_mount(folder: Path) -> bool:
    """Return whether a file system can be mounted, by trying it below ``folder``. It mostly takes root."""
    tried = folder / "tried"
    tried.mkdir(exist_ok=True)
    mounted = _mount(tried)
    if mounted:
        subprocess.run(["umount", tried], check=True)
    tried.rmdir()
    return mounted


@contextlib.contextmanager
def filled(folder: Path, spare: int) -> Iterator[int]:
    """Fill the file system of ``folder`` except for ``spare`` bytes. Yield how many bytes were written."""
    path, written = folder / ".filled", 0
    try:
        with path.open("wb", buffering=0) as file:
            block = b"\0" * 2**20
            while block:
                try:
                    written += file.write(block)
                except OSError:
                    block = block[: len(block) // 2] if len(block) > 512 else b""
            written = max(written - spare, 0)
            file.truncate(written)
        yield written
    finally:
        path.unlink(missing_ok=True)
