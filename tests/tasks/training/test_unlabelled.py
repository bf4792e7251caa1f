"""Unlabelled classes in a client's turn: what the model of its start marks, under every method; and their scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tasks.client_eval
import tasks.models.evaluate
from tasks.data.batches import Batch
from tasks.data.image_cache import ImageCache
from tasks.data.samples import ImageSample
from tasks.detectors.base import Detections, Detector, Targets
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.metrics.detections import ImageDetections
from tasks.metrics.over_clients import aggregate_metrics
from tasks.metrics.scoring import evaluation_record
from tasks.models.evaluate import score_sets
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.records import EvaluationRecord
from tasks.spec.training import EvaluationSpec
from tasks.strategies.base import LocalTurn
from tasks.strategies.registry import build_strategy
from tasks.training.evaluation import PartResult, evaluate
from tasks.training.turn import own_start
from tasks.training.unlabelled import Teacher, with_unlabelled_regions
from tests.tasks.detectors.tiny_detectors import TINY, noise

CLASSES = ("disc", "square", "star")
SCORES = (0.9, 0.5, 0.2)
SPACE = {"a": ["disc"], "b": ["square", "star"]}
BOX = torch.tensor([[2.0, 2.0, 12.0, 12.0]])


class Finder(Detector):
    """Finds one object of each class in an image, at ``place`` in x, and keeps the targets of each loss.

    It draws random numbers in every pass, and its BatchNorm keeps statistics.
    """

    width = height = 32
    num_classes = len(CLASSES)
    masks_unlabelled = True

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor([4.0]))
        self.norm = nn.BatchNorm2d(3)
        self.out = nn.Linear(3, 1)
        self.seen: list[Targets] = []

    def head_names(self) -> frozenset[str]:
        return frozenset({"place"})

    def forward(self, images: Tensor) -> Tensor:
        means = self.norm(images.float() / 255).mean(dim=(2, 3))
        guess: Tensor = self.out(means)[:, 0] * torch.rand(1) + self.place
        return guess

    def loss(self, outputs: Tensor, targets: Targets) -> dict[str, Tensor]:
        self.seen.append(targets)
        return {"distance": (outputs - 10).square().mean()}

    def predict(
        self, outputs: Tensor, *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[Detections]:
        kept = [label for label, score in enumerate(SCORES) if score > score_threshold]
        left = float(self.place.detach())
        box = torch.tensor([[left, 4.0, left + 8, 12.0 + label] for label in kept]).view(-1, 4)
        found = Detections(box, torch.tensor([SCORES[label] for label in kept]), torch.tensor(kept, dtype=torch.int64))
        return [found] * len(outputs)


def spec_of(**fields: Any) -> FederationSpec:
    data = {"kind": "coco", "name": "mine", "classes": CLASSES, "label_space": SPACE}
    score = fields.pop("score", 0.1)
    return parse_spec({"data": {**data, "unlabelled_score": score}, **fields}, source="x")


def batches(count: int = 2, labelled: Sequence[Sequence[bool]] | None = ((1, 0, 0), (1, 1, 1))) -> list[Batch]:  # type: ignore[assignment]
    """Return batches of two images of noise; by default the first image has the label space of client a."""
    generator = torch.Generator().manual_seed(0)
    mask = None if labelled is None else torch.tensor(labelled, dtype=torch.bool)
    return [
        Batch(
            torch.randint(256, (2, 3, 32, 32), generator=generator).to(torch.uint8),
            [BOX, BOX],
            [torch.zeros(1).long()] * 2,
            [0, 1],
            labelled=mask,
        )
        for _ in range(count)
    ]


def sample(*labelled: int) -> ImageSample:
    mask = np.array(labelled, dtype=np.bool_) if labelled else None
    return ImageSample(Path("x"), 32, 32, BOX.numpy(), np.zeros(1, np.int64), "x", "x", labelled=mask)


PARTLY, FULLY = [sample(1, 0, 0), sample()], [sample(), sample()]


@pytest.mark.parametrize(("score", "expected"), [(0.1, [1, 2]), (0.3, [1]), (0.95, [])])
def test_detections_of_unlabelled_classes_become_regions(score: float, expected: list[int]) -> None:
    (batch,) = batches(1)
    found = Teacher(Finder(), spec_of(score=score)).mark(batch)
    if not expected:
        assert found.regions is None
        return
    assert found.regions is not None
    assert found.region_labels is not None
    assert [labels.tolist() for labels in found.region_labels] == [expected, []]
    assert found.regions[0].tolist() == [[4, 4, 12, 12 + label] for label in expected]
    assert found.boxes is batch.boxes
    assert found.labels is batch.labels


def test_regions_of_the_annotation_stay() -> None:
    (batch,) = batches(1)
    own = replace(batch, regions=[BOX[:0], BOX], region_labels=[torch.zeros(0).long(), torch.tensor([-1])])
    found = Teacher(Finder(), spec_of()).mark(own)
    assert found.region_labels is not None
    assert [labels.tolist() for labels in found.region_labels] == [[1, 2], [-1]]
    assert own.region_labels is not None
    assert len(own.region_labels[0]) == 0


def test_a_batch_without_unlabelled_classes_is_not_looked_at() -> None:
    (batch,) = batches(1, labelled=None)
    assert Teacher(Finder(), spec_of()).mark(batch) is batch


def test_marking_draws_from_no_global_generator_and_changes_no_statistic() -> None:
    detector = Finder().train()
    before, random = {name: tensor.clone() for name, tensor in detector.state_dict().items()}, torch.get_rng_state()
    teacher = Teacher(detector, spec_of())
    weights = [tensor.clone() for tensor in teacher._model.state_dict().values()]
    for batch in batches():
        teacher.mark(batch)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert all(map(torch.equal, teacher._model.state_dict().values(), weights))
    assert detector.training


def test_the_model_of_the_start_marks_until_the_end_of_the_turn() -> None:
    detector = Finder()
    marked = with_unlabelled_regions(batches, PARTLY, detector, spec_of(), lambda: None)()
    places = []
    for batch in marked:
        assert batch.regions is not None
        places.append(float(batch.regions[0][0, 0]))
        with torch.no_grad():
            detector.place.add_(5)
    assert places == [4, 4]
    assert len(marked) == 2


def test_a_client_s_own_complete_model_can_mark_instead() -> None:
    detector = Finder()
    state = {**detector.state_dict(), "place": torch.tensor([9.0])}
    first = next(iter(with_unlabelled_regions(batches, PARTLY, detector, spec_of(), lambda: state)()))
    assert first.regions is not None
    assert float(first.regions[0][0, 0]) == 9
    assert float(detector.place.detach()) == 4


def test_it_is_the_client_s_own_model_where_the_method_shares_no_complete_one() -> None:
    model, own = {"place": torch.tensor([1.0]), "out": torch.tensor([2.0])}, {"place": torch.tensor([9.0])}
    for kind in ("fedavg", "ditto", "fedsam"):
        assert own_start(build_strategy(spec_of(strategy={"kind": kind})), model, own) is None
    for kind in ("fedper", "fedrep", "fedbn"):
        strategy = build_strategy(spec_of(strategy={"kind": kind}, training={"local_epochs": 2}))
        assert own_start(strategy, model, {}) is None
        start = own_start(strategy, model, own)
        assert start is not None
        assert {name: float(tensor) for name, tensor in start.items()} == {"place": 9, "out": 2}


def test_only_partly_labelled_images_and_losses_that_need_it_pay_for_a_second_model() -> None:
    def refuse() -> None:
        raise AssertionError("no second model is needed")

    assert with_unlabelled_regions(batches, FULLY, Finder(), spec_of(), refuse) is batches
    detector = Finder()
    detector.needs_unlabelled_regions = False  # type: ignore[misc]
    assert with_unlabelled_regions(batches, PARTLY, detector, spec_of(), refuse) is batches


METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "fedavg": ({}, 2),
    "fedsam": ({}, 4),
    "scaffold": ({}, 2),
    "fedprox": ({}, 2),
    "ditto": ({}, 4),
    "fedrep": ({}, 4),
    "fedper": ({}, 2),
}


@pytest.mark.parametrize("kind", METHODS)
def test_every_pass_of_every_method_sees_the_regions(kind: str) -> None:
    fields, passes = METHODS[kind]
    epochs = 2 if kind == "fedrep" else 1
    plain = {"kind": "sgd", "momentum": 0.0}
    spec = spec_of(
        strategy={"kind": kind, **fields},
        training={"local_epochs": epochs, "clip_norm": None, "optimizer": plain},
        evaluation={"on": "test"},
    )
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        detector = Finder()
        model = {name: tensor.clone() for name, tensor in state_of(detector).items()}
        own = model if kind == "ditto" else {}
        marked = with_unlabelled_regions(lambda: batches(2 * epochs), PARTLY, detector, spec, lambda: None)
        turn = LocalTurn("a", detector, spec.training, marked, 5, 0.01, 0, model, own=own)
        build_strategy(spec).train(turn)
        assert len(detector.seen) == passes
        for targets in detector.seen:
            assert targets.region_labels is not None
            assert [labels.tolist() for labels in targets.region_labels] == [[1, 2], []]
            assert targets.labelled is not None
            assert float(targets.regions[0][0, 0]) == 4  # type: ignore[index]
        states.append(state_of(detector))
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_multi_scale_training_resizes_the_regions() -> None:
    spec = spec_of(training={"multi_scale": [64, 64]})
    detector = Finder()
    marked = with_unlabelled_regions(batches, PARTLY, detector, spec, lambda: None)
    LocalTurn("a", detector, spec.training, marked, 5, 0.01, 0, {}).train()
    for targets in detector.seen:
        assert targets.regions is not None
        assert targets.regions[0][0].tolist() == [8, 8, 24, 26]
        assert targets.labelled is not None


def scored(client: str, *labelled: int) -> EvaluationRecord:
    """Return the record of a client's own test image with a disc at the place where :class:`Finder` sees each class."""
    (batch,) = batches(1)
    one = Batch(batch.images[:1], batch.boxes[:1], batch.labels[:1], [0])
    image = sample(*labelled)
    found = evaluate(Finder(), [one], [image], EvaluationSpec(), device="cpu").detections
    truth = [(np.array([[4, 4, 12, 12]], np.float32), image.labels, None)]
    return evaluation_record(
        truth, [found[0]], [0.0], clients=(client,), classes=CLASSES, test_digest="0" * 64,
        spec=EvaluationSpec(), started=0.0,
    )  # fmt: skip


