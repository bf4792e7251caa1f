"""``fedbench verify``: compare every file of a registered model with the run's record and the installed code.

The weights must be those of a committed round, by the sha256 in its ``round.json``. All other files are rendered anew
from that record and the installed package, and compared byte by byte. No code of the model is imported. Only its
tensors are loaded, by safetensors.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from flows.commands.open_model import SCHEME, parsed_uri, record_of_weights
from flows.stored.runs import StoredRun, listed, opened_store, read_run
from flows.views.registration import best_record, model_files
from infra.files.folder_difference import Difference, compared, fault, shown
from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from infra.store.objects import ObjectStore
from infra.tracking.model_folder import ML_MODEL, MODEL_FILE, Origin, read_origin, save_folder
from infra.tracking.registered import fetch_registered, registered_models
from infra.tracking.registry import ALIAS
from tasks.detectors.state import state_sha256
from tasks.errors import DataError, SpecError
from tasks.models.file import read_card, read_state
from tasks.spec.base import check_name
from tasks.spec.records import RoundRecord

META_FILE = "registered_model_meta"  # MLflow adds it to a downloaded model
_HEADER_BYTES = 10_000_000  # of a model file, beside its weights
_TEXT_BYTES = 100_000
_META = re.compile(r"model_name: (?P<name>[\w.-]+)\nmodel_version: '?[0-9]+'?\n")
_CODE = re.compile(r"(code/.*|[^/]*)\.py")


@dataclass(frozen=True)
class Verified:
    """The outcome of a comparison. ``title``: the model, its run and round. ``notes`` do not count as differences."""

    title: str
    files: int
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def verify_model(settings: Settings, reference: str, *, run: str | None = None, save: Path | None = None) -> Verified:
    """Compare the model that ``reference`` names with the store's records and the installed package.

    reference: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, a run (its ``@best``), or a downloaded folder.
    run: the run whose model it must be. By default the registered model's name; for a folder, the run in its card.
    save: a folder that must not exist. A downloaded model without differences is kept there.

    Raises:
        SpecError: there is no such model or run.
        DataError: no run is named, and the folder has no model file with a card that names one.
        InfraError: the store or MLflow cannot be reached.
    """
    folder = Path(reference)
    if not reference.startswith(SCHEME) and folder.is_dir():
        if save is not None:
            raise SpecError(f"--save {save}: expected a model of the registry, found the folder {reference}")
        name = run or _name_in_card(folder)
        with opened_store(settings) as objects:
            stored = read_run(objects, settings, name)
        verified = _verified(reference, stored, folder)
        return dataclasses.replace(verified, notes=(*verified.notes, *_access(folder)))
    if save is not None and save.exists():
        raise SpecError(f"--save {save}: expected a folder that does not exist yet")
    uri = reference if reference.startswith(SCHEME) else f"{SCHEME}{reference}@{ALIAS}"
    name, version = parsed_uri(uri)
    services = EmbeddedServices(settings, prefect=False)
    with services, tempfile.TemporaryDirectory(prefix="fedbench-") as temporary:
        objects = ObjectStore(services.s3_endpoint())
        objects.ensure_bucket()
        stored = read_run(objects, settings, run or name)
        if not stored.spec.strategy.shared_model:
            raise SpecError(
                f"{stored.name}: strategy.kind {stored.spec.strategy.kind} has no complete shared model, so none is "
                "registered"
            )
        tracking = services.mlflow_tracking_uri
        fetched = fetch_registered(tracking, services.s3_endpoint(), name, version, Path(temporary))
        if fetched is None:
            found = [SCHEME + item for item in registered_models(tracking)]
            raise SpecError(f"{uri}: no such model in the registry; it has: {listed(found, uri)}")
        verified = _verified(uri, stored, fetched, is_best=version == f"@{ALIAS}")
        if save is not None and not verified.differences:
            _keep(fetched, save)
        return verified


def _verified(title: str, run: StoredRun, folder: Path, *, is_best: bool = False) -> Verified:
    """Compare the model in ``folder`` with ``run``. ``is_best``: it is registered as the run's best model."""
    if not run.records:
        raise SpecError(f"{run.name}: expected a committed round, found none yet")
    best = best_record(run.records)
    record, wrong = _record(run, folder, most=best.model.bytes + _HEADER_BYTES)
    has_note = _has_download_note(run.name, folder)
    skip = {META_FILE} if has_note else set()
    files = model_files(run.spec, record or best, lambda: folder / MODEL_FILE)
    differences = []
    if wrong is not None:  # the other files are compared with the best round's
        differences.append(Difference(MODEL_FILE, wrong))
        skip.add(MODEL_FILE)
        files = dataclasses.replace(files, write_model=lambda path: path.touch())
    with tempfile.TemporaryDirectory(prefix="fedbench-") as temporary:
        rendered = Path(temporary) / "mlflow"
        save_folder(files, rendered, _origin(folder))
        found = compared(folder, rendered, skip=skip)
    differences += found.differences
    notes = []
    if record is not None and is_best and record.round != best.round:
        notes.append(f"the best round on record is {best.round}; a run registers its best model when it ends")
    if any(_CODE.fullmatch(item.path) for item in differences):
        notes.append(
            f"the installed fedbench {metadata.version('fedbench')} has other code: the model's was changed, or "
            f"another version registered it (the round was computed by {shown((record or best).environment.fedbench)})"
        )
    where = f"{run.name}, round {record.round}" if record is not None else run.name
    return Verified(f"{title} ({where})", found.files + (wrong is not None), tuple(differences), tuple(notes))


