"""What a run may require of the GPU worker: the fields of the pool's and the deployment's form in the UI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prefect.workers.base import BaseJobConfiguration, BaseVariables
from pydantic import Field

from infra.errors import SlotRefused
from infra.orchestrator.prefect_private import LONGEST_GRACE
from infra.worker.leases import Need

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse

NOT_A_COMMAND = "Not used: a slot runs the flow itself, in a forked process."

Device = Literal["any", "cpu", "cuda"]


class GpuJobConfiguration(BaseJobConfiguration):
    """What one run requires of this worker, from the pool's template and the deployment's job variables."""

    device: Device = "any"
    gpus: float = Field(0.0, ge=0)
    gpu_megabytes: int = Field(0, ge=0)
    threads: int = Field(0, ge=0)
    working_dir: Path | None = None
    stream_output: bool = True
    grace_seconds: float = Field(LONGEST_GRACE, ge=0, le=LONGEST_GRACE)

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: Flow | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Prepare as the base class does, with the run's variables added to this process's environment.

        Raises:
            SlotRefused: the run has a command.
        """
        if self.command is not None:
            raise SlotRefused(f"command: expected none, a fedbench-gpu worker runs flows only; found {self.command}")
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id)
        self.env = {**os.environ, **self.env}

    def need(self) -> Need:
        return Need(self.device, self.gpus, self.gpu_megabytes, self.threads)


class GpuVariables(BaseVariables):
    """The fields of the pool's and the deployment's form in the UI."""

    command: str | None = Field(None, title="Command", description=NOT_A_COMMAND)
    device: Device = Field(
        "any",
        title="Device",
        description="cuda: only a slot with a GPU. cpu: only a slot without one. any: whichever is free.",
    )
    gpus: float = Field(
        0.0,
        ge=0,
        title="GPUs",
        description="Part of a GPU that the run needs, 1 for a whole one. A run gets its slot's whole share. A run "
        "that needs more than any slot has is refused.",
    )
    gpu_megabytes: int = Field(
        0, ge=0, title="GPU memory (MiB)", description="GPU memory that the run needs. 0: any amount."
    )
    threads: int = Field(
        0, ge=0, title="CPU threads", description="CPU threads that the run needs. 0: as many as its slot has."
    )
    working_dir: Path | None = Field(
        None,
        title="Working Directory",
        description="Folder in which the run starts. None: an empty folder, removed afterwards.",
    )
    stream_output: bool = Field(
        True, title="Stream Output", description="Repeat the run's output in the worker's own output."
    )
    grace_seconds: float = Field(
        LONGEST_GRACE,
        ge=0,
        le=LONGEST_GRACE,
        title="Grace (seconds)",
        description="Seconds from SIGTERM to SIGKILL when a run is cancelled.",
    )
