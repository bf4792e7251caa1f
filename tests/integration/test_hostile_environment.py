"""A run with its own servers in an environment whose variables name other servers, keys, profiles and proxies."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.homes import Home, assert_consistent, assert_tracked_once, tiny
from tests.warm import cold

pytestmark = pytest.mark.integration


class RecordingProxy:
    """A proxy on loopback that records the first bytes of each connection and refuses the request."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5.0)
                self.asked.append(connection.recv(200))
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def proxy() -> Iterator[RecordingProxy]:
    proxy = RecordingProxy()
    yield proxy
    proxy.close()


def test_a_run_uses_only_its_own_servers_and_keys(proxy: RecordingProxy, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    home, abroad = Home(tmp_path / "home"), tmp_path / "abroad"
    abroad.mkdir()
    (abroad / "aws.conf").write_text("[default]\ns3 =\n  use_accelerate_endpoint = true\n")
    # Prefect reads these from the working folder.
    (abroad / "prefect.toml").write_text("this is [ no TOML")
    (abroad / ".env").write_text("PREFECT_API_KEY=of-another-server\nPREFECT_RESULTS_PERSIST_BY_DEFAULT=true\n")
    dead = "http://127.0.0.1:9"
    environment = home.environment() | {
        **{name: f"http://{proxy.address}" for name in ("http_proxy", "HTTP_PROXY", "https_proxy")},
        "ALL_PROXY": f"socks5://{proxy.address}",
        "no_proxy": "intranet.example",
        "MLFLOW_TRACKING_URI": f"sqlite:///{abroad}/tracking.db",
        "MLFLOW_REGISTRY_URI": f"sqlite:///{abroad}/registry.db",
        "MLFLOW_S3_ENDPOINT_URL": dead,
        "MLFLOW_S3_UPLOAD_EXTRA_ARGS": '{"ACL": "public-read"}',
        "AWS_PROFILE": "nope",
        "AWS_CONFIG_FILE": str(abroad / "aws.conf"),
        "AWS_ENDPOINT_URL": dead,
        "AWS_SESSION_TOKEN": "of-other-keys",
        "AWS_CA_BUNDLE": "/no/such/file",
        "PREFECT_API_URL": f"{dead}/api",
        "prefect_api_auth_string": "somebody:else",
        "PREFECT_PROFILES_PATH": "/no/such/profiles.toml",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{abroad}/prefect.db",
        "SSL_CERT_FILE": "/no/such/file",
    }
    spec = home.spec_file(tiny(max_rounds=1, participation={"clients": ["5"]}))

    arguments = ("run", spec, "--name", "alone", "--slots", 1)
    with cold():
        result = home.run(*arguments, timeout=600, environment=environment, folder=abroad)
    assert result.returncode == 0, result.stdout
    assert "model: models:/alone@best" in result.stdout
    assert "restart" not in result.stdout
    records = assert_consistent(home, "alone", 1)
    assert_tracked_once(home, "alone", "FINISHED", records)
    log = (home.path / "runs" / "alone" / "run.log").read_text()
    assert "infra.views" not in log, log  # tracking and plots did not fail

    registry = MlflowClient(f"sqlite:///{home.path / 'mlflow.db'}")
    assert int(registry.get_model_version_by_alias("alone", "best").version) == 1
    assert proxy.asked == []
    assert sorted(path.name for path in abroad.iterdir()) == [".env", "aws.conf", "prefect.toml"]
    home.remove_weights()
