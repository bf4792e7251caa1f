"""FedDyn: rounds on quadratics by hand, with missing clients, down to the optimum."""

from __future__ import annotations

import pytest
import torch

from tasks.spec.strategies import FedAvgSpec, FedDynSpec
from tests.tasks.strategies.small_federation import (
    COLOURS,
    Federation,
    Quadratic,
    Small,
    State,
    bits,
    copied,
    quadratic,
    serve,
    small_rounds,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CURVES = {"1": (1.0, 0.0), "2": (4.0, 10.0)}


def test_round_1_of_all_clients_goes_twice_the_mean() -> None:
    updates: dict[str, State] = {}
    federation = Federation(
        FedDynSpec(alpha=0.3),
        Small(),
        COLOURS,
        change=lambda client, outcome: updates.update({client: copied(outcome.state)}),
    )
    start = copied(federation.model)
    federation.round()
    uniform = serve(FedAvgSpec(weights="uniform"), start, list(updates.values())).model
    for name, mean in uniform.items():
        if name in dict(Small().named_parameters()):
            expected = start[name] + 2 * (mean - start[name])
            torch.testing.assert_close(federation.model[name], expected, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(federation.model[name], mean), name


def minimum(client: str, x: float, slope: float, alpha: float) -> float:
    """Return the minimum of ``½ a (w - b)² - slope · w + α/2 (w - x)²``."""
    a, b = CURVES[client]
    return (a * b + slope + alpha * x) / (a + alpha)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_rounds_with_missing_clients_by_hand(alpha: float) -> None:
    """Turns are long enough to reach the minimum of the local loss. N is 3, as one client never takes part."""
    batches = {client: quadratic(*curve, 100) for client, curve in CURVES.items()}
    federation = Federation(FedDynSpec(alpha=alpha), Quadratic(), batches, lr=0.2, left_out=1)
    x, h, slopes = 0.0, 0.0, dict.fromkeys(CURVES, 0.0)
    for cohort in (("1", "2"), ("2",), ("1", "2"), ("1",)):
        ends = {client: minimum(client, x, slopes[client], alpha) for client in cohort}
        h -= alpha / 3 * sum(end - x for end in ends.values())
        for client, end in ends.items():
            slopes[client] -= alpha * (end - x)
        x = sum(ends.values()) / len(ends) - h / alpha
        federation.round(*cohort)
        assert federation.w == pytest.approx(x, rel=1e-4, abs=1e-4)
        assert float(federation.server["w"]) == pytest.approx(h, rel=1e-4, abs=1e-4)
        for client, state in federation.states.items():
            assert float(state["w"]) == pytest.approx(slopes[client], rel=1e-4, abs=1e-4)


def test_a_dropped_client_keeps_its_state() -> None:
    batches = {client: quadratic(*curve, 5) for client, curve in CURVES.items()}
    federation = Federation(FedDynSpec(alpha=0.5), Quadratic(), batches)
    federation.round()
    state = federation.states["2"]["w"].clone()
    federation.round(dropped=["2"])
    assert torch.equal(federation.states["2"]["w"], state)
    federation.round()
    assert not torch.equal(federation.states["2"]["w"], state)


def test_it_converges_to_the_optimum_and_fedavg_does_not() -> None:
    batches = {client: quadratic(*curve, 10) for client, curve in CURVES.items()}
    dyn, fedavg = (
        Federation(spec, Quadratic(), batches) for spec in (FedDynSpec(alpha=2), FedAvgSpec(weights="uniform"))
    )
    for _ in range(30):
        dyn.round()
    for _ in range(16):
        fedavg.round()
    assert dyn.w == pytest.approx(8.0, abs=1e-3)
    assert fedavg.w == pytest.approx(6.898783, abs=2e-6)
    # There g_i is the gradient of the client's own loss.
    assert [float(dyn.states[client]["w"]) for client in CURVES] == pytest.approx([8, -8], abs=1e-2)


def test_only_trained_parameters_have_states() -> None:
    federation = small_rounds(FedDynSpec(alpha=0.3), 3)
    trained = {name for name, parameter in Small().named_parameters() if parameter.requires_grad}
    assert all(state.keys() == trained for state in federation.states.values())
    for name in ("frozen.weight", "idle"):
        assert torch.equal(federation.model[name], Small().state_dict()[name])


def test_another_field_gives_another_model() -> None:
    assert len({bits(small_rounds(FedDynSpec(alpha=alpha), 1).model) for alpha in (0.01, 0.1, 1.0)}) == 3
