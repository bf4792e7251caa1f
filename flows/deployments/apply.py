"""``fedbench deploy``: create or update work pools, deployments and automations on a Prefect server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.deployments.cron import cron_schedule
from flows.deployments.names import FLOWS, SUITE_FLOW
from flows.deployments.page import Page, Plan, plan
from flows.deployments.records import Records
from flows.deployments.schedules import by_full_names
from flows.deployments.table import PROCESS, CronTimes, Deployment, PoolNames, PoolRow, pools
from infra.orchestrator.automations import (
    dead_run_automation,
    ensure_automation,
    notification_block,
    regression_automation,
)
from infra.orchestrator.page_links import object_page
from infra.settings import Settings
from infra.stack.prefect_api import prefect_api
from infra.worker.work_pools import Done, ensure_pool, find_pool

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import AutomationCore


_ANSWER = 200  # deployments in one answer of Prefect's API


@dataclass(frozen=True)
class Deployed:
    """One line of the output of ``fedbench deploy``.

    note: when the deployment runs by itself, or how to start a worker for the pool; may be empty.
    kept, replaced: lines about values that were changed on Prefect's page.
    """

    kind: Literal["pool", "deployment", "automation"]
    name: str
    done: Done
    url: str | None
    note: str = ""
    kept: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


def deploy_to(
    settings: Settings,
    names: PoolNames,
    table: Sequence[Deployment],
    schedules: Mapping[str, CronTimes | None] | None = None,
    *,
    notify: str | None = None,
    reset: bool = False,
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
                reset=reset,
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
    reset: bool = False,
    dry_run: bool = False,
) -> list[Deployed]:
    """Create what is missing on the current Prefect server, and update the rest to ``table``.

    What users have changed there stays: a pool's template, and, without ``reset``, the fields and schedules of
    deployments.

    coordinators: limit of the coordinators' pool; None: leave it as it is.
    notify: notification block, ``TYPE/NAME``, that gets a message when a suite fails; None: leave it as it is.
    schedules: schedule by a deployment's full name, or by the second part of it; None switches it off. The deployment
        may be one of the server's that is not in ``table``.

    Raises:
        SettingsError: a pool has another type, or the block ``notify`` does not exist. Nothing has been changed.
        SpecError: a schedule is not valid, or there is no such deployment. Nothing has been changed.
    """
    for when in schedules.values():
        if when is not None:
            cron_schedule(when)
    async with get_client() as client:
        others = await _others(client, table) if schedules else {}
        asked = by_full_names(schedules, [*(item.full_name for item in table), *others])
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
            url = object_page("work-pool", pool.name) if made != "made" or not dry_run else None
            note = await _hint(client, pool, exists=url is not None)
            done.append(Deployed("pool", pool.name, made, url, note))
        records = await Records.read(client)
        if not dry_run:
            await records.remove_stale()
        for item in table:
            done.append(await _deploy(client, records, item, asked, reset=reset, dry_run=dry_run))
        for name in sorted(others.keys() & asked.keys()):
            done.append(await _reschedule(client, records, name, others[name], asked[name], dry_run=dry_run))
        done += [await _automate(client, wanted, dry_run) for wanted in automations]
        return done


async def _others(client: PrefectClient, table: Sequence[Deployment]) -> dict[str, DeploymentResponse]:
    """Return fedbench's deployments on the server that are not in ``table``, by their full names."""
    ours, known = {item.entrypoint for item in table}, {item.full_name for item in table}
    flows: dict[UUID, str] = {}
    found: dict[str, DeploymentResponse] = {}
    while answer := await client.read_deployments(offset=len(found), limit=_ANSWER):
        for item in answer:
            if item.flow_id not in flows:
                flows[item.flow_id] = (await client.read_flow(item.flow_id)).name
            found[f"{flows[item.flow_id]}/{item.name}"] = item
    return {name: item for name, item in sorted(found.items()) if item.entrypoint in ours and name not in known}


