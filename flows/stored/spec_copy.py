"""A copy of a federation's specification on the machine that ran it. It is used if the store's is damaged."""

from __future__ import annotations

import logging
from pathlib import Path

from infra.files.durable import write_durably
from infra.settings import Settings, run_folder
from infra.store.sealed import seal, unseal
from tasks.documents.json_text import read_json
from tasks.errors import SpecError
from tasks.spec.base import SPEC_VERSION, parse
from tasks.spec.federation import FederationSpec

log = logging.getLogger(__name__)


def keep_spec(settings: Settings, name: str, spec: FederationSpec) -> None:
    """Write a copy of ``spec`` on this machine. If that fails, log a warning: the run does not need the copy."""
    try:
        path = _path(settings, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, seal(spec.model_dump(mode="json")).decode())
    except OSError as error:
        log.warning("the specification was not copied to this machine: %s", error)


def kept_spec(settings: Settings, name: str) -> FederationSpec | None:
    """Return the specification with which this machine last ran the federation; None without a readable copy."""
    path = _path(settings, name)
    try:
        document, _ = unseal(read_json(path.read_bytes()))
        return parse(FederationSpec, document, source=str(path), newest=SPEC_VERSION)
    except (OSError, ValueError, SpecError):
        return None


def _path(settings: Settings, name: str) -> Path:
    return run_folder(settings, name) / "spec.json"
