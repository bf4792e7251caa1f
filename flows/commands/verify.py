"""``fedbench verify``: compare every file of a registered model with the run's record and the installed code.

The weights must be those of a committed round, by the sha256 in its ``round.json``. A client's own model must have the
weights that the run's record gives for it. All other files are rendered anew from that record and the installed
package, and compared byte by byte. No code of the model is imported. Only its tensors are loaded, by safetensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from flows.commands.open_model import SCHEME, open_round, parsed_uri, record_of_weights
from flows.commands.opened_model import OpenedModel
from flows.stored.names import listed
from flows.stored.runs import StoredRun, opened_store, read_run
from flows.views.registration import best_record, files_of, model_files
from infra.files.folder_difference import Difference, compared, fault, shown
from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from infra.store.objects import ObjectStore
from infra.tracking.model_folder import (
    CARD_FILE,
    ML_MODEL,
    MODEL_FILE,
    ModelFiles,
    Origin,
    read_origin,
    save_folder,
)
from infra.tracking.registered import fetch_registered, registered_models
from infra.tracking.registry import ALIAS, CLIENT_MARK, model_uri, own_name
from tasks.detectors.state import state_of, state_sha256
from tasks.errors import DataError, SpecError
from tasks.models.file import read_card, read_state
from tasks.spec.base import check_name
from tasks.spec.records import RoundRecord

META_FILE = "registered_model_meta"  # MLflow adds it to a downloaded model
_HEADER_BYTES = 10_000_000  # of a model file, beside its weights
_TEXT_BYTES = 100_000
_META = re.compile(r"model_name: (?P<name>[\w.+-]+)\nmodel_version: '?[0-9]+'?\n")
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

    reference: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, a run or ``RUN@CLIENT`` (its ``@best``), or a
        downloaded folder.
    run: the run whose model it must be, or ``RUN@CLIENT``. By default as the registered model's name says; for a
        folder, as MLflow's note of the download says if it names a client's model, else the run in its card.
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
        registered = _name_in_note(folder)
        whose = run or _whose(registered if CLIENT_MARK in registered else _name_in_card(folder))
        with opened_store(settings) as objects:
            verified = _verified(Subject(objects, settings, whose, registered), reference, folder)
        return dataclasses.replace(verified, notes=(*verified.notes, *_access(folder)))
    if save is not None and save.exists():
        raise SpecError(f"--save {save}: expected a folder that does not exist yet")
    uri = reference
    if not reference.startswith(SCHEME):
        federation, at, client = reference.partition("@")
        uri = model_uri(own_name(federation, client) if at else federation)
    name, version = parsed_uri(uri)
    services = EmbeddedServices(settings, prefect=False)
    with services, tempfile.TemporaryDirectory(prefix="fedbench-") as temporary:
        objects = ObjectStore(services.s3_endpoint())
        objects.ensure_bucket()
        subject = Subject(objects, settings, run or _whose(name), name)
        if subject.client is None and not subject.run.spec.strategy.shared_model:
            raise SpecError(
                f"{subject.run.name}: strategy.kind {subject.run.spec.strategy.kind} has no complete shared model, so "
                f"none is registered; a client's own model is called {subject.run.name}@CLIENT"
            )
        tracking = services.mlflow_tracking_uri
        fetched = fetch_registered(tracking, services.s3_endpoint(), name, version, Path(temporary))
        if fetched is None:
            found = [SCHEME + item for item in registered_models(tracking)]
            raise SpecError(f"{uri}: no such model in the registry; it has: {listed(found, uri)}")
        verified = _verified(subject, uri, fetched, is_best=version == f"@{ALIAS}")
        if save is not None and not verified.differences:
            _keep(fetched, save)
        return verified


def _whose(registered: str) -> str:
    """Return ``RUN`` or ``RUN@CLIENT`` for the default name of its registered model."""
    return registered.replace(CLIENT_MARK, "@", 1)


class Subject:
    """The run that a registered model is compared with, and the client if it is the client's own model.

    registered: the registered model's name; empty if it is unknown.
    """

    def __init__(self, objects: ObjectStore, settings: Settings, whose: str, registered: str) -> None:
        """whose: ``RUN`` or ``RUN@CLIENT``.

        Raises:
            SpecError: there is no such run, or no round of it.
        """
        name, at, client = whose.partition("@")
        self.objects, self.settings = objects, settings
        self.run = read_run(objects, settings, name)
        self.client = client if at else None
        self.registered = registered
        if not self.run.records:
            raise SpecError(f"{name}: expected a committed round, found none yet")

    @property
    def default_name(self) -> str:
        return self.run.name if self.client is None else own_name(self.run.name, self.client)

    @property
    def best(self) -> RoundRecord:
        return best_record(self.run.records)

    def uri(self, folder: Path) -> str:
        """Return the URI in the model's card: by the name that it was registered with, else by the default one."""
        path, own = folder / CARD_FILE, model_uri(self.registered)
        if self.registered and fault(folder, CARD_FILE, most=_HEADER_BYTES) is None:
            text = path.read_bytes().decode("utf-8", errors="replace")
            if f"fedbench verify {own} " in text:
                return own
        return model_uri(self.default_name)

    def has_download_note(self, folder: Path) -> bool:
        """Return whether the folder has MLflow's note of a download, with nothing but the lines of this model."""
        name = _name_in_note(folder)
        return bool(name) and model_uri(name) in (model_uri(self.default_name), self.uri(folder))

    def files(self, folder: Path, record: RoundRecord, own: OpenedModel | None) -> ModelFiles:
        """Return the parts that the model in ``folder`` must have. ``own``: the client's model on record."""
        spec, uri = self.run.spec, self.uri(folder)
        if own is not None:
            return files_of(spec, own.card, lambda: read_state(folder / MODEL_FILE), uri, own.client)
        return model_files(spec, record, lambda: folder / MODEL_FILE, uri)

    def own_model(self, folder: Path) -> OpenedModel:
        """Open the client's own model of the round that the card of the model file names, else of the best round.

        Raises:
            SpecError: the run has no such client or round, or the round's weights were not kept.
        """
        number = None
        if fault(folder, MODEL_FILE, most=2**63) is None:
            with contextlib.suppress(DataError):
                number = read_card(folder / MODEL_FILE).round
        return open_round(self.objects, self.settings, self.run, number, self.client)


