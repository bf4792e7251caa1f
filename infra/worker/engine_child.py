"""The code of a forked child: it runs Prefect's engine as an interpreter of its own would, after all imports.

Modules that the warm process has imported stay the worker's, even if the flow run's folder has modules of the same
names. All other modules are looked up in the run's own folder and ``PYTHONPATH`` first.
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

# Files of the working directory from which Prefect reads settings.
_SETTINGS_FILES = (".env", "prefect.toml", "pyproject.toml")

# Installed packages name in this group of entry points further modules that the warm process imports. The module of
# the command line is not among them: runs do not use it.
PRELOAD_GROUP = "fedbench.preload"
PRELOAD = (
    "torch",
    "torchvision.transforms.v2",
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
    """Do ``request`` (:class:`infra.worker.warm_process.ForkRequest`), then end the process as an interpreter would."""
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
    """Wait for threads and run exit handlers as an interpreter does, then end without tearing down the modules.

    Prefect sends its last logs in an exit handler. Tearing down takes half a second, copies shared memory pages, and
    causes warnings from torch.
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
    if "prefect" in sys.modules:  # always preloaded, except in tests of the fork server alone
        guard(stored_results=request["stored_results"])
    if request["task"] == "engine":
        sys.argv = ["prefect.engine"]
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", RuntimeWarning
            )  # it warns that the module is imported already, which is intended
            runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    else:
        from infra.orchestrator.prefect_private import run_hooks

        run_hooks(request["task"], request["message"])


def guard(*, stored_results: bool) -> None:
    """Accept or refuse results that Prefect stored, by the worker's setting: a run must not decide it."""
    from infra.orchestrator.stored_results import accept_stored_results, refuse_stored_results

    if stored_results:
        accept_stored_results()
    else:
        refuse_stored_results()


def enter(environment: dict[str, str], folder: str, threads: int, *, quiet: bool) -> None:
    """Set this process up for the run: variables, folder, import path, output, threads, seeds, Prefect's settings."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # The import path that `python -m` would have in the run's folder.
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
    if "prefect" in sys.modules and _settings_sources() != _READ_FROM:
        read_prefect_settings()


def prepare() -> None:
    """Do once in the warm process, after its imports, what every child would do otherwise (0.2 to 0.3 s)."""
    if "prefect" in sys.modules:
        read_prefect_settings()
    for model in _subclasses(BaseModel):
        if not model.__pydantic_complete__:  # pydantic builds many models only at their first use
            model.model_rebuild(raise_errors=False)


# What this process last read Prefect's settings from.
_READ_FROM: dict[str, Any] = {}


def read_prefect_settings() -> None:
    """Read Prefect's settings from variables and files, and set up its logging by them."""
    import prefect.context
    import prefect.logging.configuration

    prefect.context.refresh_global_settings_context()
    prefect.logging.configuration.setup_logging()
    _READ_FROM.clear()
    _READ_FROM.update(_settings_sources())


def _settings_sources() -> dict[str, Any]:
    """Return what Prefect reads settings from: its variables, and the times at which its files were last written."""
    import prefect.settings

    variables = {
        name: value
        for name, value in os.environ.items()
        if name == "HOME" or (name.startswith("PREFECT_") and not name.startswith("PREFECT__"))
    }
    files = [Path(name) for name in _SETTINGS_FILES] + [prefect.settings.get_current_settings().profiles_path]
    return variables | {str(file): file.stat().st_mtime_ns for file in files if file.exists()}


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for subclass in model.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
