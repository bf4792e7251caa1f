"""Start commands of this project by a fork of a process that has imported the large packages: seconds less for each.

A run starts four interpreters. Their imports (torch, the requirements of Prefect and of MLflow) took a third of the CPU
time of the integration tests. :func:`install` starts one warm process. From then on, ``subprocess`` and
``multiprocessing`` have it fork what they would start from the beginning, if that is the command ``fedbench``, one of
:data:`MODULES`, or the slots' fork server. Each forked process gets a warm process of its own for what it starts.

A forked process is a child of the process that started it, as any other. It has the same arguments, variables, working
folder, session, signals, limits, files and search path as a process that was started from the beginning, and runs the
same script or module as ``__main__``; ``tests/integration/test_warm.py`` compares the two. Prefect and MLflow read the
environment when they are imported, so the warm process holds them back until a forked process imports them
(:mod:`tests.held_imports`). No module of this project is imported before the fork.

Two things differ. All forks of a warm process have one seed for hashes. At its end, a forked process runs exit handlers
and then ends without freeing its objects. Commands in the block of :func:`cold` start from the beginning, as do those
with other values of variables that the packages read when they are imported (:data:`READ_EARLY`).

    python tests/warm.py CHANNEL
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import util
from pathlib import Path
from types import ModuleType
from typing import Any

SCRIPT = str(Path(sys.executable).with_name("fedbench"))
LAUNCHER = str(Path(__file__).resolve().parents[1] / "infra" / "processes" / "bound.py")
# Modules that start with ``python -m``.
MODULES = frozenset(
    {
        "flows.cli",
        "infra.servers.prefect_closed",
        "infra.stack.supervision",
        "infra.worker.fork_server",
        "mlflow",
        "prefect",
        "uvicorn",
    }
)
# The beginning of code that starts with ``python -c``: the slots' fork server, and pytest-xdist's workers.
SLOTS, WORKER = "from multiprocessing.forkserver import main", "import sys;exec(eval(sys.stdin.readline()))"
# What the warm process imports: large requirements of ours, of Prefect and of MLflow, where they are installed.
PACKAGES = (
    *("torch", "torchvision.transforms.v2", "torchvision.ops", "torch._dynamo", "scipy.optimize", "pycocotools.mask"),
    *("numpy", "PIL.Image", "matplotlib.figure", "pandas", "pyarrow", "safetensors.torch"),
    *("boto3", "botocore.client", "s3transfer.manager", "pydantic", "pydantic_settings", "yaml", "psutil"),
    *("sqlalchemy.ext.asyncio", "sqlalchemy.orm", "sqlalchemy.dialects.sqlite", "alembic", "aiosqlite", "asyncpg"),
    *("fastapi", "starlette", "uvicorn", "httpx", "websockets", "asgi_lifespan", "jinja2", "cryptography.fernet"),
    *("anyio", "beartype.claw", "redis.asyncio", "cyclopts", "typer", "typer.rich_utils"),
    *("prometheus_client", "google.protobuf.json_format", "google.protobuf.internal.builder", "fsspec", "amplitude"),
    *("opentelemetry.sdk.trace.export", "opentelemetry.sdk.metrics", "opentelemetry.propagate", "sqlparse"),
    *("pydantic_extra_types.pendulum_dt", "whenever", "pathspec", "importlib_metadata", "h2", "httpcore", "slugify"),
    *("rich.console", "rich.progress", "rich.table", "requests", "cachetools", "humanize", "coolname", "toml"),
    *("websockets.asyncio.client", "websockets.legacy.client", "jsonpointer", "jsonschema", "cronsim"),
    *("docker", "graphviz", "griffe", "pendulum", "multiprocessing.forkserver"),
)
# Variables that Python or these packages read when they start or are imported.
READ_EARLY = (
    *("PYTHON", "LD_", "LANG", "LC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NPY_", "MALLOC_", "TORCH"),
    *(
        "PYTORCH_",
        "CUDA_",
        "MPL",
        "MATPLOTLIB",
        "HOME",
        "PYDANTIC_",
        "OTEL_",
        "PANDAS_",
        "ARROW_",
        "XDG_",
        "TYPER_",
        "TERMINAL_",
    ),
    *("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "REDIS_", "PGHOST"),
    *("PREFECT_API_EVENTS_", "PREFECT_API_SERVICES_", "PREFECT_SERVER_SERVICES_", "PREFECT_TEST"),
    *("PREFECT_TASK_SCHEDULING_", "MLFLOW_WEBHOOK_", "DATABRICKS_"),
)
SAFE_PATH = "PYTHONSAFEPATH"
# Torch sets it in the process that needs the folder, to a value that does not depend on the process.
COMPILED = "TORCHINDUCTOR_CACHE_DIR"
ROOM = 1 << 16  # bytes for the command line, and for the environment, of a forked process
ROOM_VARIABLE = "ROOM_OF_WARM_PROCESS"
LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 1, 15, 36, 37


class Warm:
    """The side of a process that has a warm process forked for it."""

    def __init__(self, channel: socket.socket, environment: Mapping[str, str], *, elsewhere: bool = False) -> None:
        """environment: that of the warm process when it started. elsewhere: it is in other namespaces than this one."""
        self.elsewhere = elsewhere
        self.environment = {name: value for name, value in environment.items() if name != ROOM_VARIABLE}
        self.is_off = False
        self._channel = channel
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def takes(self, arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
        if self.is_off or os.getpid() != self._owner or not is_ours(arguments):
            return False
        return _read_early(environment) == _read_early(self.environment)

    def start(self, files: Mapping[int, int], **request: Any) -> int:
        """Have a process forked. Return its id. files: our open file for each of its own."""
        request |= {
            "parent": self._owner,
            "group": os.getpgrp(),
            "files": list(files),
            "mask": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "ignored": [n for n in (1, 2, 3, 10, 12, 15) if signal.getsignal(n) == signal.SIG_IGN],
            "limits": {limit: resource.getrlimit(limit) for limit in LIMITS},
        }
        with self._lock, _adopting():
            body = json.dumps(request).encode(errors="surrogateescape")
            socket.send_fds(self._channel, [len(body).to_bytes(4, "big")], list(files.values()))
            self._channel.sendall(body)
            return int.from_bytes(_exactly(self._channel, 4), "big")

    def end(self) -> None:
        """Let the warm process end. Those that were forked from it stay."""
        self.is_off = True
        self._channel.close()


_installed: Warm | None = None
_execute_child = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_spawn = util.spawnv_passfds


def install() -> None:
    """Start this process's warm process, unless it has one, and use it from now on."""
    if _installed is None:
        _use(_start([], os.environ, elsewhere=False))


