"""MLflow's system metrics of a run: CPU, memory, disk, network and GPU of the machine that coordinates it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from infra.tracking.client import answers

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

STOP_SECONDS = 3.0  # the monitor may wait for a server that is gone


class SystemMetrics:
    """MLflow's own monitor, in a thread. It goes on after the last step that the run has, so nothing is logged twice.

    If logging fails, the monitor ends.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        """Start the monitor.

        Raises:
            TrackingUnavailable: the server does not answer.
        """
        with answers(uri):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor: SystemMetricsMonitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
            self._monitor.start()

    def stop(self) -> None:
        """Stop the monitor. Return after at most ``STOP_SECONDS``, even if the server does not answer."""
        ending = threading.Thread(target=self._monitor.finish, name="end-system-metrics", daemon=True)
        ending.start()
        ending.join(STOP_SECONDS)
