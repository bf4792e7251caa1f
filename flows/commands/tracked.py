"""MLflow's page that draws federations side by side by round."""

from __future__ import annotations

from collections.abc import Sequence

from flows.views.mlflow_figures import SECTION
from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from tasks.spec.federation import MapName


def comparison_page(
    settings: Settings, names: Sequence[str], metric: MapName, *, base: str | None = None, tracking: str | None = None
) -> str | None:
    """Return MLflow's page with ``metric`` by round, one curve for each of the federations ``names``.

    base: the server of the page; None: the one that settings or a running stack name. tracking: where the runs are
    read; None: likewise. Returns None if there is no server, or less than two runs.

    Raises:
        TrackingUnavailable: the server does not answer.
    """
    from infra.tracking.metric_page import find_metric_page

    if tracking is None:
        services = EmbeddedServices(settings, prefect=False)
        if services.uses_stack:
            services.start_store()  # finds the stack's store, whose address the stack's MLflow server needs
        tracking = services.mlflow_tracking_uri
    base = base or tracking
    if not base.startswith("http"):
        return None
    # Runs of older versions have only the second.
    metrics = [f"{SECTION}/{metric}", f"global/{metric}"]
    return find_metric_page(tracking, settings.mlflow_experiment, names, metrics, base)