def start_elsewhere(launcher: Sequence[str], environment: Mapping[str, str]) -> Warm:
    """Start a warm process by a command that enters other namespaces and then executes its last arguments."""
    return _start(launcher, environment, elsewhere=True)


def _start(launcher: Sequence[str], environment: Mapping[str, str], *, elsewhere: bool) -> Warm:
    ours, theirs = socket.socketpair()
    environment = {name: value for name, value in environment.items() if name != SAFE_PATH}
    with theirs:
        subprocess.Popen(
            [*launcher, sys.executable, os.path.abspath(__file__), str(theirs.fileno()), "-" * ROOM],
            # MLflow looks for pytest's variable when it is imported, and a command that a test starts inherits it.
            env={"PYTEST_CURRENT_TEST": "", **environment, ROOM_VARIABLE: "-" * ROOM},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    return Warm(ours, environment, elsewhere=elsewhere)


@contextlib.contextmanager
def through(warm: Warm) -> Iterator[None]:
    """Start the commands of this block by ``warm``."""
    global _installed
    before, _installed = _installed, warm
    try:
        yield
    finally:
        _installed = before


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Start all commands from the beginning in this block."""
    if _installed is None:
        yield
        return
    before, _installed.is_off = _installed.is_off, True
    try:
        yield
    finally:
        _installed.is_off = before


def _use(warm: Warm) -> None:
    global _installed
    _installed = warm
    subprocess.Popen._execute_child = _warm_execute_child  # type: ignore[attr-defined]
    util.spawnv_passfds = _warm_spawn


def _warm_execute_child(
    self: Any, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Any, cwd: Any, env: Any,
    startupinfo: Any, creationflags: Any, shell: bool, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
    errread: int, errwrite: int, restore_signals: bool, gid: Any, gids: Any, uid: Any, umask: int,
    start_new_session: bool, process_group: int | None,
) -> None:  # fmt: skip
    """Replace ``subprocess.Popen._execute_child``, which has the same arguments."""
    plain = executable is preexec_fn is gid is gids is uid is None and close_fds and restore_signals and not shell
    arguments = [os.fsdecode(one) for one in ([args] if isinstance(args, str | bytes | os.PathLike) else args)]
    environment = {os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if env is None else env).items()}
    grouped = process_group not in (None, -1)
    assert _installed is not None
    if not plain or grouped or not _installed.takes(arguments, environment):
        assert not _installed.elsewhere, f"{arguments} would start in this process's namespaces"
        _execute_child(
            self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
            start_new_session, process_group,
        )  # fmt: skip
        return
    streams = {number: mine if mine != -1 else number for number, mine in enumerate((p2cread, c2pwrite, errwrite))}
    self.pid = _installed.start(
        {**streams, **{int(number): int(number) for number in pass_fds}},
        arguments=arguments,
        environment=environment,
        folder=os.path.join(os.getcwd(), os.fsdecode(cwd or "")),
        umask=umask if umask >= 0 else _umask(),
        session=start_new_session,
    )
    self._child_created = True
    self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def _warm_spawn(path: Any, args: Sequence[Any], passfds: Sequence[int]) -> int:
    """Replace ``multiprocessing.util.spawnv_passfds``."""
    arguments, environment = [os.fsdecode(one) for one in args], dict(os.environ)
    assert _installed is not None
    if not _installed.takes(arguments, environment):
        return int(_spawn(path, args, passfds))
    return _installed.start(
        {number: number for number in (0, 1, 2, *passfds)},
        arguments=arguments,
        environment=environment,
        folder=os.getcwd(),
        umask=_umask(),
        session=False,
    )


def is_ours(arguments: Sequence[str]) -> bool:
    """Return whether a warm process forks this command."""
    match arguments:
        case [python, "-I", "-S", launcher, *rest] if (python, launcher) == (sys.executable, LAUNCHER):
            rest = rest[1:] if rest[0] == "--group" else rest
            return is_ours(rest[2:] if rest[0] == "--detached" else rest[1:])
        case [program, *_] if program == SCRIPT:
            return True
        case [python, *rest] if python == sys.executable:
            _, rest = _options(rest)
            module, code = rest[:1] == ["-m"], rest[:1] == ["-c"]
            return (module and rest[1] in MODULES) or (code and rest[1].startswith((SLOTS, WORKER)))
    return False


def _options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off Python's own options.

    ``-B`` comes from ``PYTHONDONTWRITEBYTECODE``, which this process has too. ``-u`` is left out: pytest-xdist's
    workers, which have it, write their messages past Python's streams.
    """
    count = next((n for n, one in enumerate(arguments) if one not in ("-P", "-B", "-u")), len(arguments))
    return list(arguments[:count]), list(arguments[count:])


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k.startswith(READ_EARLY) and k not in (SAFE_PATH, COMPILED)}


