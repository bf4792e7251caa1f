"""Homes for the runs of faults: copied warm, on a file system of their own where possible, with a stack or without."""

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
MARK = "FAULTS_HOME"  # in the environment of every process of a home, orphans too: by it they are found
SIZE = "300m"  # of a home's own file system
FOREIGN = ("FEDBENCH_", "PREFECT_", "MLFLOW_", "RCLONE_", "AWS_", "FAULTS_")
PATIENCE = 240.0  # seconds that a command may take before it hangs


class Place:
    """A ``FEDBENCH_HOME`` in ``folder``. What its processes sync is noted in ``folder/synced.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.synced = folder / "synced.jsonl"
        self.proxy: Proxy | None = None

    @property
    def bucket(self) -> Path:
        """Where the embedded store keeps the objects, a file each."""
        return self.home / "s3" / "fedbench"

    def create(self, template: Path | None) -> None:
        """Make the home anew, as ``template`` has it."""
        self.remove()
        self.home.mkdir(parents=True)
        _mount(self.home)
        self.home.chmod(0o700)
        if template is not None:
            shutil.copytree(template, self.home, dirs_exist_ok=True, symlinks=True)

    def remove(self) -> None:
        """Kill what is left of it and remove it."""
        self.kill_all()
        if self.proxy is not None:
            self.proxy.close()
            self.proxy = None
        if os.path.ismount(self.home):
            subprocess.run(["umount", "-l", self.home], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self, *, proxied: bool = False) -> dict[str, str]:
        """Variables of its commands. proxied: their store is the proxy before the stack's."""
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
        """The command ``fedbench`` in the background. pools: its turns go to the stack's work pool."""
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
        """The command to its end. Returns its status, None when it hangs and was killed."""
        return ended(self.start(*arguments, output=output, pools=pools, proxied=proxied))

    # A stack.

    def up(self, output: Path) -> None:
        """``fedbench up``, with a proxy before its store that workers and runs use.

        Raises:
            RuntimeError: it did not come up.
        """
        settings = self.home / "settings.yaml"
        if not settings.exists():
            settings.write_text(f"ports: {json.dumps(_free_ports())}\n")
            settings.chmod(0o600)
        if self.proxy is None:
            # The store's port is the one that the settings ask for, so the proxy can be there first.
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
        """Those of this home that live."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(self.home):
                    found.append(process)
        return found

    def kill_all(self) -> int:
        """SIGKILL all at once, as a power loss does. Returns how many there were."""
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
    """Its status when it has ended; None when it hangs: then its group has been killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def part_of(process: psutil.Process, command: int) -> str | None:
    """Which part of a run or a stack a process is; None for launchers and helpers. command: the coordinator's id."""
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
    """Have a small file system of its own at ``folder``. Whether that is possible here."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "fedbench-faults", str(folder)]
    try:
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def can_mount(folder: Path) -> bool:
    """Whether a file system can be mounted, as root can in most places. Tried below ``folder``."""
    tried = folder / "tried"
    tried.mkdir(exist_ok=True)
    mounted = _mount(tried)
    if mounted:
        subprocess.run(["umount", tried], check=True)
    tried.rmdir()
    return mounted


@contextlib.contextmanager
def filled(folder: Path, spare: int) -> Iterator[int]:
    """Fill the file system of ``folder`` up to ``spare`` bytes. Gives the bytes that were written."""
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
