"""Find Prefect's work pools, and create those that are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from infra.errors import SettingsError
from infra.orchestrator.automations import Done
from infra.worker.gpu_worker import GpuWorker

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import WorkPool

_WORKERS = {worker.type: worker for worker in (ProcessWorker, GpuWorker)}


def default_template(kind: str) -> dict[str, Any]:
    """Return the job template of a new pool of this type."""
    return _WORKERS[kind].get_default_base_job_template()


async def find_pool(client: PrefectClient, name: str, kind: str) -> WorkPool | None:
    """Return the pool; None when there is none.

    Raises:
        SettingsError: the pool is of another type, so no worker of type ``kind`` could serve it.
    """
    try:
        pool = await client.read_work_pool(name)
    except ObjectNotFound:
        return None
    if pool.type != kind:
        raise SettingsError(
            f"pool {name}: expected type {kind}, found {pool.type}; delete it (prefect work-pool delete {name}), and "
            "deploy again"
        )
    return pool


async def ensure_pool(client: PrefectClient, name: str, kind: str, description: str, limit: int | None) -> Done:
    """Create the pool unless it exists, and set its limit of runs at a time to ``limit`` unless that is None.

    The rest of a pool that exists (its base job template, its description) stays as its owner has set it.

    Raises:
        SettingsError: there is a pool of this name and another type.
    """
    pool = await find_pool(client, name, kind)
    if pool is None:
        wanted = WorkPoolCreate(
            name=name,
            type=kind,
            description=description,
            base_job_template=default_template(kind),
            concurrency_limit=limit,
        )
        await client.create_work_pool(wanted)
        return "made"
    if limit is not None and pool.concurrency_limit != limit:
        await client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit))
        return "changed"
    return "there"