def test_detections_of_an_unlabelled_class_do_not_count() -> None:
    (batch,) = batches(1)
    images = [sample(1, 0, 1), sample()]
    result = evaluate(Finder(), [batch], images, EvaluationSpec(), device="cpu")
    assert [result.detections[index].labels.tolist() for index in (0, 1)] == [[0, 2], [0, 1, 2]]


@pytest.mark.parametrize(("score", "expected"), [(0.1, [1, 2]), (0.3, [1]), (0.95, [])])
def test_the_scored_model_marks_unlabelled_objects_for_its_test_loss(score: float, expected: list[int]) -> None:
    (batch,) = batches(1)
    detector = Finder()
    evaluate(detector, [batch], PARTLY, EvaluationSpec(), device="cpu", unlabelled_score=score)
    (targets,) = detector.seen
    if not expected:
        assert targets.regions is None
        return
    assert targets.regions is not None
    assert targets.region_labels is not None
    assert [labels.tolist() for labels in targets.region_labels] == [expected, []]
    assert targets.regions[0].tolist() == [[4, 4, 12, 12 + label] for label in expected]


def test_a_test_loss_without_unlabelled_classes_or_need_has_no_regions() -> None:
    (plain,), (partly,) = batches(1, labelled=None), batches(1)
    detector = Finder()
    evaluate(detector, [plain], FULLY, EvaluationSpec(), device="cpu")
    detector.needs_unlabelled_regions = False  # type: ignore[misc]
    evaluate(detector, [partly], PARTLY, EvaluationSpec(), device="cpu")
    assert [targets.regions for targets in detector.seen] == [None, None]


