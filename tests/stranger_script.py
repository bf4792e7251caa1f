"""Try every route of a server and the files of a home, as another user of the machine without credentials.

That user's interpreter runs this text with ``python -I -S -c``, so it needs only the standard library. It reads a JSON
document with the targets from stdin (:class:`strangers.Stranger`), and prints one with all that was not refused.
"""

import base64
import http.client
import json
import os
import re
import socket
import struct
import sys
from pathlib import Path
from typing import Any

FOREIGN = {"Host": "evil.example", "Origin": "http://evil.example"}
WRONG = {"Authorization": "Basic " + base64.b64encode(b"fedbench:wrong").decode()}
TEXT, CLOSE = 1, 8  # opcodes of websocket frames
REFUSED = (401, 403)


def try_routes(port: int, routes: list, public: list, marker: str) -> list:
    """Return the requests that were not refused, except for paths that match a pattern of ``public``.

    marker: text that no answer may contain, not even a public one.
    """
    let_through = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number, (path, methods) in enumerate(routes):
        asked = re.sub(r"\{[^}]*\}|<[^>]*>", "00000000-0000-0000-0000-000000000000", path)
        guesses = [WRONG] if number % 100 == 0 else []  # rare, because the server hashes each password slowly
        for method in methods:
            for headers in ({}, FOREIGN, *guesses):
                body = None if method in ("GET", "HEAD") else "{}"
                sent = {**headers, **({} if body is None else {"Content-Type": "application/json"})}
                connection.request(method, asked, body, sent)
                answer = connection.getresponse()
                text = answer.read().decode(errors="replace")
                allowed = answer.getheader("Access-Control-Allow-Origin")
                is_public = any(re.fullmatch(pattern, path) for pattern in public)
                if not (answer.status in REFUSED or is_public) or marker in text or allowed in ("*", FOREIGN["Origin"]):
                    let_through.append([method, asked, headers, answer.status, allowed, text[:100]])
    connection.close()
    return let_through


def try_sockets(port: int, paths: list) -> list:
    """Return the websockets that were neither refused nor closed before they sent anything."""
    let_through = []
    for path in paths:
        asked = re.sub(r"\{[^}]*\}", "x", path)
        messages = ({"type": "auth", "token": "fedbench:wrong"}, {"type": "auth", "token": None}, {"type": "hello"})
        cases = [(headers, message) for headers in ({}, FOREIGN) for message in messages]
        for headers, message in cases:
            for subprotocol in (True, False):
                found = knock(port, asked, headers, message, subprotocol)
                if not (found in REFUSED or found == CLOSE) or (headers and found == CLOSE):
                    let_through.append([asked, headers, message, subprotocol, found])
    return let_through


def knock(port: int, path: str, headers: dict, message: dict, subprotocol: bool) -> int:
    """Return the status that refuses the websocket, or the opcode of the first frame after ``message`` was sent."""
    lines = [f"GET {path} HTTP/1.1", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    lines += [f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}"]
    lines += ["Sec-WebSocket-Protocol: prefect"] if subprotocol else []
    lines += [f"{name}: {value}" for name, value in {"Host": f"127.0.0.1:{port}", **headers}.items()]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        stream = connection.makefile("rb")
        status = int(stream.readline().split()[1])
        while stream.readline().strip():
            pass
        if status != 101:
            return status
        payload = json.dumps(message).encode()
        mask = bytes(4)  # a client must mask its frames; zeros leave the payload as it is
        connection.sendall(struct.pack("!BB", 0x80 | TEXT, 0x80 | len(payload)) + mask + payload)
        first = stream.read(1)
        return first[0] & 0x0F if first else CLOSE


def try_files(home: str) -> list:
    """Return the files and folders of ``home`` that this user can list, read or write.

    The parent of ``home`` must be readable, otherwise the attempts prove nothing.
    """
    os.listdir(Path(home).parent)
    let_through = []
    for path in (home, *(f"{home}/{name}" for name in ("services", "s3", "prefect", "logs"))):
        for attempt in (os.listdir, lambda path: Path(path, "planted").touch()):
            try:
                attempt(path)
            except PermissionError:
                continue
            let_through.append(path)
    for name in ("services/stack-keys.json", "services/login.html", "mlflow.db", "prefect/prefect.db"):
        try:
            Path(home, name).read_bytes()
        except PermissionError:
            continue
        let_through.append(name)
    return let_through


if __name__ == "__main__":
    task = json.load(sys.stdin)
    result: dict[str, Any] = {"uid": os.getuid()}
    for name, server in task["servers"].items():
        result[name] = try_routes(server["port"], server["routes"], server["public"], task["marker"])
        result[f"{name} sockets"] = try_sockets(server["port"], server["sockets"])
    if task["home"] is not None:
        result["home"] = try_files(task["home"])
    print(json.dumps(result))
