"""A federation's best model over HTTP: MLflow's server for models, given the store and the registry of this place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from infra.registry import best_version, model_uri
from infra.services.embedded import EmbeddedServices
from infra.services.launch import LAUNCHER
from infra.settings import S3Settings, Settings
from infra.store.objects import ObjectStore
from infra.tracking import mlflow_environment
from tasks.errors import SpecError


def serving_environment(s3: S3Settings, tracking_uri: str) -> dict[str, str]:
    """This process's environment, with what MLflow's command needs to find the model and its files."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri}
    if s3.access_key is not None and s3.secret_key is not None:
        keys = s3.access_key.get_secret_value(), s3.secret_key.get_secret_value()
        environment |= mlflow_environment(s3.endpoint, s3.region, *keys)
    # MLflow starts `uvicorn` by its name.
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return environment


def serve_model(settings: Settings, name: str, console: Console, *, host: str, port: int) -> int:
    """Serve ``models:/NAME@best`` until Ctrl-C: 0; 1 when MLflow's server ends by itself.

    Raises:
        SpecError: there is no federation of this name, or it has no registered model.
        TrackingUnavailable: MLflow does not answer.
        ServiceFailed: the store did not come up.
    """
    from flows.stored import read_run

    with EmbeddedServices(settings, prefect=False) as services:
        s3, tracking_uri = services.s3_endpoint(), services.mlflow_tracking_uri
        objects = ObjectStore(s3)
        objects.ensure_bucket()
        read_run(objects, settings, name)
        version = best_version(tracking_uri, name)
        if version is None:
            raise SpecError(
                f"{name}: no model is registered; a finished run registers its best: fedbench resume {name}"
            )
        uri = model_uri(name)
        console.print(f"{uri}, version {version}: http://{host}:{port}/invocations (Ctrl-C ends it)", soft_wrap=True)
        server = subprocess.Popen(
            [
                # It and its children end with this process, however that ends.
                *(sys.executable, "-I", "-S", LAUNCHER, "--group", str(os.getpid())),
                *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"),
                *("--host", host, "--port", str(port), "--workers", "1"),
            ],
            env=serving_environment(s3, tracking_uri),
            start_new_session=True,
        )
        try:
            return 1 if server.wait() else 0
        except KeyboardInterrupt:
            console.print("stopped")
            return 0
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait()
