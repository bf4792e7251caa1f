"""Another user of this machine without credentials, and the routes of Prefect's and MLflow's servers to try."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.servers.credentials import basic_auth

SCRIPT = Path(__file__).with_name("stranger_script.py")
NOBODY = 65534
# Patterns of the paths that may answer without credentials. None of them returns a run's data.
PREFECT_PUBLIC = ["/", "/ui-settings", "/api/health", "/api/ready"]
MLFLOW_PUBLIC = ["/health", "/(ajax-)?api/3.0/mlflow/server-info", "/static-files/<path:path>"]

Routes = list[tuple[str, list[str]]]

_WALK = """
import json, os, sys
from fastapi.routing import iter_route_contexts

def walk(routes, prefix=""):
    for context in iter_route_contexts(routes):
        route = getattr(context, "original_route", context)
        path = prefix + (getattr(context, "path", None) or getattr(route, "path", None) or "")
        kind = type(route).__name__
        if kind == "Mount":
            yield path + "/", ["GET", "POST"]
            yield from walk(getattr(route.app, "routes", None) or [], path)
        elif "WebSocket" in kind:
            yield path, []
        else:
            methods = set(getattr(context, "methods", None) or getattr(route, "methods", None) or ["GET"])
            yield path, sorted(methods - {"HEAD", "OPTIONS"})
"""
_PREFECT = """
from prefect.server.api.server import create_app
found = list(walk(create_app(ignore_cache=True).routes))
"""
_MLFLOW = """
from mlflow.server.auth import create_app
found = list(walk(create_app().routes))
from mlflow.server import app
found += [(str(rule), sorted(rule.methods - {"HEAD", "OPTIONS"})) for rule in app.url_map.iter_rules()]
"""


class Listing:
    """The routes that a server's application lists. A separate process reads them while the server starts."""

    def __init__(self, kind: str, folder: Path) -> None:
        """kind: ``prefect`` or ``mlflow``. folder: for what the application writes."""
        auth = folder / "auth.ini"
        auth.write_text(
            f"[mlflow]\ndatabase_uri = sqlite:///{folder / 'auth.db'}\ndefault_permission = READ\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        variables = {
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_API_AUTH_STRING": "of:nobody",
            "_MLFLOW_SGI_NAME": "uvicorn",
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
            "MLFLOW_AUTH_CONFIG_PATH": str(auth),
            "MLFLOW_AUTH_ADMIN_USERNAME": "nobody",
            "MLFLOW_AUTH_ADMIN_PASSWORD": "of-no-importance",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "none",
        }
        script = _WALK + {"prefect": _PREFECT, "mlflow": _MLFLOW}[kind] + "json.dump(found, sys.stdout)"
        self._process = subprocess.Popen(
            [sys.executable, "-c", script], env={**os.environ, **variables}, cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def read(self) -> tuple[Routes, list[str]]:
        """Return the routes with their methods, and the paths of websockets."""
        output, _ = self._process.communicate(timeout=120)
        found = json.loads(output.splitlines()[-1])
        routes = [(path, methods) for path, methods in found if methods]
        return routes, [path for path, methods in found if not methods]


@dataclass(frozen=True)
class Target:
    """A server on loopback, and the routes and websockets to try."""

    port: int
    routes: Routes
    sockets: list[str]
    public: list[str]


def prefect_target(page: str, auth: str) -> Target:
    """Return a running Prefect server with its websockets and the routes that it describes, read with ``auth``."""
    request = urllib.request.Request(f"{page}/api/openapi.json", headers=basic_auth(auth))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        described = json.load(answer)["paths"]
    routes = [(f"/api{path}", [method.upper() for method in methods]) for path, methods in described.items()]
    routes += [(path, ["GET"]) for path in ("/docs", "/redoc", "/openapi.json", "/api/docs", "/api/openapi.json")]
    sockets = ["/api/events/in", "/api/events/out", "/api/logs/out", "/api/task_runs/subscriptions/scheduled"]
    return Target(urlsplit(page).port or 80, routes, sockets, PREFECT_PUBLIC)


def mlflow_target(page: str) -> Target:
    """Return a running MLflow server with a route of each kind. MLflow does not describe its routes."""
    routes = [("/", ["GET"]), ("/version", ["GET"]), ("/graphql", ["POST"]), ("/signup", ["GET"])]
    routes += [("/api/2.0/mlflow/experiments/search", ["GET", "POST"]), ("/v1/traces", ["POST"])]
    routes += [("/get-artifact", ["GET"]), ("/model-versions/get-artifact", ["GET"])]
    routes += [(f"/{api}/2.0/mlflow-artifacts/artifacts/mlflow/x", ["GET", "PUT"]) for api in ("api", "ajax-api")]
    routes += [("/ajax-api/2.0/mlflow/users/create", ["POST"]), ("/gateway/mlflow/v1/models", ["GET"])]
    return Target(urlsplit(page).port or 80, routes, [], MLFLOW_PUBLIC)


class Stranger:
    """A user without credentials: user 65534 if this process may change its user, else this process's user."""

    def __init__(self) -> None:
        self.is_another = os.getuid() == 0 and shutil.which("setpriv") is not None and self._runs()

    @property
    def _prefix(self) -> list[str]:
        return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]

    def _runs(self) -> bool:
        """Return whether the other user can start this interpreter, which may be in a private folder."""
        command = [*self._prefix, sys.executable, "-I", "-S", "-c", "pass"]
        return subprocess.run(command, cwd="/", stderr=subprocess.DEVNULL, check=False).returncode == 0

    def try_all(self, marker: str, servers: Mapping[str, Target], home: Path | None = None) -> dict[str, Any]:
        """Return everything that was not refused, by server, and for ``home``. No answer may contain ``marker``."""
        task = {
            "marker": marker,
            "home": None if home is None else str(home),
            "servers": {name: asdict(server) for name, server in servers.items()},
        }
        command = [*(self._prefix if self.is_another else []), sys.executable, "-I", "-S", "-c", SCRIPT.read_text()]
        done = subprocess.run(
            command, input=json.dumps(task), cwd="/", env={}, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        assert (found.pop("uid") == NOBODY) == self.is_another
        return found
