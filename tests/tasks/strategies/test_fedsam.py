"""FedSAM: the second gradient by hand, and everything that the first one must leave as it was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tasks.data.batches import Batch
from tasks.detectors.base import Targets
from tasks.spec.strategies import FedAvgSpec, FedSamSpec
from tasks.spec.training import AdamW, Sgd, TrainingSpec
from tests.tasks.strategies.mixed_precision import AMP, LARGE_LR, large, turn_of
from tests.tasks.strategies.small_federation import (
    PLAIN,
    Federation,
    Quadratic,
    Small,
    State,
    bits,
    colours,
    copied,
    quadratic,
    same_bits,
    small_rounds,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("training", [PLAIN, TrainingSpec(accumulate=2)])
def test_without_a_length_it_has_the_bits_of_fedavg(training: TrainingSpec) -> None:
    assert same_bits(FedAvgSpec(), FedSamSpec(rho=0), training=training)


def test_a_step_on_a_parabola_by_hand() -> None:
    """From 1 on ½ 2 (w - 3)², the slope is down to the right, so the second gradient is at 1 - ρ: 2 (0.5 - 3) = -5."""
    federation = Federation(FedSamSpec(rho=0.5), Quadratic(1.0), {"1": quadratic(2, 3, 1)}, lr=0.1)
    federation.round()
    assert federation.w == pytest.approx(1.5, rel=1e-6)


def test_at_the_minimum_nothing_moves() -> None:
    federation = Federation(FedSamSpec(rho=0.5), Quadratic(3.0), {"1": quadratic(2, 3, 4)}, lr=0.1)
    federation.round()
    assert federation.w == 3.0


def gradients(detector: Small, batches: Sequence[Batch], accumulate: int) -> State:
    detector.zero_grad()
    for batch in batches:
        terms = detector.loss(detector(batch.images), Targets(batch.boxes, batch.labels))
        (torch.stack(list(terms.values())).sum() / accumulate).backward()
    return {
        name: parameter.grad.clone() for name, parameter in detector.named_parameters() if parameter.grad is not None
    }


def step_by_hand(batches: Sequence[Batch], rho: float, lr: float, seed: int) -> State:
    """Return a Small's parameters after one step. Both passes have the dropout of ``seed``."""
    detector = Small(dropout=0.5).train()
    start = copied(dict(detector.state_dict()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = gradients(detector, batches, len(batches))
        norm = torch.cat([gradient.flatten() for gradient in first.values()]).norm()
        with torch.no_grad():
            for name, parameter in detector.named_parameters():
                if name in first:
                    parameter.add_(first[name] * rho / norm)
        torch.manual_seed(seed)
        second = gradients(detector, batches, len(batches))
    factors = {name: 0.5 if name.startswith("head") else 1.0 for name in second}
    return {name: start[name] - lr * factors[name] * second[name] for name in second}


@pytest.mark.parametrize("sizes", [[4], [4, 4], [4, 4, 4]])
def test_the_second_gradient_by_hand_with_dropout_and_accumulated_batches(sizes: list[int]) -> None:
    """The norm is over all parameters. The batches of a step are passed twice, with the same dropout."""
    batches, training = colours(sizes, 3), PLAIN.model_copy(update={"accumulate": len(sizes)})
    federation = Federation(FedSamSpec(rho=0.5), Small(dropout=0.5), {"7": batches}, training=training, lr=0.5)
    federation.round()
    expected = step_by_hand(batches, 0.5, 0.5, seed=107)
    assert expected.keys() == {"norm.weight", "norm.bias", "middle.weight", "middle.bias", "head.weight", "head.bias"}
    for name, tensor in expected.items():
        torch.testing.assert_close(federation.model[name], tensor, rtol=1e-5, atol=1e-6)
    plain = Federation(FedAvgSpec(), Small(dropout=0.5), {"7": batches}, training=training, lr=0.5)
    plain.round()
    assert not torch.allclose(plain.model["head.weight"], expected["head.weight"], atol=1e-3)


def test_the_last_step_of_a_turn_may_have_fewer_batches() -> None:
    batches, training = colours([4], 3), PLAIN.model_copy(update={"accumulate": 3})
    federation = Federation(FedSamSpec(rho=0.5), Small(dropout=0.5), {"7": batches}, training=training, lr=0.5)
    federation.round()
    for name, tensor in step_by_hand(batches, 0.5, 0.5, seed=107).items():
        torch.testing.assert_close(federation.model[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_are_put_back_bit_for_bit(accumulate: int) -> None:
    """Steps of a rate that changes no weight leave the global weights, though the second gradients are at others."""
    training = PLAIN.model_copy(update={"accumulate": accumulate})
    federation = Federation(FedSamSpec(rho=3.0), Small(), {"1": colours([4] * 5)}, training=training, lr=1e-30)
    start = copied(federation.model)
    federation.round()
    for name in dict(Small().named_parameters()):
        assert torch.equal(federation.model[name], start[name]), name


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", [Sgd(), AdamW()])
def test_batch_norm_sees_the_first_pass_alone(accumulate: int, optimizer: Sgd | AdamW) -> None:
    """The statistics depend on images only, as what comes before is frozen; a pass more would count twice."""
    training = TrainingSpec(accumulate=accumulate, optimizer=optimizer)
    first, second = (
        Federation(spec, Small(), {"1": colours([4] * 5)}, training=training)
        for spec in (FedAvgSpec(), FedSamSpec(rho=2))
    )
    for _ in range(3):
        first.round()
        second.round()
        for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
            assert torch.equal(first.model[name], second.model[name]), name
    assert int(second.model["norm.num_batches_tracked"]) == 15


def test_the_loss_reported_is_that_of_the_first_pass() -> None:
    losses = []
    for spec in (FedAvgSpec(), FedSamSpec(rho=2)):
        federation = Federation(spec, Small(), {"1": colours([4])})
        federation.round()
        losses.append(federation.outcomes["1"].result.loss)
    assert losses[0] == losses[1]


def test_both_passes_of_a_step_use_mixed_precision() -> None:
    """Two steps are taken from 0, each with the gradient at 0.5 below ``w``."""
    federation = Federation(FedSamSpec(rho=0.5), Quadratic(), {"1": large(2)}, training=AMP, lr=LARGE_LR)
    outcome = turn_of(federation)
    assert outcome.result.rates == (LARGE_LR, LARGE_LR)
    assert float(outcome.state["w"]) == pytest.approx(1.05 + 0.1 * (10 + 0.5 - 1.05), rel=1e-5)


def test_another_length_gives_another_model() -> None:
    assert len({bits(small_rounds(FedSamSpec(rho=rho), 1).model) for rho in (0.0, 0.05, 0.5)}) == 3
