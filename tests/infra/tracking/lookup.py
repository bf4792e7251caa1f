"""Look up runs and model versions in MLflow."""

from __future__ import annotations

from infra.tracking.client import client_at
from infra.tracking.federation import find_page
from infra.tracking.registry import ALIAS


def find_run(uri: str, experiment: str, federation: str) -> str | None:
    """Return the id of the federation's MLflow run, by its page; None when there is none."""
    page = find_page(uri, experiment, federation, "http://mlflow")
    return None if page is None else page.partition("?")[0].rpartition("/")[2]


def best_version(uri: str, name: str) -> str | None:
    """Return the version that the alias ``best`` names in the registry at ``uri``; None where there is none."""
    found = client_at(uri).search_registered_models(f"name = '{name}'")
    return str(found[0].aliases[ALIAS]) if found and ALIAS in found[0].aliases else None
