"""Plan what ``fedbench deploy`` writes into a deployment, by what is on Prefect's page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule

from flows.deployments.cron import cron_schedule
from flows.deployments.edits import MISSING, Edit, Written, differences, marks, merge
from flows.deployments.table import SCHEDULE, CronTimes, Deployment, parameters_as_written
from tasks.errors import SpecError

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

# The fields that both ``fedbench deploy`` and the page write.
FIELDS = (
    "parameters",
    "job_variables",
    "description",
    "tags",
    "work_pool_name",
    "enforce_parameter_schema",
    "concurrency_limit",
    "concurrency_options",
)


@dataclass(frozen=True)
class Plan:
    """What a deployment gets.

    fields: the values of :data:`FIELDS`; None is left out. schedules: the page's, in their order, then new ones.
    written: the record of what fedbench wrote. reschedules: the schedules differ from the page's.
    kept, replaced: lines about values that were changed on the page.
    """

    fields: dict[str, Any]
    schedules: list[DeploymentScheduleCreate]
    written: Written | None
    reschedules: bool = False
    kept: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    def times(self) -> str:
        """Return when the deployment runs by itself, as text; empty if it does not."""
        times = [_when(item) for item in self.schedules if item.active]
        return f"runs at {', '.join(times)}" if times else ""


@dataclass(frozen=True)
class Page:
    """What Prefect's page shows of a deployment. ``written``: what fedbench wrote last; None: nobody knows."""

    fields: dict[str, Any] = field(default_factory=dict)
    schedules: Sequence[DeploymentScheduleCreate] = ()
    written: Written | None = None

    @classmethod
    def of(cls, found: DeploymentResponse, written: Written | None) -> Page:
        """Return the page of a deployment on the server."""
        schedules = [
            DeploymentScheduleCreate(
                schedule=item.schedule, active=item.active, parameters=item.parameters, slug=item.slug
            )
            for item in found.schedules
        ]
        limit, options = found.global_concurrency_limit, found.concurrency_options
        values = {name: getattr(found, name) for name in FIELDS}
        values["concurrency_limit"] = None if limit is None else limit.limit
        values["concurrency_options"] = None if options is None else options.model_dump(mode="json", exclude_none=True)
        return cls({name: value for name, value in values.items() if value is not None}, schedules, written)

    @property
    def own_schedule(self) -> CronTimes | None:
        """The schedule that has fedbench's slug, if it has cron times."""
        for item in self.schedules:
            if item.slug == SCHEDULE and isinstance(item.schedule, CronSchedule):
                return CronTimes(item.schedule.cron, item.schedule.timezone or "UTC", item.active)
        return None

    def own_schedule_after(self, when: CronTimes | None) -> CronTimes | None:
        """Return fedbench's schedule once ``when`` is set; None switches it off."""
        return _off(self.own_schedule) if when is None else when

    def rescheduled(self, when: CronTimes | None) -> Plan:
        """Return the plan that changes only fedbench's schedule; None switches it off."""
        schedules, written = self.with_schedule(when), self.written
        if written is not None:
            written = replace(written, schedule=self.own_schedule_after(when))
        return Plan(dict(self.fields), schedules, written, schedules != list(self.schedules))

    def with_schedule(self, when: CronTimes | None) -> list[DeploymentScheduleCreate]:
        """Return the page's schedules with ``when`` as fedbench's; None switches it off."""
        if when is None:
            return [
                item.model_copy(update={"active": False}) if item.slug == SCHEDULE else item for item in self.schedules
            ]
        ours = _schedule_of(when)
        if not any(item.slug == SCHEDULE for item in self.schedules):
            return [*self.schedules, ours]
        return [
            ours.model_copy(update={"parameters": item.parameters}) if item.slug == SCHEDULE else item
            for item in self.schedules
        ]


def fields_of(item: Deployment) -> dict[str, Any]:
    """Return the values of :data:`FIELDS` that the deployment has in the table; None is left out."""
    fields: dict[str, Any] = {
        "parameters": item.parameters,
        "job_variables": item.job_variables,
        "description": item.description,
        "tags": list(item.tags),
        "work_pool_name": item.pool,
        "enforce_parameter_schema": True,
    }
    if item.limit is not None:
        options = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
        fields["concurrency_limit"] = item.limit
        fields["concurrency_options"] = options.model_dump(mode="json", exclude_none=True)
    return fields


