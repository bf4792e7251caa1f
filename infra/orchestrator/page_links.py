"""Addresses on the page of a Prefect server.

The server has two interfaces. Addresses without a prefix open the older one, and those below ``/v2`` the newer one.
"""

from __future__ import annotations

NEWER = "/v2"


def front_page(api_url: str) -> str:
    """Return the URL of the page of the server whose API is at ``api_url`` (``http://HOST:PORT/api``)."""
    return f"{api_url.rstrip('/').removesuffix('/api')}{NEWER}/"


def runs_page(api_url: str) -> str:
    """Return the URL of the list of all flow runs."""
    return f"{front_page(api_url)}runs"


def flow_run_page(api_url: str, flow_run_id: object) -> str:
    """Return the URL of one flow run."""
    return f"{front_page(api_url)}runs/flow-run/{flow_run_id}"
