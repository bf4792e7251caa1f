"""A client's local training and evaluation: steps, seeds, equal bits, and the error of a diverging client."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from tasks.data.batches import Batch
from tasks.data.image_cache import ImageCache
from tasks.data.loading import EvaluationLoader, training_loader
from tasks.data.samples import ImageSample
from tasks.data.street import load_street
from tasks.detectors.base import Detections, Detector, Targets
from tasks.detectors.registry import build_detector
from tasks.detectors.state import check_finite, load_state, state_of
from tasks.errors import ClientError
from tasks.metrics.detections import in_order, merge
from tasks.metrics.voc import evaluate_voc
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.training import Adam, AdamW, Augmentation, EvaluationSpec, Schedule, Sgd, TrainingSpec
from tasks.training import local
from tasks.training.evaluation import copied, evaluate, on_host
from tasks.training.local import TrainingResult, train
from tasks.training.optimizers import build_optimizer, learning_rate
from tasks.training.seeds import derive_seed
from tests.present import present

pytestmark = pytest.mark.usefixtures("one_thread")

SGD = Sgd(lr=0.1, momentum=0, weight_decay=0)


class Counter(Detector):
    """A detector that guesses an image's number of objects from its mean colour.

    It has no BatchNorm, so an image's result does not depend on its batch.
    """

    width = height = 4
    num_classes = 1

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.dropout = dropout
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.zeros_(self.layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        colour = nn.functional.dropout(images.float().mean(dim=(2, 3)) / 255, self.dropout, self.training)
        return self.layer(colour)[:, 0]

    def loss(self, outputs: Tensor, targets: Targets) -> dict[str, Tensor]:
        wanted = torch.tensor([float(len(box)) for box in targets.boxes])
        return {"count": (outputs - wanted).square().mean(), "size": 0.01 * outputs.abs().mean()}

    def predict(self, outputs: Tensor, **options: Any) -> list[Detections]:
        raise NotImplementedError


def batches_of(sizes: Sequence[int], seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        images = torch.randint(256, (size, 3, 4, 4), dtype=torch.uint8, generator=generator)
        counts = torch.randint(3, (size,), generator=generator).tolist()
        boxes = [torch.zeros(count, 4) for count in counts]
        batches.append(Batch(images, boxes, [torch.zeros(count).long() for count in counts], list(range(size))))
    return batches


def joined(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Return batches that each join ``count`` of ``batches``."""
    return [
        Batch(
            torch.cat([batch.images for batch in group]),
            [box for batch in group for box in batch.boxes],
            [label for batch in group for label in batch.labels],
            [index for batch in group for index in batch.indices],
        )
        for group in (batches[start : start + count] for start in range(0, len(batches), count))
    ]


def trained(
    batches: Sequence[Batch], detector: Detector | None = None, **options: Any
) -> tuple[Tensor, TrainingResult]:
    """Return the weights of a Counter after training, bias last, and the result of the training."""
    detector = detector or Counter()
    lr, warmup = options.pop("lr", 0.1), options.pop("warmup_steps", 0)
    seed = options.pop("seed", 1)
    spec = TrainingSpec(**{"optimizer": SGD, "clip_norm": None, **options})
    result = train(detector, batches, spec, lr=lr, warmup_steps=warmup, seed=seed, client="7")
    assert isinstance(detector, Counter)
    return torch.cat([detector.layer.weight[0], detector.layer.bias]).detach().clone(), result


# --- seeds, learning rate, optimisers ----------------------------------------------------------------------


def test_seeds_depend_on_every_part_and_are_the_same_on_all_machines() -> None:
    seeds = [
        derive_seed(*parts)
        for parts in (
            (1, "turn", 2, "3"),
            (2, "turn", 2, "3"),
            (1, "draw", 2, "3"),
            (1, "turn", 3, "3"),
            (1, "turn", 2, "4"),
        )
    ]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1234, "turn", 1, "1") == 8012345895157258730  # the first 63 bits of sha256(b'1234/turn/1/1')


