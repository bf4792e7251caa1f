"""Accepted results of suites: accept a result, and compare later results with it.

They are objects in the store, beside the suites' runs (:mod:`infra.store.suite_layout`). When a result replaces an
accepted one, the old one is kept in the history, under the time at which it was accepted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from flows.suite.plan import read_start
from infra.store.flush import flush
from infra.store.objects import ObjectStore
from infra.store.suite_layout import ReferenceLayout, SuiteLayout, accepted_suites
from tasks.errors import SpecError
from tasks.spec.base import RECORD_VERSION, check_name, parse
from tasks.spec.suite import RegressionRule
from tasks.spec.suite_records import AcceptedResult, SuiteResult, SuiteStart
from tasks.suite.regression import Comparison, compare_results
from tasks.whole import DamagedObject, find_whole

log = logging.getLogger(__name__)


def suite_result(objects: ObjectStore, prefix: str, suite_run: str) -> SuiteResult:
    """Return the result of ``suite_run``.

    Raises:
        SpecError: there is no suite run of this name, or it has no result yet. Or the result is damaged, or has a newer
            version.
    """
    check_name(suite_run, source="suite run")
    layout = SuiteLayout(prefix, suite_run)
    result = find_whole(objects, layout.result, SuiteResult, RECORD_VERSION)
    if result is not None:
        return result
    read_start(objects, prefix, suite_run)
    raise SpecError(f"{suite_run}: expected a result, found none yet; run the suite to its end first")


def suite_rule(objects: ObjectStore, prefix: str, suite_run: str) -> RegressionRule:
    """Return the rule of a suite run's specification; the default rule if the store has no specification."""
    source = SuiteLayout(prefix, suite_run).suite
    document = objects.get_json(source)
    if document is None:
        return RegressionRule()
    return parse(SuiteStart, document, source=source, newest=RECORD_VERSION).suite.rule


def accept(
    objects: ObjectStore, prefix: str, suite_run: str, *, by: str, note: str, incomplete: bool = False
) -> AcceptedResult:
    """Accept the result of ``suite_run``: later results of its suite are compared with it.

    The accepted result that it replaces is first written to the history. Accepting the accepted result again is no
    error.

    by: who accepts. incomplete: also accept a result in which cells failed or are missing. These are not compared
    later.

    Raises:
        SpecError: there is no such suite run, or it has no result, or its result lacks cells.
    """
    result = suite_result(objects, prefix, suite_run)
    if not result.cells:
        raise SpecError(f"{suite_run}: expected at least one cell with a result, found none")
    lacking = [*(f"{cell.cell} failed" for cell in result.failed), *(f"{name} is missing" for name in result.missing)]
    if lacking and not incomplete:
        raise SpecError(
            f"{suite_run}: expected a result of all cells, found {len(lacking)} without: {', '.join(lacking)}; "
            "run the suite again, or accept it with --incomplete"
        )
    layout = ReferenceLayout(prefix, result.suite)
    try:
        before = accepted_result(objects, prefix, result.suite)
    except DamagedObject as error:
        before = None
        kept = layout.history(datetime.now(UTC)).removesuffix(".json") + ".damaged"
        objects.copy(layout.accepted, kept)
        log.warning("%s: the accepted result is replaced; the damaged one is kept as %s", error, kept)
    if before is not None:
        history = layout.history(before.accepted)
        objects.put_json(history, before.model_dump(mode="json"))
        flush(objects, [history])
    accepted = AcceptedResult(accepted=datetime.now(UTC), by=by, note=note, result=result)
    objects.put_json(layout.accepted, accepted.model_dump(mode="json"))
    flush(objects, [layout.accepted])
    return accepted


def accepted_result(objects: ObjectStore, prefix: str, suite: str) -> AcceptedResult | None:
    """Return the accepted result of ``suite``; None before the first was accepted.

    Raises:
        SpecError: the accepted result is damaged, or has a newer version.
    """
    source = ReferenceLayout(prefix, suite).accepted
    return find_whole(objects, source, AcceptedResult, RECORD_VERSION)


def accepted_before(objects: ObjectStore, prefix: str, suite: str) -> list[AcceptedResult]:
    """Return the earlier accepted results of ``suite``, the oldest first."""
    keys = [key for key in objects.list(ReferenceLayout(prefix, suite).replaced) if key.endswith(".json")]
    return [parse(AcceptedResult, objects.get_json(key), source=key, newest=RECORD_VERSION) for key in keys]


def known_suites(objects: ObjectStore, prefix: str) -> Sequence[str]:
    """Return the names of the suites with an accepted result."""
    return accepted_suites(prefix, objects.list(ReferenceLayout(prefix, "any").all_suites))


def compare_with_accepted(
    objects: ObjectStore, prefix: str, result: SuiteResult, rule: RegressionRule
) -> Comparison | None:
    """Compare ``result`` with the accepted one by ``rule``. Return None if none was accepted yet.

    Raises:
        SpecError: the accepted result is damaged, or has a newer version.
    """
    accepted = accepted_result(objects, prefix, result.suite)
    return None if accepted is None else compare_results(accepted.result, result, rule)
