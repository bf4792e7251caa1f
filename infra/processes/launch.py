"""Start the process of a service, check its health, and end it."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from infra.environment.imports import allow_folder_in_imports
from infra.environment.proxies import bypass_proxies, drop_unusable_proxies
from infra.processes.logs import open_log

# Embedded services must not get the user's settings of rclone, Prefect, MLflow and AWS, nor our credentials. Names are
# compared in upper case, because Prefect reads its variables in any case.
FOREIGN_VARIABLES = ("RCLONE_", "PREFECT_", "MLFLOW_", "_MLFLOW_", "AWS_", "FEDBENCH_")

# The kernel's parent-death signal comes when the *thread* that forked ends. So one thread, which lives as long as the
# process, starts all services.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="service-starter")
LAUNCHER = str(Path(__file__).with_name("bound.py"))


def launcher(*, group: bool = False, lock: int | None = None) -> list[str]:
    """Return the words that stand before a command, so that it ends with this process; see :func:`launch`."""
    bond = [str(os.getpid())] if lock is None else ["--detached", str(lock)]
    return [sys.executable, "-I", "-S", LAUNCHER, *(["--group"] if group else []), *bond]


def launch(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    folder: Path,
    log_path: Path,
    group: bool = False,
    lock: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, with the launcher (:mod:`infra.processes.bound`).

    variables: environment variables, added to this process's.
    folder: working folder, where Prefect and MLflow read and write files.
    group: whether the command starts child processes, which must end with it.
    lock: descriptor of an open lock file. The command holds it and outlives this process. None: it ends with this one.
    """
    inherited = [] if lock is None else [lock]
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(FOREIGN_VARIABLES)}
    allow_folder_in_imports(environment)  # services start in a folder of their own
    bypass_proxies(environment)
    drop_unusable_proxies(environment, ["all_proxy"])
    with open_log(log_path) as log:
        return _STARTER.submit(
            subprocess.Popen,
            [*launcher(group=group, lock=lock), *command],
            env={**environment, **variables},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            pass_fds=inherited,
        ).result()


def ask_status(url: str, headers: Mapping[str, str], timeout: float) -> int | None:
    """Return the HTTP status of GET ``url``; None: no answer within ``timeout`` seconds."""
    parts = urlsplit(url)
    # http.client ignores proxy variables: requests to loopback must not go through a proxy.
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path, headers=dict(headers))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def end_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """End the process and its group: with SIGTERM, and with SIGKILL after ``grace`` seconds."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        if process.poll() is None:
            try:
                os.killpg(process.pid, number)
                process.wait(seconds)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
