"""Find unlabelled objects in a client's images: in training with the model that it starts its turn from.

An object of a class that a client does not label (``data.label_space``) is not in its truth, but it is no background
either. Zhao et al., *Object Detection with a Unified Label Space from Multiple Datasets*, arXiv 2008.06614, complete
such truth with pseudo labels of other detectors. Here the round's global model, which learns the classes at other
clients, only marks where negatives are left out: its detections of unlabelled classes become ignore regions. In an
evaluation the scored model marks them itself (:func:`tasks.training.evaluation.evaluate`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from tasks.data.batches import Batch, Batches
from tasks.data.samples import ImageSample
from tasks.detectors.base import Detector
from tasks.spec.federation import FederationSpec
from tasks.training.found_regions import with_found_regions


class Teacher:
    """A frozen copy of the model at the start of a turn. It stays as it is while ``detector`` is trained.

    state: weights that the copy takes in place of the detector's; None: those that it has.
    """

    def __init__(self, detector: Detector, spec: FederationSpec, state: Mapping[str, Tensor] | None = None) -> None:
        self._model = copy.deepcopy(detector)
        if state is not None:
            self._model.load_state_dict(dict(state))
        self._device = torch.device(spec.training.device)
        self._model.requires_grad_(False).to(self._device).eval()
        self._score, self._rules = spec.data.unlabelled_score, spec.evaluation

    @torch.no_grad()
    def mark(self, batch: Batch) -> Batch:
        """Return ``batch`` with an ignore region for each detection of a class that is unlabelled in its image.

        Torch's global generators stay as they are, whatever a detector draws in evaluation mode.
        """
        if batch.labelled is None:
            return batch
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            outputs = self._model(batch.images.to(self._device))
            found = self._model.predict(
                outputs,
                score_threshold=self._score,
                nms_iou=self._rules.nms_iou,
                max_detections=self._rules.max_detections,
            )
        return with_found_regions(batch, found)


class MarkedBatches:
    """The batches of a turn with the regions that a teacher finds."""

    def __init__(self, batches: Batches, teacher: Teacher) -> None:
        self._batches, self._teacher = batches, teacher

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._teacher.mark, self._batches)


def with_unlabelled_regions(
    batches: Callable[[], Batches],
    samples: Sequence[ImageSample],
    detector: Detector,
    spec: FederationSpec,
    state: Callable[[], Mapping[str, Tensor] | None],
) -> Callable[[], Batches]:
    """Return ``batches`` with regions of unlabelled objects, if an image has unlabelled classes; else as they are.

    state: returns the weights of the client's model at the start of the turn; None: those that ``detector`` has.

    A detector that gives each class a score of its own needs no regions, because masking its class loss suffices.
    """
    if not detector.needs_unlabelled_regions or all(sample.labelled is None for sample in samples):
        return batches
    teacher = Teacher(detector, spec, state())
    return partial(_marked, batches, teacher)


def _marked(batches: Callable[[], Batches], teacher: Teacher) -> Batches:
    return MarkedBatches(batches(), teacher)