def test_the_learning_rate_is_held_and_then_falls_by_a_cosine_to_its_floor() -> None:
    schedule = Schedule(hold=2, decay=4, floor=0.2)
    rates = [learning_rate(0.1, schedule, number) for number in range(1, 10)]
    middle = 0.1 * (0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[:4] == pytest.approx([0.1, 0.1, 0.1, middle])
    assert rates[4] == pytest.approx(0.1 * 0.6)
    assert rates[6:] == pytest.approx([0.02, 0.02, 0.02])
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(0.1, Schedule(), 99_999) == 0.1
    assert learning_rate(0.1, Schedule(hold=3, decay=0), 50) == 0.1


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (Sgd(momentum=0.8, nesterov=True, weight_decay=0.1), torch.optim.SGD),
        (Adam(betas=(0.8, 0.9), weight_decay=0.1), torch.optim.Adam),
        (AdamW(weight_decay=0.1), torch.optim.AdamW),
    ],
)
def test_optimizers_decay_kernels_but_neither_norms_nor_biases(spec: Any, kind: type) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False))
    model[2].weight.requires_grad_(False)
    detector = Counter()
    detector.layer = model  # type: ignore[assignment]
    optimizer = build_optimizer(detector, spec, 0.05)
    assert type(optimizer) is kind
    decayed, plain = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)]
    assert {id(p) for p in plain["params"]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.05}
    for field in ("momentum", "nesterov", "betas"):
        assert not hasattr(spec, field) or decayed[field] == getattr(spec, field)


# --- steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 5, 7])  # 5 and 7: the last step has fewer batches
@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_accumulating_equals_larger_batches(count: int, clip_norm: float | None) -> None:
    batches = batches_of([2] * count)
    small, result = trained(batches, accumulate=3, clip_norm=clip_norm)
    large, expected = trained(joined(batches, 3), clip_norm=clip_norm)
    torch.testing.assert_close(small, large)
    assert (result.steps, expected.steps) == (math.ceil(count / 3),) * 2
    # The reported loss is also a mean over images, whatever the batches are.
    assert result.loss == pytest.approx(expected.loss)
    assert result.images == expected.images == 2 * count


def test_one_plain_step_by_hand() -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    images[0, 0] = 255  # the mean colour is (1, 0, 0): the first guess is 0.5 objects, there are 2
    batch = Batch(images, [torch.zeros(2, 4)], [torch.zeros(2).long()], [0])
    weights, result = trained([batch], lr=0.1)
    slope = 2 * (0.5 - 2) + 0.01
    torch.testing.assert_close(weights, torch.tensor([0.5 - 0.1 * slope, 0.5, 0.5, -0.1 * slope]))
    assert result.terms == pytest.approx({"count": 2.25, "size": 0.005})
    assert result.loss == pytest.approx(2.255)


def test_loss_is_the_mean_over_images_not_over_batches() -> None:
    """The rate is too small to change a weight, so every image keeps its loss."""
    batches = batches_of([4, 4, 1]) * 3  # three epochs
    _, result = trained(batches, lr=1e-30)
    detector = Counter()
    total = images = 0.0
    for batch in batches:
        terms = detector.loss(detector(batch.images), Targets(batch.boxes, batch.labels))
        total += sum(term.item() for term in terms.values()) * len(batch.images)
        images += len(batch.images)
    assert result.loss == pytest.approx(total / images, rel=1e-6)
    assert result.loss == pytest.approx(sum(result.terms.values()))
    assert (result.images, result.steps) == (27, 9)


def test_warm_up_raises_the_rate_step_by_step() -> None:
    batches = batches_of([3, 3, 3])
    warmed, _ = trained(batches, lr=0.1, warmup_steps=4)
    detector = Counter()
    for number, batch in enumerate(batches, 1):
        detector.zero_grad()
        sum(detector.loss(detector(batch.images), Targets(batch.boxes, batch.labels)).values()).backward()  # type: ignore[union-attr]
        with torch.no_grad():
            for parameter in detector.parameters():
                parameter.sub_(0.1 * number / 4 * present(parameter.grad))
    torch.testing.assert_close(warmed[:3], detector.layer.weight[0].detach())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverging_client_is_named_with_its_batch(bad: float) -> None:
    batches = batches_of([2, 2, 2])
    detector = Counter()
    original = detector.loss
    calls = []

    def loss(outputs: Tensor, targets: Targets) -> dict[str, Tensor]:
        calls.append(1)
        return {"count": original(outputs, targets)["count"] * (bad if len(calls) == 2 else 1.0)}

    detector.loss = loss  # type: ignore[method-assign]
    with pytest.raises(ClientError, match=rf"client 7: training loss is {bad} at batch 2"):
        trained(batches, detector)


