"""The real embedded Prefect and MLflow servers. They take half a minute to start, so these are no unit tests.

The servers are started once. Another user of the machine tries every route that they list (:mod:`strangers`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import httpx
import psutil
import pytest

from infra.processes.publication import Publication
from infra.servers.credentials import basic_auth, read_keys
from infra.servers.mlflow_server import MlflowService
from infra.servers.prefect_server import PrefectService
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.stack.embedded import EmbeddedServices
from tests.strangers import MLFLOW_PUBLIC, PREFECT_PUBLIC, Listing, Stranger, Target

pytestmark = pytest.mark.integration

MARKER = "of-a-run-that-is-nobodys-business"


@dataclass(frozen=True)
class Servers:
    """A home in a folder that others may enter, its servers, and the routes that these list."""

    home: Path
    services: EmbeddedServices
    mlflow: MlflowService
    prefect_routes: Listing
    mlflow_routes: Listing

    @property
    def prefect(self) -> PrefectService:
        assert self.services.prefect is not None
        return self.services.prefect

    def client(self) -> httpx.Client:
        """Return a client of Prefect's API with the credentials."""
        headers = basic_auth(read_keys(self.home / "services").prefect_auth)
        return httpx.Client(base_url=self.services.prefect_api_url, headers=headers, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    # Not a folder of pytest's: those are private, so they would hide the effect of the home's own rights.
    folder = Path(tempfile.mkdtemp(prefix="fedbench-"))
    folder.chmod(0o755)
    home = folder / "a home?x=1#2 50%20[b] é:3"  # characters that are special in URLs, shells and rich
    try:
        with EmbeddedServices(Settings(home=home), prefect=False) as store:
            mlflow = MlflowService(home, store.s3_endpoint())
            mlflow.begin()
            try:
                with EmbeddedServices(Settings(home=home)) as services:
                    listings = [Listing(kind, tmp_path_factory.mktemp(kind)) for kind in ("prefect", "mlflow")]
                    mlflow.complete()
                    yield Servers(home, services, mlflow, *listings)
            finally:
                mlflow.stop()
    finally:
        shutil.rmtree(folder)


def _get(url: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers or {}), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_home_of_any_name_contains_its_databases(servers: Servers) -> None:
    found = {path.relative_to(servers.home.parent) for path in servers.home.parent.rglob("*.db")}
    databases = ("mlflow.db", "prefect/prefect.db", "services/mlflow-auth.db")
    assert found == {Path(servers.home.name, name) for name in databases}
    with servers.client() as client:
        assert client.post("/flows/filter", json={}).status_code == 200


def test_prefects_page_is_open_and_its_data_are_not(servers: Servers) -> None:
    page = servers.prefect.ui_url
    status, settings = _get(f"{page}/ui-settings")
    assert (status, json.loads(settings)["api_url"]) == (200, servers.services.prefect_api_url)
    assert json.loads(settings)["auth"] == "BASIC"
    assert "<html" in _get(page)[1].lower()
    assert "<html" in _get(f"{page}/runs/flow-run/1", {"Accept": "text/html"})[1].lower()  # the page's own address
    assert _get(f"{page}/openapi.json")[0] == 401
    assert _get(f"{page}/openapi.json", basic_auth(servers.prefect.auth))[0] == 200
    assert (servers.home / "prefect" / "prefect.db").exists()


def test_the_login_page_accepts_only_the_credentials(servers: Servers) -> None:
    def log_in(auth: str, to: str = "/runs") -> httpx.Response:
        form = urlencode({"auth": auth, "to": to})
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "null"}
        with httpx.Client(trust_env=False) as client:
            return client.post(f"{servers.prefect.ui_url}/fedbench-login", content=form, headers=headers)

    right = log_in(servers.prefect.auth, "/runs?</script>")
    assert right.status_code == 200
    stored = basic_auth(servers.prefect.auth)["Authorization"].removeprefix("Basic ")
    assert f'localStorage.setItem("prefect-password", "{stored}")' in right.text
    assert right.text.count("</script>") == 1
    assert "evil" not in log_in(servers.prefect.auth, "//evil.example").text
    for auth in ("", "fedbench:wrong"):
        wrong = log_in(auth)
        assert (wrong.status_code, wrong.text) == (401, "Unauthorized")
    assert log_in("x" * 10_000).status_code == 413


def test_mlflows_login_leads_to_an_address_without_credentials(servers: Servers) -> None:
    def follow(to: str, auth: str) -> httpx.Response:
        with httpx.Client(trust_env=False, headers=basic_auth(auth)) as client:
            return client.get(f"{servers.mlflow.address}/fedbench-login", params={"to": to})

    keys, front = servers.mlflow.keys, servers.mlflow.address
    right = follow("/#/experiments/1?workflowType=machine_learning", keys.mlflow_auth)
    assert (right.status_code, right.text) == (303, "")
    assert right.headers["location"] == f"{front}/#/experiments/1?workflowType=machine_learning"
    for foreign in ("//evil.example", "/\\evil.example", "http://evil.example"):
        assert follow(foreign, keys.mlflow_auth).headers["location"] == f"{front}/"
    wrong = follow("/#/experiments/1", "fedbench:wrong")
    assert (wrong.status_code, wrong.headers.get("location")) == (401, None)
    assert wrong.headers["www-authenticate"].startswith("Basic ")  # a browser then sends the credentials of the link


