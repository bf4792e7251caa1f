"""FedProx: the proximal term by its local limit, and where it must change nothing."""

from __future__ import annotations

import pytest

from tasks.spec.strategies import FedAvgSpec, FedProxSpec
from tasks.spec.training import AdamW, Sgd, TrainingSpec
from tests.tasks.strategies.small_federation import (
    COLOURS,
    Federation,
    Quadratic,
    Small,
    bits,
    colours,
    quadratic,
    same_bits,
    small_rounds,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("training", [TrainingSpec(), TrainingSpec(optimizer=Sgd(nesterov=True, weight_decay=0.1))])
def test_without_a_weight_it_has_the_bits_of_fedavg(training: TrainingSpec) -> None:
    assert same_bits(FedAvgSpec(), FedProxSpec(mu=0), training=training)


@pytest.mark.parametrize("mu", [0.01, 1.0, 1e4])
@pytest.mark.parametrize("optimizer", [AdamW(), Sgd(momentum=0.9, weight_decay=0.1)])
def test_the_first_step_has_the_bits_of_fedavg(mu: float, optimizer: AdamW | Sgd) -> None:
    """There the weights are the global ones. A parameter without a gradient gets none from a term of 0."""
    training = TrainingSpec(optimizer=optimizer)
    batches = {client: colours([6], seed) for seed, client in enumerate(COLOURS)}
    first, second = (
        Federation(strategy, Small(), batches, training=training) for strategy in (FedAvgSpec(), FedProxSpec(mu=mu))
    )
    for _ in range(3):
        assert bits(first.round().model) == bits(second.round().model)


@pytest.mark.parametrize(("mu", "limit"), [(0.5, 2.6), (2.0, 2.0), (0.0, 3.0)])
def test_many_steps_reach_the_minimum_of_loss_and_term(mu: float, limit: float) -> None:
    """The minimum of ½ 2 (w - 3)² + μ/2 (w - 1)² is (2 · 3 + μ · 1) / (2 + μ).

    With the live weights as their own reference, it would be 3 for every μ; with a norm that is not squared, 2.75.
    """
    federation = Federation(FedProxSpec(mu=mu), Quadratic(1.0), {"1": quadratic(2, 3, 100)}, lr=0.1)
    federation.round()
    assert federation.w == pytest.approx(limit, rel=1e-6)


def test_the_term_pulls_towards_the_model_of_the_round_not_of_the_first() -> None:
    federation = Federation(FedProxSpec(mu=0.5), Quadratic(1.0), {"1": quadratic(2, 3, 100)}, lr=0.1)
    start = 1.0
    for _ in range(3):
        federation.round()
        start = (6 + 0.5 * start) / 2.5
        assert federation.w == pytest.approx(start, rel=1e-6)


def test_the_term_is_clipped_with_the_gradient() -> None:
    """Step 1 from 1: gradient -4, clipped to -1. Step 2 from 1.5: gradient 2 (1.5 - 3) + 2 (1.5 - 1) = -2, clipped."""
    training = TrainingSpec(optimizer=Sgd(momentum=0, weight_decay=0), clip_norm=1.0)
    federation = Federation(FedProxSpec(mu=2.0), Quadratic(1.0), {"1": quadratic(2, 3, 2)}, training=training, lr=0.5)
    federation.round()
    assert federation.w == pytest.approx(2.0, rel=1e-5)


def test_another_weight_gives_another_model() -> None:
    models = {bits(small_rounds(FedProxSpec(mu=mu), 1).model) for mu in (0.0, 0.01, 0.1)}
    assert len(models) == 3
