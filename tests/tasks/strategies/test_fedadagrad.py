"""FedAdagrad: its moments by hand."""

from __future__ import annotations

import pytest

from tasks.spec.strategies import FedAdagradSpec
from tests.tasks.strategies.adaptive_rounds import server_rounds
from tests.tasks.strategies.small_federation import bits, small_rounds

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("beta1", [0.0, 0.5])
def test_the_second_moment_is_the_sum_of_all_squares(beta1: float) -> None:
    """Changes 1, -2 and 0.5 with η 0.1, τ 0.1: v is 0.01 + 1, + 4, + 0.25."""
    found = server_rounds(FedAdagradSpec(server_lr=0.1, beta1=beta1, tau=0.1), [1.0, -2.0, 0.5])
    x = m = 0.0
    for (model, first, second), change, v in zip(found, (1.0, -2.0, 0.5), (1.01, 5.01, 5.26), strict=True):
        m = beta1 * m + (1 - beta1) * change
        x += 0.1 * m / (v**0.5 + 0.1)
        assert (model, first, second) == pytest.approx((x, m, v), rel=1e-5)


def test_other_fields_give_another_model() -> None:
    specs = [FedAdagradSpec(**fields) for fields in ({}, {"server_lr": 0.1}, {"beta1": 0.9}, {"tau": 0.1})]
    assert len({bits(small_rounds(spec, 1).model) for spec in specs}) == len(specs)
