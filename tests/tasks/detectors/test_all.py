"""The benchmark's requirements for every detector: seeds, state, loss, gradients, detections, averaging."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks.detectors.base import Detections, Detector, Targets
from tasks.detectors.registry import DETECTORS, build_detector
from tasks.detectors.state import load_state, state_of, write_state
from tasks.spec.training import AdamW
from tasks.strategies.mean import WeightedMean
from tasks.training.optimizers import build_optimizer
from tests.tasks.detectors.tiny_detectors import SIDE, TINY, noise

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 3
FIRST, SECOND = 3, 4


@pytest.fixture(autouse=True, scope="module")
def no_detectors_after() -> Iterator[None]:
    yield
    _built.cache_clear()


@pytest.fixture(scope="module", params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    """Return a detector's name. Module scope groups the tests by detector, so that each is built only once."""
    return str(request.param)


@functools.lru_cache(maxsize=2)
def _built(name: str, seed: int) -> Detector:
    return build_detector(TINY[name], CLASSES, seed=seed)


def detector_of(name: str) -> Detector:
    """Return a new copy of the detector built from the first seed."""
    return copy.deepcopy(_built(name, FIRST))


def images_of(count: int, seed: int = 0) -> Tensor:
    """Return images of noise. Each has a bright box over the first object of :func:`targets_of`."""
    images = noise(count, seed=seed, below=128)
    images[:, :, 10:42, 5:37] = 250
    return images


def targets_of(*objects: int) -> Targets:
    """Return targets. ``objects`` is the number of objects in each image, 0 to 2."""
    boxes = torch.tensor([[5.0, 10, 37, 42], [26, 20, 60, 54]])
    labels = torch.tensor([0, 2])
    return Targets([boxes[:count] for count in objects], [labels[:count] for count in objects])


def total(detector: Detector, images: Tensor, targets: Targets) -> Tensor:
    return torch.stack(list(detector.loss(detector(images), targets).values())).sum()


def detected(detector: Detector, images: Tensor, most: int = 7) -> list[Detections]:
    return detector.predict(detector(images), score_threshold=0.0, nms_iou=0.5, max_detections=most)


def test_no_detector_is_left_out() -> None:
    assert {spec.kind for spec in TINY.values()} == DETECTORS.keys()