def _verified(subject: Subject, title: str, folder: Path, *, is_best: bool = False) -> Verified:
    """Compare the model in ``folder`` with the run. ``is_best``: it is registered as the run's best model."""
    run, best = subject.run, subject.best
    own = None if subject.client is None else subject.own_model(folder)
    if own is None:
        record, wrong = _record(run, folder, most=best.model.bytes + _HEADER_BYTES)
    else:
        record, wrong = _own_record(own, folder)
    skip = {META_FILE} if subject.has_download_note(folder) else set()
    files = subject.files(folder, record or best, own)
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
    tuned = own is not None and not run.spec.strategy.personal
    if record is not None and is_best and not tuned and record.round != best.round:
        notes.append(f"the best round on record is {best.round}; a run registers its best model when it ends")
    if any(_CODE.fullmatch(item.path) for item in differences):
        notes.append(
            f"the installed fedbench {metadata.version('fedbench')} has other code: the model's was changed, or "
            f"another version registered it (the round was computed by {shown((record or best).environment.fedbench)})"
        )
    where = own.title if own is not None else f"{run.name}, round {record.round}" if record is not None else run.name
    return Verified(f"{title} ({where})", found.files + (wrong is not None), tuple(differences), tuple(notes))


def _own_record(own: OpenedModel, folder: Path) -> tuple[RoundRecord | None, str | None]:
    """Return the round of a client's own model, or what is wrong with the model file."""
    assert own.record is not None
    wanted = state_of(own.detector)
    size = sum(tensor.numel() * tensor.element_size() for tensor in wanted.values())
    sha256, wrong = _weights_sha256(folder, most=size + _HEADER_BYTES)
    if sha256 is None:
        return None, wrong
    if sha256 == state_sha256(wanted):
        return own.record, None
    return None, f"its weights (sha256 {sha256}) are not those of {own.title}"


def _record(run: StoredRun, folder: Path, *, most: int) -> tuple[RoundRecord | None, str | None]:
    """Return the round whose weights the model file has, or what is wrong with the file."""
    sha256, wrong = _weights_sha256(folder, most=most)
    if sha256 is None:
        return None, wrong
    record = record_of_weights(run.records, sha256)
    return record, None if record else f"its weights (sha256 {sha256}) are those of no committed round of {run.name}"


def _weights_sha256(folder: Path, *, most: int) -> tuple[str | None, str | None]:
    """Return the digest of the weights in the model file of at most ``most`` bytes, or what is wrong with the file."""
    wrong = fault(folder, MODEL_FILE, most=most)
    if wrong is not None:
        return None, wrong
    try:
        return state_sha256(read_state(folder / MODEL_FILE)), None
    except DataError:
        return None, "expected a safetensors file"


def _origin(folder: Path) -> Origin:
    """Return the registration named in the model's ``MLmodel``; a placeholder if a field has not MLflow's form."""
    origin = None
    if fault(folder, ML_MODEL, most=_TEXT_BYTES) is None:
        origin = read_origin((folder / ML_MODEL).read_bytes().decode("utf-8", errors="replace"))
    return origin or Origin(model_id=f"m-{'0' * 32}", run_id="0" * 32)


def _name_in_note(folder: Path) -> str:
    """Return the registered model's name in MLflow's note of a download; empty if there is no note of its form."""
    if fault(folder, META_FILE, most=_TEXT_BYTES) is not None:
        return ""
    found = _META.fullmatch((folder / META_FILE).read_bytes().decode("utf-8", errors="replace"))
    return "" if found is None else found["name"]


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
