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


def object_page(kind: str, identifier: str) -> str | None:
    """Return the URL of a work pool, deployment or automation; None if Prefect's settings name no server.

    kind: a kind of Prefect's ``url_for`` whose address has two words before ``identifier``.
    """
    from prefect.settings import PREFECT_CLOUD_UI_URL
    from prefect.utilities.urls import url_for

    url = url_for(kind, obj_id=identifier)
    if url is None or url.startswith(str(PREFECT_CLOUD_UI_URL.value())):  # Prefect Cloud has one interface
        return url
    base, *path = url.rsplit("/", 3)
    return "/".join((base.removesuffix(NEWER) + NEWER, *path))
