"""FedAdam: its moments by hand, FedAvg as a limit, and buffers that the adaptive step must leave alone."""

from __future__ import annotations

import pytest
import torch

from tasks.spec.strategies import FedAdamSpec, FedAvgSpec
from tests.tasks.strategies.adaptive_rounds import server_rounds
from tests.tasks.strategies.small_federation import COLOURS, Federation, Small, bits, serve, small_rounds

pytestmark = pytest.mark.usefixtures("one_thread")


def test_moments_and_steps_of_three_rounds_by_hand() -> None:
    """Changes 1, -2 and 0.5 with β₁ 0.9, β₂ 0.99, η 0.1, τ 0.1: m starts at 0 and v at τ², without bias correction."""
    found = server_rounds(FedAdamSpec(server_lr=0.1, beta1=0.9, beta2=0.99, tau=0.1), [1.0, -2.0, 0.5])
    m1, v1 = 0.1, 0.99 * 0.01 + 0.01
    m2, v2 = 0.9 * m1 - 0.2, 0.99 * v1 + 0.04
    m3, v3 = 0.9 * m2 + 0.05, 0.99 * v2 + 0.0025
    x = 0.0
    for (model, m, v), (first, second) in zip(found, ((m1, v1), (m2, v2), (m3, v3)), strict=True):
        x += 0.1 * first / (second**0.5 + 0.1)
        assert (model, m, v) == pytest.approx((x, first, second), rel=1e-5, abs=1e-7)
    assert (m3, v3) == pytest.approx((-0.049, 0.06160399), rel=1e-5)


def test_with_a_large_divisor_and_rate_it_is_fedavg() -> None:
    """The step is τ Δ / (|Δ| + τ): its relative error is below |Δ| / τ."""
    change = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    spec = FedAdamSpec(beta1=0, beta2=0, server_lr=1e3, tau=1e3)
    model = serve(spec, {"w": torch.zeros(1000)}, [{"w": change}]).model["w"]
    assert bool(((model - change).abs() <= change.abs() * (change.abs() / 1e3 + 1e-6)).all())
    assert not torch.equal(model, change)


def test_buffers_have_the_bits_of_fedavg_and_no_variance_becomes_negative() -> None:
    """An adaptive step on running_var, here of up to 5, would make it negative (adap/flower issue 1060)."""
    first = Federation(FedAvgSpec(), Small(), COLOURS)
    second = Federation(FedAdamSpec(server_lr=5), Small(), COLOURS)
    for _ in range(3):
        for federation in (first, second):
            federation.round()
        # Nothing that is trained comes before this layer.
        for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
            assert torch.equal(first.model[name], second.model[name]), name
        assert float(second.model["norm.running_var"].min()) >= 0
        assert not torch.equal(first.model["head.weight"], second.model["head.weight"])
    assert second.server.keys() == {f"{kind}/{name}" for kind in "mv" for name in dict(Small().named_parameters())}


def test_frozen_parameters_and_those_without_a_gradient_stay() -> None:
    federation = small_rounds(FedAdamSpec(server_lr=5))
    for name in ("frozen.weight", "frozen.bias", "idle"):
        assert torch.equal(federation.model[name], Small().state_dict()[name]), name


def test_other_fields_give_another_model() -> None:
    specs = [FedAdamSpec(**fields) for fields in ({}, {"server_lr": 0.1}, {"beta1": 0}, {"beta2": 0}, {"tau": 0.1})]
    assert len({bits(small_rounds(spec, 1).model) for spec in specs}) == len(specs)
