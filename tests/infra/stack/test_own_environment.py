"""Which of the user's variables reach a run's clients: none for the run's own servers, all for servers named by URL."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import websockets.proxy
import websockets.uri
from botocore.utils import get_environ_proxies
from pydantic import SecretStr

from infra.environment.imports import allow_folder_in_imports, keep_folder_out_of_imports
from infra.environment.proxies import LOOPBACK_HOSTS, bypass_proxies
from infra.errors import SettingsError
from infra.processes.launch import launch
from infra.servers.credentials import draw_keys
from infra.servers.mlflow_server import MlflowService
from infra.settings import Settings
from infra.settings_groups import PortSettings, S3Settings
from infra.stack.environment_file import write_environment
from infra.stack.own_environment import use_own_environment
from infra.stack.state import StackState, write_state
from infra.store.objects import ObjectStore

PROXY = "http://proxy.example:3128"
HOSTILE = {
    "PREFECT_API_URL": "http://elsewhere.example/api",
    "prefect_api_key": "lower",
    "PREFECT_CLIENT_CUSTOM_HEADERS": '{"X": "y"}',
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
    "MLFLOW_REGISTRY_URI": "sqlite:///elsewhere.db",
    "MLFLOW_RUN_ID": "x",
    "AWS_PROFILE": "nope",
    "AWS_ENDPOINT_URL_S3": "http://elsewhere.example",
    "AWS_SESSION_TOKEN": "of-other-keys",
}
REMOTE: dict[str, Any] = {
    "prefect_api_url": "https://prefect.example/api",
    "mlflow_tracking_uri": "https://mlflow.example",
    "s3": S3Settings(endpoint="https://s3.example"),
}


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Remove proxies from this process's environment, and restore the environment afterwards."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def left(prefixes: tuple[str, ...]) -> set[str]:
    return {name for name in HOSTILE if name.upper().startswith(prefixes) and name in os.environ}


def test_for_own_servers_all_variables_of_other_servers_are_removed(tmp_path: Path) -> None:
    os.environ.update(HOSTILE)
    use_own_environment(Settings(home=tmp_path))
    assert left(("PREFECT_", "MLFLOW_", "AWS_")) == set()
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert os.environ["AWS_CONFIG_FILE"] == os.environ["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
    once = dict(os.environ)
    use_own_environment(Settings(home=tmp_path))
    assert dict(os.environ) == once


@pytest.mark.parametrize(
    ("named", "prefixes"),
    [("prefect_api_url", ("PREFECT_",)), ("mlflow_tracking_uri", ("MLFLOW_",)), ("s3", ("AWS_",))],
)
def test_for_a_named_server_the_users_variables_stay(named: str, prefixes: tuple[str, ...], tmp_path: Path) -> None:
    os.environ.update(HOSTILE)
    use_own_environment(Settings(home=tmp_path, **{named: REMOTE[named]}))
    expected = {name for name in HOSTILE if name.upper().startswith(prefixes)}
    assert expected
    assert left(("PREFECT_", "MLFLOW_", "AWS_")) == expected


def test_settings_with_the_address_of_the_homes_stack_mean_own_servers(tmp_path: Path) -> None:
    address = "http://127.0.0.1:4200/api"
    write_state(tmp_path, StackState(up=True, addresses={"prefect": address}))
    os.environ.update(HOSTILE)
    use_own_environment(Settings(home=tmp_path, prefect_api_url=address), deploys=True)
    assert left(("PREFECT_",)) == set()


def test_deploying_without_a_stack_uses_the_users_own_prefect(tmp_path: Path) -> None:
    os.environ.update(HOSTILE, ALL_PROXY="socks5://proxy.example:1")
    use_own_environment(Settings(home=tmp_path), deploys=True)
    assert left(("PREFECT_", "MLFLOW_")) == {name for name in HOSTILE if name.upper().startswith("PREFECT_")}
    assert "ALL_PROXY" in os.environ


def test_prefect_takes_no_settings_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "prefect.toml").write_text("this is [ no TOML")
    (tmp_path / ".env").write_text("PREFECT_API_KEY=x\nPREFECT_PROFILES_PATH=/nope\n")
    (tmp_path / "pyproject.toml").write_text("[tool.prefect.tasks]\ndefault_retries = 7\n")
    script = """
import sys
from pathlib import Path
from infra.stack.own_environment import use_own_environment
from infra.settings import Settings
home = Path(sys.argv[1])
(home / "prefect").mkdir(parents=True)
use_own_environment(Settings(home=home))
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
    settings = get_current_settings()
    print(settings.api.key, settings.tasks.default_retries, settings.home, settings.client.custom_headers)