def test_nobody_without_credentials_gets_anything_but_static_files(servers: Servers) -> None:
    with servers.client() as client:
        assert client.post("/flows/", json={"name": MARKER}).status_code == 201
    auth = basic_auth(servers.mlflow.keys.mlflow_auth)
    created = f"{servers.mlflow.address}/api/2.0/mlflow/experiments/create"
    with httpx.Client(trust_env=False, headers=auth) as client:
        assert client.post(created, json={"name": MARKER}).status_code == 200
    targets = {}
    for name, listing, service, public, least in (
        ("prefect", servers.prefect_routes, servers.prefect, PREFECT_PUBLIC, 200),
        ("mlflow", servers.mlflow_routes, servers.mlflow, MLFLOW_PUBLIC, 500),
    ):
        routes, sockets = listing.read()
        assert len(routes) >= least  # with fewer, the listing is wrong and the test proves nothing
        targets[name] = Target(service.port, routes, [*sockets, "/", "/anything"], public)
    assert {"/api/events/in", "/api/events/out", "/api/logs/out"} <= set(targets["prefect"].sockets)
    found = Stranger().try_all(MARKER, targets)
    assert found == {name: [] for name in ("prefect", "prefect sockets", "mlflow", "mlflow sockets")}


def test_pages_of_other_origins_cannot_read_with_the_browsers_credentials(servers: Servers) -> None:
    """Browsers send the credentials that they keep for foreign pages too, such as those of other ports of a machine."""
    tracked, api = f"{servers.mlflow.address}/api/2.0/mlflow", servers.services.prefect_api_url
    experiments = f"{tracked}/experiments/get-by-name?experiment_name={MARKER}"
    artifacts = f"{servers.mlflow.address}/api/2.0/mlflow-artifacts/artifacts?path=mlflow"
    mlflow, prefect = basic_auth(servers.mlflow.keys.mlflow_auth), basic_auth(servers.prefect.auth)
    foreign = ("http://evil.example", "http://127.0.0.1:1", "http://localhost:1", "null")
    for url in (experiments, artifacts):
        assert _get(url, mlflow)[0] in (200, 404)
        assert _get(url, {**mlflow, "Origin": servers.mlflow.address})[0] in (200, 404)
        assert {_get(url, {**mlflow, "Origin": origin})[0] for origin in foreign} == {403}
    with httpx.Client(trust_env=False, headers=prefect) as client:
        for origin in (servers.prefect.ui_url, servers.prefect.ui_url.replace("127.0.0.1", "localhost")):
            assert (
                client.get(f"{api}/version", headers={"Origin": origin}).headers["access-control-allow-origin"]
                == origin
            )
        for origin in foreign:
            assert "access-control-allow-origin" not in client.get(f"{api}/version", headers={"Origin": origin}).headers
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            assert client.options(f"{api}/flows/filter", headers=asked).status_code == 400


def test_another_user_cannot_enter_the_home(servers: Servers) -> None:
    stranger = Stranger()
    if not stranger.is_another:
        pytest.skip("this process cannot become another user: expected root, setpriv, and a Python that others can run")
    assert stranger.try_all(MARKER, {}, servers.home) == {"home": []}


def test_concurrent_writers_are_not_refused_on_sqlite(servers: Servers) -> None:
    """Prefect's own server answers some of these requests with 503."""

    def life(flow: str) -> list[int]:
        with servers.client() as client:
            codes = []
            for _ in range(10):
                run = client.post("/flow_runs/", json={"flow_id": flow, "state": {"type": "PENDING"}})
                codes.append(run.status_code)
                for state in ("RUNNING", "COMPLETED"):
                    path = f"/flow_runs/{run.json()['id']}/set_state"
                    codes.append(client.post(path, json={"state": {"type": state}}).status_code)
            return codes

    with servers.client() as client:
        flow = client.post("/flows/", json={"name": "many"}).json()["id"]
    with ThreadPoolExecutor(6) as pool:
        codes = [code for codes in pool.map(lambda _: life(flow), range(6)) for code in codes]
    assert set(codes) == {201}


def test_a_second_run_has_the_same_credentials(servers: Servers) -> None:
    with EmbeddedServices(Settings(home=servers.home)) as second:
        assert second.prefect_environment() == servers.services.prefect_environment()
        assert second.prefect is not None
        assert not second.prefect.is_holder


def test_prefect_comes_back_on_its_port(servers: Servers) -> None:
    url = servers.services.prefect_api_url
    note = (servers.home / "services" / "prefect.json").read_bytes()
    os.kill(Publication.model_validate_json(note).pid, signal.SIGKILL)
    time.sleep(0.5)
    assert servers.services.ensure() == ["prefect"]
    assert servers.services.prefect_api_url == url


HOLDER = """
import sys, time
from pathlib import Path
from pydantic import SecretStr
from infra.servers.mlflow_server import MlflowService
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
        assert _get(address)[0] == 401
        headers = basic_auth(read_keys(tmp_path / "services").mlflow_auth)
        assert "<html" in _get(address, headers)[1].lower()
        family = psutil.Process(holder.pid).children(recursive=True)
        assert len(family) >= 3  # launcher, command, uvicorn
    finally:
        holder.kill()
        holder.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
