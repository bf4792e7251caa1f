"""Find and remove whole federations that were only tried out, by a rule that the command prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flows.stored.leftovers import known_federations
from flows.stored.removal import remove_federation, require_federations
from flows.stored.runs import opened_store, read_spec
from infra.errors import InfraError, RunLocked
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.suite_layout import SuiteLayout, suite_runs
from tasks.errors import FedbenchError

RULE = (
    "a toy is a federation of synthetic images that is no cell of a suite run, has had no new object for {days:g} days "
    "(--older-than), and that nobody runs"
)


@dataclass(frozen=True)
class Toy:
    """A federation that the rule calls a toy: the number of its objects, their bytes, and its newest object's time."""

    name: str
    objects: int
    bytes: int
    written: datetime


@dataclass(frozen=True)
class ToyCleanUp:
    """The result of a clean-up of toys.

    applied: whether they were removed, not only listed. failed: why a toy could not be removed, by its name.
    """

    applied: bool
    toys: list[Toy]
    failed: dict[str, str]

    def rows(self) -> list[dict[str, object]]:
        """Return one row for each toy, in the form of :meth:`flows.stored.leftovers.CleanUp.rows`."""
        return [
            {
                "federation": toy.name,
                "reason": "a toy, the whole federation",
                "objects": toy.objects,
                "bytes": toy.bytes,
                "not removed": toy.objects if toy.name in self.failed else 0,
            }
            for toy in self.toys
        ]

    def describe(self) -> str:
        """Return number and size of the toys that are gone, or would be, as ``2 federations, 345.6 MB``."""
        gone = [toy for toy in self.toys if toy.name not in self.failed]
        size = sum(toy.bytes for toy in gone)
        return f"{len(gone)} federation{'' if len(gone) == 1 else 's'}, {size / 1e6:,.1f} MB"


def find_toys(
    settings: Settings, *, older_than_days: float, names: Sequence[str] = (), now: datetime | None = None
) -> list[Toy]:
    """Return the toys in the store, sorted by name. Whether one runs shows when it is removed, which is refused then.

    names: look at these federations alone; empty: at all.
    now: the present time, in place of the clock's.

    Raises:
        SpecError: a federation of ``names`` does not exist, or the store has a newer version.
        StoreUnavailable, SettingsError: as :class:`~infra.store.objects.ObjectStore` does.
    """
    until = (now or datetime.now(UTC)) - timedelta(days=older_than_days)
    prefix = settings.s3.prefix
    found = []
    with opened_store(settings) as objects:
        known = known_federations(objects, settings)
        require_federations(objects, settings, names, known)
        suites = suite_runs(prefix, objects.list(SuiteLayout(prefix, "any").all_runs))
        for name in names or known:
            if any(name.startswith(f"{suite}.") for suite in suites):
                continue
            layout = FederationLayout(prefix, name)
            entries = [entry for entry in objects.entries(layout.root) if not entry.key.startswith(layout.lease)]
            if not entries or max(entry.modified for entry in entries) > until:
                continue
            try:
                synthetic = read_spec(objects, settings, name).data.kind == "synthetic-street"
            except FedbenchError:
                continue  # its specification is damaged, so nobody knows what it is
            if synthetic:
                size = sum(entry.bytes for entry in entries)
                found.append(Toy(name, len(entries), size, max(entry.modified for entry in entries)))
    return found


def clean_toys(
    settings: Settings,
    *,
    apply: bool,
    older_than_days: float,
    names: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> ToyCleanUp:
    """Find toys, as :func:`find_toys` does, and with ``apply`` remove them.

    say: called with a line when a federation's lease must be waited for.

    Raises:
        SpecError, StoreUnavailable, SettingsError: as :func:`find_toys`.
    """
    found = find_toys(settings, older_than_days=older_than_days, names=names)
    return ToyCleanUp(apply, found, remove_toys(settings, found, say) if apply else {})


def remove_toys(settings: Settings, toys: Sequence[Toy], say: Callable[[str], None] | None = None) -> dict[str, str]:
    """Remove ``toys`` as `fedbench remove` does. Return, by name, why some could not be removed.

    say: called with a line when a federation's lease must be waited for.
    """
    failed: dict[str, str] = {}
    for toy in toys:
        try:
            remove_federation(settings, toy.name, say)
        except (FedbenchError, InfraError, RunLocked) as error:
            failed[toy.name] = str(error)
    return failed
