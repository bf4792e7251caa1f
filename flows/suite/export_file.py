"""The text of an exported suite run's file: JSON with one line for each cell.

Text and not a compressed file, because it is kept in a repository: a sitting adds lines, and git stores the difference.
The same cells give the same bytes. Each cell has a digest of its own, so that a changed figure is refused with the name
of its cell; the file has one over everything.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from infra.store.foreign_json import read_foreign
from infra.store.layout import NAME
from infra.store.sealed import DIGEST, content_digest, unseal
from tasks.documents.regular_file import read_regular
from tasks.errors import SpecError
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.suite import cells_of
from tasks.spec.suite_records import CellRecord, SuiteExport

KIND: str = SuiteExport.model_fields["kind"].default


def export_text(export: SuiteExport) -> str:
    """Return the text of ``export``, with its digests."""
    document = json.loads(export.model_dump_json())
    for cell in document["cells"].values():
        cell[DIGEST] = content_digest(cell)
    digest = content_digest(document)
    cells = ",\n".join(f"{_json(name)}: {_json(cell)}" for name, cell in document.pop("cells").items())
    fields = [f"{_json(name)}: {_json(value)}" for name, value in document.items()]
    return "{\n" + ",\n".join([*fields, f'"cells": {{\n{cells}\n}}', f'"{DIGEST}": "{digest}"']) + "\n}\n"


def _json(value: Any) -> str:
    """Return ``value`` as one line of JSON. Its keys are sorted, as in the store, so that a copy has the same bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read_export(path: Path) -> SuiteExport:
    """Return the suite run's cells in a file that :func:`export_text` made.

    Raises:
        SpecError: it is no such file, has another version, is damaged or was edited, or its fields do not fit each
            other. The message names the file, the cell and the field.
        OSError: it cannot be read.
    """
    try:
        document = read_foreign(read_regular(path))
    except ValueError as error:
        raise SpecError(
            f"{path}: expected a whole file of fedbench suite export, found no JSON: {error}; it is cut off, damaged "
            "or another file"
        ) from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        found = document.get("kind") if isinstance(document, dict) else type(document).__name__
        raise SpecError(f"{path}: kind: expected {KIND}, as fedbench suite export writes, found {found!r}")
    # Another version may have another seal; parse refuses it.
    if document.get("version", RECORD_VERSION) == RECORD_VERSION:
        document = _unsealed(document, path)
    export = parse(SuiteExport, document, source=str(path), newest=RECORD_VERSION)
    _check(export, path)
    return export


def _unsealed(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return ``document`` without its digests, which were checked: first those of the cells."""
    cells = document.get("cells")
    opened = {}
    for name, cell in cells.items() if isinstance(cells, dict) else ():
        opened[name] = _opened(cell, f"{path}: cells.{name}")
    content: dict[str, Any] = _opened(document, str(path))
    return {**content, "cells": opened} if isinstance(cells, dict) else content


def _opened(document: Any, where: str) -> Any:
    try:
        content, sealed = unseal(document)
    except ValueError as error:
        raise SpecError(f"{where}: {error}; it is damaged or was edited") from None
    if not sealed:
        raise SpecError(f"{where}: {DIGEST}: expected the digest of its content, found none")
    return content


def _check(export: SuiteExport, path: Path) -> None:
    """Check that the cells are finished cells of the file's own suite.

    Raises:
        SpecError: one is not.
    """
    if export.digest != export.suite.digest:
        raise SpecError(
            f"{path}: digest: expected {export.suite.digest}, the digest of the file's suite, found {export.digest}"
        )
    known = {cell.name: cell.spec.digest for cell in cells_of(export.suite, whole=False)}
    for name, record in export.cells.items():
        where = f"{path}: cells.{name}"
        if name not in known:
            raise SpecError(f"{where}: expected a cell of the file's suite: {', '.join(known)}")
        _check_cell(record, name, known[name], where)


def _check_cell(record: CellRecord, name: str, digest: str, where: str) -> None:
    if record.state != "done":
        raise SpecError(f"{where}: state: expected done, found {record.state}")
    if record.imported is None:
        raise SpecError(f"{where}: imported: expected the cell's figures, found none")
    result = record.imported.result
    wanted: dict[str, tuple[object, object]] = {
        "cell": (name, record.cell),
        "spec_digest": (digest, record.spec_digest),
        "imported.result.spec_digest": (digest, result.spec_digest),
        "imported.result.points": (list(range(len(result.points))), [point.round for point in result.points]),
    }
    for field, (expected, found) in wanted.items():
        if expected != found:
            raise SpecError(f"{where}: {field}: expected {expected}, found {found}")
    code = record.code_version
    if re.fullmatch(NAME, code.replace("+", "-")) is None:  # it becomes part of the record's key
        raise SpecError(f"{where}: code_version: expected a version such as 0.1.0-3f2a9c1e, found {code!r}")
    if result.machine is None:
        raise SpecError(f"{where}: imported.result.machine: expected the machine that ran the cell, found none")
