"""Addresses on Prefect's page: its newer interface, whose routes the installed package has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from infra.orchestrator.page_links import object_page

API = {PREFECT_API_URL: "http://127.0.0.1:4200/api"}
ROUTES = {
    "deployment": ("deployments/deployment/", "$id"),
    "work-pool": ("work-pools/work-pool/", "$workPoolName"),
    "automation": ("automations/automation/", "$id"),
}


@pytest.mark.parametrize("kind", ROUTES)
def test_links_open_a_page_that_the_newer_interface_has(kind: str) -> None:
    path, field = ROUTES[kind]
    with temporary_settings(API):
        assert object_page(kind, "x1") == f"http://127.0.0.1:4200/v2/{path}x1"
    assets = Path(prefect.__file__).parent / "server" / "ui_v2_build" / "assets"
    assert any(f"/{path}{field}`" in file.read_text() for file in assets.glob("*.js"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({**API, PREFECT_UI_URL: "https://h/p"}, "https://h/p/v2/deployments/deployment/x1"),
        ({**API, PREFECT_UI_URL: "https://h/p/v2"}, "https://h/p/v2/deployments/deployment/x1"),
        (
            {
                PREFECT_API_URL: "https://api.prefect.cloud/api/accounts/a/workspaces/w",
                PREFECT_UI_URL: "https://app.prefect.cloud/account/a/workspace/w",
            },
            "https://app.prefect.cloud/account/a/workspace/w/deployments/deployment/x1",
        ),
    ],
)
def test_the_settings_of_prefects_page_count(settings: dict[Any, str], expected: str) -> None:
    with temporary_settings(settings):
        assert object_page("deployment", "x1") == expected
