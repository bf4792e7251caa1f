"""Read the schedules that a user asks for, and find their deployments by name. Nothing here imports Prefect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flows.deployments.table import CronTimes
from tasks.errors import SpecError


def read_schedules(asked: Sequence[str], timezone: str) -> dict[str, CronTimes | None]:
    """Return schedules by the names in texts as ``street5=0 3 * * *``; ``off`` becomes None.

    Raises:
        SpecError: a text has no cron fields, or two texts have the same name.
    """
    found: dict[str, CronTimes | None] = {}
    for item in asked:
        name, equals, cron = (part.strip() for part in item.partition("="))
        if not equals or not cron:
            raise SpecError(
                f"--schedule {item}: expected NAME=CRON, as in 'federation/street5-laptop=0 3 * * *', or NAME=off"
            )
        if name in found:
            raise SpecError(f"--schedule {item}: {name}: expected one schedule a deployment, found a second")
        found[name] = None if cron == "off" else CronTimes(cron, timezone)
    return found


def by_full_names(schedules: Mapping[str, CronTimes | None], known: Sequence[str]) -> dict[str, CronTimes | None]:
    """Return ``schedules`` by the full names of deployments. A key may be the second part of such a name.

    known: the full names of all deployments.

    Raises:
        SpecError: a name is not that of one deployment, or two names are of the same.
    """
    found: dict[str, CronTimes | None] = {}
    for name, when in schedules.items():
        named = [full for full in known if name in (full, full.partition("/")[2])]
        if len(named) != 1:
            what = f"more than one deployment, {' and '.join(named)}" if named else "no such deployment"
            raise SpecError(f"--schedule {name}: {what}; expected one of: {', '.join(known)}")
        if named[0] in found:
            raise SpecError(f"--schedule {name}: expected one schedule a deployment, found a second for {named[0]}")
        found[named[0]] = when
    return found
