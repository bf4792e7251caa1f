"""The HTTP server of ``fedbench serve``: the interface of MLflow's model server over the installed code, with limits.

``/invocations`` takes MLflow's JSON forms (``dataframe_records``, ``dataframe_split``, ``inputs``, ``instances``) with
the column ``image``, and ``params``. MLflow's own parser is not used: from some of these forms it makes a NumPy array
of strings, in which every string takes four bytes for each character of the longest one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tasks.documents.json_text import read_json
from tasks.models.answer_request import ModelAnswers, RequestRefused

log = logging.getLogger(__name__)

BODY_BYTES = 64_000_000
BODY_SECONDS = 60.0
REQUESTS = 8  # at a time; one is computed, the others are received or wait
COLUMN = "image"
MOST_VALUES = 100_000  # brackets, braces and commas of a body; bounds the memory of the parsed JSON
FORMS = ("dataframe_records", "dataframe_split", "inputs", "instances")
PARAMS: dict[str, tuple[type, ...]] = {"score_threshold": (int, float), "max_detections": (int,)}


@dataclass(frozen=True)
class ServerLimits:
    """Limits before images are decoded: bytes of a body, seconds to receive it, and requests at a time."""

    body_bytes: int = BODY_BYTES
    body_seconds: float = BODY_SECONDS
    requests: int = REQUESTS


def model_app(answers: ModelAnswers, limits: ServerLimits | None = None) -> Starlette:
    """Return the application with ``/ping``, ``/health``, ``/version`` and ``/invocations``.

    ``/invocations`` answers 200 with ``{"predictions": [...]}``. Other answers are JSON with ``error_code`` and
    ``message``: 400 for a request that cannot be used, 408 for a body that takes too long, 413 for one beyond a limit,
    415 for another type than JSON, 503 while too many requests wait.
    """
    handler = _Invocations(answers, limits or ServerLimits())
    return Starlette(
        routes=[
            Route("/ping", _ping),
            Route("/health", _ping),
            Route("/version", _version),
            Route("/invocations", handler.invocations, methods=["POST"]),
        ]
    )


def parse_request(body: bytes) -> tuple[list[object], dict[str, Any]]:
    """Return the images (base64 strings, unchecked) and the parameters of a JSON body.

    Raises:
        RequestRefused: the body is not JSON of one of the forms, or has too many values.
    """
    values = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if values > MOST_VALUES:
        raise RequestRefused(
            f"body: expected at most {MOST_VALUES} commas, brackets and braces, found {values}", too_large=True
        )
    try:
        document = read_json(body)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"body: expected JSON: {error}") from None
    if not isinstance(document, dict):
        raise RequestRefused(f"body: expected a JSON object, found {_kind(document)}")
    found = [form for form in FORMS if form in document]
    if len(found) != 1:
        raise RequestRefused(f"body: expected one of {', '.join(FORMS)}, found {', '.join(found) or 'none of them'}")
    return _images(found[0], document[found[0]]), _params(document.get("params"))


class _Invocations:
    """``/invocations``: receives bodies within limits and hands them to the model, one at a time."""

    def __init__(self, answers: ModelAnswers, limits: ServerLimits) -> None:
        self.answers = answers
        self.limits = limits
        self._requests = 0
        self._turn = asyncio.Lock()

    async def invocations(self, request: Request) -> Response:
        if self._requests >= self.limits.requests:
            return _refusal(503, f"expected at most {self.limits.requests} requests at a time; try again later")
        self._requests += 1
        try:
            return await self._answer(request)
        finally:
            self._requests -= 1

    async def _answer(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            return _refusal(415, f"Content-Type: expected application/json, found {kind[:100]!r}")
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await _received(request, self.limits.body_bytes)
        except TimeoutError:
            return _refusal(408, f"expected the body within {self.limits.body_seconds:g} seconds")
        except ClientDisconnect:
            return Response(status_code=400)  # the client has gone
        if body is None:
            return _refusal(413, f"body: expected at most {self.limits.body_bytes} bytes, found more")
        async with self._turn:
            return await asyncio.to_thread(self._computed, body)

    def _computed(self, body: bytes) -> Response:
        try:
            images, params = parse_request(body)
            predictions = self.answers.answer(images, **params)
        except RequestRefused as error:
            return _refusal(413 if error.too_large else 400, str(error))
        except Exception:
            log.exception("a request failed")
            return _refusal(500, "the model failed on this request; the server's output says why")
        return _json(200, {"predictions": predictions})


async def _received(request: Request, most: int) -> bytes | None:
    """Return the request's body, or None if it is larger than ``most`` bytes. Never keeps more than ``most`` bytes.

    The rest of a body that is too large is received and dropped: otherwise a client that is still sending would see a
    broken connection instead of the answer. A client that asks before it sends (``Expect``) is answered at once.
    """
    declared = request.headers.get("content-length", "")
    too_large = declared.isdigit() and int(declared[:20]) > most
    if too_large and "expect" in request.headers:
        return None
    body = bytearray()
    async for chunk in request.stream():
        too_large = too_large or len(body) + len(chunk) > most
        if too_large:
            body.clear()
        else:
            body += chunk
    return None if too_large else bytes(body)


def _images(form: str, rows: Any) -> list[object]:
    if form == "dataframe_split":
        return _split(rows)
    if isinstance(rows, dict) and form != "dataframe_records":  # by column
        rows = _column(form, rows)
        if not isinstance(rows, list):
            raise RequestRefused(f"{form}: {COLUMN}: expected a list, found {_kind(rows)}")
        return rows
    if not isinstance(rows, list):
        raise RequestRefused(f"{form}: expected a list of rows, found {_kind(rows)}")
    return [_column(f"{form}: row {number}", row) if isinstance(row, dict) else row for number, row in enumerate(rows)]


def _split(frame: Any) -> list[object]:
    columns, rows = (frame.get("columns"), frame.get("data")) if isinstance(frame, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise RequestRefused("dataframe_split: expected the lists columns and data")
    if columns.count(COLUMN) != 1:
        raise RequestRefused(f"dataframe_split: columns: expected one named {COLUMN}")
    index = columns.index(COLUMN)
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(columns):
            raise RequestRefused(f"dataframe_split: data: row {number}: expected a list of {len(columns)} values")
    return [row[index] for row in rows]


def _column(where: str, row: dict[str, Any]) -> Any:
    if COLUMN not in row:
        raise RequestRefused(f"{where}: expected the field {COLUMN}, found {str(', '.join(row))[:100] or 'none'}")
    return row[COLUMN]


def _params(document: Any) -> dict[str, Any]:
    """Return the parameters that the model's signature has. Others are ignored, as MLflow does."""
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise RequestRefused(f"params: expected an object, found {_kind(document)}")
    params = {name: document[name] for name in PARAMS if document.get(name) is not None}
    for name, value in params.items():
        if isinstance(value, bool) or not isinstance(value, PARAMS[name]):
            wanted = "a number" if float in PARAMS[name] else "a whole number"
            raise RequestRefused(f"params.{name}: expected {wanted}, found {_kind(value)}")
    return params


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", float: "a fraction", type(None): "null"}.get(
        type(value), type(value).__name__
    )


async def _ping(request: Request) -> Response:
    return Response("\n", media_type="application/json")


async def _version(request: Request) -> Response:
    """Answer as MLflow's own server: with MLflow's version, which is that of the interface."""
    return Response(metadata.version("mlflow"), media_type="application/json")


def _refusal(status: int, message: str) -> Response:
    code = {408: "DEADLINE_EXCEEDED", 500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE"}
    headers = {"Retry-After": "5"} if status == 503 else {}
    if status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not received
    return _json(status, {"error_code": code.get(status, "INVALID_PARAMETER_VALUE"), "message": message}, headers)


def _json(status: int, document: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(document), status_code=status, media_type="application/json", headers=headers)
