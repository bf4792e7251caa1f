"""``fedbench deploy``: create or update work pools, deployments and automations on a Prefect server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.urls import url_for

from flows.deployments.cron import cron_schedule
from flows.deployments.names import FLOWS, SUITE_FLOW
from flows.deployments.table import PROCESS, SCHEDULE, CronTimes, Deployment, PoolNames, PoolRow, pools
from infra.orchestrator.automations import (
    dead_run_automation,
    ensure_automation,
    notification_block,
    regression_automation,
)
from infra.settings import Settings
from infra.stack.prefect_api import prefect_api
from infra.worker.work_pools import Done, ensure_pool, find_pool

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import AutomationCore


@dataclass(frozen=True)
class Deployed:
    """One line of the output of ``fedbench deploy``.

    note: when the deployment runs by itself, or how to start a worker for the pool; may be empty.
    """

    kind: Literal["pool", "deployment", "automation"]
    name: str
    done: Done
    url: str | None
    note: str = ""


def deploy_to(
    settings: Settings,
    names: PoolNames,
    table: Sequence[Deployment],
    schedules: Mapping[str, CronTimes | None] | None = None,
    *,
    notify: str | None = None,
    dry_run: bool = False,
) -> tuple[str, list[Deployed]]:
    """Call :func:`deploy_all` on the server of ``settings``. Return the address of its API, and the lines.

    Raises:
        SettingsError, SpecError, PrefectUnavailable: deploying failed; the message says why.
    """
    logging.getLogger().handlers.clear()  # Prefect logs to the terminal from its import on; only errors belong there
    with prefect_api(settings) as address:
        done = asyncio.run(
            deploy_all(
                pools(names),
                table,
                schedules or {},
                coordinators=settings.pools.coordinator_runs,
                notify=notify,
                dry_run=dry_run,
            )
        )
    return address, done


async def deploy_all(
    pools: Sequence[PoolRow],
    table: Sequence[Deployment],
    schedules: Mapping[str, CronTimes | None],
    *,
    coordinators: int | None = None,
    notify: str | None = None,
    dry_run: bool = False,
) -> list[Deployed]:
    """Create what is missing on the current Prefect server, and update the rest to ``table``.

    What users have changed there stays: a pool's template, job variables, schedules that are not in ``schedules``.

    coordinators: limit of the coordinators' pool; None: leave it as it is.
    notify: notification block, ``TYPE/NAME``, that gets a message when a suite fails; None: leave it as it is.
    schedules: schedule by a deployment's full name; None switches it off.

    Raises:
        SettingsError: a pool has another type, or the block ``notify`` does not exist. Nothing has been changed.
        SpecError: a schedule is not valid. Nothing has been changed.
    """
    crons = {name: None if when is None else (cron_schedule(when), when.active) for name, when in schedules.items()}
    async with get_client() as client:
        found = [await find_pool(client, pool.name, pool.type) for pool in pools]
        automations = [dead_run_automation(FLOWS)]
        if notify is not None:
            automations.append(regression_automation(await notification_block(notify), SUITE_FLOW))
        done = []
        for pool, there in zip(pools, found, strict=True):
            limit = coordinators if pool.type == PROCESS else None
            made: Done = "made" if there is None else "there"
            if not dry_run:
                made = await ensure_pool(client, pool.name, pool.type, pool.description, limit)
            elif there is not None and limit is not None and there.concurrency_limit != limit:
                made = "changed"
            url = _url("work-pool", pool.name) if made != "made" or not dry_run else None
            note = await _hint(client, pool, exists=url is not None)
            done.append(Deployed("pool", pool.name, made, url, note))
        for item in table:
            done.append(await _deploy(client, item, crons.get(item.full_name), item.full_name in crons, dry_run))
        done += [await _automate(client, wanted, dry_run) for wanted in automations]
        return done


async def _deploy(
    client: PrefectClient, item: Deployment, cron: tuple[CronSchedule, bool] | None, asked: bool, dry_run: bool
) -> Deployed:
    # Not RunnerDeployment.aapply, tried in Prefect 3.9.1: on an existing deployment it replaces the pull steps and the
    # job variables, which users may have changed. Also, it has no dry run, and does not return what it has changed.
    flow: Flow[..., Any] = load_flow_from_entrypoint(item.entrypoint, use_placeholder_flow=False)
    fields: dict[str, Any] = {
        "description": item.description,
        "tags": list(item.tags),
        "version": metadata.version("fedbench"),
        "entrypoint": item.entrypoint,
        "pull_steps": [],  # the flow is installed where the worker runs
        "work_pool_name": item.pool,
        "parameters": item.parameters,
        "parameter_openapi_schema": parameter_schema(flow).model_dump(exclude_unset=True),
        "enforce_parameter_schema": True,
        "concurrency_limit": item.limit,
    }
    if item.limit is not None:
        fields["concurrency_options"] = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    try:
        before: DeploymentResponse | None = await client.read_deployment_by_name(f"{flow.name}/{item.name}")
    except ObjectNotFound:
        before = None
    done: Done = "made" if before is None else "changed"
    if before is not None and not asked and _same(before, fields):
        done = "there"
    if dry_run or (before is not None and done == "there"):
        return Deployed("deployment", item.full_name, done, _page(before.id) if before else None, _times(before))
    if before is not None:
        identifier = before.id
        await client.update_deployment(identifier, DeploymentUpdate(**fields))
    else:
        example = item.schedule
        identifier = await client.create_deployment(
            flow_id=await client.create_flow_from_name(flow.name),
            name=item.name,
            job_variables=item.job_variables,
            schedules=[]
            if example is None
            else [DeploymentScheduleCreate(schedule=cron_schedule(example), active=example.active, slug=SCHEDULE)],
            **fields,
        )
    if asked:
        await _schedule(client, identifier, cron)
    after = await client.read_deployment(identifier)
    return Deployed("deployment", item.full_name, done, _page(identifier), _times(after))


def _same(before: DeploymentResponse, fields: Mapping[str, Any]) -> bool:
    limit = before.global_concurrency_limit
    there = {**before.model_dump(), "concurrency_limit": None if limit is None else limit.limit}
    there["concurrency_options"] = before.concurrency_options
    return all((there[name] or None) == (value or None) for name, value in fields.items())


def _times(deployment: DeploymentResponse | None) -> str:
    """Return when the deployment runs by itself, as text; empty if it does not."""
    times = [
        f"{entry.schedule.cron} ({entry.schedule.timezone or 'UTC'})"
        for entry in (deployment.schedules if deployment is not None else [])
        if entry.active and isinstance(entry.schedule, CronSchedule)
    ]
    return f"runs at {', '.join(times)}" if times else ""


async def _schedule(client: PrefectClient, deployment: UUID, cron: tuple[CronSchedule, bool] | None) -> None:
    ours = [item for item in await client.read_deployment_schedules(deployment) if item.slug == SCHEDULE]
    if cron is None:
        for item in ours:
            await client.update_deployment_schedule(deployment, item.id, active=False)
    elif ours:
        await client.update_deployment_schedule(deployment, ours[0].id, active=cron[1], schedule=cron[0])
    else:
        wanted = DeploymentScheduleCreate(schedule=cron[0], active=cron[1], slug=SCHEDULE)
        await client.create_deployment_schedules(deployment, [wanted])


async def _automate(client: PrefectClient, wanted: AutomationCore, dry_run: bool) -> Deployed:
    found = await client.read_automations_by_name(wanted.name)
    if dry_run:
        return Deployed("automation", wanted.name, "there" if found else "made", None)
    identifier, done = await ensure_automation(wanted)
    return Deployed("automation", wanted.name, done, _url("automation", str(identifier)))


async def _hint(client: PrefectClient, pool: PoolRow, *, exists: bool) -> str:
    """Return how to start a worker for the pool; empty if one is online."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    if exists and await client.read_workers_for_work_pool(pool.name, worker_filter=online):
        return ""
    return f"no worker serves it; start one: prefect worker start --pool {pool.name} --type {pool.type}"


def _url(kind: str, identifier: str) -> str | None:
    return url_for(kind, obj_id=identifier)


def _page(deployment: UUID) -> str | None:
    return _url("deployment", str(deployment))
