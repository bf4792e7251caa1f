"""The best model of a finished run is registered once, and can be served where fedbench is not installed."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import site
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.stack.embedded import EmbeddedServices
from infra.store.objects import ObjectStore
from infra.tracking.client import mlflow_environment
from tasks.detectors.registry import build_detector
from tasks.detectors.state import load_state
from tasks.models.file import load_model
from tasks.spec.records import RoundRecord
from tests.integration.conftest import FinishedRun, images_of
from tests.integration.homes import Home, interruptible
from tests.waiting import eventually

pytestmark = pytest.mark.integration

START_SECONDS = 180


def best(records: list[RoundRecord]) -> RoundRecord:
    return records[records[-1].decision.best_round]


def versions(home: Home, name: str) -> tuple[dict[str, Any], str]:
    """Return the registered versions by number, and the version of the alias."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home.path / 'mlflow.db'}")
    found = client.search_model_versions(f"name = '{name}'")
    return {version.version: version for version in found}, client.get_model_version_by_alias(name, "best").version


def test_a_finished_run_has_registered_its_best_model(undisturbed: FinishedRun) -> None:
    assert "model: models:/tiny@best" in undisturbed.result.stdout.splitlines()
    found, alias = versions(undisturbed.home, "tiny")
    assert list(found) == [alias]
    record = best(undisturbed.records)
    assert found[alias].tags["fedbench.weights_sha256"] == record.model.sha256
    assert found[alias].tags["fedbench.round"] == str(record.round)
    folder = undisturbed.home.object_path(found[alias].source.removeprefix("s3://fedbench/"))
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"| map50_voc10 | {record.metrics.map50_voc10:.4g} |" in card
    assert f"| specification (sha256) | {record.spec_digest} |" in card
    assert not [path for path in folder.rglob("*") if path.suffix in {".pkl", ".pickle", ".pt", ".pth"}]
    detector, read = load_model(folder / "artifacts" / "model.safetensors")
    assert read.federation == "tiny"
    stored = build_detector(detector_spec(undisturbed), len(read.classes), seed=0)
    load_state(stored, undisturbed.home.object_path(record.model.key))
    expected = stored.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in detector.state_dict().items())


def detector_spec(run: FinishedRun) -> Any:
    return run.home.stored_spec(run.name).detector


def test_the_same_command_registers_nothing_more(undisturbed: FinishedRun, shared_home: Home) -> None:
    before = versions(shared_home, "tiny")[0].keys()
    again = shared_home.run("run", undisturbed.spec, "--name", "tiny", "--slots", 2)
    assert again.returncode == 0, again.stdout
    assert "nothing was left to do" in again.stdout
    assert "model: models:/tiny@best" in again.stdout
    assert versions(shared_home, "tiny")[0].keys() == before


def test_without_mlflow_a_run_ends_well_and_the_next_command_registers(
    undisturbed: FinishedRun, shared_home: Home
) -> None:
    before = versions(shared_home, "tiny")[0].keys()
    folder, settings = shared_home.path / "runs" / "tiny", shared_home.path / "settings.yaml"
    (folder / "model.json").unlink()  # as on another machine: fedbench must ask MLflow
    settings.write_text("mlflow_tracking_uri: http://127.0.0.1:9\n")
    try:
        without = shared_home.run("run", undisturbed.spec, "--name", "tiny", "--slots", 2)
    finally:
        settings.unlink()
    assert without.returncode == 0, without.stdout
    assert "best: round" in without.stdout
    assert "model: " not in without.stdout
    assert "MLflow at http://127.0.0.1:9 failed" in (folder / "run.log").read_text()
    later = shared_home.run("run", undisturbed.spec, "--name", "tiny", "--slots", 2)
    assert later.returncode == 0, later.stdout
    assert "model: models:/tiny@best" in later.stdout
    assert "round 1 request_update" not in later.stdout
    assert versions(shared_home, "tiny")[0].keys() == before  # found by the digest of its weights


def test_an_extended_run_moves_the_alias_to_its_best(extended: FinishedRun, one_slot: FinishedRun) -> None:
    found, alias = versions(extended.home, extended.name)
    registered = {version.tags["fedbench.weights_sha256"] for version in found.values()}
    assert registered == {best(one_slot.records).model.sha256, best(extended.records).model.sha256}
    assert len(found) == len(registered)
    assert found[alias].tags["fedbench.weights_sha256"] == best(extended.records).model.sha256


