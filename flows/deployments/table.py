"""The table of deployments, from which ``fedbench deploy`` and ``prefect.yaml`` are made.

``python -m flows.deployments.table > prefect.yaml`` writes ``prefect.yaml``. A test compares it with the table.

There are at least two pools, so that no run waits for itself: coordinators take no slot, and runs that take a slot
start no other runs.

A crashed run is started again (:func:`flows.coordinator.hooks.go_on`), under its own id and name, on any free worker,
and its federation goes on from the last committed round. The flow has no retries of Prefect's: these end with its
process, and would repeat errors of the experiment too. It has no time limit either, because nobody knows how long a
round may take. Turns have one: ``participation.turn_deadline`` and ``evaluation_deadline``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.deployments.names import FEDERATION_FLOW, SUITE_FLOW
from infra.orchestrator.automations import HEARTBEAT_SECONDS, HEARTBEAT_VARIABLE
from infra.settings_groups import DEFAULT_TURN_POOL, PoolSettings
from tasks.errors import SpecError
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.names import name_of_file
from tasks.spec.presets import PRESETS
from tasks.spec.suite import SuiteSpec, parse_suite, suite_of
from tasks.spec.suite_presets import SUITES
from tasks.spec.yaml_files import read_yaml

PROCESS, GPU_WORKER = "process", "fedbench-gpu"
SCHEDULE = "fedbench"  # the slug of schedules that `fedbench deploy` has made

_HEADER = """\
# The deployments of fedbench, in the form that Prefect's own command reads:
#
#     fedbench deploy        # creates the work pools, these deployments and an automation; most users need only this
#     prefect deploy --all   # creates these deployments alone, from a checkout; the pools must exist
#
# Written by: python -m flows.deployments.table > prefect.yaml
# The flows are installed with fedbench where a worker runs, so there is nothing to build, push or pull.
# A schedule with active: false is an example. Switch it on here, in the UI, or by
#     fedbench deploy --schedule "federation/street5-laptop=0 3 * * *"
"""


@dataclass(frozen=True)
class PoolRow:
    """A work pool that ``fedbench deploy`` creates: runs wait in it for a worker of its type."""

    name: str
    type: str
    description: str


@dataclass(frozen=True)
class PoolNames:
    """The names of the pools. silos: pools of devices whose workers run beside their data."""

    coordinators: str = "fedbench"
    turns: str = DEFAULT_TURN_POOL
    silos: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: PoolSettings, silos: Sequence[str] = ()) -> PoolNames:
        """Return the names in the settings, with further ``silos``."""
        return cls(settings.coordinators, settings.turns or DEFAULT_TURN_POOL, (*settings.silos.values(), *silos))

    @property
    def gpu(self) -> list[str]:
        """The pools whose workers have slots."""
        return list(dict.fromkeys([self.turns, *self.silos]))


@dataclass(frozen=True)
class CronTimes:
    """The times at which a deployment runs by itself: five cron fields in ``timezone``."""

    cron: str
    timezone: str = "UTC"
    active: bool = True


@dataclass(frozen=True)
class Deployment:
    """A deployment: a flow that Prefect starts, with its parameters.

    entrypoint: ``module.flow``, as installed.
    name: the second part of the full name, as ``street5`` in ``federation/street5``.
    parameters: the values with which the form in the UI opens.
    job_variables: those of a new deployment; by default the interval of the heartbeats, which tell dead runs.
    limit: the most runs at a time; further ones wait. None: as many as its pool runs.
    """

    entrypoint: str
    name: str
    pool: str
    description: str
    tags: tuple[str, ...] = ("fedbench",)
    parameters: dict[str, Any] = field(default_factory=dict)
    job_variables: dict[str, Any] = field(default_factory=lambda: {"env": {HEARTBEAT_VARIABLE: str(HEARTBEAT_SECONDS)}})
    limit: int | None = 1
    schedule: CronTimes | None = None

    @property
    def flow(self) -> str:
        """The flow's name: its function's name with hyphens."""
        return self.entrypoint.rpartition(".")[2].replace("_", "-")

    @property
    def full_name(self) -> str:
        return f"{self.flow}/{self.name}"


def pools(names: PoolNames = PoolNames()) -> list[PoolRow]:
    """Return the pools, the coordinators' first."""
    where = "in slots of machines: a GPU, a part of one, or CPU threads"
    return [
        PoolRow(
            names.coordinators, PROCESS, "fedbench's coordinators: federations, suites, clean-up. They take no slot."
        ),
        *(
            PoolRow(
                name, GPU_WORKER, f"fedbench's turns, {'beside the data of a silo' if name in names.silos else where}."
            )
            for name in names.gpu
        ),
    ]


def deployments(names: PoolNames = PoolNames()) -> list[Deployment]:
    """Return the deployments that come with fedbench. To add one, add a line here."""
    return [
        *(federation(preset, names.coordinators) for preset in PRESETS),
        *(suite(preset, names.coordinators) for preset in SUITES),
        Deployment(
            entrypoint="flows.clean_up.clean_up",
            name="store",
            pool=names.coordinators,
            description="Lists what nobody needs any more; apply: true removes it.",
            schedule=CronTimes("0 2 * * 0", active=False),
        ),
        *(resident(pool) for pool in names.gpu),
    ]