def plan(
    item: Deployment,
    page: Page | None,
    asked: Mapping[str, CronTimes | None],
    *,
    reset: bool = False,
    accepts: Callable[[Mapping[str, Any]], bool] = lambda parameters: True,
) -> Plan:
    """Return what the deployment ``item`` gets.

    page: None if it is new. asked: schedules to set, by full name. reset: replace what was changed on the page.
    accepts: whether Prefect accepts the parameters. The specification among them is checked before.

    A deployment without a record was made by an earlier version or by Prefect's own command, or made again on the page.
    Nobody can know then whether a parameter was changed on the page, or has changed in fedbench or the file since, so
    the new value is written, and the old one listed. Job variables and schedules stay, because earlier versions wrote
    them only once.
    """
    wanted = fields_of(item)
    if page is None:
        start = asked[item.full_name] or _off(item.schedule) if item.full_name in asked else item.schedule
        schedules = [] if start is None else [_schedule_of(start)]
        return Plan(wanted, schedules, Written.of(wanted, start), reschedules=True)
    fields, kept, replaced = _fields(item, wanted, page, reset, accepts)
    own = page.own_schedule if page.written is None else page.written.schedule
    if item.full_name in asked:
        when = asked[item.full_name]
        own, schedules = page.own_schedule_after(when), page.with_schedule(when)
    else:
        edits = _schedule_edits(page, own)
        schedules = _reset(page, own) if reset else list(page.schedules)
        (replaced if reset else kept).extend(edits)
    return Plan(
        fields,
        schedules,
        Written.of(wanted, own),
        schedules != list(page.schedules),
        tuple(edit.kept() for edit in kept),
        tuple(edit.replaced() for edit in replaced),
    )


def _fields(
    item: Deployment,
    wanted: Mapping[str, Any],
    page: Page,
    reset: bool,
    accepts: Callable[[Mapping[str, Any]], bool],
) -> tuple[dict[str, Any], list[Edit], list[Edit]]:
    """Return the fields, the edits that are kept, and the edits that are replaced."""
    raw = page.fields.get("parameters", {})
    parameters = _as_written(item.flow, raw)
    found = {**page.fields, "parameters": parameters}
    replaced: list[Edit] = []
    if page.written is not None:
        merged, kept = merge(page.written.marks, wanted, found, page.fields)
    else:
        merged, kept = merge(marks({**found, "job_variables": item.job_variables}), wanted, found)
        replaced = _without(differences(wanted, found), "job_variables")
    if reset:
        merged, kept, replaced = dict(wanted), [], [*replaced, *kept]
    elif any(_is_below(edit, "parameters") for edit in kept) and not _fits(item.flow, merged["parameters"], accepts):
        kept = _without(kept, "parameters")
        edits = differences({"parameters": item.parameters}, {"parameters": parameters})
        if _fits(item.flow, parameters, accepts):
            merged["parameters"] = parameters
            kept = [*edits, *kept]
        else:  # of another version of fedbench
            merged["parameters"] = item.parameters
            replaced = [*edits, *replaced]
    if not differences({"parameters": merged["parameters"]}, {"parameters": parameters}):
        merged["parameters"] = raw  # not written anew for a form that means the same
    return merged, kept, replaced


def _is_below(edit: Edit, name: str) -> bool:
    return edit.field == name or edit.field.startswith(f"{name}.")


def _without(edits: Sequence[Edit], name: str) -> list[Edit]:
    return [edit for edit in edits if not _is_below(edit, name)]


def _as_written(flow: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return parameters_as_written(flow, parameters)
    except SpecError:  # of another version of fedbench: compared as they are
        return dict(parameters)


def _fits(flow: str, parameters: Mapping[str, Any], accepts: Callable[[Mapping[str, Any]], bool]) -> bool:
    try:
        parameters_as_written(flow, parameters)
    except SpecError:
        return False
    return accepts(parameters)


def _reset(page: Page, own: CronTimes | None) -> list[DeploymentScheduleCreate]:
    """Return the page's schedules with ``own`` as fedbench's, and all others switched off."""
    return [
        item.model_copy(update={"parameters": {}} if item.slug == SCHEDULE else {"active": False})
        for item in page.with_schedule(own)
    ]


def _schedule_edits(page: Page, written: CronTimes | None) -> list[Edit]:
    """Return the schedules on the page that differ from what fedbench wrote. What does not run is not listed."""
    edits = []
    for item in page.schedules:
        offered = written if item.slug == SCHEDULE else None
        before = _when(_schedule_of(offered)) if offered is not None and offered.active else "off"
        now = _when(item) if item.active else "off"
        if now != before:
            edits.append(Edit("schedule", now, before if item.slug == SCHEDULE else MISSING))
    if written is not None and written.active and not any(item.slug == SCHEDULE for item in page.schedules):
        edits.append(Edit("schedule", MISSING, _when(_schedule_of(written))))
    return edits


def _schedule_of(when: CronTimes) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(schedule=cron_schedule(when), active=when.active, slug=SCHEDULE)


def _off(when: CronTimes | None) -> CronTimes | None:
    return None if when is None else replace(when, active=False)


def _when(item: DeploymentScheduleCreate) -> str:
    """Return the times of a schedule as text, as ``0 3 * * * (UTC)``, and its parameters."""
    schedule = item.schedule
    if isinstance(schedule, CronSchedule):
        text = f"{schedule.cron} ({schedule.timezone or 'UTC'})"
    else:
        times = schedule.model_dump(mode="json", exclude_none=True)
        text = ", ".join(f"{name} {value}" for name, value in times.items() if name in ("interval", "rrule"))
    return f"{text} with {json.dumps(item.parameters)}" if item.parameters else text