@dataclass(frozen=True)
class Server:
    port: int
    process: subprocess.Popen[bytes]
    output: Path

    def post(self, document: Any) -> tuple[int, Any]:
        """Return the status and JSON of the answer to an invocation."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/invocations",
            json.dumps(document).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=5).status == 200)
        return self.process.poll() is not None


def serving_environment(s3: S3Settings, tracking_uri: str) -> dict[str, str]:
    """Return this process's environment with the variables by which MLflow's command finds the model and its files."""
    assert s3.access_key is not None
    assert s3.secret_key is not None
    keys = s3.access_key.get_secret_value(), s3.secret_key.get_secret_value()
    return {
        **os.environ, "MLFLOW_TRACKING_URI": tracking_uri, **mlflow_environment(s3.endpoint, s3.region, *keys)
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def started(command: list[Any], port: int, output: Path, **options: Any) -> Iterator[Server]:
    with output.open("wb") as file, interruptible():
        process = subprocess.Popen(
            [*map(str, command)], stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **options
        )
    server = Server(port, process, output)
    try:
        assert eventually(server.answers, START_SECONDS), output.read_text()
        assert process.poll() is None, output.read_text()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ``bin`` of an environment with this one's packages, but without fedbench.

    Its ``.pth`` file names this environment's folders. Python does not read ``.pth`` files in these folders, so it does
    not find an editable fedbench.
    """
    path = tmp_path_factory.mktemp("foreign") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    (packages,) = path.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    uvicorn = path / "bin" / "uvicorn"  # MLflow starts it by its name
    uvicorn.write_text(f"#!{path / 'bin' / 'python'}\nfrom uvicorn.main import main\nmain()\n")
    uvicorn.chmod(0o755)
    return path / "bin"


@pytest.fixture(scope="module")
def served(undisturbed: FinishedRun, shared_home: Home, foreign: Path, tmp_path_factory: Any) -> Iterator[Server]:
    """Run ``mlflow models serve`` in that environment, outside the checkout."""
    with EmbeddedServices(Settings(home=shared_home.path), prefect=False) as services:
        environment = serving_environment(services.s3_endpoint(), services.mlflow_tracking_uri)
        environment["PATH"] = os.pathsep.join((str(foreign), os.environ["PATH"]))
        environment.pop("PYTHONPATH", None)
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        for module in ("tasks", "flows", "infra"):
            tried = subprocess.run(
                [foreign / "python", "-c", f"import {module}"], cwd=elsewhere, env=environment, capture_output=True
            )
            assert f"No module named '{module}'" in tried.stderr.decode(), "fedbench is installed, and not editable"
        port = free_port()
        command = [foreign / "python", "-m", "mlflow", "models", "serve", "-m", "models:/tiny@best"]
        options = ["--env-manager", "local", "--port", port]
        output = elsewhere.with_name("server.txt")
        with started([*command, *options], port, output, cwd=elsewhere, env=environment) as server:
            yield server


@pytest.fixture(scope="module")
def images(undisturbed: FinishedRun) -> list[tuple[Image.Image, str]]:
    """Return a JPEG of the data set and a PNG of another size and mode, each with its base64 text."""
    first, second = images_of(undisturbed)[:2]
    grey = Image.open(second).convert("L").resize((150, 61))
    buffer = io.BytesIO()
    grey.save(buffer, format="PNG")
    return [
        (Image.open(first), base64.b64encode(first.read_bytes()).decode()),
        (grey, base64.b64encode(buffer.getvalue()).decode()),
    ]


def test_a_served_model_returns_the_detections_of_the_detector(
    served: Server, undisturbed: FinishedRun, images: list[tuple[Image.Image, str]]
) -> None:
    rows = [{"image": text} for _, text in images]
    status, answer = served.post({"dataframe_records": rows, "params": {"score_threshold": 0.0, "max_detections": 20}})
    assert status == 200, answer
    record = best(undisturbed.records)
    classes = list(record.clients[0].class_counts)
    spec = detector_spec(undisturbed)
    detector = build_detector(spec, len(classes), seed=0).eval()
    load_state(detector, undisturbed.home.object_path(record.model.key))
    for (image, _), given in zip(images, answer["predictions"], strict=True):
        pixels = np.asarray(image.convert("RGB").resize((spec.width, spec.height), Image.Resampling.BILINEAR))
        with torch.inference_mode():
            outputs = detector(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))
            (found,) = detector.predict(outputs, score_threshold=0.0, nms_iou=0.5, max_detections=100)
        ratio = torch.tensor([image.width / spec.width, image.height / spec.height] * 2)
        assert len(given["detections"]) == 20
        for item in given["detections"]:
            # The server may use another number of threads, so last bits and the order of near ties may differ.
            same = torch.tensor([classes[int(label)] == item["class"] for label in found.labels])
            near = ((found.boxes * ratio - torch.tensor(item["box"])).abs() < 0.05).all(dim=1) & same
            assert near.any(), item
            assert float(found.scores[near].max()) == pytest.approx(item["score"], rel=1e-3)
        assert given["detections"][0]["score"] == pytest.approx(float(found.scores[0]), rel=1e-3)


