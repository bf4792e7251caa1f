"""Import Prefect and MLflow before a fork, and hand them out when the forked process imports them.

Both read environment variables while they are imported, and this project sets those first. :func:`hold` imports their
modules, and removes them from ``sys.modules``. A process that imports one of the packages gets the held modules. Then
the package's settings, logging and telemetry are set up again, from the variables of that moment.

``prefect.main`` is a part of its own, because Prefect sets up logging when it is imported, and not before.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Modules that, when they are imported, read no settings but those of tests.warm.READ_EARLY.
PREFECT = ("prefect", "prefect.flow_engine", "prefect.client.orchestration", "prefect.workers.base")
PREFECT_SERVER = ("prefect.server.database.query_components", "prefect.server.api.server")
MLFLOW = (
    *("mlflow", "mlflow.tracking", "mlflow.pyfunc"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
)
_FOREIGN = ("PREFECT_", "MLFLOW_", "FEDBENCH_")


@dataclass
class Part(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Held modules that are handed out together. again: what the import does with the environment."""

    again: Callable[[], None]
    modules: dict[str, ModuleType] = field(default_factory=dict)
    finders: list[Any] = field(default_factory=list)
    filters: list[Any] = field(default_factory=list)
    spec: ModuleSpec | None = None  # of the module that is imported

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.modules:
            return None
        is_package = hasattr(self.modules[name], "__path__")
        return importlib.util.spec_from_loader(name, self, is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.spec = self.modules[spec.name].__spec__
        return self.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec
        sys.meta_path.remove(self)
        sys.modules.update(self.modules)
        sys.meta_path[:0] = self.finders
        warnings.filters[:0] = self.filters  # type: ignore[index]
        self.again()


def hold() -> None:
    """Import Prefect and MLflow, where they are installed, and hold their modules."""
    with _plain_environment():
        _hold(MLFLOW, "mlflow", _mlflow_again)
        _read_packages()
        with suppress(ImportError):
            from prefect.logging import configuration

            set_up, configuration.setup_logging = configuration.setup_logging, _nothing  # type: ignore[assignment]
            _hold((*PREFECT, "prefect.main", *PREFECT_SERVER), "prefect", _prefect_again)
            configuration.setup_logging = set_up
            held = next(part for part in sys.meta_path if isinstance(part, Part) and "prefect" in part.modules)
            main = Part(_prefect_main_again, {"prefect.main": held.modules.pop("prefect.main")}, held.finders)
            held.finders = []
            sys.meta_path.insert(0, main)


def _read_packages() -> None:
    """Have MLflow read the file lists of all installed packages now: half a CPU second in the first save of a model."""
    for part in sys.meta_path:
        if isinstance(part, Part) and "mlflow.utils.requirements_utils" in part.modules:
            part.modules["mlflow.utils.requirements_utils"]._init_modules_to_packages_map()


def _hold(names: Sequence[str], package: str, again: Callable[[], None]) -> None:
    finders, filters, hooks = list(sys.meta_path), list(warnings.filters), list(sys.path_hooks)
    try:
        for name in names:
            importlib.import_module(name)
    except ImportError:
        return
    of_package = [name for name in sys.modules if name.partition(".")[0] == package]
    part = Part(again, {name: sys.modules.pop(name) for name in of_package})
    part.finders = [finder for finder in sys.meta_path if finder not in finders]
    part.filters = [one for one in warnings.filters if one not in filters]
    sys.meta_path[:] = [part, *finders]
    warnings.filters[:] = filters  # type: ignore[index]
    # beartype's hook, which Prefect's server installs: the modules that it checks are imported already.
    sys.path_hooks[:] = hooks
    sys.path_importer_cache.clear()


@contextmanager
def _plain_environment() -> Iterator[None]:
    """Have no variables of the packages in this block, and an empty folder as Prefect's home."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith(_FOREIGN)]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(PREFECT_HOME=home, DO_NOT_TRACK="true", MLFLOW_CONFIGURE_LOGGING="false")
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            tempfile.tempdir = None  # it would keep the folder that TMPDIR names now


def _nothing() -> None:
    pass


def _prefect_again() -> None:
    from prefect._internal import analytics
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
    analytics._telemetry_initialized = False
    with suppress(Exception):  # as in prefect/__init__.py
        analytics.initialize_analytics()


def _prefect_main_again() -> None:
    from prefect.logging.configuration import setup_logging

    setup_logging()


def _mlflow_again() -> None:
    from mlflow.agent.hint import maybe_hint_tracing_skill
    from mlflow.environment_variables import MLFLOW_CONFIGURE_LOGGING
    from mlflow.telemetry import set_telemetry_client
    from mlflow.utils.logging_utils import _configure_mlflow_loggers

    if MLFLOW_CONFIGURE_LOGGING.get() is True:
        _configure_mlflow_loggers(root_module_name="mlflow")
    set_telemetry_client()
    with suppress(Exception):  # as in mlflow/__init__.py
        maybe_hint_tracing_skill()
