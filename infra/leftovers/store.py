"""Decide which objects of a federation may be removed from the store, from a listing alone.

A committed round needs its marker and its plan, and its global weights while it is the best or among the last. Its
detections stay as long as these weights. The states of a federated method that such a round names are needed too, also
in the folders of earlier rounds. Objects of a round that was never committed save work when the federation is resumed.
After a long time without writes they may be removed: a resumed round does the work again and gets the same weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from infra.store.layout import FederationLayout, first_missing
from infra.store.objects import ObjectEntry
from infra.store.uploads import IncompleteUpload

# A run on another machine, whose lock cannot be seen here, may still write or read younger objects.
YOUNG = timedelta(hours=1)

OLD_GLOBAL = "global weights, neither best nor among the last"
OLD_DETECTIONS = "detections of a round that is neither best nor among the last"
OLD_STATE = "state that no round with kept weights names"
OLD_UPDATE = "update of a committed round"
OLD_EVALUATION = "evaluation of a committed round"
SUPERSEDED = "of a round that was put aside"
DAMAGED = "a damaged object that was replaced"
NEVER_COMMITTED = "of a round that was never committed"
NO_RECORD = "named by no record"
SERVER_TEMPORARY = "the S3 server's temporary file"
INCOMPLETE_UPLOAD = "incomplete upload"

_SERVER_TEMPORARY = ".rclone_temp_"  # start of its temporary names
_RECORDS = frozenset({"spec.json", "best.json", "round.json"})  # never removed, wherever they are
_KEPT = frozenset({"spec.json", "best.json", "sheet.png"})  # directly below the federation's root
_ASIDE = re.compile(r"(superseded|damaged)/[0-9]{4,}/.+")
# Models of clients; an extended federation keeps those of its earlier ends.
_FINE_TUNED = re.compile(r"fine-tuned/[0-9]{4,}/[^/]+\.(safetensors|json)")
_DETECTIONS = "detections.npz"  # below a round's folder
_ROUND = re.compile(r"rounds/([0-9]{4,})/(.+)")
_STATE = re.compile(r"(server|shared|state/[^/]+)\.safetensors")
_UPDATE = re.compile(r"updates/[^/]+\.(safetensors|json)")
_EVALUATION = re.compile(r"evaluations/([^/]+/)?[^/]+\.(safetensors|json)")


@dataclass(frozen=True)
class Retention:
    """What is kept. older_than: time without a write to a federation after which its dead run's leftovers may go."""

    keep_updates: bool = False
    keep_globals: int = 2
    older_than: timedelta = timedelta(days=7)


@dataclass(frozen=True)
class Leftover:
    """Something that may be removed, and why. ``key``: an object's key, or a path on this machine."""

    key: str
    bytes: int
    reason: str
    federation: str = ""
    kind: Literal["object", "upload", "path"] = "object"
    upload_id: str = ""


def kept_rounds(committed: Sequence[int], best_rounds: Iterable[int], retention: Retention) -> frozenset[int]:
    """Return the rounds whose global weights stay: those of ``best_rounds``, and the last of ``committed``."""
    last = range(len(committed) - max(retention.keep_globals, 2), len(committed))
    return frozenset({*best_rounds, *last} & set(committed))


def federation_leftovers(
    layout: FederationLayout,
    entries: Sequence[ObjectEntry],
    best_rounds: Iterable[int],
    retention: Retention,
    now: datetime,
    states: Iterable[str] = (),
) -> list[Leftover]:
    """Return which of ``entries``, the objects below ``layout.root``, may be removed.

    The caller makes sure that nobody runs the federation.

    best_rounds: rounds that a record calls the best; their global weights stay.
    states: keys of the states that the records of :func:`kept_rounds` name; they stay.
    """
    # Lease notes do not count as objects of the federation: the clean-up writes one too.
    entries = [
        entry for entry in entries if entry.key.startswith(layout.root) and not entry.key.startswith(layout.lease)
    ]
    if not entries:
        return []
    committed = layout.committed_rounds(entry.key for entry in entries)
    if first_missing(committed) is not None:
        return []  # a marker is missing: a repair may need any of the objects
    rules = _Rules(
        committed=frozenset(committed),
        kept_globals=kept_rounds(committed, best_rounds, retention),
        kept_states=frozenset(state.removeprefix(layout.root) for state in states),
        keep_updates=retention.keep_updates,
        abandoned=now - max(entry.modified for entry in entries) >= max(retention.older_than, YOUNG),
    )
    old = now - max(retention.older_than, YOUNG)
    found = []
    for entry in entries:
        name = entry.key.removeprefix(layout.root)
        if aside := _ASIDE.fullmatch(name):
            # Records are small and may be useful, so they stay. Weights are large.
            why = SUPERSEDED if aside[1] == "superseded" else DAMAGED
            reason = why if entry.modified <= old and not name.endswith(".json") else None
        else:
            reason = rules.reason(name, young=now - entry.modified < YOUNG)
        if reason is not None:
            found.append(Leftover(entry.key, entry.bytes, reason, layout.federation))
    return found


