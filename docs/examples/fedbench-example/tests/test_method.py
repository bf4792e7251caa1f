"""The clipped step: two numbers worked out by hand, and the bits of FedAvg where nothing is clipped."""

from __future__ import annotations

import pytest
import torch
from fedbench_example.method import ClippedFedAvg
from fedbench_example.spec import ClippedFedAvgSpec

from tasks.detectors.roles import TensorRole
from tasks.spec.training import TrainingSpec
from tasks.strategies.base import ServerRound
from tasks.strategies.sums import Counted, Sums

START = {"weight": torch.tensor([1.0, 1.0]), "running_mean": torch.tensor([0.0])}
ROLES = {"weight": TensorRole("parameter", 1.0), "running_mean": TensorRole("buffer")}
# Their mean is 3 and 4 away from the start: the norm is 5.
UPDATES = {
    "1": {"weight": torch.tensor([3.0, 5.0]), "running_mean": torch.tensor([2.0])},
    "2": {"weight": torch.tensor([5.0, 5.0]), "running_mean": torch.tensor([4.0])},
}


def after_a_round(max_norm: float) -> dict[str, torch.Tensor]:
    method = ClippedFedAvg(ClippedFedAvgSpec(max_norm=max_norm), TrainingSpec())
    sums = Sums(method)
    for client, state in UPDATES.items():
        sums.accumulate_state(state, Counted(client, 1))
    return method.new_model(sums, ServerRound(START, 2, lambda: ROLES)).model


def test_a_long_step_is_shortened_and_buffers_are_averaged() -> None:
    found = after_a_round(2.5)
    assert found["weight"].tolist() == pytest.approx([1 + 1.5, 1 + 2.0])
    assert found["running_mean"].tolist() == [3.0]


def test_a_short_step_is_the_mean_of_the_updates() -> None:
    assert after_a_round(5.0)["weight"].tolist() == [4.0, 5.0]
