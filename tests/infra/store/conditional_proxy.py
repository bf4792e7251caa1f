"""A store that honours conditional writes: a real HTTP proxy before a real rclone, which does not.

It remembers the ETags of objects written through it, and handles one request at a time. ``only`` names the
conditions that it honours. With ``writes_refused`` it writes what it refuses, like the worst of stores.
"""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

BOTH = ("If-None-Match", "If-Match")


class ConditionalProxy:
    """A context manager that runs the proxy. ``address`` is its endpoint."""

    def __init__(self, upstream: str, only: Collection[str] = BOTH, *, writes_refused: bool = False) -> None:
        proxy, where = self, urlsplit(upstream).netloc
        self.refused = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and body are two writes

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with proxy.one_at_a_time:
                    status, headers, content = proxy.answer(where, self.command, self.path, dict(self.headers), body)
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = dict((name.lower(), value) for name, value in headers).get("content-length", "0")
                self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def __getattr__(self, name: str) -> object:
                if name.startswith("do_"):  # any HTTP method
                    return self.handle_any
                raise AttributeError(name)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.one_at_a_time = threading.Lock()
        self.tags: dict[str, str] = {}
        self.only, self.writes_refused = only, writes_refused
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(
        self, where: str, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        key = unquote(urlsplit(path).path)
        absent, same = headers.get("If-None-Match"), headers.get("If-Match")
        refused = method == "PUT" and (
            ("If-None-Match" in self.only and absent == "*" and key in self.tags)
            or ("If-Match" in self.only and same is not None and self.tags.get(key) != same)
        )
        if refused:
            self.refused += 1
            if not self.writes_refused:
                return 412, [("Content-Type", "application/xml")], REFUSAL
        upstream = http.client.HTTPConnection(where, timeout=30)
        upstream.request(method, path, body, {k: v for k, v in headers.items() if k.lower() != "expect"})
        answer = upstream.getresponse()
        content, found = answer.read(), answer.getheaders()
        upstream.close()
        if method == "PUT" and answer.status == 200:
            self.tags[key] = dict(found).get("ETag", dict(found).get("Etag", ""))
        elif method == "DELETE":
            self.tags.pop(key, None)
        elif method == "POST" and b"<Delete" in body:
            for name in re.findall(rb"<Key>([^<]+)</Key>", body):
                self.tags.pop(f"{key.rstrip('/')}/{name.decode()}", None)
        elif method in ("GET", "HEAD") and key in self.tags:
            found = [(name, value) for name, value in found if name.lower() != "etag"] + [("ETag", self.tags[key])]
        return (412, [("Content-Type", "application/xml")], REFUSAL) if refused else (answer.status, found, content)

    def __enter__(self) -> ConditionalProxy:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


REFUSAL = b'<?xml version="1.0"?><Error><Code>PreconditionFailed</Code><Message>no</Message></Error>'
