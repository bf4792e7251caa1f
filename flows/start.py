"""What is checked before a run takes anything: the machine, the data, the name."""

from __future__ import annotations

import os
from pathlib import Path

from infra.errors import SettingsError
from infra.settings import Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.data.catalog import load_data
from tasks.errors import SpecError
from tasks.spec.base import STORE_VERSION, parse
from tasks.spec.federation import FederationSpec, changed_fields, parse_spec
from tasks.spec.records import StoreVersion


def run_folder(settings: Settings, name: str) -> Path:
    """Plots, sheet and log of a run on this machine."""
    return settings.home / "runs" / name


def slot_count(settings: Settings, spec: FederationSpec) -> int:
    """Slots of this machine: the setting, else cores // threads of a turn.

    Raises:
        SettingsError: a turn wants more than there is.
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


def pin_data(spec: FederationSpec, settings: Settings) -> FederationSpec:
    """Read (or draw) the data set on this machine and fix its digest in the specification.

    Raises:
        DataError: the data set is missing or wrong.
    """
    data = load_data(spec.data, root_of=settings.data_root, cache=settings.home / "cache" / "data")
    if getattr(spec.data, "digest", data.digest) is None:
        return spec.model_copy(update={"data": spec.data.model_copy(update={"digest": data.digest})})
    return spec


def claim_name(objects: ObjectStore, layout: FederationLayout, spec: FederationSpec) -> None:
    """Write ``spec.json``, or hold the specification against the one that is there.

    Raises:
        SpecError: the name belongs to another experiment; names the fields. Only a larger ``max_rounds`` extends.
            Or the store was laid out by a newer fedbench.
    """
    version = objects.get_json(layout.store)
    if version is None:
        objects.put_json(layout.store, StoreVersion().model_dump(mode="json"))
    else:
        parse(StoreVersion, version, source=layout.store, newest=STORE_VERSION)
    document = objects.get_json(layout.spec)
    if document is not None:
        stored = parse_spec(document, source=layout.spec)
        changes = changed_fields(stored, spec)
        if not changes:
            return
        if set(changes) != {"max_rounds"} or spec.max_rounds < stored.max_rounds:
            shown = ", ".join(f"{field} (was {old!r}, now {new!r})" for field, (old, new) in changes.items())
            raise SpecError(
                f"{layout.federation}: this name belongs to another experiment, which differs in: {shown}; "
                "choose another --name (only a larger max_rounds extends a federation)"
            )
    objects.put_json(layout.spec, spec.model_dump(mode="json"))
