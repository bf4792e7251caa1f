"""The keys of suites' objects in the bucket, beside those of federations.

<prefix>/_suites/<run>/suite.json                                the suite that is run, written first
<prefix>/_suites/<run>/cells/<digest>-<code version>.json        a cell that has ended; an imported one has its figures
<prefix>/_suites/<run>/lease/…                                  who runs it (infra/store/lease.py)
<prefix>/_suites/<run>/result.json                               the results of all cells
<prefix>/_suites/<run>/report/<file>
<prefix>/_references/<suite>/accepted.json                       the accepted result, with which later ones are compared
<prefix>/_references/<suite>/history/<time>.json                 earlier accepted results, by the time of acceptance

Names of federations begin with a letter or digit, so no federation can have these folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from infra.store.layout import NAME

DIGEST_DIGITS = 16  # digits of a specification's sha256 in a cell's key


def _below(prefix: str, folder: str) -> str:
    prefix = prefix.strip("/")
    return f"{prefix}/{folder}/" if prefix else f"{folder}/"


@dataclass(frozen=True)
class SuiteLayout:
    """The keys of one run of a suite. ``prefix`` may be empty."""

    prefix: str
    run: str

    @property
    def root(self) -> str:
        """Prefix of every key of the run; ends with a slash."""
        return f"{self.all_runs}{self.run}/"

    @property
    def all_runs(self) -> str:
        """Prefix of every run's keys; ends with a slash."""
        return _below(self.prefix, "_suites")

    @property
    def lease(self) -> str:
        """Prefix of the notes of the run's holders; ends with a slash."""
        return f"{self.root}lease/"

    @property
    def suite(self) -> str:
        return f"{self.root}suite.json"

    @property
    def cells(self) -> str:
        """Prefix of the cells' keys; ends with a slash."""
        return f"{self.root}cells/"

    def cell(self, digest: str, code_version: str) -> str:
        """Key of a cell's record, from its specification's digest (hex) and the version of the code that ran it."""
        return f"{self.cells}{digest[:DIGEST_DIGITS]}-{code_version}.json"

    def digest_of(self, key: str) -> str:
        """Return the first :data:`DIGEST_DIGITS` digits of the specification's digest in a cell's key."""
        return key.removeprefix(self.cells)[:DIGEST_DIGITS]

    def code_of(self, key: str) -> str:
        """Return the code version in a cell's key."""
        return key.removeprefix(self.cells)[DIGEST_DIGITS + 1 :].removesuffix(".json")

    @property
    def result(self) -> str:
        return f"{self.root}result.json"

    def report(self, file: str) -> str:
        return f"{self.root}report/{file}"


@dataclass(frozen=True)
class ReferenceLayout:
    """The keys of a suite's accepted results."""

    prefix: str
    suite: str

    @property
    def root(self) -> str:
        """Prefix of all accepted results of the suite; ends with a slash."""
        return f"{self.all_suites}{self.suite}/"

    @property
    def all_suites(self) -> str:
        """Prefix of every suite's keys; ends with a slash."""
        return _below(self.prefix, "_references")

    @property
    def accepted(self) -> str:
        return f"{self.root}accepted.json"

    @property
    def replaced(self) -> str:
        """Prefix of the earlier accepted results; ends with a slash."""
        return f"{self.root}history/"

    def history(self, time: datetime) -> str:
        """Key of a result that was accepted at ``time`` (with a time zone). The keys sort by time."""
        return f"{self.replaced}{time.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}.json"


def suite_runs(prefix: str, keys: Iterable[str]) -> list[str]:
    """Return the names of the suite runs that have a ``suite.json`` among ``keys``, sorted."""
    pattern = re.compile(re.escape(_below(prefix, "_suites")) + rf"({NAME})/suite\.json")
    found = (pattern.fullmatch(key) for key in keys)
    return sorted(match[1] for match in found if match)


def accepted_suites(prefix: str, keys: Iterable[str]) -> list[str]:
    """Return the names of the suites that have an ``accepted.json`` among ``keys``, sorted."""
    pattern = re.compile(re.escape(_below(prefix, "_references")) + rf"({NAME})/accepted\.json")
    found = (pattern.fullmatch(key) for key in keys)
    return sorted(match[1] for match in found if match)
