"""FedYogi: its moments by hand, with the sign that public code has had wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.spec.strategies import FedAdamSpec, FedYogiSpec
from tests.tasks.strategies.adaptive_rounds import server_rounds
from tests.tasks.strategies.small_federation import bits, small_rounds

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_second_moment_moves_towards_the_square_by_a_part_of_the_square() -> None:
    """Changes 1, 0.1 and -2 with β₂ 0.9, τ 0.1: v goes up, then down by 0.1 · 0.01, then up. Adam's falls by more."""
    found = server_rounds(FedYogiSpec(server_lr=0.1, beta1=0.9, beta2=0.9, tau=0.1), [1.0, 0.1, -2.0])
    x = m = 0.0
    for (model, first, second), change, v in zip(found, (1.0, 0.1, -2.0), (0.11, 0.109, 0.509), strict=True):
        m = 0.9 * m + 0.1 * change
        x += 0.1 * m / (v**0.5 + 0.1)
        assert (model, first, second) == pytest.approx((x, m, v), rel=1e-5)
    adam = server_rounds(FedAdamSpec(server_lr=0.1, beta1=0.9, beta2=0.9, tau=0.1), [1.0, 0.1])
    assert adam[1][2] == pytest.approx(0.9 * (0.9 * 0.01 + 0.1) + 0.001, rel=1e-5)


def test_a_square_equal_to_the_moment_leaves_it() -> None:
    ((_, _, v),) = server_rounds(FedYogiSpec(tau=0.5), [0.5])
    assert v == 0.25


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), st.sampled_from([0.0, 0.5, 0.99]))
def test_the_second_moment_is_never_negative(changes: list[float], beta2: float) -> None:
    for _, _, v in server_rounds(FedYogiSpec(beta2=beta2, tau=1e-3), changes):
        assert v >= 0


def test_other_fields_give_another_model() -> None:
    specs = [FedYogiSpec(**fields) for fields in ({}, {"server_lr": 0.1}, {"beta1": 0}, {"beta2": 0}, {"tau": 0.1})]
    assert len({bits(small_rounds(spec, 1).model) for spec in specs}) == len(specs)
