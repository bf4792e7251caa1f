"""The published curves on Federated Street, as reference lines for suites on the same images.

They are facts read from a figure: ``street-published-curves.csv`` names its source.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks.spec.data import FederatedStreet
from tasks.spec.federation import FederationSpec
from tasks.spec.suite_records import SuiteResult

_FILE = Path(__file__).parent / "street-published-curves.csv"
METRIC = "map50_voc10"
SOURCE = (
    "a figure of the benchmark’s authors (arXiv 1910.11089) in chapter 10 of the repository "
    "FederatedAI/Practicing-Federated-Learning, read from its pixels with an error of about 0.003"
)
_DETECTORS = {"yolov3": "YOLOv3", "faster-rcnn-vgg16": "Faster R-CNN"}


@dataclass(frozen=True)
class PublishedCurve:
    """One run of the benchmark's authors. clients: 1 for the centralised run. values: the metric at ``rounds``."""

    detector: str
    clients: int
    local_epochs: int
    batch_size: int
    rounds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def label(self) -> str:
        """Return a short name: ``YOLOv3, 5 clients, E 1, B 8``."""
        who = "centralised" if self.clients == 1 else f"{self.clients} clients"
        return f"{_DETECTORS[self.detector]}, {who}, E {self.local_epochs}, B {self.batch_size}"


@functools.cache
def published_curves() -> tuple[PublishedCurve, ...]:
    """Return all published curves, in the order of the file."""
    with _FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    points: dict[tuple[str, int, int, int], list[tuple[int, float]]] = {}
    for row in rows:
        key = (row["detector"], int(row["clients"]), int(row["local_epochs"]), int(row["batch_size"]))
        points.setdefault(key, []).append((int(row["round"]), float(row["map50_voc10"])))
    return tuple(
        PublishedCurve(*key, tuple(number for number, _ in found), tuple(value for _, value in found))
        for key, found in points.items()
    )


def street_splits(result: SuiteResult, experiment: str | None = None) -> list[int]:
    """Return the numbers of devices for which ``result`` has federated runs that published curves can stand beside.

    These are runs on Federated Street as it was published, scored on its test images. There are none if the suite has
    another metric. experiment: look at this one only.
    """
    if result.metric != METRIC:
        return []
    named = {cell.experiment for cell in result.cells if cell.role == "federated" and cell.on == "test"}
    specs = [spec for name, spec in result.specs.items() if name in named and experiment in (None, name)]
    return sorted({split for spec in specs if (split := published_split(spec)) is not None})


def published_split(spec: FederationSpec) -> int | None:
    """Return the number of devices of Federated Street as published; None for other data, and for another division."""
    data = spec.data
    if not isinstance(data, FederatedStreet) or getattr(data, "division", "published") != "published":
        return None
    return data.split


def curves_beside(split: int) -> list[PublishedCurve]:
    """Return the best published curve of each detector: with ``split`` clients, and centralised."""
    best: dict[tuple[str, int], PublishedCurve] = {}
    for curve in published_curves():
        key = (curve.detector, curve.clients)
        if curve.clients in (1, split) and (key not in best or curve.values[-1] > best[key].values[-1]):
            best[key] = curve
    return list(best.values())


def what_differs(specs: Iterable[FederationSpec]) -> str:
    """Return sentences that say where the published curves are from and what differs from the runs of ``specs``."""
    found = list(specs)
    detectors = dict.fromkeys(
        f"{spec.detector.kind} at {getattr(spec.detector, 'width', '?')} × {getattr(spec.detector, 'height', '?')} px"
        for spec in found
    )
    rounds = max((spec.max_rounds for spec in found), default=0)
    return (
        f"Published curves are from {SOURCE}. They are test mAP by VOC 2010 at IoU 0.5, smoothed; over how many seeds "
        "is not known. Their runs are YOLOv3 at 416 px with multi-scale training from darknet53.conv.74, and Faster "
        "R-CNN over ImageNet’s VGG16, each for 1,000 rounds with all clients in every round; E is local epochs, B the "
        f"batch size. The runs of this report have {', '.join(detectors)}, at most {rounds:,} rounds, and recipes of "
        "their own. So these lines tell what was reached on these images, not which method is better."
    )
