"""A slot's machine, as a client's turn sees it: its settings, store, data, caches and warm detector."""

from __future__ import annotations

import functools
import os
import platform
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from infra.environment.certificates import trust
from infra.files.private import private_home
from infra.settings import Settings, load_settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from tasks.data.catalog import load_data
from tasks.data.device_images import DeviceImages
from tasks.data.image_cache import ImageCache
from tasks.data.samples import FederatedData
from tasks.detectors.base import Detector
from tasks.detectors.registry import build_detector
from tasks.errors import DataError
from tasks.spec.data import DataSpec
from tasks.spec.detector import DetectorSpec
from tasks.spec.federation import FederationSpec


class Site:
    """The settings, store, data, caches and detector of a process, kept between turns.

    Nothing in it belongs to a client or a round.
    """

    def __init__(self, settings: Settings) -> None:
        private_home(settings.home)
        self.settings = settings
        self.objects = ObjectStore(settings.s3)
        self.weights = WeightStore(self.objects, settings.home / "cache" / "weights", settings.weight_cache_megabytes)
        self.images = ImageCache(settings.image_cache_megabytes)
        self.host = socket.gethostname()
        self._on_device: DeviceImages | None = None
        self._data: dict[DataSpec, FederatedData] = {}
        self._detector: tuple[DetectorSpec, int, Detector] | None = None

    def layout(self, federation: str) -> FederationLayout:
        return FederationLayout(self.settings.s3.prefix, federation)

    def data(self, spec: DataSpec) -> FederatedData:
        """Return the data set. It is read and checked once in a process.

        Raises:
            DataError: it is missing or wrong.
        """
        if spec not in self._data:
            self._data[spec] = load_data(
                spec, root_of=self.settings.data_root, cache=self.settings.home / "cache" / "data"
            )
        return self._data[spec]

    def data_of(self, spec: DataSpec, client: str) -> FederatedData:
        """Return the data set after checking that ``client`` has training images in it.

        Raises:
            DataError: it is missing or wrong, or has no training image of this client.
        """
        data = self.data(spec)
        if not data.train.get(client):
            name: str | None = getattr(spec, "name", None)
            where = f"{self.settings.data_root(name)} on {self.host}: " if name is not None else ""
            if client in data.train:
                raise DataError(f"{where}device {client} of data set {data.name} has no training image")
            raise DataError(f"{where}data set {data.name} has no device {client}; it has {', '.join(data.train)}")
        return data

    def look_again(self, spec: DataSpec, clients: Sequence[str]) -> None:
        """Forget the data set unless all ``clients`` have training images in it, so that it is read again."""
        if spec in self._data and not all(self._data[spec].train.get(client) for client in clients):
            del self._data[spec]

    def detector(self, spec: FederationSpec, classes: int) -> Detector:
        """Return the detector of ``spec``, and set the threads of torch.

        It may still hold the last turn's weights: the caller loads all of them.
        """
        torch.set_num_threads(spec.training.threads)
        if self._detector is None or self._detector[:2] != (spec.detector, classes):
            self._detector = (spec.detector, classes, build_detector(spec.detector, classes, seed=spec.seed))
        return self._detector[2]

    def images_on_device(self, spec: FederationSpec) -> DeviceImages | None:
        """Return the images that this process keeps on its GPU; None if turns of ``spec`` compute on the CPU."""
        if spec.training.device == "cpu":
            return None
        if self._on_device is None:
            self._on_device = DeviceImages(self.images, torch.device(spec.training.device))
        return self._on_device

    def device_name(self, spec: FederationSpec) -> str:
        """Return the name of the GPU or the processor that computes turns of ``spec``."""
        return torch.cuda.get_device_name() if spec.training.device == "cuda" else processor_name()


@functools.cache
def processor_name() -> str:
    """Return the model name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def this_site() -> Site:
    """Return the site of this process, with settings from its environment."""
    settings = load_settings()
    trust(os.environ, settings.ca_file)
    return Site(settings)
