"""A wrong clock: errors that name it when a store refuses for the time, over HTTP and TLS."""

from __future__ import annotations

import datetime
import ssl
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from flows.coordinator.restarts import Restarts
from infra.errors import ClockWrong, StoreRefused
from infra.settings_groups import S3Settings
from infra.store.clock import clock_behind, clock_words, difference, server_date
from infra.store.objects import ObjectStore

HOURS = 3600.0
SKEWED = (
    b'<?xml version="1.0"?><Error><Code>RequestTimeTooSkewed</Code>'
    b"<Message>The difference between the request time and the server's time is too large.</Message></Error>"
)
DENIED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>'


class Answer(BaseHTTPRequestHandler):
    """A server that refuses every request with ``body`` (without it for HEAD). Its clock is ``ahead`` seconds ahead."""

    body = SKEWED
    ahead = 0.0
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response_only(403)
        self.send_header("Date", formatdate(time.time() + self.ahead, usegmt=True))
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.body)

    do_HEAD = do_PUT = do_GET  # noqa: N815 (http.server's names)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[tuple[ThreadingHTTPServer, type[Answer]]]:
    answer = type("AnswerOfOneTest", (Answer,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), answer) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield http, answer
        http.shutdown()
        thread.join()


def store(url: str) -> ObjectStore:
    keys = {"access_key": SecretStr("key"), "secret_key": SecretStr("secret")}
    return ObjectStore(S3Settings(endpoint=url, **keys))


@pytest.mark.parametrize("body", [SKEWED, DENIED], ids=["by code", "by date alone"])
@pytest.mark.parametrize(("ahead", "words"), [(2 * HOURS, "2 h 0 min behind"), (-2 * HOURS, "2 h 0 min ahead of")])
def test_a_refusal_for_a_wrong_clock_names_the_difference(
    server: tuple[ThreadingHTTPServer, type[Answer]], body: bytes, ahead: float, words: str
) -> None:
    http, answer = server
    answer.ahead, answer.body = ahead, body
    objects = store(f"http://127.0.0.1:{http.server_port}")
    for request in (objects.ensure_bucket, lambda: objects.put_bytes("key", b"x"), lambda: objects.get_bytes("key")):
        with pytest.raises(
            ClockWrong, match=rf"this machine's clock is {words} that of bucket fedbench at http"
        ) as raised:
            request()
        assert not Restarts().allow(raised.value)
    assert answer.asked == 3  # not asked again: the clock stays wrong


def test_a_refusal_with_right_clocks_is_about_the_credentials(
    server: tuple[ThreadingHTTPServer, type[Answer]],
) -> None:
    http, answer = server
    answer.body = DENIED
    with pytest.raises(StoreRefused, match="expected credentials"):
        store(f"http://127.0.0.1:{http.server_port}").get_bytes("key")


@pytest.mark.parametrize(
    ("ahead", "valid_from", "words"),
    [
        (30 * 24 * HOURS, 29, "this machine's clock is 30 d 0 h behind that of bucket"),
        (0.0, 29, "certificate is not yet valid"),
    ],
    ids=["the clock", "the certificate"],
)
def test_a_certificate_not_valid_at_our_time_is_reported_as_a_wrong_clock(
    server: tuple[ThreadingHTTPServer, type[Answer]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ahead: float,
    valid_from: int,
    words: str,
) -> None:
    http, answer = server
    answer.ahead = ahead
    pem = certificate(tmp_path / "server.pem", days=valid_from)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(pem))
    url = f"https://localhost:{http.server_port}"
    with pytest.raises(ClockWrong, match=words):
        store(url).get_bytes("key")
    with pytest.raises(httpx.ConnectError) as by_prefects_client:
        httpx.get(url, verify=ssl.create_default_context(cafile=str(pem)))
    assert not Restarts().allow(by_prefects_client.value)
    assert ("clock" in (clock_behind(by_prefects_client.value, url) or "")) == (ahead > 0)


def certificate(path: Path, *, days: int) -> Path:
    """Write a certificate of ``localhost``, valid from ``days`` days from now on, with its key."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
    )
    begin = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


def test_dates_and_words() -> None:
    noon = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC).timestamp()
    assert difference("Sat, 28 Nov 2026 10:00:00 GMT", noon) == 2 * HOURS
    assert difference("Sat, 28 Nov 2026 10:00:00 -0000", noon) == 2 * HOURS
    assert difference("yesterday", noon) is None
    assert difference(None) is None
    assert clock_words(200.0) is None
    assert clock_words(None) is None
    assert clock_words(600.0) == "this machine's clock is 10 min ahead of"
    assert clock_words(-26.5 * HOURS) == "this machine's clock is 1 d 2 h behind"


def test_a_server_that_does_not_answer_has_no_date() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as gone:
        url = f"http://127.0.0.1:{gone.server_port}"
    assert server_date(url) is None