def test_the_default_parameters_keep_only_confident_detections(
    served: Server, images: list[tuple[Image.Image, str]]
) -> None:
    status, answer = served.post({"inputs": [{"image": images[0][1]}]})
    assert status == 200, answer
    (given,) = answer["predictions"]
    assert all(item["score"] >= 0.3 for item in given["detections"])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"dataframe_records": [{"image": "###"}]}, "row 0: image: expected an encoded image as base64, found '###'"),
        (
            {"dataframe_records": [{"image": "aGFsbG8="}]},
            "row 0: image: expected an encoded image (BMP, ",
        ),
        ({"dataframe_records": [{"picture": "aGFsbG8="}]}, "Model is missing inputs ['image']"),
        (
            {"dataframe_records": [{"image": "aGFsbG8="}], "params": {"score_threshold": -1.0}},
            "params.score_threshold: expected at least 0",
        ),
    ],
)
def test_bad_requests_get_an_error_with_the_reason(served: Server, document: Any, message: str) -> None:
    status, answer = served.post(document)
    assert status == 400
    assert message in answer["message"]
    assert "Traceback" not in json.dumps(answer)
    assert served.answers()


@pytest.fixture
def planted(undisturbed: FinishedRun, shared_home: Home, tmp_path: Path) -> Iterator[Path]:
    """Plant code in files of the registered model that MLflow would run. Yield a path that exists once it has run."""
    marker = tmp_path / "ran"
    found, alias = versions(shared_home, "tiny")
    location = found[alias].source.removeprefix("s3://fedbench/")
    keys = [f"{location}/served_model.py", f"{location}/code/tasks/__init__.py"]
    file = tmp_path / "file.py"
    with EmbeddedServices(Settings(home=shared_home.path), prefect=False) as services:
        objects = ObjectStore(services.s3_endpoint())
        before = {key: shared_home.object_path(key).read_text() for key in keys}
        for key, text in before.items():
            file.write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n{text}")
            objects.put_file(key, file)
        yield marker
        for key, text in before.items():
            file.write_text(text)
            objects.put_file(key, file)


def test_fedbench_serve_serves_the_model_and_runs_no_code_of_the_store(
    shared_home: Home, planted: Path, images: list[tuple[Image.Image, str]], tmp_path: Path
) -> None:
    request = {"dataframe_records": [{"image": images[0][1]}], "params": {"score_threshold": 0.0}}
    answers = []
    for model in ("tiny", "models:/tiny@best"):
        port, output = free_port(), tmp_path / f"{model[:6]}.txt"
        command = [Path(sys.executable).parent / "fedbench", "serve", model, "--port", port]
        with started(command, port, output, env=shared_home.environment()) as server:
            status, answer = server.post(request)
            assert status == 200, answer
            answers.append(answer["predictions"])
            assert server.post({"inputs": ["x"] * 33})[0] == 413
        assert f"round {best(shared_home.records('tiny')).round}" in output.read_text()
        assert f": http://127.0.0.1:{port}/invocations (Ctrl-C ends it)" in output.read_text()
        assert server.process.returncode == 0
    assert answers[0] == answers[1]
    assert answers[0][0]["detections"]
    assert not planted.exists()


def test_a_model_is_verified_before_mlflow_serves_it(shared_home: Home, tmp_path: Path) -> None:
    good = shared_home.run("verify", "tiny", "--save", tmp_path / "model")
    assert good.returncode == 0, good.stdout
    assert good.stdout.strip().endswith("files, as on record")
    assert (tmp_path / "model" / "MLmodel").is_file()


def test_a_model_with_planted_code_fails_verification(shared_home: Home, planted: Path, tmp_path: Path) -> None:
    bad = shared_home.run("verify", "models:/tiny@best", "--save", tmp_path / "model")
    assert bad.returncode == 2, bad.stdout
    assert "served_model.py: line 1: expected " in bad.stdout
    assert "code/tasks/__init__.py: line 1: expected " in bad.stdout
    assert not (tmp_path / "model").exists()
    assert not planted.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed process")
def test_a_killed_serve_leaves_no_process(shared_home: Home, tmp_path: Path) -> None:
    class Marked(Home):
        mark = "served"

    home, port = Marked(shared_home.path), free_port()
    command = [Path(sys.executable).parent / "fedbench", "serve", "tiny", "--port", port]
    with started(command, port, tmp_path / "output.txt", env=home.environment()) as server:
        assert home.processes()
        server.process.kill()
        server.process.wait()
        assert eventually(lambda: not home.processes(), 30), home.processes()


def test_serve_refuses_an_unknown_federation_and_a_taken_port(shared_home: Home) -> None:
    result = shared_home.run("serve", "nobody", "--port", free_port())
    assert result.returncode == 2, result.stdout
    assert "nobody: no such model: no run of this name in the store" in result.stdout
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = shared_home.run("serve", "tiny", "--port", taken.getsockname()[1])
    assert result.returncode == 2, result.stdout
    assert "expected a free port of this machine" in result.stdout
