"""Prefect's API as plain JSON over HTTP, for processes that must not or need not import Prefect."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from infra.environment.proxies import is_direct

TIMEOUT_SECONDS = 30.0
PAGE = 200  # the most objects in one answer of the server


class PrefectJson:
    """A client of the API at ``address`` (``http://…/api``), which sends ``headers`` with each request.

    All methods raise OSError if the server does not answer, or refuses the request.
    """

    def __init__(self, address: str, headers: Mapping[str, str], *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._address = address
        self._headers = {"Content-Type": "application/json", **headers}
        self._timeout = timeout
        # A server on another machine may be reachable only through a proxy.
        proxies = [urllib.request.ProxyHandler({})] if is_direct(address) else []
        self._opener = urllib.request.build_opener(*proxies)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the answer; None if the answer is empty."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._address}{path}", content, self._headers, method=method)
        with self._opener.open(request, timeout=self._timeout) as answer:
            return json.loads(answer.read() or "null")

    def all(self, kind: str, **filters: Any) -> Iterator[dict[str, Any]]:
        """Yield all objects of a kind (as ``flow_runs``) that match the filters, up to 100 pages."""
        for number in range(0, 100 * PAGE, PAGE):
            page = self.ask("POST", f"/{kind}/filter", {**filters, "limit": PAGE, "offset": number})
            yield from page
            if len(page) < PAGE:
                return
