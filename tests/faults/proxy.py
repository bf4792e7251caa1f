"""An HTTP proxy in front of an S3 server that disturbs chosen requests as failing networks and stores do.

It serves a connection's requests one after the other and reads whole bodies, as the objects of these runs are small. It
keeps the Host header that the client signed, so the store accepts the signature.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from .requests import Request, name_request

UNAVAILABLE = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ServiceUnavailable</Code>'
    b"<Message>a fault of the test</Message></Error>"
)
# The answer of rclone when its disk is full.
NO_SPACE = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>InternalError</Code>'
    b"<Message>write: no space left on device</Message></Error>"
)
# What the proxy can do to a request and its answer; see Proxy._one.
ACTIONS = ("503", "reset", "lost-answer", "short-answer", "short-upload", "cut-upload", "flipped-answer", "no-space")


@dataclass
class Plan:
    """Which requests a fault hits: ``count`` of those with ``method`` and ``kind``, from the ``nth`` (0, 1, …) on.

    kind: a name of :func:`name_request`; "*": any request.
    seconds: hit every request for this long after the first hit; 0: only those with ``method`` and ``kind``.
    place: where a body is cut or flipped, from 0 to 1.
    """

    action: str
    method: str
    kind: str
    nth: int
    count: int = 1
    seconds: float = 0.0
    place: float = 0.5
    seen: int = 0
    hits: list[str] = field(default_factory=list)
    until: float = 0.0

    def takes(self, request: Request) -> bool:
        """Count the request. Return whether the fault hits it."""
        if self.seconds and time.monotonic() < self.until:
            return True
        if self.kind != "*" and (request.method, request.kind) != (self.method, self.kind):
            return False
        self.seen += 1
        if not self.nth < self.seen <= self.nth + self.count:
            return False
        if self.seconds and not self.until:
            self.until = time.monotonic() + self.seconds
        return True


class Proxy:
    """A proxy on a free port of loopback, in a thread of its own. ``target``: (host, port) of the store."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.requests: list[Request] = []
        self.plan: Plan | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fault-proxy", daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def faulty(self, plan: Plan) -> Iterator[Plan]:
        """Apply ``plan`` to the requests that arrive during the block."""
        self.requests, self.plan = [], plan
        try:
            yield plan
        finally:
            self.plan = None

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._closed = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, sock=self._listener, limit=2**20)
        self._ready.set()
        await self._closed.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request. Return whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, headers = _parsed(head)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(reader, headers)
        request = name_request(method, path)
        self.requests.append(request)
        plan = self.plan
        action = plan.action if plan is not None and plan.takes(request) else None
        if action == "no-space" and method not in ("PUT", "POST"):
            action = None
        place = 0.5 if plan is None else plan.place
        if action in ("short-upload", "cut-upload") and not body:
            action = "reset"
        done = action
        try:
            if action == "503":
                writer.write(_answer("503 Service Unavailable", UNAVAILABLE, method))
                return True
            if action == "no-space":
                writer.write(_answer("500 Internal Server Error", NO_SPACE, method))
                return True
            if action == "reset":
                return _reset(writer)
            sent = body[: int(len(body) * place)] if action in ("short-upload", "cut-upload") else body
            named = len(sent) if action == "short-upload" else len(body)
            answer = await self._forward(head, sent, named)
            if action in ("lost-answer", "cut-upload") or not answer:
                return _reset(writer)
            if action in ("short-answer", "flipped-answer"):
                start = answer.index(b"\r\n\r\n") + 4
                size = len(answer) - start
                if action == "short-answer":
                    writer.write(answer[: start + int(size * place)] if size else answer[: start // 2])
                    await writer.drain()
                    return False
                if size:
                    at = start + min(int(size * place), size - 1)
                    bit = 1 << int(place * 8191) % 8
                    answer = answer[:at] + bytes([answer[at] ^ bit]) + answer[at + 1 :]
                else:
                    done = None  # the answer has no body to flip
            writer.write(answer)
            await writer.drain()
            return True
        finally:
            if plan is not None and done is not None:
                plan.hits.append(f"{method} {request.key or request.kind}")

    async def _forward(self, head: bytes, body: bytes, named: int) -> bytes:
        """Send a request to the store. Return its answer, head and body; empty if the store closed the connection.

        named: the Content-Length to send, which may be more than the length of ``body``.
        """
        reader, writer = await asyncio.open_connection(*self.target, limit=2**20)
        lines = head.split(b"\r\n")
        kept = [
            line
            for line in lines[1:-2]
            if line.split(b":")[0].lower() not in (b"expect", b"connection", b"content-length", b"transfer-encoding")
        ]
        method = lines[0].split(b" ")[0].decode()
        if body or named or method in ("PUT", "POST"):
            kept.append(b"Content-Length: %d" % named)
        try:
            writer.write(b"\r\n".join([lines[0], *kept, b"Connection: close", b"", b""]) + body)
            await writer.drain()
            if len(body) < named:
                return b""
            answer = await reader.readuntil(b"\r\n\r\n")
            status = int(answer.split(b" ", 2)[1])
            _, _, headers = _parsed(answer)
            if method == "HEAD" or status in (204, 304):
                content = b""
            elif "content-length" in headers or "transfer-encoding" in headers:
                content = await _body(reader, headers)
            else:
                content = await reader.read()
            return _with_length(answer, content, keep=method == "HEAD") + content
        except (OSError, EOFError):
            return b""
        finally:
            writer.close()


def _parsed(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, *_ = first.split(" ")
    pairs = (line.partition(":") for line in lines if ":" in line)
    return method, path, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    while (await reader.readline()).strip():
        pass
    return b"".join(parts)


def _with_length(head: bytes, content: bytes, *, keep: bool) -> bytes:
    """Return the head of an answer with the length of ``content``. keep: leave its Content-Length, as for HEAD."""
    dropped = [b"connection", b"transfer-encoding", *([] if keep else [b"content-length"])]
    lines = [line for line in head.split(b"\r\n")[:-2] if line.split(b":")[0].lower() not in dropped]
    return b"\r\n".join([*lines, *([] if keep else [b"Content-Length: %d" % len(content)]), b"", b""])


def _answer(status: str, body: bytes, method: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head if method == "HEAD" else head + body


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Break the connection with a TCP reset."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False
