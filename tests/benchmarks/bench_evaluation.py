"""The cost of an evaluation beyond the model and the metric.

    pytest tests/benchmarks/bench_evaluation.py                    # checks the limit
    python -m tests.benchmarks.bench_evaluation --detector KIND    # prints the figures of a detector

The evaluation is complete, as in a round: weights from the cache, the test set's digest, batches, losses,
detections, their way to an S3 server on loopback and back, and all figures. This file has its own loop for the model
and the metric alone, over the same batches with the two metrics. Both alternate, on one thread, and the median ratio
counts. The weights are untrained, which gives many detections.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pytest
import torch

from infra.turns.local import LocalSlots
from tasks.client_eval import client_eval, evaluation_batches
from tasks.data.samples import samples_digest
from tasks.detectors.base import Targets
from tasks.detectors.registry import build_detector
from tasks.evaluation_parts import read_part
from tasks.handles import Handles
from tasks.metrics.coco import evaluate_coco
from tasks.metrics.detections import ImageDetections
from tasks.metrics.voc import evaluate_voc
from tasks.site import Site
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import WeightRef
from tasks.spec.turns import EvaluationRequest
from tasks.stop_and_eval import score
from tasks.training.evaluation import in_original_pixels
from tests.benchmarks.figures_text import line
from tests.benchmarks.measured_detectors import (
    CLASSES,
    DETECTORS,
    MEASURED,
    Seconds,
    by_turns,
    experiment,
    measured_site,
    ratios,
)
from tests.unused_handles import no_turn, nothing_left

SLOWER_AT_MOST = 0.10
REPEATS = 5
IMAGES = 191  # as many as Street's test set


class Silent:
    """A reporter that ignores every event."""

    def __getattr__(self, name: str) -> object:
        return lambda *arguments: None


def alone(site: Site, spec: FederationSpec, client: str) -> Seconds:
    """Compute the losses and detections of every batch, then VOC's and COCO's figures. Return the seconds."""
    model = build_detector(spec.detector, CLASSES, seed=spec.seed).eval()
    samples, rules = site.data(spec.data).test[client], spec.evaluation
    loader = evaluation_batches(site, spec, samples)
    found: list[ImageDetections] = []
    started = Seconds.now()
    with torch.inference_mode():
        for batch in loader:
            outputs = model(batch.images)
            torch.stack(list(model.loss(outputs, Targets(batch.boxes, batch.labels)).values())).sum().item()
            detections = model.predict(
                outputs,
                score_threshold=rules.score_threshold,
                nms_iou=rules.nms_iou,
                max_detections=rules.max_detections,
            )
            found += [
                in_original_pixels(item, model, width=samples[index].width, height=samples[index].height)
                for item, index in zip(detections, batch.indices, strict=True)
            ]
    truth = [(sample.boxes, sample.labels, sample.difficult) for sample in samples]
    for metric in (evaluate_voc, evaluate_coco):
        metric(
            truth,
            found,
            site.data(spec.data).classes,
            score_threshold=rules.score_threshold,
            max_per_class=rules.max_detections,
        )
    return started.since()


def evaluation(site: Site, spec: FederationSpec, client: str, model: WeightRef) -> Seconds:
    """Evaluate a test set in one part, as a round does, from the request to the record. Return the seconds."""
    data = site.data(spec.data)
    samples = data.test[client]
    digest = samples_digest(samples)
    handles = Handles(
        settings=site.settings,
        objects=site.objects,
        weights=site.weights,
        layout=site.layout("bench"),
        slots=LocalSlots(1, [], {}),
        take_turn=no_turn,
        reporter=Silent(),  # type: ignore[arg-type]
        committed=lambda record: None,
        started=lambda run: None,
        finished=nothing_left,
    )
    request = EvaluationRequest(
        federation="bench",
        spec=spec,
        clients=(client,),
        round=1,
        model=model,
        test_digest=digest,
        test_size=len(samples),
        part=0,
        parts=1,
    )
    started = Seconds.now()
    reply = client_eval(site, request)
    part = read_part(handles, request, reply, len(data.classes))
    score(spec, [client], data.classes, digest, [part], time.monotonic())
    return started.since()


def evaluation_figures(home: Path, detector: str, repeats: int, images: int = IMAGES) -> dict[str, float]:
    spec = experiment(detector, images=50, test_images=images)
    with measured_site(home, spec) as (site, model):
        data = site.data(spec.data)
        client = next(name for name in data.test if data.test[name])
        count = len(data.test[client])
        for _ in evaluation_batches(site, spec, data.test[client]):  # decode every image before both measurements
            pass
        pairs = by_turns(lambda: alone(site, spec, client), lambda: evaluation(site, spec, client, model), repeats)
    found = ratios(pairs)
    return {"images": count, "slower": 1 / found["ratio"] - 1, **found}


@pytest.mark.benchmark
@pytest.mark.parametrize("detector", MEASURED)
def test_an_evaluation_against_model_and_metric(
    detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluation_figures(tmp_path, detector, REPEATS)
    with capsys.disabled():
        print("\n" + line(found))
    assert found["slower"] <= SLOWER_AT_MOST, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--detector", choices=DETECTORS, default=MEASURED[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--images", type=int, default=IMAGES, help="test images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(line(evaluation_figures(Path(folder), options.detector, options.repeats, options.images)))


if __name__ == "__main__":
    main()
