"""SCAFFOLD: control variates on quadratics, over several rounds and with clients that are missing in some."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import ClientError
from tasks.spec.strategies import FedAvgSpec, ScaffoldSpec
from tasks.spec.training import Sgd
from tasks.strategies.base import LocalOutcome
from tests.tasks.strategies.mixed_precision import AMP, LARGE_LR, large, turn_of
from tests.tasks.strategies.small_federation import (
    COLOURS,
    PLAIN,
    Federation,
    Quadratic,
    Small,
    State,
    bits,
    quadratic,
    serve,
    small_rounds,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# ½ 1 (w - 0)² and ½ 4 (w - 10)², whose sum is least at 8.
TWO = {"1": quadratic(1, 0, 10), "2": quadratic(4, 10, 10)}


def two(**options: float) -> Federation:
    return Federation(ScaffoldSpec(**options), Quadratic(), TWO)


def mean_variate(federation: Federation, clients: int) -> float:
    return math.fsum(float(state["w"]) for state in federation.states.values()) / clients


def test_the_servers_variate_after_three_rounds() -> None:
    """Sending c_i⁺ instead of its change is right in round 1 only."""
    federation = two()
    for expected in (-8.926258, -4.741291, -1.880456):
        federation.round()
        assert float(federation.shared["w"]) == pytest.approx(expected, abs=2e-6)
        assert float(federation.shared["w"]) == pytest.approx(mean_variate(federation, 2), abs=2e-6)


def test_it_converges_to_the_optimum_and_fedavg_does_not() -> None:
    scaffold, fedavg = two(), Federation(FedAvgSpec(weights="uniform"), Quadratic(), TWO)
    for _ in range(20):
        scaffold.round()
        fedavg.round()
    assert scaffold.w == pytest.approx(8.0, abs=2e-5)
    assert fedavg.w == pytest.approx(6.898783, abs=2e-6)
    # At the optimum each client's variate is its own gradient there.
    assert [float(scaffold.states[client]["w"]) for client in TWO] == pytest.approx([8, -8], abs=1e-3)


def test_round_1_has_the_bits_of_uniform_fedavg() -> None:
    found, expected = (small_rounds(spec, 1).model for spec in (ScaffoldSpec(), FedAvgSpec(weights="uniform")))
    assert bits(found) == bits(expected)
    found, expected = (small_rounds(spec, 2).model for spec in (ScaffoldSpec(), FedAvgSpec(weights="uniform")))
    assert bits(found) != bits(expected)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 5), st.floats(1e-6, 1e6))
def test_the_model_always_has_the_bits_of_the_uniform_mean(seed: int, count: int, scale: float) -> None:
    """A server rate of 1 moves by the mean, whatever the variates and the clients' sums of rates are."""
    generator = torch.Generator().manual_seed(seed)
    start, *updates = ({"w": scale * torch.randn(50, generator=generator)} for _ in range(count + 1))
    figures = [{"sum_of_rates": 0.1 * number} for number in range(1, count + 1)]
    expected, last = bits(serve(FedAvgSpec(weights="uniform"), start, updates).model), None
    for _ in range(2):
        last = serve(ScaffoldSpec(), start, updates, figures=figures, last=last)
        assert bits(last.model) == expected


def test_the_variate_is_the_mean_of_the_clients_for_every_tensor() -> None:
    federation = Federation(ScaffoldSpec(server_lr=0.7), Small(), COLOURS)
    trained = {name for name, parameter in Small().named_parameters() if parameter.requires_grad}
    for _ in range(3):
        federation.round()
        assert federation.shared.keys() == trained
        assert all(state.keys() == trained for state in federation.states.values())
        for name, variate in federation.shared.items():
            mean = torch.stack([state[name].double() for state in federation.states.values()]).mean(0)
            torch.testing.assert_close(variate.double(), mean, rtol=1e-4, atol=1e-5)


