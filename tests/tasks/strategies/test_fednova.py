"""FedNova: the norm of a client's steps, FedAvg's bits for equal steps, and the formula for unequal ones."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tasks.detectors.base import Targets
from tasks.errors import ClientError
from tasks.spec.strategies import FedAvgSpec, FedNovaSpec
from tasks.spec.training import Sgd, TrainingSpec
from tasks.strategies.base import LocalOutcome, Planned
from tasks.strategies.fednova import NORM, norm_of_steps
from tasks.strategies.sums import Counted
from tests.tasks.strategies.mixed_precision import AMP, LARGE_LR, large, turn_of
from tests.tasks.strategies.small_federation import (
    COLOURS,
    PLAIN,
    Federation,
    Quadratic,
    Small,
    State,
    bits,
    colours,
    copied,
    quadratic,
    serve,
    small_rounds,
)

pytestmark = pytest.mark.usefixtures("one_thread")
MOMENTUM = PLAIN.model_copy(update={"optimizer": Sgd(momentum=0.9, weight_decay=0)})


class Slope(Quadratic):
    """A loss with the gradient 1 everywhere, so that a turn moves the weight by its norm, times the rate."""

    def loss(self, outputs: Tensor, targets: Targets) -> dict[str, Tensor]:
        return {"slope": outputs.mean()}


@pytest.mark.parametrize(("momentum", "steps", "norm"), [(0.9, 7, 23.04672), (0.0, 7, 7.0), (0.9, 1, 1.0)])
def test_the_norm_at_a_constant_rate(momentum: float, steps: int, norm: float) -> None:
    found = norm_of_steps((0.01,) * steps, 0.01, momentum)
    closed = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    assert found == pytest.approx(norm, abs=5e-6)
    assert found == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("warmup", [0, 4, 20])
def test_the_norm_is_what_sgd_does_with_a_gradient_of_1(momentum: float, warmup: int) -> None:
    training = PLAIN.model_copy(update={"optimizer": Sgd(momentum=momentum, weight_decay=0)})
    federation = Federation(
        FedNovaSpec(), Slope(), {"1": quadratic(1, 0, 7)}, training=training, lr=0.01, warmup_steps=warmup
    )
    federation.round()
    assert -federation.w / 0.01 == pytest.approx(federation.outcomes["1"].figures[NORM], rel=1e-5)


@pytest.mark.parametrize("training", [PLAIN, MOMENTUM, TrainingSpec(optimizer=Sgd())])
def test_equal_steps_give_the_bits_of_fedavg(training: TrainingSpec) -> None:
    batches = {client: colours([4, 3 + number], number) for number, client in enumerate(COLOURS)}
    first, second = (
        Federation(spec, Small(), batches, training=training, warmup_steps=2) for spec in (FedAvgSpec(), FedNovaSpec())
    )
    for _ in range(3):
        assert bits(first.round().model) == bits(second.round().model)


def formula(start: State, updates: Sequence[State], weights: Sequence[float], norms: Sequence[float]) -> State:
    """Return ``x + τ_eff Σ p_i Δ_i / ‖a_i‖₁`` in double precision."""
    shares = [weight / sum(weights) for weight in weights]
    effective = sum(share * norm for share, norm in zip(shares, norms, strict=True))
    moved = {}
    for name, x in start.items():
        parts = zip(shares, updates, norms, strict=True)
        moved[name] = x.double() + effective * sum(
            share * (update[name].double() - x.double()) / norm for share, update, norm in parts
        )
    return moved


@pytest.mark.parametrize("training", [PLAIN, MOMENTUM])
def test_unequal_steps_give_the_formula_and_the_mean_of_buffers(training: TrainingSpec) -> None:
    updates: dict[str, State] = {}
    federation = Federation(
        FedNovaSpec(),
        Small(),
        COLOURS,
        training=training,
        change=lambda client, outcome: updates.update({client: copied(outcome.state)}),
    )
    taken = {"1": 2, "2": 5, "3": 2}
    momentum = training.optimizer.momentum if isinstance(training.optimizer, Sgd) else 0
    weights = [federation.weight(client) for client in COLOURS]
    norms = [norm_of_steps((1.0,) * steps, 1.0, momentum) for steps in taken.values()]
    for _ in range(3):
        start = federation.model
        federation.round()
        expected = formula(start, list(updates.values()), weights, norms)
        mean = serve(FedAvgSpec(), start, list(updates.values()), weights=weights).model
        for name, tensor in federation.model.items():
            if name.startswith("norm.running") or name == "norm.num_batches_tracked":
                assert torch.equal(tensor, mean[name])
            else:
                torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)
        assert not torch.allclose(federation.model["head.weight"], mean["head.weight"], rtol=1e-4)


def test_each_client_counts_by_the_mean_of_its_gradients() -> None:
    """The slopes are equal, so all move by ``τ_eff`` steps of the rate, as in FedAvg; then client 2's is twice."""
    batches = {"1": quadratic(1, 0, 2), "2": quadratic(1, 0, 8)}
    federation = Federation(FedNovaSpec(weights="uniform"), Slope(), batches, lr=0.01)
    federation.round()
    assert federation.w == pytest.approx(-0.01 * 5, rel=1e-6)
    model, ones = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    result = serve(FedNovaSpec(), model, [ones, ones], figures=[{NORM: 1.0}, {NORM: 4.0}])
    assert float(result.model["w"]) == pytest.approx(2.5 * 0.5 * (1 + 0.25))  # and not 1, as in FedAvg