@dataclass(frozen=True)
class _Rules:
    committed: frozenset[int]
    kept_globals: frozenset[int]
    kept_states: frozenset[str]
    keep_updates: bool
    abandoned: bool  # nothing was written for long

    def reason(self, name: str, *, young: bool) -> str | None:
        """Return why the object ``name`` (below the federation's root) may be removed; None: it stays."""
        base = name.rpartition("/")[2]
        if base in _RECORDS or name in _KEPT or _FINE_TUNED.fullmatch(name):
            return None
        if base.startswith(_SERVER_TEMPORARY):
            return None if young else SERVER_TEMPORARY
        match = _ROUND.fullmatch(name)
        if match and match[1] == f"{int(match[1]):04d}":
            number, rest = int(match[1]), match[2]
            if rest == "plan.json":  # a resumed round follows it
                return None
            if name in self.kept_states:
                return None
            if number in self.committed:
                known, reason = self._of_committed(number, rest, young=young)
            else:
                known, reason = self._of_uncommitted(rest)
            if known:
                return reason
        return NO_RECORD if self.abandoned else None

    def _of_committed(self, number: int, rest: str, *, young: bool) -> tuple[bool, str | None]:
        """Return whether the layout has the name ``rest``, and why the object may be removed; None: it stays."""
        if rest == "global.safetensors":
            return True, None if number in self.kept_globals else OLD_GLOBAL
        if rest == _DETECTIONS:
            return True, None if number in self.kept_globals else OLD_DETECTIONS
        if _STATE.fullmatch(rest):
            return True, OLD_STATE
        if _UPDATE.fullmatch(rest):
            return True, None if self.keep_updates else OLD_UPDATE
        if _EVALUATION.fullmatch(rest):
            return True, None if young else OLD_EVALUATION
        return False, None

    def _of_uncommitted(self, rest: str) -> tuple[bool, str | None]:
        if rest in ("global.safetensors", _DETECTIONS) or any(
            kind.fullmatch(rest) for kind in (_STATE, _UPDATE, _EVALUATION)
        ):
            return True, NEVER_COMMITTED if self.abandoned else None
        return False, None


def upload_leftovers(layout: FederationLayout, uploads: Iterable[IncompleteUpload], now: datetime) -> list[Leftover]:
    """Return uploads of the federation's keys that are too old to be still in progress."""
    return [
        Leftover(upload.key, upload.bytes, INCOMPLETE_UPLOAD, layout.federation, "upload", upload.upload_id)
        for upload in uploads
        if upload.key.startswith(layout.root) and now - upload.started >= YOUNG
    ]


def removal_steps(layout: FederationLayout, keys: Iterable[str]) -> list[list[str]]:
    """Return all ``keys`` of a federation in steps, to be removed one after the other.

    A removal that stops early leaves a valid federation. Weights go first, then the rounds' markers from the last to
    the first, so that no marker is missing between two others, and at the end ``spec.json``, which identifies the
    federation. Lease notes are not included: they are removed with the lease of the process that removes the
    federation.
    """
    own = [key for key in keys if key.startswith(layout.root) and not key.startswith(layout.lease)]
    last = [layout.marker(number) for number in reversed(layout.committed_rounds(own))] + [layout.spec]
    steps = [[key for key in own if key not in set(last)], *([key] for key in last if key in own)]
    return [step for step in steps if step]
