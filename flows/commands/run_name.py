"""Find the federation that ``fedbench run SPEC`` without a name means: one of the same experiment, or a new one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from flows.commands.arguments import default_name, name_end
from flows.coordinator.preflight import pin, slot_count
from flows.stored.runs import opened_store
from flows.stored.spec_copy import kept_spec
from infra.errors import StoreCorrupt
from infra.files.lock import FileLock
from infra.settings import Settings
from infra.store.layout import FederationLayout, federations
from infra.store.objects import ObjectStore
from tasks.errors import FedbenchError
from tasks.spec.base import SPEC_VERSION
from tasks.spec.federation import FederationSpec, changed_fields
from tasks.whole import read_whole


@dataclass(frozen=True)
class NamedRun:
    """A federation's name, and its specification with the digests of data and weights filled in.

    note: what the user should know about the choice; empty for a new federation, and for one that goes on.
    """

    name: str
    spec: FederationSpec
    note: str = ""


def find_run(settings: Settings, base: str, given: FederationSpec, say: Callable[[str], None]) -> NamedRun:
    """Read the data of ``given``, look into the store, and return the federation that it means (:func:`choose_run`).

    say: called with a line for each fault of the data that may lower the figures.

    Raises:
        DataError, SettingsError, SpecError: as :func:`flows.coordinator.preflight.pin` and ``slot_count`` do.
        StoreUnavailable: the store does not answer.
    """
    if not settings.pools.used:  # before the data are read, which may take minutes
        slot_count(settings, given)
    spec = pin(given, settings, say)
    with opened_store(settings) as objects:
        return choose_run(objects, settings, base, given, spec)


def choose_run(
    objects: ObjectStore, settings: Settings, base: str, given: FederationSpec, spec: FederationSpec
) -> NamedRun:
    """Return the federation in the store that ``spec`` means, or a new one.

    A federation that was begun with ``spec`` goes on, even if it has been extended since. If there is none, the
    longest one of the same experiment with fewer rounds is extended. Only names that :func:`default_name` makes from
    ``base`` are considered, because a person who named a federation goes on with it by its name.

    given: ``spec`` before the digests were filled in. Earlier versions named federations by the digest of this.
    """
    named, named_before = default_name(base, spec), default_name(base, given)
    stored = _stored(objects, settings, base, spec)
    for name in (named, named_before):
        if name not in stored:
            continue
        found = stored[name]
        if found is None or (name == named and not _same_but_rounds(found, spec)):
            return NamedRun(name, spec)  # the run mends it, or refuses it with the reason
        if _same_but_rounds(found, spec):
            extended = found.max_rounds > spec.max_rounds
            note = f"{name} has been extended to {found.max_rounds} rounds" if extended else ""
            return NamedRun(name, found if extended else spec, note)
    longest = _longest(settings, stored, spec)
    if longest is not None:
        name, rounds = longest
        if rounds == spec.max_rounds:
            return NamedRun(name, spec)
        return NamedRun(name, spec, f"{name} has {rounds} rounds of this experiment; it is extended")
    return NamedRun(named, spec, _other_data(named_before, stored.get(named_before), spec))


def _longest(
    settings: Settings, stored: dict[str, FederationSpec | None], spec: FederationSpec
) -> tuple[str, int] | None:
    """Return name and rounds of the longest federation of the same experiment that is no longer than ``spec``.

    A shorter one that a process of this machine runs is left alone.
    """
    found: list[tuple[int, str]] = []
    for name, other in sorted(stored.items()):
        if other is None or not _same_but_rounds(other, spec) or other.max_rounds > spec.max_rounds:
            continue
        runs = FileLock(settings.home / "locks" / f"{name}.lock").is_taken()
        if other.max_rounds == spec.max_rounds or not runs:
            found.append((other.max_rounds, name))
    if not found:
        return None
    rounds, name = max(found)
    return name, rounds


def _other_data(name: str, found: FederationSpec | None, spec: FederationSpec) -> str:
    """Return that the federation ``name`` is the same experiment on other data; empty if it is not."""
    if found is None:
        return ""
    changes = changed_fields(found, spec)
    if "data.digest" not in changes or not set(changes) <= {"data.digest", "participation.clients", "max_rounds"}:
        return ""
    before, now = (str(digest)[:8] for digest in changes["data.digest"])
    return f"{name} learned other data (data.digest was {before}, now {now}), so this is a new federation"


def _same_but_rounds(one: FederationSpec, other: FederationSpec) -> bool:
    return set(changed_fields(one, other)) <= {"max_rounds"}


def _stored(
    objects: ObjectStore, settings: Settings, base: str, spec: FederationSpec
) -> dict[str, FederationSpec | None]:
    """Return specifications in the store by name, of all federations that :func:`default_name` named from ``base``.

    Of a damaged one this is the machine's copy, or None.
    """
    pattern = re.compile(rf"{re.escape(base)}-[0-9a-f]{{8}}{name_end(spec)}")
    prefix = settings.s3.prefix
    start = FederationLayout(prefix, f"{base}-").root.rstrip("/")
    found: dict[str, FederationSpec | None] = {}
    for name in federations(prefix, objects.list(start)):
        if pattern.fullmatch(name):
            try:
                source = FederationLayout(prefix, name).spec
                found[name] = read_whole(objects, source, FederationSpec, SPEC_VERSION)
            except (FedbenchError, StoreCorrupt):
                found[name] = kept_spec(settings, name)
    return found
