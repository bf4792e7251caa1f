"""Checks before a run takes a slot: of the machine, the data, the weights and the name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from pydantic import BaseModel

from flows.stored.runs import readable_history
from flows.stored.spec_copy import keep_spec
from infra.errors import SettingsError
from infra.files.private import data_cache
from infra.settings import Settings
from infra.store.flush import flush
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.data.catalog import load_data
from tasks.data.entries import Faults
from tasks.detectors.weight_file import FileWeights, check_weights, fetch_weights, lite0_file, weight_file_name
from tasks.errors import SpecError
from tasks.spec import extensions
from tasks.spec.base import SPEC_VERSION, STORE_VERSION
from tasks.spec.detector_parts import EfficientNetLite0Weights
from tasks.spec.federation import FederationSpec, changed_fields
from tasks.spec.plans import StoreVersion
from tasks.whole import DamagedObject, read_whole, set_aside

log = logging.getLogger(__name__)

# Modules that a slot imports before its first turn. They import Prefect too, which slots do not use.
PRELOAD = ("infra.environment.ignore_prefect_files", "torchvision.transforms.v2", "tasks.take_turn")


def slot_count(settings: Settings, spec: FederationSpec) -> int:
    """Return the number of slots of this machine: the setting, else cores // threads of a turn.

    Raises:
        SettingsError: a turn wants more threads than this machine has cores, or CUDA, which it does not have.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = spec.training.threads
    if threads > cores:
        raise SettingsError(f"training.threads: expected at most {cores}, this machine's cores, found {threads}")
    if spec.training.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SettingsError("training.device: expected cpu, this machine has no usable CUDA device, found cuda")
    return settings.slots or max(cores // threads, 1)


def pin(spec: FederationSpec, settings: Settings, say: Callable[[str], None] | None = None) -> FederationSpec:
    """Return ``spec`` with the digests of data and weight files filled in, so that a later start must use the same.

    If only the data name the devices, these are filled in too.

    Clients with pools of their own (``pools.silos``) keep their data to themselves. If only the data name the devices,
    each silo has only its own images, and the whole data set has no digest.

    say: called, beside the log, with a line for each fault of the data that may lower the figures.

    Raises:
        DataError: data or weights are missing or not valid.
        SpecError: the participation names devices that do not exist, or lacks what silos need; or the class of another
            package's method or detector cannot be imported.
    """
    require_kinds(spec, say)
    data, silos = spec.data, settings.pools.silos
    name: str | None = getattr(data, "name", None)
    own_images = name is not None and data.devices is None
    if silos and own_images and spec.clients is None:
        raise SpecError(
            "participation.clients: expected the devices by name, because those in pools.silos keep their data to "
            "themselves, found none"
        )
    own = [client for client in spec.clients or () if client in silos]
    if own and not spec.participation.check_load:
        raise SpecError(
            "participation.check_load: expected true, because clients have machines of their own "
            f"(pools.silos: {', '.join(own)}), found false"
        )
    if not own or not (own_images or (name is not None and settings.data_root(name) is None)):
        spec = pin_data(spec, settings, say)
    elif not own_images and getattr(data, "digest", None) is None:
        raise SpecError(
            f"data.digest: expected the content digest of data set {name}, because each silo must have all of it and "
            "it is not on this machine, found none; fedbench data check prints it"
        )
    elif own_images and spec.data.label_space is not None:
        strangers = [client for client in spec.data.label_space if client not in (spec.clients or ())]
        if strangers:
            raise SpecError(
                "data.label_space: expected clients of participation.clients, because those in pools.silos keep their "
                f"data to themselves, found {', '.join(strangers)}"
            )
    return pin_weights(spec, settings)


def require_kinds(spec: FederationSpec, say: Callable[[str], None] | None = None) -> None:
    """Import the classes of another package's method and detector, if ``spec`` names one.

    say: called, beside the log, with a line for each package whose kinds could not be taken in.

    Raises:
        SpecError: a class cannot be imported, or is no method or detector; or the detector has no rule for unlabelled
            classes and ``data.label_space`` is set.
    """
    for line in extensions.faults():
        log.warning("%s", line)
        if say is not None:
            say(line)
    if spec.strategy.implementation:
        from tasks.strategies.registry import strategy_class

        strategy_class(spec)
    if getattr(spec.detector, "implementation", ""):
        from tasks.detectors.registry import detector_class, require_masks

        require_masks(spec, detector_class(spec.detector))


def pin_data(spec: FederationSpec, settings: Settings, say: Callable[[str], None] | None = None) -> FederationSpec:
    """Read (or draw) the data set on this machine, and return ``spec`` with its digest filled in.

    Devices that only the data name are checked, and filled in as ``participation.clients`` if that names none.

    Raises:
        DataError: the data set is missing or not valid.
        SpecError: the participation asks for devices that the data set does not have.
    """
    faults = Faults()
    cache = data_cache(settings.home)
    data = load_data(spec.data, root_of=settings.data_root, cache=cache, faults=faults, whole=True)
    for finding in faults.notes.findings(spec.data):
        line = str(finding)
        log.warning("data: %s", line)
        if say is not None:
            say(f"data: {line}")
    changes: dict[str, BaseModel] = {}
    if getattr(spec.data, "digest", data.digest) is None:
        changes["data"] = spec.data.model_copy(update={"digest": data.digest})
    if spec.data.devices is None:
        devices = tuple(data.train)
        try:
            spec.check_devices(devices)
        except ValueError as error:
            raise SpecError(str(error)) from None
        if spec.participation.clients is None:
            changes["participation"] = spec.participation.model_copy(update={"clients": devices})
    return spec.model_copy(update=changes) if changes else spec


def pin_weights(spec: FederationSpec, settings: Settings) -> FederationSpec:
    """Return ``spec`` with the digest of its initial weight file filled in, if it names a file without a digest.

    Raises:
        DataError: the file is missing, and cannot be downloaded if the specification asks for that.
    """
    weights = spec.detector.weights
    if not isinstance(weights, FileWeights) or weights.sha256 is not None:
        return spec
    pinned = weights.model_copy(update={"sha256": _weights_digest(spec, settings)})
    return spec.model_copy(update={"detector": spec.detector.model_copy(update={"weights": pinned})})


def require_weights(spec: FederationSpec, settings: Settings) -> None:
    """Compare the initial weight file, if ``spec`` names one, with its digest. Call this before services start.

    Raises:
        DataError: the file, or the package that contains it, is missing or differs.
    """
    _weights_digest(spec, settings)
    if isinstance(spec.detector.weights, EfficientNetLite0Weights):
        lite0_file()


def _weights_digest(spec: FederationSpec, settings: Settings) -> str | None:
    """Fetch the initial weight file if ``spec`` asks for that, check it and return its sha256; None without a file."""
    name, weights = weight_file_name(spec.detector), spec.detector.weights
    if name is None or not isinstance(weights, FileWeights):
        return None
    path = settings.weight_file(name)
    fetch_weights(weights, path)
    return check_weights(weights, path)


def claim_federation(
    objects: ObjectStore, settings: Settings, name: str, spec: FederationSpec, say: Callable[[str], None]
) -> None:
    """Claim the name for ``spec``. The caller holds the federation's lease.

    say: called with a line for each damaged object.

    Raises:
        SpecError: the name belongs to another experiment (:func:`claim_name`).
        DataError: the initial weights of a new federation are missing.
        StoreCorrupt: the committed rounds cannot be read.
    """
    layout = FederationLayout(settings.s3.prefix, name)
    if not objects.exists(layout.spec):
        require_weights(spec, settings)
    for line in claim_name(objects, layout, spec):
        say(line)
    keep_spec(settings, name, spec)
    readable_history(objects, layout)


def claim_name(objects: ObjectStore, layout: FederationLayout, spec: FederationSpec) -> list[str]:
    """Write ``spec.json``, or compare ``spec`` with the one in the store. Return a line for each damaged object.

    A damaged ``spec.json`` is written again from ``spec``, if the last round's record has the digest of ``spec``.

    Raises:
        SpecError: the name belongs to another experiment; the message names the fields that differ. Only
            ``max_rounds`` may differ, if it is larger. Or the store has a newer version.
    """
    lines = _claim_store(objects, layout)
    stored = None
    if objects.exists(layout.spec):
        try:
            stored = read_whole(objects, layout.spec, FederationSpec, SPEC_VERSION)
        except DamagedObject as error:
            records = readable_history(objects, layout).records
            if records and records[-1].spec_digest != spec.digest:
                raise SpecError(
                    f"{error}; to write it again, expected the specification of round {records[-1].round} (digest "
                    f"{records[-1].spec_digest[:8]}), found another one (digest {spec.digest[:8]})"
                ) from None
            kept = set_aside(objects, layout, [layout.spec])
            lines.append(f"{error}: written again from the given specification; the damaged one is kept in {kept}")
    if stored is None or not _is_unchanged(layout, stored, spec):
        objects.put_json(layout.spec, spec.model_dump(mode="json"))
    # Unchanged ones too: the process that wrote them may have died before it flushed them.
    flush(objects, [layout.store, layout.spec])
    return lines


def require_name(objects: ObjectStore, layout: FederationLayout, spec: FederationSpec) -> bool:
    """Compare ``spec`` with the one in the store, if there is one. Return whether the store has the same.

    Raises:
        SpecError: as :func:`claim_name`.
        DamagedObject: the stored specification or the store's version is damaged.
    """
    if objects.exists(layout.store):
        read_whole(objects, layout.store, StoreVersion, STORE_VERSION)
    if not objects.exists(layout.spec):
        return False
    return _is_unchanged(layout, read_whole(objects, layout.spec, FederationSpec, SPEC_VERSION), spec)


def _is_unchanged(layout: FederationLayout, stored: FederationSpec, spec: FederationSpec) -> bool:
    """Return True if ``spec`` equals ``stored``, False if only its ``max_rounds`` is larger.

    Raises:
        SpecError: ``spec`` is another experiment; the message names the fields that differ.
    """
    changes = changed_fields(stored, spec)
    if not changes:
        return True
    if set(changes) != {"max_rounds"} or spec.max_rounds < stored.max_rounds:
        shown = ", ".join(f"{field} (was {old!r}, now {new!r})" for field, (old, new) in changes.items())
        raise SpecError(
            f"{layout.federation}: this name belongs to another experiment, which differs in: {shown}; "
            "choose another --name (only a larger max_rounds extends a federation)"
        )
    return False


def _claim_store(objects: ObjectStore, layout: FederationLayout) -> list[str]:
    lines = []
    if objects.exists(layout.store):
        try:
            read_whole(objects, layout.store, StoreVersion, STORE_VERSION)
            return []
        except DamagedObject as error:
            objects.copy(layout.store, layout.damaged_store)
            lines.append(f"{error}: written again; the damaged one is kept as {layout.damaged_store}")
    objects.put_json(layout.store, StoreVersion().model_dump(mode="json"))
    return lines
