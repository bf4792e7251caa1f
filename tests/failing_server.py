"""A real HTTP server that answers every request with 500, in this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Fail(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b'{"error_code": "INTERNAL_ERROR", "message": "the database is gone"}'
        self.send_response(500)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def failing_server() -> Iterator[str]:
    """Run the server during the block. Yield its address, ``http://127.0.0.1:PORT``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Fail) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
