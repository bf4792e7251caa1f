"""Print the result of a finished suite run again without starting anything: note what was reported, and read it."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows.suite.accepted import accepted_result, suite_result
from flows.suite.plan import SuitePlan, read_start
from infra.files.durable import write_durably
from infra.store.objects import ObjectStore
from infra.store.suite_layout import SuiteLayout
from tasks.code_version import code_version
from tasks.errors import SpecError
from tasks.spec.base import Sha256
from tasks.spec.suite import SuiteSpec
from tasks.spec.suite_records import SuiteResult

log = logging.getLogger(__name__)

FILE = "reported.json"
REPORT = Path("report") / "report.html"


class Reported(BaseModel):
    """``reported.json`` in a suite run's folder: what its last report was made of. It has all views.

    basis: digest of the suite, the code, the accepted result, and whether that was compared.
    result: digest of the result.
    """

    basis: Sha256
    result: Sha256


def note_reported(
    folder: Path, suite: SuiteSpec, result: SuiteResult, objects: ObjectStore, prefix: str, *, compare: bool
) -> None:
    """Note that the whole report of ``result`` was made. ``folder``: that of the suite run on this machine."""
    note = Reported(
        basis=_basis(objects, prefix, suite, compare=compare), result=_digest(result.model_dump(mode="json"))
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / FILE, note.model_dump_json(indent=2) + "\n")
    except OSError as error:  # then the report is made again
        log.warning("%s cannot be written: %s", folder / FILE, error)


def reported_result(
    objects: ObjectStore, prefix: str, name: str, suite: SuiteSpec, folder: Path, *, compare: bool
) -> SuiteResult | None:
    """Return the result of the suite run ``name`` if all of its cells are done and its report needs nothing new.

    None: a cell is left, or the suite, the code or the accepted result has changed since the report, or a view of the
    report failed.
    """
    try:
        note = Reported.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
        if not (folder / REPORT).exists() or note.basis != _basis(objects, prefix, suite, compare=compare):
            return None
        if read_start(objects, prefix, name).digest != suite.digest:
            return None
        result = suite_result(objects, prefix, name)
    except (OSError, ValueError, SpecError):  # pydantic's ValidationError is a ValueError
        return None
    if note.result != _digest(result.model_dump(mode="json")) or result.code_version != code_version():
        return None
    plan = SuitePlan(name, suite, code_version(), SuiteLayout(prefix, name), objects)
    return result if len(plan.done()) == len(plan.to_run) else None


def _basis(objects: ObjectStore, prefix: str, suite: SuiteSpec, *, compare: bool) -> str:
    accepted = accepted_result(objects, prefix, suite.name) if compare else None
    before = None if accepted is None else accepted.model_dump(mode="json")
    return _digest([suite.model_dump(mode="json"), code_version(), compare, before])


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
