"""A model evaluated outside of a run: shared test sets, classes matched by name, and the same figures as in a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tasks.data.samples import FederatedData, Regions, samples_digest
from tasks.detectors.base import Detector
from tasks.detectors.registry import build_detector
from tasks.errors import DataError
from tasks.metrics.over_clients import aggregate_metrics
from tasks.metrics.scored import ScoredImages
from tasks.models.evaluate import evaluation_sets, score_sets
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.records import EvaluationRecord
from tasks.spec.training import EvaluationSpec
from tests.present import present
from tests.tasks.drawn_data import drawn_data

RULES = EvaluationSpec(batch_size=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    spec = SyntheticStreet(train_images=40, test_images=10, width=96, height=80, test="per-device")
    return drawn_data(spec, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def detector(data: FederatedData) -> Detector:
    return build_detector(YoloV3TinySpec(width=64, height=64), len(data.classes), seed=3)


def scored(detector: Detector, data: FederatedData, classes: tuple[str, ...], *clients: str) -> list[EvaluationRecord]:
    sets = evaluation_sets(data, classes, clients or None)
    found = score_sets(detector, sets, classes, RULES, device="cpu", threads=1)
    return [record.model_copy(update={"seconds": 0}) for record, _ in found]


def with_regions(data: FederatedData, label: int) -> FederatedData:
    """Return the data with an ignore region of class ``label`` in each test image; -1: of any class."""
    regions = Regions(np.array([[8, 8, 40, 40]], np.float32), np.array([label]))
    test = {
        client: tuple(dataclasses.replace(sample, regions=regions) for sample in samples)
        for client, samples in data.test.items()
    }
    return dataclasses.replace(data, test=test)


def test_clients_share_a_test_set_or_have_their_own(data: FederatedData) -> None:
    own = evaluation_sets(data, data.classes)
    assert [item.clients for item in own] == [(client,) for client in data.test if data.test[client]]
    assert [item.digest for item in own] == [samples_digest(item.samples) for item in own]
    everything = tuple(sample for samples in data.test.values() for sample in samples)
    common = dataclasses.replace(data, test=dict.fromkeys(data.test, everything))
    (shared,) = evaluation_sets(common, data.classes)
    assert shared.clients == tuple(data.test)
    assert len(shared.samples) == 10
    (some,) = evaluation_sets(common, data.classes, ["2", "4"])
    assert some.clients == ("2", "4")


def test_figures_are_means_over_clients(detector: Detector, data: FederatedData) -> None:
    sets = evaluation_sets(data, data.classes)
    seen: list[int] = []
    found = score_sets(
        detector,
        sets,
        data.classes,
        RULES,
        device="cpu",
        watched=lambda loader: (seen.append(len(batch.indices)) or batch for batch in loader),  # type: ignore[func-returns-value]
    )
    records = [record for record, _ in found]
    metrics = aggregate_metrics([], records)
    assert sum(seen) == sum(record.test_size for record in records) == 10
    assert metrics.train_loss is None
    losses = [present(record.loss) for record in records]
    sizes = [record.test_size for record in records]
    assert metrics.loss == pytest.approx(np.average(losses, weights=sizes))
    assert metrics.unweighted["loss"] == pytest.approx(np.mean(losses))
    assert {record.score_threshold for record in records} == {RULES.score_threshold}


def test_classes_are_matched_by_name(detector: Detector, data: FederatedData) -> None:
    order = list(reversed(range(len(data.classes))))
    place = np.argsort(order)
    turned = dataclasses.replace(
        data,
        classes=tuple(data.classes[index] for index in order),
        test={
            client: tuple(dataclasses.replace(sample, labels=place[sample.labels]) for sample in samples)
            for client, samples in data.test.items()
        },
    )
    of_class = with_regions(data, 2)
    turned_regions = with_regions(turned, int(place[2]))
    for plain, other in (
        (evaluation_sets(of_class, data.classes), evaluation_sets(turned_regions, data.classes)),
        (
            evaluation_sets(with_regions(data, -1), data.classes),
            evaluation_sets(with_regions(turned, -1), data.classes),
        ),
    ):
        assert [[present(s.regions).labels.tolist() for s in item.samples] for item in plain] == [
            [present(s.regions).labels.tolist() for s in item.samples] for item in other
        ]
    expected = scored(detector, data, data.classes)
    found = scored(detector, turned, data.classes)
    assert [record.test_digest for record in found] != [record.test_digest for record in expected]
    same = [record.model_copy(update={"test_digest": "0" * 64}) for record in found]
    assert same == [record.model_copy(update={"test_digest": "0" * 64}) for record in expected]


def test_truth_has_the_ignore_regions_of_one_class_and_of_any(detector: Detector, data: FederatedData) -> None:
    def images(data: FederatedData) -> list[ScoredImages]:
        sets = evaluation_sets(data, data.classes)
        return [item for _, item in score_sets(detector, sets, data.classes, RULES, device="cpu", threads=1)]

    size = len(data.classes)
    for label, each in ((2, 1), (-1, size)):
        for plain, other in zip(images(data), images(with_regions(data, label)), strict=True):
            assert plain.digest != other.digest
            for (_, before, flags), (_, after, difficult) in zip(plain.truth, other.truth, strict=True):
                assert flags is None
                assert after.tolist() == [*before.tolist(), *([2] if label == 2 else range(size))]
                assert present(difficult).tolist() == [False] * len(before) + [True] * each


def test_a_class_of_the_model_without_truth_has_no_figure(detector: Detector, data: FederatedData) -> None:
    last = len(data.classes) - 1
    fewer = dataclasses.replace(
        data,
        classes=data.classes[:last],
        test={
            client: tuple(
                dataclasses.replace(
                    sample, boxes=sample.boxes[sample.labels < last], labels=sample.labels[sample.labels < last]
                )
                for sample in samples
            )
            for client, samples in data.test.items()
        },
    )
    (record, *_) = scored(detector, fewer, data.classes)
    assert record.per_class[data.classes[last]] is None
    assert tuple(record.per_class) == data.classes


def test_data_that_do_not_fit_the_model_are_named(data: FederatedData) -> None:
    known = data.classes
    with pytest.raises(DataError) as caught:
        evaluation_sets(data, ("boat", *known[1:]))
    assert f"expected only classes of the model (boat, {', '.join(known[1:])}), found {known[0]}" in str(caught.value)
    assert str(caught.value).endswith("classes of the model that the data set does not have: boat")
    with pytest.raises(DataError, match=r"no client 9; its clients are 1, 2, 3, 4, 5"):
        evaluation_sets(data, known, ["1", "9"])
    empty = dataclasses.replace(data, test=dict.fromkeys(data.test, ()))
    with pytest.raises(DataError, match="expected test images, found none"):
        evaluation_sets(empty, known)


def test_an_evaluation_does_not_change_the_data(data: FederatedData, detector: Detector, tmp_path: Path) -> None:
    before = {client: samples_digest(samples) for client, samples in data.test.items()}
    scored(detector, data, data.classes, "1")
    assert {client: samples_digest(samples) for client, samples in data.test.items()} == before
