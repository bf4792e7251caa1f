"""Score a model on a data set's test split outside a run, with the batches, losses and figures of a run's rounds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from tasks.data.batches import Batch
from tasks.data.image_cache import ImageCache
from tasks.data.loading import EvaluationLoader
from tasks.data.samples import ANY_CLASS, FederatedData, ImageSample, Regions, samples_digest
from tasks.data.truth import truth_of
from tasks.detectors.base import Detector
from tasks.errors import DataError
from tasks.metrics.detections import in_order
from tasks.metrics.scored import ScoredImages
from tasks.metrics.scoring import evaluation_record
from tasks.spec.data_parts import UNLABELLED_SCORE
from tasks.spec.records import EvaluationRecord
from tasks.spec.training import PART_NAMES, EvaluationSpec, ScoredOn
from tasks.training.evaluation import evaluate


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """A test set that ``clients`` share, or the held-out images of a client.

    ``samples`` have the model's class indices. ``digest`` is computed with the data set's.
    """

    clients: tuple[str, ...]
    digest: str
    samples: tuple[ImageSample, ...]
    on: ScoredOn = "test"


def evaluation_sets(
    data: FederatedData,
    classes: Sequence[str],
    clients: Iterable[str] | None = None,
    *,
    on: ScoredOn = "test",
    least: int = 1,
) -> list[EvaluationSet]:
    """Return the test sets of ``clients`` (None: all), with labels as indices into the model's ``classes``.

    Clients with equal test sets share one. Classes are matched by name; classes that the data lack have no truth.

    on: holdout for each client's held-out images instead; these are not shared.
    least: clients with fewer images are left out.

    Raises:
        DataError: a client or class is unknown, or no client has ``least`` images.
    """
    index = _class_indices(data, classes)
    chosen = list(data.test) if clients is None else list(clients)
    unknown = sorted(set(chosen) - data.test.keys())
    if unknown:
        raise DataError(f"data set {data.name}: no client {', '.join(unknown)}; its clients are {', '.join(data.test)}")
    digests: dict[int, str] = {}  # with one global test set, all clients have the same tuple
    shared: dict[tuple[str, str], list[str]] = {}
    for client in chosen:
        samples = data.scored(client, on)
        if len(samples) < max(least, 1):
            continue
        if id(samples) not in digests:
            digests[id(samples)] = samples_digest(samples)
        shared.setdefault((digests[id(samples)], "" if on == "test" else client), []).append(client)
    if not shared:
        enough = f"a client with at least {least} " if least > 1 else ""
        raise DataError(f"data set {data.name}: expected {enough}{PART_NAMES[on]} images, found none")
    return [
        EvaluationSet(tuple(names), digest, _relabelled(data.scored(names[0], on), index, len(classes)), on)
        for (digest, _), names in shared.items()
    ]


def score_sets(
    detector: Detector,
    sets: Sequence[EvaluationSet],
    classes: Sequence[str],
    spec: EvaluationSpec,
    *,
    device: str,
    threads: int | None = None,
    unlabelled_score: float = UNLABELLED_SCORE,
    watched: Callable[[EvaluationLoader], Iterable[Batch]] = iter,
) -> list[tuple[EvaluationRecord, ScoredImages]]:
    """Return each test set's figures, and the detections that they are of.

    They equal to the bit the figures that a run records for these weights, with the same ``spec``, ``device`` and
    ``threads`` (None: torch's choice) on the same kind of processor. ``watched`` passes a test set's batches on, and
    may count them. ``unlabelled_score`` is that of the data's specification.

    Raises:
        ClientError: an image cannot be decoded; the message names the file.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    scored = []
    for item in sets:
        started = time.monotonic()
        loader = EvaluationLoader(
            item.samples,
            width=detector.width,
            height=detector.height,
            batch_size=spec.batch_on(device),
            cache=ImageCache(0),
        )
        result = evaluate(
            detector, watched(loader), item.samples, spec, device=device, unlabelled_score=unlabelled_score
        )
        images = ScoredImages(
            item.clients,
            item.on,
            item.digest,
            tuple(truth_of(sample, len(classes)) for sample in item.samples),
            tuple(in_order(result.detections, len(item.samples))),
        )
        record = evaluation_record(
            images.truth,
            images.detections,
            result.batch_losses,
            clients=item.clients,
            on=item.on,
            classes=classes,
            test_digest=item.digest,
            spec=spec,
            started=started,
        )
        scored.append((record, images))
    return scored


def _class_indices(data: FederatedData, classes: Sequence[str]) -> np.ndarray | None:
    """Return the model's index of each of the data set's classes, or None if they are the same.

    Raises:
        DataError: the model does not have a class; the message names it.
    """
    if tuple(classes) == data.classes:
        return None
    unknown = [name for name in data.classes if name not in classes]
    if unknown:
        missing = [name for name in classes if name not in data.classes]
        also = f"; classes of the model that the data set does not have: {', '.join(missing)}" if missing else ""
        raise DataError(
            f"data set {data.name}: expected only classes of the model ({', '.join(classes)}), "
            f"found {', '.join(unknown)}{also}"
        )
    return np.array([list(classes).index(name) for name in data.classes], dtype=np.int64)


def _relabelled(samples: tuple[ImageSample, ...], index: np.ndarray | None, classes: int) -> tuple[ImageSample, ...]:
    """Return ``samples`` with the labels that ``index`` maps theirs to, of a model with this number of ``classes``."""
    if index is None:
        return samples

    def of_model(regions: Regions | None) -> Regions | None:
        if regions is None:
            return None
        of_class = regions.labels != ANY_CLASS
        return Regions(regions.boxes, np.where(of_class, index[np.where(of_class, regions.labels, 0)], ANY_CLASS))

    def labelled_of_model(mask: np.ndarray | None) -> np.ndarray | None:
        if mask is None:
            return None
        labelled = np.ones(classes, dtype=np.bool_)
        labelled[index] = mask
        return labelled

    return tuple(
        dataclasses.replace(
            sample,
            labels=index[sample.labels],
            regions=of_model(sample.regions),
            labelled=labelled_of_model(sample.labelled),
        )
        for sample in samples
    )
