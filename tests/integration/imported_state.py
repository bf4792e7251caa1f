"""Print what imports of Prefect and MLflow leave in this process as JSON, for the comparison of forked processes."""

from __future__ import annotations

import json
import logging
import sys
import warnings

import mlflow
import mlflow.pyfunc
import prefect
from mlflow.telemetry import get_telemetry_client

settings = prefect.settings.get_current_settings()
handlers_before_main = len(logging.getLogger("prefect").handlers)
from prefect import flow  # noqa: E402

_loggers = {name: logging.getLogger(name) for name in (*logging.Logger.manager.loggerDict, "")}
STATE = {
    "settings": settings.model_dump(mode="json", exclude={"client": {"custom_headers"}}),
    "handlers before prefect.main": handlers_before_main,
    "loggers": {
        name: (one.level, [type(handler).__name__ for handler in one.handlers], one.propagate, one.disabled)
        for name, one in _loggers.items()
        if name.partition(".")[0] in ("prefect", "mlflow", "") and (one.level or one.handlers or not one.propagate)
    },
    "telemetry": get_telemetry_client() is not None,
    "filters": sorted({text for one in warnings.filters if "prefect" in (text := str(one[:4])) or "mlflow" in text}),
    "finders": [name for one in sys.meta_path if (name := type(one).__name__) == "AliasedModuleFinder"],
    "modules": [getattr(module.__spec__, "name", None) for module in (mlflow, prefect, sys.modules["prefect.main"])],
    "flow": f"{flow.__module__}.{type(flow).__name__}",
}
print(json.dumps(STATE))