def test_missing_clients_keep_their_variates_and_count_in_the_servers() -> None:
    """``c = (1/N) Σ c_i`` over all N = 4 clients after every round, whoever takes part or is dropped."""
    batches = {"1": quadratic(1, 0, 5), "2": quadratic(4, 10, 7), "3": quadratic(2, -3, 6)}
    federation = Federation(ScaffoldSpec(), Quadratic(), batches, left_out=1)
    before: dict[str, State] = {}
    for cohort, dropped in ((("1", "2"), ()), (("1", "2", "3"), ("2",)), (("2", "3"), ()), (("1",), ())):
        federation.round(*cohort, dropped=dropped)
        assert float(federation.shared["w"]) == pytest.approx(mean_variate(federation, 4), abs=1e-5)
        for client, state in before.items():
            kept = client not in cohort or client in dropped
            assert torch.equal(federation.states[client]["w"], state["w"]) is kept
        before = dict(federation.states)


def test_a_variate_is_the_mean_gradient_of_the_steps_for_every_rate() -> None:
    """The warm-up and the factor of a parameter's learning rate are in the sum of rates."""
    batches = {"1": quadratic(2, 3, 3)}
    federation = Federation(ScaffoldSpec(), Quadratic(1.0, factor=0.5), batches, lr=0.1, warmup_steps=4)
    w, moved, rates = 1.0, 0.0, [0.025, 0.05, 0.075]
    for rate in rates:
        gradient = 2 * (w - 3)
        moved += rate * gradient
        w -= 0.5 * rate * gradient
    federation.round()
    assert federation.w == pytest.approx(w, rel=1e-6)
    assert federation.outcomes["1"].figures == {"sum_of_rates": pytest.approx(0.15)}
    for variate in (federation.states["1"], federation.shared):
        assert float(variate["w"]) == pytest.approx(moved / sum(rates), rel=1e-5)


def test_the_correction_of_the_second_round_by_hand() -> None:
    """One step a round, so ``c_i`` is the gradient at ``x`` and every corrected step is that of the mean gradient."""
    federation = Federation(ScaffoldSpec(server_lr=0.5), Quadratic(), {c: batches[:1] for c, batches in TWO.items()})
    w = 0.0
    variates: list[float] = []
    for _ in range(3):
        gradients = [w, 4 * (w - 10)]
        mean = sum(gradients) / 2
        # Each corrected step is g_i - c_i + c; the mean of -c_i + c is 0, but c_i is of the last round's point.
        w -= 0.5 * 0.05 * mean
        variates = gradients
        federation.round()
        assert federation.w == pytest.approx(w, rel=1e-5)
        assert [float(federation.states[client]["w"]) for client in TWO] == pytest.approx(variates, rel=1e-4, abs=1e-4)


def test_weight_decay_is_part_of_the_local_loss() -> None:
    """Kernels decay: from a loss without a gradient in ``idle``, only that shows, so ``c_i`` has no part of it."""
    training = PLAIN.model_copy(update={"optimizer": Sgd(momentum=0, weight_decay=0.1)})
    one, other = (small_rounds(ScaffoldSpec(), 1, training=chosen) for chosen in (training, PLAIN))
    moved = one.states["1"]["middle.weight"] - other.states["1"]["middle.weight"]
    assert float(moved.abs().max()) > 1e-3
    assert float(one.states["1"]["idle"].abs().max()) == 0


def lie(client: str, outcome: LocalOutcome) -> None:
    if client == "2":
        outcome.figures["sum_of_rates"] *= 1.01


def test_a_wrong_sum_of_rates_is_refused() -> None:
    federation = Federation(ScaffoldSpec(), Quadratic(), TWO, change=lie)
    with pytest.raises(ClientError, match=r"client 2: figures: sum_of_rates: expected 0\.5, found 0\.505"):
        federation.round()


def test_every_step_counts_with_mixed_precision() -> None:
    federation = Federation(ScaffoldSpec(), Quadratic(), {"1": large(2)}, training=AMP, lr=LARGE_LR)
    outcome = turn_of(federation)
    assert outcome.result.rates == (LARGE_LR, LARGE_LR)
    assert outcome.figures == {"sum_of_rates": pytest.approx(2e-7)}
    assert outcome.own is not None
    # Two steps from 0 on ½ 10⁶ (w - 10)²: the gradients are -10⁷ and -9 · 10⁶.
    assert float(outcome.own["w"]) == pytest.approx(-9.5e6, rel=1e-5)


def test_other_fields_give_another_model() -> None:
    assert len({bits(small_rounds(ScaffoldSpec(server_lr=rate), 1).model) for rate in (1.0, 0.5)}) == 2