def test_a_client_of_weight_0_changes_nothing() -> None:
    model = {"w": torch.tensor([1.0, 2.0])}
    updates = [{"w": torch.tensor([2.0, 5.0])}, {"w": torch.tensor([9.0, -9.0])}, {"w": torch.tensor([3.0, 1.0])}]
    figures = [{NORM: 2.0}, {NORM: 3.0}, {NORM: 7.0}]
    with_it = serve(FedNovaSpec(), model, updates, weights=[2, 0, 5], figures=figures)
    without = serve(FedNovaSpec(), model, updates[::2], weights=[2, 5], figures=figures[::2])
    assert bits(with_it.model) == bits(without.model)


@pytest.mark.parametrize("factor", [0.5, 1.01, 0.0])
def test_a_wrong_norm_is_refused(factor: float) -> None:
    def lie(client: str, outcome: LocalOutcome) -> None:
        outcome.figures[NORM] *= factor if client == "2" else 1

    federation = Federation(FedNovaSpec(), Small(), COLOURS, change=lie)
    with pytest.raises(ClientError, match=r"client 2: figures: norm_of_steps: expected 5, found [052]"):
        federation.round()


@pytest.mark.parametrize(("norm", "right"), [(7, True), (7.1, False), (6.9, False), (0, False)])
def test_the_norm_must_be_that_of_all_steps(norm: float, right: bool) -> None:
    method = Federation(FedNovaSpec(), Quadratic(), {}).method
    planned = Planned(0.1, (0.1,) * 7, start={}, roles_of=dict)
    if right:
        method.check_figures(Counted("4", 1, {NORM: norm}), planned)
    else:
        with pytest.raises(ClientError, match="client 4: figures: norm_of_steps: expected 7, found"):
            method.check_figures(Counted("4", 1, {NORM: norm}), planned)


def test_every_step_counts_with_mixed_precision() -> None:
    training = AMP.model_copy(update={"optimizer": MOMENTUM.optimizer})
    federation = Federation(FedNovaSpec(), Quadratic(), {"1": large(2)}, training=training, lr=LARGE_LR)
    outcome = turn_of(federation)
    assert outcome.result.rates == (LARGE_LR, LARGE_LR)
    assert outcome.figures == {NORM: pytest.approx(1 + 1.9)}


def test_unequal_steps_give_another_model_than_fedavg() -> None:
    assert bits(small_rounds(FedNovaSpec(), 1).model) != bits(small_rounds(FedAvgSpec(), 1).model)