def test_a_learning_rate_that_is_too_large_is_a_clients_error() -> None:
    with pytest.raises(ClientError, match=r"client 7: training loss is (nan|inf) at batch"):
        trained(batches_of([2] * 400), lr=9.0)


def test_losses_that_are_read_together_name_the_first_bad_batch() -> None:
    """As on a GPU, which the host would wait for at each reading."""
    losses = local._Losses("7", 3)
    for value in (1.0, 2.0, 3.0, 4.0):
        losses.add(torch.tensor(value))
    losses.check()
    losses.add(torch.tensor(5.0))
    losses.add(torch.tensor(math.nan))
    with pytest.raises(ClientError, match="client 7: training loss is nan at batch 6"):
        losses.add(torch.tensor(math.inf))


@pytest.mark.parametrize("spec", [Sgd(weight_decay=0.1), Sgd(momentum=0), Adam(weight_decay=0.1), AdamW()])
def test_the_fused_optimiser_takes_the_same_steps(spec: Any) -> None:
    weights = []
    for fused in (False, True):
        detector = Counter()
        optimizer = build_optimizer(detector, spec, 0.05, fused=fused)
        for batch in batches_of([3] * 6):
            optimizer.zero_grad()
            terms = detector.loss(detector(batch.images), Targets(batch.boxes, batch.labels))
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
        weights.append(torch.cat([detector.layer.weight[0], detector.layer.bias]).detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def test_with_mixed_precision_layers_compute_in_bfloat16() -> None:
    seen = []

    class Watched(Counter):
        def forward(self, images: Tensor) -> Tensor:
            found = super().forward(images)
            seen.append(found.dtype)
            return found.float()

    spec = TrainingSpec(optimizer=SGD, clip_norm=None).model_copy(update={"amp": True})
    detector = Watched()
    result = train(detector, batches_of([4] * 3), spec, lr=0.1, warmup_steps=0, seed=1, client="7")
    expected, _ = trained(batches_of([4] * 3))
    assert seen == [torch.bfloat16] * 3
    assert len(result.rates) == 3
    found = torch.cat([detector.layer.weight[0], detector.layer.bias]).detach()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
    assert not torch.equal(found, expected)


# --- randomness --------------------------------------------------------------------------------------------


def test_torchs_global_generator_is_forked_and_seeded_by_the_turn() -> None:
    batches, detector = batches_of([4] * 5), Counter(dropout=0.5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = trained(batches, detector, seed=11)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, _ = trained(batches, Counter(dropout=0.5), seed=11)
    other, _ = trained(batches, Counter(dropout=0.5), seed=12)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSample, ...]:
    """Return eleven images of noise, each with one or two boxes, read by the published data set's reader."""
    root = tmp_path_factory.mktemp("street")
    (root / "Images").mkdir()
    generator, entries = np.random.default_rng(3), []
    for number in range(1, 12):
        Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(root / "Images" / f"{number}.jpg")
        items = [{"class": "chair", "bbox": ["5", "6", str(20 + 2 * number), "40"]}] * (1 + number % 2)
        entries.append({"image_id": str(number), "device_2_id": str(min(number, 5)), "items": items})
    (root / "Images" / "test.jpg").write_bytes((root / "Images" / "1.jpg").read_bytes())
    (root / "train_label.json").write_text(json.dumps(entries))
    (root / "test_label.json").write_text(json.dumps([{"image_id": "test", "items": entries[0]["items"]}]))
    data = load_street(root, 5, name="street", expected_digest=None)
    return tuple(sample for client in data.train.values() for sample in client)


def turn(samples: Sequence[ImageSample], *, seed: int = 5, workers: int = 0) -> bytes:
    """Return the update of a turn with YOLOv3-tiny, as safetensors."""
    detector = build_detector(YoloV3TinySpec(width=64, height=64), 1, seed=1)
    spec = TrainingSpec(batch_size=4, local_epochs=1, loader_workers=workers)
    batches = training_loader(
        samples, width=64, height=64, batch_size=4, epochs=1, seed=seed, round=1, client="7",
        augmentation=Augmentation(), workers=workers, cache=ImageCache(10),
    )  # fmt: skip
    train(detector, batches, spec, lr=1e-3, warmup_steps=2, seed=seed, client="7")
    return save(state_of(detector))


def test_the_same_seeds_give_the_same_bits_with_and_without_loader_processes(samples: Sequence[ImageSample]) -> None:
    torch.manual_seed(1)
    first = turn(samples)
    torch.manual_seed(2)
    assert turn(samples, workers=1) == first
    assert turn(samples, seed=6) != first


# --- state -------------------------------------------------------------------------------------------------


def test_a_state_is_loaded_bit_for_bit_from_its_file(tmp_path: Path, samples: Sequence[ImageSample]) -> None:
    path = tmp_path / "update.safetensors"
    path.write_bytes(turn(samples))
    detector = build_detector(YoloV3TinySpec(width=64, height=64), 1, seed=2)
    load_state(detector, path)
    state = state_of(detector)
    assert save(state) == path.read_bytes()
    assert int(state["layers.0.norm.num_batches_tracked"]) == 3
    assert float(state["layers.0.norm.running_mean"].abs().sum()) > 0
    raw = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert path.stat().st_size <= 1.01 * raw


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "global.safetensors"
    detector = Counter()
    path.write_bytes(b"no")
    with pytest.raises(ClientError, match=r"global\.safetensors: expected a safetensors file"):
        load_state(detector, path)
    path.write_bytes(save({"layer.weight": torch.zeros(1, 3)}))
    with pytest.raises(ClientError, match=r"tensor layer\.bias is missing"):
        load_state(detector, path)
    path.write_bytes(save({**state_of(detector), "more": torch.zeros(1)}))
    with pytest.raises(ClientError, match="tensor more is unexpected"):
        load_state(detector, path)
    own = state_of(detector)
    for name, changed, fault in (
        ("layer.weight", own["layer.weight"].int(), ": expected float32, found int32"),
        ("layer.bias", torch.full_like(own["layer.bias"], torch.nan), " holds NaN or infinity"),
    ):
        path.write_bytes(save({**own, name: changed}))
        with pytest.raises(ClientError, match=f"tensor {name}{fault}$"):
            load_state(detector, path)
    check_finite({"steps": torch.tensor(3), "w": torch.ones(2)}, client="7")
    with pytest.raises(ClientError, match="client 7: tensor w holds NaN or infinity after training"):
        check_finite({"w": torch.tensor([1.0, float("nan")])}, client="7")


# --- evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_an_evaluation_give_exactly_the_figures_of_the_whole(
    samples: Sequence[ImageSample], parts: int
) -> None:
    detector = build_detector(YoloV3TinySpec(width=64, height=96), 1, seed=1)
    loader = EvaluationLoader(samples, width=64, height=96, batch_size=2, cache=ImageCache(10))
    spec = EvaluationSpec(score_threshold=0.0, max_detections=20)
    whole = evaluate(detector, loader, samples, spec, device="cpu")
    found = [
        evaluate(detector, [loader[n] for n in range(part, len(loader), parts)], samples, spec, device="cpu")
        for part in range(parts)
    ]
    assert sum(part.images for part in found) == whole.images == len(samples)
    losses = [value for part in found for value in part.batch_losses]
    assert math.fsum(losses) == math.fsum(whole.batch_losses)
    merged = in_order(merge([part.detections for part in found]), len(samples))
    for index, item in enumerate(merged):
        for field in ("boxes", "scores", "labels"):
            assert np.array_equal(getattr(item, field), getattr(whole.detections[index], field)), (index, field)
        # Boxes are in pixels of the original image, 64 x 48, not of the input.
        assert item.boxes[:, 2].max() <= 64
        assert item.boxes[:, 3].max() <= 48
    truth = [(sample.boxes, sample.labels, None) for sample in samples]
    figures = [
        evaluate_voc(truth, objects, ("chair",), score_threshold=0.0, max_per_class=20)
        for objects in (merged, in_order(whole.detections, len(samples)))
    ]
    assert figures[0] == figures[1]
    assert figures[0].map50_voc10 is not None


def test_a_batchs_detections_come_to_the_cpu_in_one_copy() -> None:
    found = [Detections(torch.rand(n, 4), torch.rand(n), torch.arange(n)) for n in (3, 0, 1)]
    assert on_host(found) == found
    for one, other in zip(found, copied(found), strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels)


def test_an_evaluation_on_a_gpu_has_batches_of_64_at_least() -> None:
    assert [EvaluationSpec(batch_size=size).batch_on("cuda") for size in (1, 64, 100)] == [64, 64, 100]
    assert EvaluationSpec(batch_size=7).batch_on("cpu") == 7
