"""Launcher of an embedded service: binds the service's life to its starter's, then becomes the service.

    python -I -S bound.py [--group] PARENT_PID COMMAND [ARGUMENT …]
    python -I -S bound.py [--group] --detached LOCK_DESCRIPTOR COMMAND [ARGUMENT …]

On Linux the kernel ends the service when its parent dies, SIGKILL included (``prctl(PR_SET_PDEATHSIG)``,
which survives ``execve``). It is a program, not a ``preexec_fn``: Python code between fork and exec can deadlock
when other threads hold locks. ``--group`` is for commands that start child processes (MLflow's server), which the
kernel would not end. Then the launcher stays, and ends the whole process group, itself included.

``--detached`` is for services that outlive their starter. Nothing is bound. The inherited lock file stays open in
the service (with ``--group``: in the launcher), which writes its process id into it.

Standard library only, run without site-packages (20 ms).
"""

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1


def bind(parent: int, signal_number: int) -> None:
    """Have the kernel send ``signal_number`` to this process when ``parent`` dies. Exit at once if it is dead."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the process that started this service has ended")


def hold(lock: int) -> None:
    """Write into the lock file, open as ``lock``, that this process holds it."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()} detached\n".encode(), 0)


def run_group(command: list[str]) -> int:
    """Run ``command`` and end the whole process group when it ends or SIGTERM comes."""

    def end(number: int, frame: object) -> None:
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    try:
        return subprocess.call(command)
    finally:
        # What the command leaves behind (workers) must not outlive it; SIGKILL takes this process with it.
        os.killpg(0, signal.SIGKILL)


def main() -> None:
    arguments = sys.argv[1:]
    group = arguments[0] == "--group"
    if group:
        arguments = arguments[1:]
    detached = arguments[0] == "--detached"
    if detached:
        arguments = arguments[1:]
    owner, command = int(arguments[0]), arguments[1:]
    # A shell's background job inherits an ignored SIGINT, with which uvicorn takes a minute to stop.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if detached:
        hold(owner)
    else:
        bind(owner, signal.SIGTERM if group else signal.SIGKILL)
    if group:
        sys.exit(run_group(command))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