def test_initial_weights_depend_only_on_the_seed(name: str) -> None:
    before = torch.get_rng_state()
    again = state_of(build_detector(TINY[name], CLASSES, seed=FIRST))
    first, second = state_of(_built(name, FIRST)), state_of(_built(name, SECOND))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert any(not torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    detector = detector_of(name).train()
    terms = detector.loss(detector(images_of(3)), targets_of(2, 0, 1))
    assert all(term.ndim == 0 and term.dtype == torch.float32 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    asked = [parameter for group in detector.learning_rate_factors().values() for parameter in group]
    assert sorted(map(id, asked)) == sorted(map(id, detector.parameters()))
    for key, parameter in detector.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("training", [True, False])
def test_images_without_objects_give_finite_losses(name: str, training: bool) -> None:
    detector = detector_of(name).train(training)
    loss = total(detector, images_of(2), targets_of(0, 0))
    assert torch.isfinite(loss)
    assert loss >= 0
    loss.backward()
    for key, parameter in detector.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key


def test_a_model_spoiled_by_one_huge_update_gives_a_loss_that_is_not_finite(name: str) -> None:
    detector = detector_of(name).eval()
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(0.8).add_(2e37)  # as if one of five equal clients had sent 1e38
    with torch.inference_mode():
        assert not torch.isfinite(total(detector, images_of(2), targets_of(1, 0)))


def test_a_few_steps_on_one_image_lower_its_loss(name: str) -> None:
    detector = detector_of(name).train()
    # Proposals move with the weights. At the other detectors' rate they move too much for the loss to fall.
    lr = 1e-4 if name.startswith("faster-rcnn") else 1e-3
    optimizer = build_optimizer(detector, AdamW(weight_decay=0), lr)
    images, targets = images_of(2), targets_of(1, 1)
    losses = []
    with torch.random.fork_rng():
        for _ in range(8):
            torch.manual_seed(0)  # draw the same sample in each step
            loss = total(detector, images, targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            losses.append(float(loss.detach()))
    assert sum(losses[-3:]) / 3 < 0.9 * losses[0]


def test_detections_are_in_the_image_best_first_and_limited(name: str) -> None:
    with torch.inference_mode():
        found = detected(detector_of(name).eval(), images_of(2))
    for item in found:
        assert item.boxes.shape == (len(item.scores), 4)
        assert item.boxes.min() >= 0
        assert item.boxes.max() <= SIDE
        assert (item.boxes[:, 2:] >= item.boxes[:, :2]).all()
        assert item.labels.dtype == torch.int64
        assert 0 <= item.labels.min() <= item.labels.max() < CLASSES
        assert item.labels.bincount().max() <= 7
        assert item.scores.tolist() == sorted(item.scores.tolist(), reverse=True)
        assert 0 < item.scores.min() <= item.scores.max() <= 1


def test_evaluation_is_repeatable_draws_nothing_and_allows_training_after_it(name: str) -> None:
    detector = detector_of(name).eval()
    images, targets = images_of(2), targets_of(2, 1)
    kept = state_of(_built(name, FIRST))
    before = torch.get_rng_state()
    with torch.inference_mode():
        outputs = detector(images)
        first = detector.loss(outputs, targets)
        found = detector.predict(outputs, score_threshold=0.0, nms_iou=0.5, max_detections=5)
        again = detector.loss(detector(images), targets)
        only = detected(detector, images, most=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(term, again[key]) for key, term in first.items())
    for mine, other in zip(found, only, strict=True):  # predict gives the same without a call of loss before
        assert torch.equal(mine.boxes, other.boxes)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in state_of(detector).items())
    with torch.random.fork_rng():
        total(detector.train(), images, targets).backward()


def test_in_evaluation_detections_do_not_depend_on_the_batch(name: str) -> None:
    detector = detector_of(name).eval()
    one, other = images_of(2, seed=1), images_of(2, seed=2)
    one[0] = other[0]
    with torch.inference_mode():
        mine, theirs = detected(detector, one)[0], detected(detector, other)[0]
    assert torch.equal(mine.boxes, theirs.boxes)
    assert torch.equal(mine.scores, theirs.scores)


def test_another_input_size_works(name: str) -> None:
    """Multi-scale training uses several input sizes."""
    detector = detector_of(name).train()
    images = images_of(2)
    wide = torch.cat([images, images[..., :32]], dim=3)
    assert torch.isfinite(total(detector, wide, targets_of(1, 0)))
    with torch.inference_mode():
        found = detected(detector.eval(), wide)
    assert max(float(item.boxes[:, 3].max()) for item in found) <= SIDE
    assert SIDE < max(float(item.boxes[:, 2].max()) for item in found) <= SIDE + 32


def test_the_mean_of_two_states_is_read_from_its_file(name: str, tmp_path: Path) -> None:
    first, second = state_of(_built(name, FIRST)), state_of(_built(name, SECOND))
    strategy = WeightedMean()
    strategy.accumulate_state(first, 10, client="1")
    strategy.accumulate_state(second, 30, client="2")
    mean = strategy.result()
    write_state(mean, tmp_path / "mean")
    detector, other = detector_of(name).eval(), detector_of(name).eval()
    load_state(detector, tmp_path / "mean")
    (tmp_path / "mean").unlink()
    for key, tensor in state_of(detector).items():
        assert torch.equal(tensor, mean[key]), key
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.25 * first[key] + 0.75 * second[key])
    other.load_state_dict(mean)  # detections depend on the state alone
    with torch.inference_mode():
        for mine, theirs in zip(detected(detector, images_of(2)), detected(other, images_of(2)), strict=True):
            assert len(mine.boxes)
            assert torch.equal(mine.boxes, theirs.boxes)
            assert torch.equal(mine.scores, theirs.scores)
