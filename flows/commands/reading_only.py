"""What a dry run reads from: copies of caches in a folder of its own, and a store that it does not start."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from infra.settings import Settings
from infra.stack.state import read_state, without_own_addresses
from infra.store.folder_store import FolderStore
from infra.store.objects import ObjectStore
from tasks.data.synthetic import drawn_set
from tasks.detectors.weight_file import PUBLISHED_SHA256, weight_file_name
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector_parts import TorchvisionHubWeights
from tasks.spec.federation import FederationSpec

STORE_SECONDS = 5.0  # how long a store elsewhere is waited for


def readable_store(settings: Settings) -> ObjectStore:
    """Return the store: the folder of this home's own, else the one that the settings name."""
    named = without_own_addresses(settings, read_state(settings.home))
    if named.s3.endpoint is None:
        return FolderStore(named.s3, settings.home)
    return ObjectStore(named.s3, outage_seconds=STORE_SECONDS)


def aside(settings: Settings, specs: Iterable[FederationSpec], folder: Path) -> Settings:
    """Return settings whose caches are in ``folder``. Synthetic sets that the home's cache has are copied there."""
    synthetic = (spec.data for spec in specs if isinstance(spec.data, SyntheticStreet))
    for below in {Path("cache", "data", data.kind, drawn_set(data)) for data in synthetic}:
        if (settings.home / below).is_dir():
            shutil.copytree(settings.home / below, folder / below)
    weights = settings.weights_dir or settings.home / "weights"
    return settings.model_copy(update={"home": folder, "weights_dir": weights})


def with_published_weights(spec: FederationSpec) -> FederationSpec:
    """Return ``spec`` with the digest of torchvision's published file, so that it need not be downloaded."""
    weights, name = spec.detector.weights, weight_file_name(spec.detector)
    if not isinstance(weights, TorchvisionHubWeights) or weights.sha256 is not None or name is None:
        return spec
    pinned = weights.model_copy(update={"sha256": PUBLISHED_SHA256[name]})
    return spec.model_copy(update={"detector": spec.detector.model_copy(update={"weights": pinned})})