def resident(pool: str) -> Deployment:
    """Return the deployment of residents on ``pool``. Only federations start its runs, for their turns."""
    return Deployment(
        entrypoint="flows.resident.resident",
        name=pool,
        pool=pool,
        description="Takes turns of one federation in a slot of this pool. Federations start it themselves.",
        limit=None,
    )


def federation(preset: str, pool: str) -> Deployment:
    """Return the deployment of a federation's preset."""
    description = inspect.cleandoc(PRESETS[preset].__doc__ or "")
    schedule = CronTimes("0 3 * * *", active=False) if preset == "street5_laptop" else None
    return _federation(preset.replace("_", "-"), pool, description, PRESETS[preset](), schedule)


def suite(preset: str, pool: str) -> Deployment:
    """Return the deployment of a suite's preset."""
    description = inspect.cleandoc(SUITES[preset].__doc__ or "")
    schedule = CronTimes("0 1 * * 6", active=False) if preset == "cpu" else None
    return _suite(preset, pool, description, {"preset": preset}, schedule)


def with_files(table: Sequence[Deployment], files: Sequence[Path], pool: str) -> list[Deployment]:
    """Return ``table`` and a deployment for each of ``files``.

    Raises:
        SpecError: a file is missing or not valid, or two deployments would have the same name.
    """
    taken = {item.full_name: "comes with fedbench" for item in table}
    found = list(table)
    for path in files:
        own = of_file(path, pool)
        if own.full_name in taken:
            raise SpecError(f"{path}: {own.full_name} {taken[own.full_name]}; expected another name")
        taken[own.full_name] = f"is that of {path} already"
        found.append(own)
    return found


def of_file(path: Path, pool: str) -> Deployment:
    """Return the deployment of a YAML file: ``suite/<the suite's name>``, or ``federation/<the file's name>``.

    Raises:
        SpecError: the file is missing or not valid.
    """
    document = read_yaml(path)
    if isinstance(document, dict) and "experiments" in document:
        spec = suite_of(document, path)
        return _suite(spec.name, pool, f"The suite of {path.name}.", {"spec": form_values(spec)})
    name = name_of_file(path).replace("_", "-")
    return _federation(name, pool, f"The federation of {path.name}.", parse_spec(document, source=str(path)))


def _federation(
    name: str, pool: str, description: str, spec: FederationSpec, schedule: CronTimes | None = None
) -> Deployment:
    """Return the deployment of a federation. Without a ``name``, each run is named after its scheduled time."""
    method = () if spec.strategy.kind == "fedavg" else (spec.strategy.kind,)
    return Deployment(
        entrypoint="flows.federation.federation",
        name=name,
        pool=pool,
        description=description,
        tags=("fedbench", spec.data.kind, spec.detector.kind, *method),
        parameters={"spec": form_values(spec)},
        schedule=schedule,
    )


def _suite(
    name: str, pool: str, description: str, what: dict[str, Any], schedule: CronTimes | None = None
) -> Deployment:
    """Return the deployment of a suite. The suite's cells take slots; its own run takes none."""
    return Deployment(
        entrypoint="flows.suite.flow.suite",
        name=name,
        pool=pool,
        description=description,
        tags=("fedbench", "suite"),
        parameters={**what, "compare": True},
        schedule=schedule,
    )


def form_values(spec: FederationSpec | SuiteSpec) -> dict[str, Any]:
    """Return ``spec`` as values of a form: all fields, defaults included, without those that are None."""
    return spec.model_dump(mode="json", exclude_none=True)


def parameters_as_written(flow: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deployment's parameters in the form that :class:`Deployment` has: with defaults, without None.

    A form on Prefect's page may leave out fields with defaults, or write None.

    Raises:
        SpecError: the specification among them is not valid.
    """
    found = {name: value for name, value in parameters.items() if value is not None}
    if "spec" in found and flow == SUITE_FLOW:
        found["spec"] = form_values(parse_suite(found["spec"], source="spec"))
    elif "spec" in found and flow == FEDERATION_FLOW:
        found["spec"] = form_values(parse_spec(found["spec"], source="spec"))
    return found


def prefect_document() -> dict[str, Any]:
    """Return the content of ``prefect.yaml``."""
    return {"pull": [], "deployments": [_entry(item) for item in deployments()]}


def prefect_yaml() -> str:
    """Return the text of ``prefect.yaml``."""
    import yaml

    text = yaml.safe_dump(
        prefect_document(), sort_keys=False, default_flow_style=None, width=118, allow_unicode=True, indent=2
    )
    return f"{_HEADER}\n{text}"


def _entry(item: Deployment) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": item.name,
        "entrypoint": item.entrypoint,
        "description": item.description,
        "tags": list(item.tags),
        "work_pool": {"name": item.pool, "job_variables": item.job_variables},
    }
    if item.limit is not None:
        entry["concurrency_limit"] = {"limit": item.limit, "collision_strategy": "ENQUEUE"}
    # Without the key, `prefect deploy` asks for a schedule; an empty list would remove the user's own schedules.
    entry["schedules"] = None
    if item.schedule is not None:
        when = item.schedule
        entry["schedules"] = [
            {"cron": when.cron, "timezone": when.timezone, "active": when.active, "slug": SCHEDULE},
        ]
    if item.parameters:
        entry["parameters"] = item.parameters
    return entry


if __name__ == "__main__":
    sys.stdout.write(prefect_yaml())
