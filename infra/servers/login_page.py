"""Open Prefect's and MLflow's pages logged in, from files of the home that only its owner can read.

Prefect's page keeps its auth string in the browser's storage for its own address, which no other page can write. So
the file posts the string to the server, and the server, if the string is right, answers with a page that stores it.
The string is then in no address, no history and no process's arguments, which ``ps`` shows to others.
MLflow's page uses HTTP's basic authentication: the file links to ``http://user:password@host``, which browsers accept
and remember. A page whose own URL has credentials may not send requests, so the server answers with the address of the
page without them (:mod:`infra.servers.mlflow_gate`).
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
from infra.servers.credentials import USER, StackKeys

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

LOGIN_PATH = "/fedbench-login"  # of Prefect's server and of MLflow's
MOST_BYTES = 4096  # of a posted form
STORED_AS = "prefect-password"  # key in the browser's storage, of both of Prefect's pages; the value is in base64
MLFLOW_FRONT = "/#/experiments?workflowType=machine_learning"

_HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="referrer" content="no-referrer">'

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:3rem auto;max-width:40rem;padding:0 1rem;color:#1f2430}"
    "form,p,details{margin:.4rem 0}"
    "button,.button{box-sizing:border-box;display:inline-block;font:inherit;min-width:12rem;padding:.5rem 1rem;"
    "text-align:center;border:0;border-radius:.4rem;background:#2a5bd7;color:#fff;cursor:pointer;text-decoration:none}"
    ".address,summary{color:#5b6270;font-size:.9rem}.address{margin-top:0}details{margin-bottom:1.6rem}"
    "code{overflow-wrap:anywhere}"
)


def login_path(home: Path, command: str) -> Path:
    """Return the path of the file that ``command`` (``run``, ``ui``, ``up``) writes."""
    return home.absolute() / "services" / f"login-{command}.html"


def how_to_log_in(path: Path) -> str:
    """Return a line that names the file. Its contents must not reach a terminal, whose lines may be kept."""
    return f"log in: open {path.as_uri()} (only you can read it; it also has the passwords)"


def what_pages_ask(show_login: str) -> str:
    """Return a line that says what each page asks for. ``show_login``: what prints the passwords."""
    return (
        f"by hand: Prefect's one field takes the whole string {USER}:…, MLflow the user {USER} and its password; "
        f"{show_login} prints them"
    )


def credentials_lines(keys: StackKeys) -> list[str]:
    """Return lines with the credentials, for a person who has asked for them."""
    user, _, password = keys.mlflow_auth.partition(":")
    return [f"Prefect asks for: {keys.prefect_auth}", f"MLflow asks for: user {user}, password {password}"]


def write_login_page(home: Path, command: str, keys: StackKeys, prefect: str | None, mlflow: str | None) -> Path:
    """Write the file (0600).

    It has the credentials as text too, to be pasted: some browsers may not read files in hidden folders.
    prefect, mlflow: URLs of the pages; None: there is none, or it does not ask for our credentials.
    """
    parts = [
        f"<style>{_STYLE}</style><h1>fedbench: log in</h1>",
        f"<p>The servers of <code>{html.escape(str(home.absolute()))}</code></p>",
    ]
    if prefect is not None and mlflow is not None:
        # One click may open one tab, so Prefect's page opens in this one.
        opened = html.escape(
            f"window.open({_js(_mlflow_login(keys, mlflow))}, 'mlflow'); document.forms[0].target = '_self'; "
            "document.forms[0].submit()"
        )
        parts.append(f'<p><button onclick="{opened}">Open both</button></p>')
    if prefect is not None:
        parts.append(
            f"{_prefect_form(keys, prefect, '<button>Open Prefect</button>')}{_shown_address(prefect)}"
            + _hidden(f"Prefect asks for one string: <code>{html.escape(keys.prefect_auth)}</code>")
        )
    if mlflow is not None:
        user, _, password = keys.mlflow_auth.partition(":")
        login = html.escape(_mlflow_login(keys, mlflow))
        parts.append(
            f'<p><a class="button" href="{login}" target="mlflow">Open MLflow</a></p>'
            + _shown_address(mlflow)
            + _hidden(
                f"MLflow asks for the user <code>{html.escape(user)}</code> and the password "
                f"<code>{html.escape(password)}</code>"
            )
        )
    return _write(login_path(home, command), "".join(parts))


def _shown_address(page: str) -> str:
    """Return a line with scheme, host and port of the page."""
    return f"<p class=address>{html.escape(_server_of(page))}</p>"


def _server_of(page: str) -> str:
    return "{0.scheme}://{0.netloc}".format(urlsplit(page))


def _hidden(credentials: str) -> str:
    """Return a line that a click shows, so that nobody who looks at the screen reads it."""
    return f"<details><summary>to log in by hand</summary><p>{credentials}</p></details>"


def write_openers(home: Path, keys: StackKeys, prefect: str | None, mlflow: str | None) -> list[Path]:
    """Write files (0600) that log in without a click when a browser opens them, one for each page."""
    paths = []
    if prefect is not None:
        form = _prefect_form(keys, prefect, "")
        paths.append(_write(login_path(home, "prefect"), f"{form}<script>document.forms[0].submit()</script>"))
    if mlflow is not None:
        script = f"<script>location.replace({_js(_mlflow_login(keys, mlflow))})</script>"
        paths.append(_write(login_path(home, "mlflow"), script))
    return paths


def _write(path: Path, body: str) -> Path:
    write_durably(path, f"{_HEAD}<title>fedbench: log in</title></head><body>{body}</body></html>\n")
    return path


def _prefect_form(keys: StackKeys, page: str, button: str) -> str:
    base = _server_of(page)
    return (
        f'<form method="post" action="{html.escape(base + LOGIN_PATH)}">'
        f'<input type="hidden" name="auth" value="{html.escape(keys.prefect_auth)}">'
        f'<input type="hidden" name="to" value="{html.escape(page.removeprefix(base) or "/")}">'
        f"{button}</form>"
    )


def _mlflow_login(keys: StackKeys, page: str) -> str:
    """Return the URL that logs in at MLflow's server and goes on to ``page``."""
    user, _, password = keys.mlflow_auth.partition(":")
    scheme, _, rest = page.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{quote(user)}:{quote(password)}@{host}{LOGIN_PATH}?to={quote(slash + path or '/', safe='')}"


def stays_here(address: str) -> str:
    """Return ``address`` if it is a path of the server that sends it; otherwise the path of its front page."""
    is_path = address.startswith("/") and not address.startswith(("//", "/\\"))
    return address if is_path and address.isprintable() else "/"


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
    given, to = form.get("auth", [""])[0], stays_here(form.get("to", ["/"])[0])
    if not hmac.compare_digest(given.encode(), auth.encode()):
        await PlainTextResponse("Unauthorized", status_code=401)(scope, receive, send)
        return
    token = base64.b64encode(auth.encode()).decode()
    script = f"localStorage.setItem({_js(STORED_AS)}, {_js(token)}); location.replace({_js(to)});"
    page = f"<!doctype html><title>fedbench</title><script>{script}</script>"
    answer = HTMLResponse(page, headers={"Cache-Control": "no-store", "X-Frame-Options": "DENY"})
    await answer(scope, receive, send)


def _js(text: str) -> str:
    """Return a JavaScript string that cannot end the script around it."""
    return json.dumps(text).replace("<", "\\u003c")