def _umask() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)


def _exactly(channel: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = channel.recv(size - len(found))
        if not part:
            raise ConnectionError("the warm process ended")
        found += part
    return found


def _prctl(option: int, value: Any) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Make this process the parent of descendants whose parent ends in this block."""
    before = ctypes.c_int()
    _prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(PR_SET_CHILD_SUBREAPER, before.value)


# The warm process.


def _serve(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for requests until the other side is gone. Return the request and its files in a forked process, else None.

    A process in between forks it and ends, so that the process that asked adopts it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            head, files, _, _ = socket.recv_fds(channel, 4, 64)
        except ConnectionError:
            return None
        if not head:
            return None
        head += _exactly(channel, 4 - len(head))
        request = json.loads(_exactly(channel, int.from_bytes(head, "big")).decode(errors="surrogateescape"))
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            between = os.getpid()
            forked = os.fork()
            if forked != 0:
                os.write(writer, forked.to_bytes(4, "big"))
                os._exit(0)
            channel.close()
            os.close(reader)
            os.close(writer)
            while os.getppid() == between:
                time.sleep(0.0005)
            return request, list(files)
        os.close(writer)
        for file in files:
            os.close(file)
        forked_id = os.read(reader, 4)
        os.close(reader)
        os.waitpid(between, 0)
        try:
            channel.sendall(forked_id)
        except ConnectionError:
            return None


def _become(request: dict[str, Any], files: list[int], environment: Mapping[str, str]) -> None:
    """Give this forked process all that a process started from the beginning would have."""
    if request["session"]:
        os.setsid()
    elif os.getpgrp() != request["group"]:
        os.setpgid(0, request["group"])
    _fork_own_warm_process(files, environment)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    for limit, values in request["limits"].items():
        if resource.getrlimit(int(limit)) != tuple(values):
            resource.setrlimit(int(limit), tuple(values))
    os.chdir(request["folder"])
    os.umask(request["umask"])
    _place(files, request["files"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    _write_region(2, [f"{name}={value}" for name, value in request["environment"].items()])
    _renew_streams()
    signal.pthread_sigmask(signal.SIG_SETMASK, request["mask"])


def _fork_own_warm_process(files: list[int], environment: Mapping[str, str]) -> None:
    """Fork a warm process for what this process starts. It ends with this process."""
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    if os.fork() == 0:
        ours.close()
        for file in files:
            os.close(file)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        _work(theirs, environment)
    theirs.close()
    high = socket.socket(fileno=_above(ours.detach()))
    _use(Warm(high, environment))


def _above(file: int) -> int:
    """Return ``file`` with a number that no request names. It is closed in programs that this process starts."""
    import fcntl

    moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 500)
    os.close(file)
    return moved


def _place(files: list[int], numbers: list[int]) -> None:
    for file, number in zip([_above(file) for file in files], numbers, strict=True):
        os.dup2(file, number, inheritable=True)
        os.close(file)


def _write_region(which: int, texts: Sequence[str]) -> None:
    """Write what ``/proc/<pid>/cmdline`` (which: 0) or ``environ`` (2) has."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(fields[number]) for number in (45 + which, 46 + which))
    body = b"".join(os.fsencode(text) + b"\0" for text in texts)[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, body, len(body))


def _renew_streams() -> None:
    """Make the streams again, for the files that they have now."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old, raw = getattr(sys, name), io.FileIO(number, "r" if number == 0 else "w", closefd=False)
        raw.name = f"<{name}>"
        through = old.write_through  # PYTHONUNBUFFERED
        buffer: Any = io.BufferedReader(raw) if number == 0 else raw if through else io.BufferedWriter(raw)
        new = io.TextIOWrapper(
            buffer, old.encoding, old.errors, None if number == 0 else "\n",
            line_buffering=not through and (number == 2 or raw.isatty()), write_through=through,
        )  # fmt: skip
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


class _Program(BaseException):
    """The launcher executes this program."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments


def _execute(arguments: list[str]) -> None:
    """Do what Python does with ``arguments``."""
    search = sys.path[1:]  # without this file's folder
    while True:
        _write_region(0, arguments)
        match arguments:
            case [program, "-I", "-S", launcher, *rest]:
                arguments = _launch([launcher, *rest])
                continue
            case [program, *_] if program == SCRIPT:
                safe, option, what, rest = bool(os.environ.get(SAFE_PATH)), "", SCRIPT, arguments[1:]
            case [program, *rest]:
                options, (option, what, *rest) = _options(rest)
                safe = bool(os.environ.get(SAFE_PATH)) or "-P" in options
        break
    _prctl(PR_SET_NAME, os.path.basename(program).encode()[:15])
    first = {"": os.path.dirname(os.path.realpath(SCRIPT)), "-m": os.getcwd(), "-c": ""}[option]
    sys.path[:] = search if safe else [first, *search]
    sys.argv[:] = [option or what, *rest]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif option == "":
        runpy.run_path(what, run_name="__main__")
    else:
        if what == WORKER:  # it imports this module, and has a warm process
            sys.modules["tests.warm"] = _kept[0]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(what, vars(main))


def _launch(arguments: list[str]) -> list[str]:
    """Run the launcher. Return the command that it executes. With ``--group`` it starts that itself, and ends."""

    def execute(program: str, arguments: list[str]) -> None:
        raise _Program(arguments)

    execv, os.execv = os.execv, execute  # type: ignore[assignment]
    sys.argv[:] = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except _Program as program:
        # Python sets these in every program that it starts in.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return program.arguments
    finally:
        os.execv = execv
    raise AssertionError("the launcher executed nothing")


_kept: list[ModuleType] = []


def _work(channel: socket.socket, environment: Mapping[str, str]) -> None:
    """Fork for requests. Does not return: in the warm process it exits, in a forked one it runs the command."""
    found = _serve(channel)
    if found is None:
        os._exit(0)
    request, files = found
    if os.getppid() != request["parent"]:
        os._exit(1)  # nobody waits for it any more
    code = 0
    try:
        _become(request, files, environment)
        _execute(request["arguments"])
    except SystemExit as end:
        code = _exit_code(end)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        code = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    _end(code)


def _exit_code(end: SystemExit) -> int:
    if isinstance(end.code, int | None):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _end(code: int) -> None:
    """End as Python does, but do not free all objects first: those of the imported packages take half a second."""
    threading._shutdown()  # type: ignore[attr-defined]  # it waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            print(f"Exception ignored in: {stream}\n{type(error).__name__}: {error}", file=sys.__stderr__)
            code = 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def main() -> None:
    environment = dict(os.environ)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    importlib.import_module("held_imports").hold()  # the file is beside this one, and this is no package's module
    early = [name for name in sys.modules if name.partition(".")[0] in ("prefect", "mlflow", "flows", "infra", "tasks")]
    assert not early, early
    gc.collect()
    gc.freeze()
    _kept.append(sys.modules["__main__"])
    _work(channel, environment)


if __name__ == "__main__":
    main()