async def _deploy(
    client: PrefectClient,
    records: Records,
    item: Deployment,
    asked: Mapping[str, CronTimes | None],
    *,
    reset: bool,
    dry_run: bool,
) -> Deployed:
    # Not RunnerDeployment.aapply, tried in Prefect 3.9.1: on an existing deployment it replaces the pull steps, the
    # parameters and the job variables, which users may have changed. Also, it has no dry run, and does not return what
    # it has changed.
    schema = _schema(item.entrypoint)
    fixed: dict[str, Any] = {
        "version": metadata.version("fedbench"),
        "entrypoint": item.entrypoint,
        "pull_steps": [],  # the flow is installed where the worker runs
        "parameter_openapi_schema": schema,
    }
    try:
        before: DeploymentResponse | None = await client.read_deployment_by_name(item.full_name)
    except ObjectNotFound:
        before = None
    page = None if before is None else Page.of(before, records.written(item.full_name, before.id))
    wanted = plan(item, page, asked, reset=reset, accepts=partial(_accepts, schema))
    if before is None or page is None:
        done: Done = "made"
        identifier = None if dry_run else await _create(client, item, wanted, fixed)
    else:
        identifier = before.id
        changed = _changed(before, page, wanted, fixed)
        done = "changed" if changed or wanted.reschedules else "there"
        if not dry_run:
            if changed:
                await client.update_deployment(identifier, DeploymentUpdate(**changed))
            await _set_schedules(client, before, page, wanted)
    if identifier is not None and not dry_run and wanted.written is not None:
        await records.write(item.full_name, identifier, wanted.written)
    url = object_page("deployment", str(identifier)) if identifier is not None else None
    return Deployed("deployment", item.full_name, done, url, wanted.times(), wanted.kept, wanted.replaced)


async def _create(client: PrefectClient, item: Deployment, wanted: Plan, fixed: Mapping[str, Any]) -> UUID:
    flow = await client.create_flow_from_name(item.flow)
    fields = _request(wanted.fields, wanted.fields)
    return await client.create_deployment(flow_id=flow, name=item.name, schedules=wanted.schedules, **fields, **fixed)


def _changed(before: DeploymentResponse, page: Page, wanted: Plan, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are to be written. Prefect leaves all others alone.

    The pool is among them only if it changes, because writing it resets the queue that was chosen on the page.
    """
    names = [name for name in {**wanted.fields, **page.fields} if wanted.fields.get(name) != page.fields.get(name)]
    return {
        **_request(wanted.fields, names),
        **{name: value for name, value in fixed.items() if (getattr(before, name) or None) != (value or None)},
    }


def _request(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return fields of a plan as arguments of Prefect's client."""
    found = {name: fields.get(name) for name in names}
    if found.get("concurrency_options") is not None:
        found["concurrency_options"] = ConcurrencyOptions.model_validate(found["concurrency_options"])
    return found


async def _reschedule(
    client: PrefectClient,
    records: Records,
    name: str,
    there: DeploymentResponse,
    when: CronTimes | None,
    *,
    dry_run: bool,
) -> Deployed:
    """Change the schedule of a deployment whose file is not given."""
    page = Page.of(there, records.written(name, there.id))
    wanted = page.rescheduled(when)
    if not dry_run:
        await _set_schedules(client, there, page, wanted)
        if wanted.written is not None:
            await records.write(name, there.id, wanted.written)
    done: Done = "changed" if wanted.reschedules else "there"
    return Deployed("deployment", name, done, object_page("deployment", str(there.id)), wanted.times())


async def _set_schedules(client: PrefectClient, there: DeploymentResponse, page: Page, wanted: Plan) -> None:
    """Change the schedules that differ from the page's, one by one: their ids stay."""
    for found, before, after in zip_longest(there.schedules, page.schedules, wanted.schedules):
        if before is None:
            await client.create_deployment_schedules(there.id, [after])
        elif after != before:
            await client.update_deployment_schedule(
                there.id, found.id, active=after.active, schedule=after.schedule, parameters=after.parameters
            )


@cache  # it takes a tenth of a second, and most deployments have the same flow
def _schema(entrypoint: str) -> dict[str, Any]:
    """Return the schema of the parameters of the flow. It is not to be changed."""
    flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    return parameter_schema(flow).model_dump(exclude_unset=True)


def _accepts(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Return whether Prefect's server accepts the parameters."""
    try:
        validate(dict(parameters), dict(schema), raise_on_error=True, ignore_required=True)
    except ValidationError:
        return False
    return True


async def _automate(client: PrefectClient, wanted: AutomationCore, dry_run: bool) -> Deployed:
    found = await client.read_automations_by_name(wanted.name)
    if dry_run:
        return Deployed("automation", wanted.name, "there" if found else "made", None)
    identifier, done = await ensure_automation(wanted)
    return Deployed("automation", wanted.name, done, object_page("automation", str(identifier)))


async def _hint(client: PrefectClient, pool: PoolRow, *, exists: bool) -> str:
    """Return how to start a worker for the pool; empty if one is online."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    if exists and await client.read_workers_for_work_pool(pool.name, worker_filter=online):
        return ""
    return f"no worker serves it; start one: prefect worker start --pool {pool.name} --type {pool.type}"
