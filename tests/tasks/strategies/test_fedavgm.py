"""FedAvgM: the server's momentum by a number, by torch's SGD, and without momentum by FedAvg's bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.spec.strategies import FedAvgMSpec, FedAvgSpec
from tasks.strategies.base import ServerResult
from tests.tasks.strategies.small_federation import State, bits, same_bits, serve, small_rounds

pytestmark = pytest.mark.usefixtures("one_thread")


def random_states(seed: int, count: int, scale: float) -> list[State]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: scale * torch.randn(shape, generator=generator) for name, shape in (("a", (31, 5)), ("b", ()))}
        for _ in range(count)
    ]


def test_without_momentum_it_has_the_bits_of_fedavg() -> None:
    assert same_bits(FedAvgSpec(), FedAvgMSpec(momentum=0, server_lr=1))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 5), st.floats(1e-6, 1e6), st.lists(st.integers(1, 500), min_size=5))
def test_without_momentum_random_updates_give_the_bits_of_fedavg(
    seed: int, count: int, scale: float, weights: list[int]
) -> None:
    """``x + Δ`` would not: it has other bits in a third of the elements."""
    start, *updates = random_states(seed, count + 1, scale)
    found = serve(FedAvgMSpec(momentum=0), start, updates, weights=weights[:count])
    for _ in range(2):
        expected = serve(FedAvgSpec(), start, updates, weights=weights[:count])
        assert bits(found.model) == bits(expected.model)
        found = serve(FedAvgMSpec(momentum=0), start, updates, weights=weights[:count], last=found)


def test_a_constant_change_accumulates() -> None:
    """The momentum is 1, 1.9, 2.71, …, whose sum after six rounds is 17.82969; a factor (1 - β) would show."""
    model, result = {"w": torch.zeros(1)}, None
    for _ in range(6):
        result = serve(FedAvgMSpec(momentum=0.9), model, [{"w": model["w"] + 1}], last=result)
        model = result.model
    assert float(model["w"]) == pytest.approx(17.82969, rel=1e-6)
    assert result is not None
    assert result.server is not None
    assert float(result.server["w"]) == pytest.approx(4.68559, rel=1e-6)


@pytest.mark.parametrize(("momentum", "server_lr"), [(0.9, 1.0), (0.5, 0.3)])
def test_it_is_torchs_sgd_on_the_negative_change(momentum: float, server_lr: float) -> None:
    start, *changes = random_states(3, 6, 1.0)
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=server_lr, momentum=momentum)
    model, result = start, None
    for change in changes:
        update = {name: model[name] + change[name] for name in model}
        result = serve(FedAvgMSpec(momentum=momentum, server_lr=server_lr), model, [update], last=result)
        model = result.model
        for name, parameter in parameters.items():
            parameter.grad = -change[name]
        optimizer.step()
        for name, parameter in parameters.items():
            torch.testing.assert_close(model[name], parameter.detach(), rtol=1e-5, atol=1e-5)


def test_the_change_is_the_weighted_mean() -> None:
    start = {"w": torch.tensor([1.0])}
    updates = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([7.0])}]
    first = serve(FedAvgMSpec(momentum=0.5, server_lr=2), start, updates, weights=[4, 1])
    assert float(first.model["w"]) == pytest.approx(1 + 2 * 2)
    last: ServerResult = serve(FedAvgMSpec(momentum=0.5, server_lr=2), first.model, [first.model], last=first)
    assert float(last.model["w"]) == pytest.approx(5 + 2 * 1)  # the momentum alone


def test_other_fields_give_another_model() -> None:
    specs = (FedAvgMSpec(), FedAvgMSpec(momentum=0.5), FedAvgMSpec(server_lr=0.5))
    assert len({bits(small_rounds(spec, 2).model) for spec in specs}) == 3
