"""``fedbench serve``: serve a model over HTTP by the installed code, with weights that are checked."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from importlib import import_module

import uvicorn
from rich.console import Console

from flows.commands.model_server import ServerLimits, model_app
from flows.commands.open_model import open_model
from infra.errors import SettingsError
from infra.settings import Settings
from tasks.models.answer_request import ModelAnswers, RequestLimits

STOP_SECONDS = 5  # for the requests in progress, at Ctrl-C
CONNECTIONS = 100


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def serve_model(
    settings: Settings,
    reference: str,
    console: Console,
    *,
    address: Address,
    limits: RequestLimits,
    body_bytes: int,
    number: int | None = None,
) -> None:
    """Serve the model that ``reference`` names until Ctrl-C. If it names a run, serve round ``number``; None: the best.

    Raises:
        SettingsError: the server cannot listen on the address.
        SpecError: there is no such model.
        DataError: the model cannot be used, or is not the one on record.
        InfraError: the store or MLflow cannot be reached.
    """
    with _listening(address) as listener:
        opened = open_model(reference, settings, number)  # it has stopped its services when it returns
        answers = ModelAnswers(
            opened.detector,
            opened.card.classes,
            nms_iou=opened.evaluation.nms_iou,
            exif=opened.card.exif,
            limits=limits,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                model_app(answers, ServerLimits(body_bytes=body_bytes)),
                log_level="warning",
                access_log=False,
                lifespan="off",
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        import_module("torchvision.ops")  # detectors import it late: the first request need not wait for it
        line = f"{opened.title}: {address.url}/invocations (Ctrl-C ends it)"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            console.print("stopped")


def _listening(address: Address) -> socket.socket:
    """Return a socket that listens on ``address``.

    Raises:
        SettingsError: the address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise SettingsError(
            f"--host {address.host} --port {address.port}: expected a free port of this machine: {error.strerror}"
        ) from None