def _record(run: StoredRun, folder: Path, *, most: int) -> tuple[RoundRecord | None, str | None]:
    """Return the round whose weights the model file has, or what is wrong with the file."""
    wrong = fault(folder, MODEL_FILE, most=most)
    if wrong is not None:
        return None, wrong
    try:
        sha256 = state_sha256(read_state(folder / MODEL_FILE))
    except DataError:
        return None, "expected a safetensors file"
    record = record_of_weights(run.records, sha256)
    return record, None if record else f"its weights (sha256 {sha256}) are those of no committed round of {run.name}"


def _origin(folder: Path) -> Origin:
    """Return the registration named in the model's ``MLmodel``; a placeholder if a field has not MLflow's form."""
    origin = None
    if fault(folder, ML_MODEL, most=_TEXT_BYTES) is None:
        origin = read_origin((folder / ML_MODEL).read_bytes().decode("utf-8", errors="replace"))
    return origin or Origin(model_id=f"m-{'0' * 32}", run_id="0" * 32)


def _has_download_note(name: str, folder: Path) -> bool:
    """Return whether the folder has MLflow's note of a download, with nothing but the lines of the model ``name``."""
    if fault(folder, META_FILE, most=_TEXT_BYTES) is not None:
        return False
    found = _META.fullmatch((folder / META_FILE).read_bytes().decode("utf-8", errors="replace"))
    return found is not None and found["name"] == name


def _name_in_card(folder: Path) -> str:
    """Return the run that the card of the folder's model file names.

    Raises:
        DataError: there is no usable model file, or its card names no run.
        SpecError: the card's name cannot be that of a run.
    """
    wrong = fault(folder, MODEL_FILE, most=2**63)
    if wrong is not None:
        raise DataError(f"{folder}: {MODEL_FILE}: {wrong}; expected the folder of a registered model")
    name = read_card(folder / MODEL_FILE).federation
    if name is None:
        raise DataError(f"{folder}: {MODEL_FILE}: its card names no run; expected --run RUN")
    check_name(name, source=f"{folder}: {MODEL_FILE}: card: federation")
    return name


def _access(folder: Path) -> list[str]:
    """Return a note if other users can write to ``folder``."""
    status = folder.stat()
    if status.st_uid in (0, os.getuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return []
    return [f"others can write to {folder}, and so change the model after this check"]


def _keep(folder: Path, target: Path) -> None:
    """Copy the model in ``folder`` to ``target``, which only this user may open.

    Raises:
        DataError: ``target`` cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(mode=0o700)
        shutil.copytree(folder, target, dirs_exist_ok=True)
        target.chmod(0o700)
    except OSError as error:
        raise DataError(f"--save {target}: the model cannot be written: {error.strerror or error}") from None