KINDS = ["yolov3-tiny", "fcos-lite0", "faster-rcnn-mobilenetv3-320-fpn"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_loss_does_not_ask_for_background_where_the_model_finds_an_unlabelled_object(kind: str) -> None:
    """The loss is that of the same images with the detections as ignore regions, which counts other negatives."""
    images, rules = noise(2, seed=4), EvaluationSpec()
    threshold = 0.05 if kind.startswith("faster") else 1e-4  # of networks with random weights
    detector = build_detector(TINY[kind], len(CLASSES), seed=1).eval()
    boxes, labels = [BOX, BOX], [torch.zeros(1).long()] * 2
    mask = torch.tensor([[True, True, False], [True, True, True]])
    batch = Batch(images, boxes, labels, [0, 1], labelled=mask)
    with torch.no_grad():
        outputs = detector(images)
        found = detector.predict(
            outputs, score_threshold=threshold, nms_iou=rules.nms_iou, max_detections=rules.max_detections
        )
        marked = found[0].boxes[found[0].labels == 2]
        assert len(marked)
        regions, nothing = [marked, BOX[:0]], torch.zeros(0).long()
        plain, left_out = (
            sum(map(float, loss.values()))
            for targets in (
                Targets(boxes, labels, labelled=mask),
                Targets(boxes, labels, regions, [torch.full((len(marked),), 2), nothing], mask),
            )
            for loss in [_seeded_loss(detector, outputs, targets)]
        )
    samples = [replace(sample(1, 1, 0), width=64, height=64), replace(sample(), width=64, height=64)]
    torch.manual_seed(0)  # Faster R-CNN draws its samples
    (loss,) = evaluate(detector, [batch], samples, rules, device="cpu", unlabelled_score=threshold).batch_losses
    assert loss / 2 == pytest.approx(plain if kind == "fcos-lite0" else left_out, rel=1e-6)
    if kind != "fcos-lite0":
        assert left_out != pytest.approx(plain, rel=1e-4)


def _seeded_loss(detector: Detector, outputs: Any, targets: Targets) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return detector.loss(outputs, targets)


def test_a_turn_scores_with_the_score_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def keep(*arguments: Any, unlabelled_score: float, **options: Any) -> PartResult:
        given.append(unlabelled_score)
        return PartResult([1.0], 1, {0: ImageDetections.empty()}, 0.0)

    monkeypatch.setattr(tasks.client_eval, "evaluate", keep)
    request = SimpleNamespace(spec=spec_of(score=0.25), part=0, parts=1)
    site = SimpleNamespace(images=ImageCache(0), images_on_device=lambda spec: None)
    tasks.client_eval._evaluate_part(site, request, Finder(), (sample(),), len(CLASSES))  # type: ignore[arg-type]
    monkeypatch.setattr(tasks.models.evaluate, "evaluate", keep)
    sets = [tasks.models.evaluate.EvaluationSet(("a",), "0" * 64, (sample(),))]
    score_sets(Finder(), sets, CLASSES, EvaluationSpec(), device="cpu", unlabelled_score=0.5)
    assert given == [0.25, 0.5]


def test_a_client_is_scored_on_its_labelled_classes_and_means_are_over_these() -> None:
    own = scored("a", 1, 0, 0)
    assert own.per_class == {"disc": 1.0, "square": None, "star": None}
    assert own.map50_voc10 == 1.0
    other = own.model_copy(
        update={"clients": ("b",), "per_class": {"disc": None, "square": 0.5, "star": 0.0}, "map50_voc10": 0.25}
    )
    metrics = aggregate_metrics([], [own, other])
    assert metrics.per_class == {"disc": 1.0, "square": 0.5, "star": 0.0}
    assert metrics.map50_voc10 == 0.625
