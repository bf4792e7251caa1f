"""``ca_file`` reaches the clients of Prefect, MLflow and the store, and each names it when it refuses a certificate."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.environment.certificates import MLFLOW, PREFECT, STORE, refused_certificate, require_trusted, trust
from infra.errors import SettingsError, TrackingUnavailable
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.stack.own_environment import use_own_environment
from infra.store.objects import ObjectStore
from tests.authority import Authority

UNKNOWN = r"the certificate of https://localhost:\d+ is refused: unable to get local issuer certificate; ca_file "


class NoContent(BaseHTTPRequestHandler):
    """Answers every request with 404 and an empty body."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 (names of http.server)

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def port(authority: Authority) -> Iterator[int]:
    """Return the port of a server whose certificate names localhost."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), NoContent)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("localhost"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the variables of certificates and proxies, and restore the environment afterwards."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name in (PREFECT, MLFLOW, STORE, "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") or name.lower().endswith("_proxy"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def over_tls(home: Path, port: int, ca_file: Path | None = None) -> Settings:
    url = f"https://localhost:{port}"
    store = S3Settings(endpoint=url, access_key=SecretStr("a"), secret_key=SecretStr("b"))
    return Settings(home=home, prefect_api_url=f"{url}/api", mlflow_tracking_uri=url, s3=store, ca_file=ca_file)


def test_the_setting_wins_over_the_clients_variables(authority: Authority, tmp_path: Path) -> None:
    os.environ[STORE] = str(Authority(tmp_path).file)  # such as the machine's own
    use_own_environment(over_tls(tmp_path, 1, authority.file))
    assert {os.environ[name] for name in (PREFECT, MLFLOW, STORE)} == {str(authority.file)}
    without: dict[str, str] = {}
    trust(without, None)
    assert without == {}


def test_a_file_without_certificates_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no certificate")
    for path, fault in (
        (text, "a file without certificates"),
        (tmp_path, "a folder"),
        (tmp_path / "x", "no such file"),
    ):
        with pytest.raises(SettingsError) as found:
            use_own_environment(Settings(home=tmp_path, ca_file=path))
        assert str(found.value) == f"ca_file: expected a file of certificates (PEM), found {fault}: {path}"


def test_a_server_is_trusted_by_its_authority_and_name(authority: Authority, port: int, tmp_path: Path) -> None:
    url = f"https://localhost:{port}/api"
    require_trusted(url, PREFECT, {PREFECT: str(authority.file)})
    with pytest.raises(SettingsError, match=UNKNOWN):
        require_trusted(url, PREFECT, {})
    with pytest.raises(SettingsError, match=UNKNOWN):
        require_trusted(url, PREFECT, {PREFECT: str(Authority(tmp_path, "another").file)})
    with pytest.raises(SettingsError, match=r"not valid for '127.0.0.1'; expected a valid certificate that names"):
        require_trusted(f"https://127.0.0.1:{port}", PREFECT, {PREFECT: str(authority.file)})
    for other in (None, f"http://localhost:{port}", "https://localhost:9", "sqlite:///x.db"):
        require_trusted(other, PREFECT, {})


def test_the_store_names_the_setting_and_takes_the_file(authority: Authority, port: int, tmp_path: Path) -> None:
    settings = over_tls(tmp_path, port)
    use_own_environment(settings)
    with pytest.raises(SettingsError, match=f"s3: {UNKNOWN}.*AWS_CA_BUNDLE.*found none, so the public authorities"):
        ObjectStore(settings.s3).get_bytes("key")
    use_own_environment(over_tls(tmp_path, port, authority.file))
    assert not ObjectStore(settings.s3).exists("key")  # the server answers 404


def test_mlflow_names_the_setting_and_takes_the_file(authority: Authority, port: int, tmp_path: Path) -> None:
    from infra.tracking.client import answering

    settings = over_tls(tmp_path, port)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    use_own_environment(settings)
    with (
        pytest.raises(TrackingUnavailable, match=f"MLflow: {UNKNOWN}.*MLFLOW_TRACKING_SERVER_CERT_PATH"),
        answering(str(settings.mlflow_tracking_uri)) as client,
    ):
        client.get_experiment("1")
    use_own_environment(over_tls(tmp_path, port, authority.file))
    with (
        pytest.raises(TrackingUnavailable, match="404"),
        answering(str(settings.mlflow_tracking_uri)) as client,
    ):
        client.get_experiment("1")


def test_prefect_names_the_setting_and_takes_the_file(authority: Authority, port: int, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_SSL_CERT_FILE, temporary_settings

    from infra.errors import PrefectUnavailable
    from infra.stack.prefect_api import prefect_api

    async def ask() -> None:
        async with get_client() as client:
            await client.read_work_pools()

    settings = over_tls(tmp_path, port)
    with pytest.raises(SettingsError, match=f"Prefect: {UNKNOWN}.*PREFECT_API_SSL_CERT_FILE"), prefect_api(settings):
        asyncio.run(ask())
    with (
        temporary_settings({PREFECT_API_SSL_CERT_FILE: str(authority.file)}),
        pytest.raises((PrefectUnavailable, PrefectHTTPStatusError), match="404"),
        prefect_api(settings),
    ):
        asyncio.run(ask())


def test_other_errors_are_not_of_the_certificate() -> None:
    assert refused_certificate(None, "https://x", STORE) is None
    assert refused_certificate(OSError("connection refused"), "https://x", STORE) is None
    cause = ssl.SSLCertVerificationError("certificate verify failed: certificate has expired (_ssl.c:1006)")
    words = refused_certificate(cause, "https://user:secret@x:1/path", STORE)
    assert words is not None
    assert words.startswith("the certificate of https://x:1 is refused: certificate has expired; ")
