"""The model server over a real socket: MLflow's forms of a request, and the status of refused requests."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from PIL import Image

from flows.commands.model_server import MOST_VALUES, ServerLimits, model_app, parse_request
from tasks.detectors.registry import build_detector
from tasks.models.answer_request import ModelAnswers, RequestLimits, RequestRefused
from tasks.spec.detector import YoloV3TinySpec

BODY_BYTES = 200_000


@dataclass(frozen=True)
class Served:
    port: int
    answers: ModelAnswers

    def post(self, document: Any, **headers: str) -> tuple[int, Any]:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"} | headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def get(self, path: str) -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    detector = build_detector(YoloV3TinySpec(width=64, height=64), 2, seed=3)
    answers = ModelAnswers(detector, ("chair", "table"), nms_iou=0.4, limits=RequestLimits(rows=3, pixels=100_000))
    app = model_app(answers, ServerLimits(body_bytes=BODY_BYTES, body_seconds=1.0, requests=2))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield Served(listener.getsockname()[1], answers)
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def image() -> str:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def forms(first: Any, second: Any) -> dict[str, Any]:
    return {
        "records": {"dataframe_records": [{"image": first, "camera": 3}, {"image": second}]},
        "split": {"dataframe_split": {"columns": ["camera", "image"], "data": [[3, first], [4, second]]}},
        "inputs": {"inputs": [{"image": first}, {"image": second}]},
        "inputs by column": {"inputs": {"image": [first, second]}},
        "inputs alone": {"inputs": [first, second]},
        "instances": {"instances": [{"image": first}, {"image": second}]},
        "instances by column": {"instances": {"image": [first, second]}},
    }


@pytest.mark.parametrize("form", forms("", ""))
def test_every_form_of_a_request_gives_the_same_answer(served: Served, image: str, form: str) -> None:
    params = {"score_threshold": 0, "max_detections": 5, "unknown": 1}
    status, answer = served.post(forms(image, image)[form] | {"params": params})
    assert (status, list(answer)) == (200, ["predictions"])
    assert answer["predictions"] == served.answers.answer([image, image], score_threshold=0, max_detections=5)
    assert [len(item["detections"]) for item in answer["predictions"]] == [5, 5]


def test_the_other_routes_are_the_same_as_mlflows(served: Served) -> None:
    assert served.get("/ping") == served.get("/health") == (200, b"\n")
    assert served.get("/version")[0] == 200
    assert served.get("/invocations")[0] == 405
    assert served.get("/openapi.json")[0] == 404


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "body: expected JSON"),
    "key twice": (b'{"inputs": [], "inputs": []}', "body: expected JSON: inputs: expected each key once"),
    "deep": (b"[" * 50_000, "body: expected JSON"),
    "a long number": (b'{"inputs": ' + b"9" * 5000 + b"}", "body: expected JSON"),
    "no object": ([1], "body: expected a JSON object, found a list"),
    "no form": ({"params": {}}, "expected one of dataframe_records, dataframe_split, inputs, instances, found none"),
    "two forms": ({"inputs": [], "instances": []}, "found inputs, instances"),
    "no rows": ({"dataframe_records": 3}, "dataframe_records: expected a list of rows, found int"),
    "no column": ({"dataframe_records": [{"image": ""}, {"picture": "x"}]}, "row 1: expected the field image, found"),
    "no list": ({"inputs": {"image": "x"}}, "inputs: image: expected a list, found a text"),
    "no columns": ({"dataframe_split": {"data": []}}, "dataframe_split: expected the lists columns and data"),
    "other columns": ({"dataframe_split": {"columns": ["a"], "data": []}}, "expected one named image"),
    "short row": ({"dataframe_split": {"columns": ["image"], "data": [[]]}}, "row 0: expected a list of 1 values"),
    "null": ({"inputs": [None]}, "row 0: image: expected base64 as text, found NoneType"),
    "half a pair": (b'{"inputs": ["\\ud800"]}', "row 0: image: expected an encoded image as base64"),
    "params": ({"inputs": [], "params": [1]}, "params: expected an object, found a list"),
    "a truth": ({"inputs": [], "params": {"score_threshold": True}}, "params.score_threshold: expected a number"),
    "a fraction": ({"inputs": [], "params": {"max_detections": 2.5}}, "params.max_detections: expected a whole number"),
    "not a number": (b'{"inputs": [], "params": {"score_threshold": NaN}}', "expected at least 0 and less than 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_unusable_requests_are_refused_with_400(served: Served, case: str) -> None:
    document, message = WRONG[case]
    status, answer = served.post(document)
    assert status == 400
    assert message in answer["message"]
    assert answer["error_code"] == "INVALID_PARAMETER_VALUE"


def test_requests_that_are_too_large_are_refused_with_413(served: Served) -> None:
    assert served.post({"inputs": ["x"] * 4})[0] == 413
    status, answer = served.post({"inputs": ["A" * BODY_BYTES]})
    assert (status, answer["message"]) == (413, f"body: expected at most {BODY_BYTES} bytes, found more")
    # One client sends chunks without a length; another waits for 100 Continue.
    chunked = (b"x" * 50_000 for _ in range(100))
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)) as connection:
        connection.request("POST", "/invocations", chunked, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 413
    assert served.post(b"", **{"Content-Length": "999999999", "Expect": "100-continue"})[0] == 413


def test_many_small_values_are_refused_before_they_are_parsed() -> None:
    body = b'{"inputs": [' + b"[]," * MOST_VALUES + b"0]}"
    tracemalloc.start()
    with pytest.raises(RequestRefused, match=r"expected at most 100000 commas, brackets and braces") as caught:
        parse_request(body)
    assert caught.value.too_large
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_long_text_does_not_multiply_the_memory_of_short_ones() -> None:
    """With MLflow's own parser, each row of these forms took four times the memory of the longest text."""
    for form, document in forms("A" * 1_000_000, "").items():
        body = json.dumps(document).encode()
        tracemalloc.start()
        parse_request(body)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body), form
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["text/csv", "application/vnd.apache.parquet", "", "application/jsonx"])
def test_content_types_other_than_json_are_refused(served: Served, kind: str) -> None:
    status, answer = served.post(b"image\n", **{"Content-Type": kind})
    assert status == 415
    assert "expected application/json" in answer["message"]


def test_slow_bodies_time_out_and_waiting_requests_are_limited(served: Served, image: str) -> None:
    slow = [socket.create_connection(("127.0.0.1", served.port), 30) for _ in range(2)]
    for connection in slow:
        connection.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
    status = 200
    for _ in range(100):  # wait until both have arrived
        status, answer = served.post({"inputs": [image]})
        if status == 503:
            break
    assert status == 503
    assert "expected at most 2 requests at a time" in answer["message"]
    for connection in slow:
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        connection.close()
    assert served.post({"inputs": [image]})[0] == 200


def test_an_error_in_the_model_is_not_sent_to_the_client(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.answers, "answer", lambda images, **params: 1 / 0)
    status, answer = served.post({"inputs": []})
    assert status == 500
    assert "ZeroDivisionError" not in json.dumps(answer)
