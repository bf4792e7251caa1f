"""The embedded Prefect and MLflow servers for real: half a minute each, so not among the unit tests."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from infra.services.embedded import EmbeddedServices
from infra.services.publication import Publication
from infra.settings import S3Settings, Settings

pytestmark = pytest.mark.integration


def _get(url: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        return answer.status, answer.read().decode()


def test_prefect_answers_with_its_page_and_comes_back_on_its_port(tmp_path: Path) -> None:
    with EmbeddedServices(Settings(home=tmp_path)) as services:
        assert services.prefect is not None
        url = services.prefect_api_url
        status, settings = _get(f"{services.prefect.ui_url}/ui-settings")
        assert (status, json.loads(settings)["api_url"]) == (200, url)
        assert "<html" in _get(services.prefect.ui_url)[1].lower()
        assert (tmp_path / "prefect" / "prefect.db").exists()
        note = (tmp_path / "services" / "prefect.json").read_bytes()
        os.kill(Publication.model_validate_json(note).pid, signal.SIGKILL)
        time.sleep(0.5)
        assert services.ensure() == ["prefect"]
        assert services.prefect_api_url == url


def test_writers_at_once_are_not_refused_on_sqlite(tmp_path: Path) -> None:
    """With Prefect's own server some of these are answered by 503."""

    def life(url: str, flow: str) -> list[int]:
        with httpx.Client(base_url=url, timeout=60) as client:
            codes = []
            for _ in range(10):
                run = client.post("/flow_runs/", json={"flow_id": flow, "state": {"type": "PENDING"}})
                codes.append(run.status_code)
                for state in ("RUNNING", "COMPLETED"):
                    path = f"/flow_runs/{run.json()['id']}/set_state"
                    codes.append(client.post(path, json={"state": {"type": state}}).status_code)
            return codes

    with EmbeddedServices(Settings(home=tmp_path)) as services:
        services.ensure()
        url = services.prefect_api_url
        flow = httpx.post(f"{url}/flows/", json={"name": "many"}, timeout=60).json()["id"]
        with ThreadPoolExecutor(6) as pool:
            codes = [code for codes in pool.map(lambda _: life(url, flow), range(6)) for code in codes]
    assert set(codes) == {201}


HOLDER = """
import sys, time
from pathlib import Path
from pydantic import SecretStr
from infra.services.mlflow_server import MlflowService
from infra.settings import S3Settings
store = S3Settings(endpoint=sys.argv[2], access_key=SecretStr("a"), secret_key=SecretStr("b"))
service = MlflowService(Path(sys.argv[1]), store)
service.ensure()
print(service.address, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_mlflow_and_its_workers_end_with_a_killed_starter(tmp_path: Path, s3_settings: S3Settings) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path), s3_settings.endpoint or ""]
    holder = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        address = holder.stdout.readline().strip()
        assert _get(f"{address}/health") == (200, "OK")
        assert "<html" in _get(address)[1].lower()
        family = psutil.Process(holder.pid).children(recursive=True)
        assert len(family) >= 3  # launcher, command, uvicorn
    finally:
        holder.kill()
        holder.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
