"""Open Prefect's and MLflow's pages logged in, from a file of the home that only its owner can read.

Prefect's page keeps its auth string in the browser's storage for its own address, which no other page can write. So
the file posts the string to the server, and the server, if the string is right, answers with a page that stores it.
The string is then in no address, no history and no process's arguments, which ``ps`` shows to others.
MLflow's page uses HTTP's basic authentication: the file links to ``http://user:password@host``, which browsers accept
and remember.
"""

from __future__ import annotations

import base64
import hmac
import html
import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

from infra.files.durable import write_durably
from infra.servers.credentials import StackKeys

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

LOGIN_PATH = "/fedbench-login"
MOST_BYTES = 4096  # of a posted form
STORED_AS = "prefect-password"  # key in the browser's storage, of both of Prefect's pages; the value is in base64


def login_path(home: Path, command: str) -> Path:
    """Return the path of the file that ``command`` (``run``, ``ui``, ``up``) writes."""
    return home.absolute() / "services" / f"login-{command}.html"


def how_to_log_in(path: Path) -> str:
    """Return a line that names the file. Its contents must not reach a terminal, whose lines may be kept."""
    return f"log in: open {path.as_uri()} (only you can read it; it also has the passwords)"


def write_login_page(home: Path, command: str, keys: StackKeys, prefect: str | None, mlflow: str | None) -> Path:
    """Write the file (0600).

    It has the credentials as text too, to be pasted: some browsers may not read files in hidden folders.
    prefect, mlflow: URLs of the pages; None: there is none, or it does not ask for our credentials.
    """
    parts = []
    if prefect is not None:
        base = "{0.scheme}://{0.netloc}".format(urlsplit(prefect))
        parts.append(
            f'<form method="post" action="{html.escape(base + LOGIN_PATH)}">'
            f'<input type="hidden" name="auth" value="{html.escape(keys.prefect_auth)}">'
            f'<input type="hidden" name="to" value="{html.escape(prefect.removeprefix(base) or "/")}">'
            "<button>Open Prefect</button></form>"
            f"<p>Prefect asks for: <code>{html.escape(keys.prefect_auth)}</code></p>"
        )
    if mlflow is not None:
        user, _, password = keys.mlflow_auth.partition(":")
        scheme, _, rest = mlflow.partition("://")
        # The page itself cannot be opened like this: a page whose URL has credentials may not send requests. So the
        # link first opens an address that answers one word. The browser remembers the credentials, and the page then
        # opens in the same tab.
        first = f"{scheme}://{quote(user)}:{quote(password)}@{rest.partition('/')[0]}/version"
        then = html.escape(f"setTimeout(() => window.open({_js(mlflow)}, 'mlflow'), 1500)")
        parts.append(
            f'<p><a href="{html.escape(first)}" target="mlflow" onclick="{then}">Open MLflow</a> '
            f'(<a href="{html.escape(mlflow)}" target="mlflow">again</a>)</p>'
            f"<p>MLflow asks for user <code>{user}</code>, password <code>{html.escape(password)}</code></p>"
        )
    path = login_path(home, command)
    text = '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
    write_durably(path, f"{text}<title>fedbench: log in</title></head><body>{''.join(parts)}</body></html>\n")
    return path


async def answer_login(scope: Scope, receive: Receive, send: Send, auth: str) -> None:
    """Answer the file's form with a page that stores the credentials in the browser, or 401 if they are wrong."""
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse

    body = b""
    async for chunk in Request(scope, receive).stream():
        body += chunk
        if len(body) > MOST_BYTES:
            await PlainTextResponse("too long", status_code=413)(scope, receive, send)
            return
    form = parse_qs(body.decode("utf-8", "replace"))
    given, to = form.get("auth", [""])[0], form.get("to", ["/"])[0]
    if not hmac.compare_digest(given.encode(), auth.encode()):
        await PlainTextResponse("Unauthorized", status_code=401)(scope, receive, send)
        return
    if not to.startswith("/") or to.startswith(("//", "/\\")):  # stays at this server
        to = "/"
    token = base64.b64encode(auth.encode()).decode()
    script = f"localStorage.setItem({_js(STORED_AS)}, {_js(token)}); location.replace({_js(to)});"
    page = f"<!doctype html><title>fedbench</title><script>{script}</script>"
    answer = HTMLResponse(page, headers={"Cache-Control": "no-store", "X-Frame-Options": "DENY"})
    await answer(scope, receive, send)


def _js(text: str) -> str:
    """Return a JavaScript string that cannot end the script around it."""
    return json.dumps(text).replace("<", "\\u003c")
