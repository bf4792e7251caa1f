"""The gate in front of Prefect's server: without credentials it lets through only the page's files and health checks.

Prefect's own check (``PREFECT_SERVER_API_AUTH_STRING``) covers its API application only. The application around it
sends anybody the description of all routes (``/openapi.json``, ``/docs``, ``/redoc``), and a route that a later version
adds there would be open too. The gate stands in front of every route, and closes those that it does not know.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import TYPE_CHECKING

from infra.servers.credentials import basic_auth
from infra.servers.login_page import LOGIN_PATH, answer_login

if TYPE_CHECKING:
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

# Health probes, and the addresses that Prefect's page reads before the login. They have no data of a run.
OPEN_PATHS = frozenset({"/api/health", "/api/ready", "/ui-settings"})
API = "/api"
READS = ("GET", "HEAD")


class PrefectGate:
    """ASGI middleware. ``auth``: ``user:password``; ``origins``: pages from which a browser may open websockets.

    HTTP: 401 without the credentials, except for reads of the open paths and of the page's files.
    Websockets: 403 for a foreign page. Prefect itself expects the credentials as the first message, because a browser
    cannot send them as a header, and closes the socket (1008) without them.
    """

    def __init__(self, app: ASGIApp, *, auth: str, origins: frozenset[str], closed: tuple[BaseRoute, ...]) -> None:
        """closed: routes outside the API that need credentials: all but the page's files."""
        self.app = app
        self._auth = auth
        self._header = basic_auth(auth)["Authorization"].encode()
        self._origins = origins
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            if self._is_foreign(scope):
                await send({"type": "websocket.close", "code": 1008})
                return
        elif scope["type"] == "http":
            if scope["path"] == LOGIN_PATH and scope["method"] == "POST":
                await answer_login(scope, receive, send, self._auth)
                return
            if not (self._is_open(scope) or self._has_credentials(scope)):
                await _refuse(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        from starlette.routing import Match

        path = scope["path"]
        if scope["method"] not in READS:
            return False
        if path in OPEN_PATHS:
            return True
        if path == API or path.startswith(f"{API}/"):
            return False
        return not any(route.matches(scope)[0] is not Match.NONE for route in self._closed)

    def _has_credentials(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._header)

    def _is_foreign(self, scope: Scope) -> bool:
        """Whether a page of another origin opens the websocket. Browsers always send it, other clients do not."""
        return any(
            name == b"origin" and value.decode("latin-1") not in self._origins for name, value in scope["headers"]
        )


def routes_to_close(routes: list[BaseRoute]) -> Iterator[BaseRoute]:
    """Yield the routes of the application and of its page, except the page's files and the open paths."""
    from starlette.routing import Mount, Route

    for route in routes:
        if isinstance(route, Mount) and route.path != API:
            yield from routes_to_close(list(route.routes))
        elif isinstance(route, Route) and route.path not in OPEN_PATHS:
            yield route


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    from starlette.responses import JSONResponse

    # No WWW-Authenticate: a browser would open its own dialog over the page's.
    await JSONResponse({"exception_message": "Unauthorized"}, status_code=401)(scope, receive, send)
