"""Turn cron expressions into Prefect's schedules, with errors that name the wrong field."""

from __future__ import annotations

from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from flows.deployments.table import CronTimes
from tasks.errors import SpecError

# The fields of a cron expression in order, with the values that each may have.
_FIELDS = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day of the month": "1 to 31, or l for the last",
    "month": "1 to 12, or jan to dec",
    "day of the week": "0 (Sunday) to 7 (Sunday), or sun to sat",
}


def cron_schedule(when: CronTimes) -> CronSchedule:
    """Return ``when`` as Prefect's schedule.

    Raises:
        SpecError: the cron expression or the time zone is not valid; the message names the field.
    """
    try:
        return CronSchedule(cron=when.cron, timezone=when.timezone)
    except ValidationError as error:
        (item, *_) = error.errors(include_url=False)
        if item["loc"] == ("timezone",):
            raise SpecError(f"--timezone: expected a time zone, as in Europe/Berlin, found {when.timezone!r}") from None
        raise SpecError(f"--schedule: {_fault(when.cron)}") from None


def _fault(cron: str) -> str:
    """Return what is wrong with an expression that Prefect refuses: the first field that is wrong even alone."""
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        return f"expected five cron fields, as in 0 3 * * *, found {cron!r}"
    for number, (name, allowed) in enumerate(_FIELDS.items()):
        for part in fields[number].split(","):
            alone = ["*"] * len(_FIELDS)
            alone[number] = part
            if not _is_valid(" ".join(alone)):
                return f"{name}: expected {allowed}; found {part!r} in {cron!r}"
    return f"expected five cron fields that go together, as in 0 3 * * *, found {cron!r}"


def _is_valid(cron: str) -> bool:
    try:
        CronSchedule(cron=cron)
    except ValidationError:
        return False
    return True