"""
    variables = {**os.environ, **HOSTILE, "SSL_CERT_FILE": "/no/such/file", "ALL_PROXY": "socks://proxy.example:1"}
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "home")]
    output = subprocess.check_output(command, cwd=tmp_path, env=variables, text=True, stderr=subprocess.STDOUT)
    assert output == f"None 0 {tmp_path / 'home' / 'prefect'} {{}}\n"


# Proxies.


@pytest.mark.parametrize("kept", [{"no_proxy": "a.example, b.example"}, {"NO_PROXY": "a.example,b.example"}, {}])
def test_every_client_asks_loopback_directly_and_others_through_the_proxy(kept: dict[str, str]) -> None:
    os.environ.update({"http_proxy": PROXY, "HTTPS_PROXY": PROXY, **kept})
    bypass_proxies(os.environ, ["192.0.2.7"])
    bypass_proxies(os.environ, ["192.0.2.7"])
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]
    entries = os.environ["no_proxy"].split(",")
    assert sorted(entries) == sorted({*LOOPBACK_HOSTS, "192.0.2.7", *(["a.example", "b.example"] if kept else [])})
    direct = ["http://127.0.0.1:1/x", "http://localhost:1/x", "http://[::1]:1/x", "http://192.0.2.7:1/x"]
    direct += ["http://a.example/x"] if kept else []
    client = httpx.Client()
    for url in direct:
        assert requests.utils.get_environ_proxies(url) == {}, url
        assert client._transport_for_url(httpx.URL(url)) is client._transport, url
        if "::1" not in url:
            assert get_environ_proxies(url) == {}, url
            assert urllib.request.proxy_bypass(httpx.URL(url).netloc.decode()), url  # used by urllib and websockets
    assert websockets.proxy.get_proxy(websockets.uri.parse_uri("ws://127.0.0.1:1/x")) is None
    assert websockets.proxy.get_proxy(websockets.uri.parse_uri("wss://prefect.example/x")) == PROXY
    for url in ("http://s3.example/x", "https://s3.example/x"):
        assert PROXY in get_environ_proxies(url).values(), url
        assert PROXY in requests.utils.get_environ_proxies(url).values(), url
        assert client._transport_for_url(httpx.URL(url)) is not client._transport, url


def test_a_users_no_proxy_for_everything_stays() -> None:
    environment = {"no_proxy": "*"}
    bypass_proxies(environment)
    assert environment == {"no_proxy": "*", "NO_PROXY": "*"}


def test_system_proxies_without_variables_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"http": PROXY})  # as on macOS
    bypass_proxies(os.environ)
    monkeypatch.undo()
    assert urllib.request.getproxies()["http"] == PROXY


@pytest.mark.parametrize("proxy", ["socks5://p:1", "socks5h://p:1", "socks://p:1", "socks4://p:1", "ftp://p:1"])
def test_a_proxy_that_prefects_client_cannot_use_does_not_break_a_local_run(proxy: str, tmp_path: Path) -> None:
    os.environ.update({"ALL_PROXY": proxy, "https_proxy": PROXY})
    with pytest.raises((ImportError, ValueError)):
        httpx.Client()
    use_own_environment(Settings(home=tmp_path))
    httpx.Client().close()
    assert "ALL_PROXY" not in os.environ
    assert os.environ["https_proxy"] == PROXY


@pytest.mark.parametrize(
    "named", [{"prefect_api_url": "https://p.example/api"}, {"mlflow_tracking_uri": "https://m.example"}]
)
def test_with_a_server_elsewhere_every_proxy_stays(named: dict[str, Any], tmp_path: Path) -> None:
    os.environ["ALL_PROXY"] = "socks5://proxy.example:1"
    use_own_environment(Settings(home=tmp_path, **named))
    assert os.environ["ALL_PROXY"] == "socks5://proxy.example:1"


def test_a_proxy_that_is_no_url_stays_only_for_named_servers(tmp_path: Path) -> None:
    os.environ["HTTP_PROXY"] = "http://[no"
    use_own_environment(Settings(home=tmp_path, mlflow_tracking_uri="http://[no"))
    assert os.environ["HTTP_PROXY"] == "http://[no"
    use_own_environment(Settings(home=tmp_path))
    assert "HTTP_PROXY" not in os.environ


def test_with_a_store_elsewhere_the_proxy_that_its_client_reads_stays(tmp_path: Path) -> None:
    os.environ.update({name: "socks5://proxy.example:1" for name in ("ALL_PROXY", "https_proxy")})
    use_own_environment(Settings(home=tmp_path, s3=S3Settings(endpoint="https://s3.example")))
    assert "ALL_PROXY" not in os.environ  # the store's client does not read it
    assert os.environ["https_proxy"] == "socks5://proxy.example:1"


def test_the_address_at_which_a_stack_listens_is_asked_directly(tmp_path: Path) -> None:
    os.environ["http_proxy"] = PROXY
    use_own_environment(Settings(home=tmp_path, ports=PortSettings(host="192.0.2.7")))
    assert urllib.request.proxy_bypass("192.0.2.7")
    write_state(tmp_path, StackState(host="192.0.2.8"))
    use_own_environment(Settings(home=tmp_path))
    assert urllib.request.proxy_bypass("192.0.2.8")
    assert not urllib.request.proxy_bypass("192.0.2.9")


def test_a_service_is_started_without_the_users_variables(tmp_path: Path) -> None:
    os.environ.update(HOSTILE, http_proxy=PROXY, ALL_PROXY="socks5://proxy.example:1", OTHER="x")
    script = "import json, os, pathlib; pathlib.Path('found').write_text(json.dumps(dict(os.environ)))"
    process = launch([sys.executable, "-c", script], {"OWN": "1"}, folder=tmp_path, log_path=tmp_path / "log")
    assert process.wait(30) == 0, (tmp_path / "log").read_text()
    found = json.loads((tmp_path / "found").read_text())
    assert not HOSTILE.keys() & found.keys()
    assert (found["OWN"], found["OTHER"], found["http_proxy"]) == ("1", "x", PROXY)
    assert "ALL_PROXY" not in found
    assert "127.0.0.1" in found["no_proxy"].split(",")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "127.0.0.1,localhost,::1,192.0.2.7"),
        ("a.example", "a.example,127.0.0.1,localhost,::1,192.0.2.7"),
        ("*", "*"),
    ],
)
def test_a_shell_that_sources_a_stacks_file_asks_its_servers_directly(before: str, after: str, tmp_path: Path) -> None:
    addresses = {name: "http://192.0.2.7:1" for name in ("s3", "prefect", "mlflow")}
    path = write_environment(tmp_path, addresses, S3Settings(), draw_keys(tmp_path / "services"))
    for name in ("no_proxy", "NO_PROXY"):
        variables = {name: before} if before else {}
        script = f'set -eu; source "$1"; printf %s "${name}"'
        assert subprocess.check_output(["bash", "-c", script, "-", str(path)], env=variables, text=True) == after


def test_mlflows_server_gets_the_users_aws_profile_only_without_keys(tmp_path: Path) -> None:
    own = {"AWS_PROFILE": "work", "AWS_CA_BUNDLE": "/ca", "AWS_DEFAULT_REGION": "elsewhere"}
    os.environ.update(own)
    store = S3Settings(endpoint="https://s3.example", region="here")
    found = MlflowService(tmp_path, store).environment(1)
    assert (found["AWS_PROFILE"], found["AWS_CA_BUNDLE"], found["AWS_DEFAULT_REGION"]) == ("work", "/ca", "here")
    keys = {"access_key": SecretStr("k"), "secret_key": SecretStr("s")}
    found = MlflowService(tmp_path, store.model_copy(update=keys)).environment(1)
    assert (found["AWS_CA_BUNDLE"], found["AWS_CONFIG_FILE"]) == ("/ca", os.devnull)
    assert "AWS_PROFILE" not in found


# The store's client.


def test_with_keys_the_stores_client_ignores_aws_profiles_and_variables(
    s3_settings: S3Settings, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n  use_accelerate_endpoint = true\nretry_mode = nonsense\n")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text((tmp_path / "config").read_text())
    dead = "http://127.0.0.1:9"
    variables = {
        "AWS_PROFILE": "nope",
        "AWS_SESSION_TOKEN": "of-other-keys",
        "AWS_ENDPOINT_URL": dead,
        "AWS_ENDPOINT_URL_S3": dead,
        "AWS_MAX_ATTEMPTS": "nonsense",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_CA_BUNDLE": "/no/such/file",
        "http_proxy": dead,
        "HOME": str(tmp_path),
    }
    for own in (variables, {**variables, "AWS_CONFIG_FILE": str(tmp_path / "config")}):
        os.environ.update(own)
        store = ObjectStore(s3_settings, outage_seconds=0.0)
        store.put_bytes("hostile/a", b"one")
        assert store.get_bytes("hostile/a") == b"one"


def test_without_keys_the_stores_client_uses_the_aws_profile(tmp_path: Path) -> None:
    os.environ["AWS_PROFILE"] = "nope"
    store = ObjectStore(S3Settings(endpoint="http://127.0.0.1:9"), outage_seconds=0.0)
    with pytest.raises(SettingsError, match=r"config profile \(nope\) could not be found"):
        store.exists("a")


def test_a_store_elsewhere_is_asked_through_the_proxy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.environ["http_proxy"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
        bypass_proxies(os.environ)
        asked: list[bytes] = []

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(1000))
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        keys = {"access_key": SecretStr("k"), "secret_key": SecretStr("s")}
        store = ObjectStore(S3Settings(endpoint="http://s3.example", **keys), outage_seconds=0.0)
        assert not store.exists("a")
        thread.join(30)
    assert asked[0].startswith(b"HEAD http://s3.example/fedbench/a ")


def test_the_working_folder_is_kept_out_of_imports_until_it_is_allowed() -> None:
    environment: dict[str, str] = {}
    keep_folder_out_of_imports(environment)
    assert environment["PYTHONSAFEPATH"]
    allow_folder_in_imports(environment)
    assert environment == {}
    users = {"PYTHONSAFEPATH": "1"}
    keep_folder_out_of_imports(users)
    allow_folder_in_imports(users)
    assert users == {"PYTHONSAFEPATH": "1"}
