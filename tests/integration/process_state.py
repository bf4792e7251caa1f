"""Print the state of this process as JSON, for the comparison of forked processes with others."""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

OURS = {"prefect", "mlflow", "flows", "infra", "tasks"}
STATE = {
    "argv": sys.argv,
    "path": sys.path,
    "name": __name__,
    "spec": None if __spec__ is None else __spec__.name,
    "executable": sys.executable,
    "folder": os.getcwd(),
    "variables": dict(os.environ),
    "umask": os.umask(0),
    "is child": os.getppid() == int(sys.argv[1]),
    "leads a session": os.getsid(0) == os.getpid(),
    "leads a group": os.getpgrp() == os.getpid(),
    "signals": {number: str(signal.getsignal(number)) for number in signal.valid_signals()},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "limits": [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")],
    "input": sys.stdin.read(),
    "streams": [
        (stream.name, stream.fileno(), stream.encoding, stream.errors, stream.line_buffering, stream.isatty())
        for stream in (sys.stdin, sys.stdout, sys.stderr)
    ],
    "threads": threading.active_count(),
    "command line": os.fsdecode(Path("/proc/self/cmdline").read_bytes().rstrip(b"\0")),
    "first variables": os.fsdecode(Path("/proc/self/environ").read_bytes().rstrip(b"\0")),
    "command": Path("/proc/self/comm").read_text(),
    "zone": time.tzname,
    "early": sorted({name.partition(".")[0] for name in sys.modules} & OURS),
    "path hooks": len(sys.path_hooks),
    "temporary": tempfile.gettempdir(),
}
print(json.dumps(STATE))
print("to stderr", file=sys.stderr)
atexit.register(print, "at exit")
match sys.argv[2]:
    case "interrupt":
        raise KeyboardInterrupt
    case "fail":
        raise ValueError("failed")
    case "kill":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    case text:
        sys.exit(int(text) if text.isdecimal() else text)
