"""What runs in a forked child: Prefect's engine, as in an interpreter of its own that has all imports behind it.

Modules that the warm process has imported are the worker's, also when a flow run comes from another folder with
modules of the same names; all others are found in the run's own folder and ``PYTHONPATH`` first.
"""

from __future__ import annotations

import atexit
import os
import random
import runpy
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

# Of a working directory; Prefect reads settings from them.
_SETTINGS_FILES = (".env", "prefect.toml", "pyproject.toml")

# Imported in the warm process, and the modules that installed packages name in this group of entry points. The command
# line's module is not: it is the worker's.
PRELOAD_GROUP = "fedbench.preload"
PRELOAD = (
    "torch",
    "torchvision",
    "prefect",
    "prefect.engine",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.deployments.steps.core",
    "prefect.deployments.steps.pull",
    "infra.orchestrator.prefect_private",
    "infra.orchestrator.stored_results",
    *sorted(entry.value for entry in entry_points(group=PRELOAD_GROUP)),
)


def run(request: dict[str, Any]) -> NoReturn:
    """Do ``request`` (:class:`infra.worker.warm_process.ForkRequest`), and end the process as an interpreter would."""
    code = 1
    try:
        _do(request)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)


def _end(code: int) -> NoReturn:
    """End as an interpreter does (threads, exit handlers: Prefect sends its last logs there), but for the taking apart
    of all modules: it takes half a second, touches memory that is shared, and torch's complain of it.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _do(request: dict[str, Any]) -> None:
    enter(request["environment"], request["folder"], request["threads"], quiet=request["quiet"])
    if "prefect" in sys.modules:  # preloaded, but in tests of the fork server alone
        guard(stored_results=request["stored_results"])
    if request["task"] == "engine":
        sys.argv = ["prefect.engine"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that the module is imported already is the point
            runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    else:
        from infra.orchestrator.prefect_private import run_hooks

        run_hooks(request["task"], request["message"])


def guard(*, stored_results: bool) -> None:
    """Whether Prefect may load stored results in this process is its worker's setting, never the run's."""
    from infra.orchestrator.stored_results import accept_stored_results, refuse_stored_results

    if stored_results:
        accept_stored_results()
    else:
        refuse_stored_results()


def enter(environment: dict[str, str], folder: str, threads: int, *, quiet: bool) -> None:
    """Make this process the run's: variables, folder, import path, output, threads, seeds, Prefect's settings."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # As `python -m` has it, from the run's folder.
    paths = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = list(dict.fromkeys([*paths, *sys.path]))
    if quiet:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os.close(sink)
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()  # the warm process's state is the same for all its children
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    if "prefect" in sys.modules and _settled_by() != _SETTLED_BY:
        settle()


def prepare() -> None:
    """In the warm process, after its imports: what every child would do otherwise, 0.2 to 0.3 s together."""
    if "prefect" in sys.modules:
        settle()
    for model in _below(BaseModel):
        if not model.__pydantic_complete__:  # pydantic builds many at their first use
            model.model_rebuild(raise_errors=False)


# What Prefect's settings were read from in this process.
_SETTLED_BY: dict[str, Any] = {}


def settle() -> None:
    """Prefect's settings as variables and files have them, and its logging by them."""
    import prefect.context
    import prefect.logging.configuration

    prefect.context.refresh_global_settings_context()
    prefect.logging.configuration.setup_logging()
    _SETTLED_BY.clear()
    _SETTLED_BY.update(_settled_by())


def _settled_by() -> dict[str, Any]:
    """All that Prefect's settings come from: variables, files of the working directory, the file of profiles."""
    import prefect.settings

    variables = {
        name: value
        for name, value in os.environ.items()
        if name == "HOME" or (name.startswith("PREFECT_") and not name.startswith("PREFECT__"))
    }
    files = [Path(name) for name in _SETTINGS_FILES] + [prefect.settings.get_current_settings().profiles_path]
    return variables | {str(file): file.stat().st_mtime_ns for file in files if file.exists()}


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for below in model.__subclasses__():
        yield below
        yield from _below(below)
