"""Starts the process of a service, asks it whether it is well, and ends it."""

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

from infra.environment.imports import as_the_user_has_it
from infra.environment.proxies import bypass_proxies, drop_unusable_proxies
from infra.processes.logs import open_log

# Settings of the user's own rclone, Prefect, MLflow and AWS, and our credentials, are none of the embedded
# services'. In any case: Prefect reads its own so.
FOREIGN_VARIABLES = ("RCLONE_", "PREFECT_", "MLFLOW_", "_MLFLOW_", "AWS_", "FEDBENCH_")

# The kernel's parent-death signal comes when the *thread* that forked ends, so one that lives as long as the
# process starts them all, whichever thread asks.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="service-starter")
LAUNCHER = str(Path(__file__).with_name("bound.py"))


def launch(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    folder: Path,
    log_path: Path,
    group: bool = False,
    lock: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, by the launcher (:mod:`infra.processes.bound`).

    variables: on top of this process's.
    folder: its working folder; Prefect and MLflow read and write files there.
    group: it starts processes of its own, which are to end with it.
    lock: descriptor of an open lock file that it is to hold, and outlive this process; None: it ends with this one.
    """
    inherited = [] if lock is None else [lock]
    bond = ["--detached", str(lock)] if inherited else [str(os.getpid())]
    launcher = [sys.executable, "-I", "-S", LAUNCHER, *(["--group"] if group else []), *bond]
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(FOREIGN_VARIABLES)}
    as_the_user_has_it(environment)  # services start in a folder of their own
    bypass_proxies(environment)
    drop_unusable_proxies(environment, ["all_proxy"])
    with open_log(log_path) as log:
        return _STARTER.submit(
            subprocess.Popen,
            [*launcher, *command],
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
    """The HTTP status that GET ``url`` gives, None when there is no answer within ``timeout`` seconds."""
    parts = urlsplit(url)
    # http.client knows no proxies: a proxy of the environment must not be asked for loopback.
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path, headers=dict(headers))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def end_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """End the process and its group: asked first, by force after ``grace`` seconds."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        if process.poll() is None:
            try:
                os.killpg(process.pid, number)
                process.wait(seconds)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
