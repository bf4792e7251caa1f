"""The hooks of a local step: when they are called, and what they see."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import nn

from tasks.spec.training import Sgd, TrainingSpec
from tasks.training.local import train
from tasks.training.rules import LocalRule, add_to_gradient, trained_parameters
from tests.tasks.strategies.mixed_precision import AMP
from tests.tasks.strategies.small_federation import PLAIN, Quadratic, Small, colours, quadratic

pytestmark = pytest.mark.usefixtures("one_thread")


class Seen(LocalRule):
    """Keeps the weight and its gradient at each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, float | None]] = []

    def begin(self, model: nn.Module) -> None:
        self.weight = trained_parameters(model)["w"]
        self._keep("begin")

    def correct_gradient(self) -> None:
        self._keep("correct")
        add_to_gradient(self.weight, torch.tensor([100.0]))

    def _keep(self, call: str) -> None:
        gradient = self.weight.grad
        self.calls.append((call, float(self.weight.detach()), None if gradient is None else float(gradient)))


class SeenTwice(Seen):
    twice: ClassVar[bool] = True

    def second_gradient(self, model: nn.Module, again: Callable[[], None]) -> None:
        self._keep("first")
        again()  # the gradients add to those there are


def test_the_gradient_is_corrected_before_it_is_clipped() -> None:
    """The gradient of a step is -4; clipped to 1 after the correction by 100, it points the other way."""
    rule, detector = Seen(), Quadratic(1.0)
    spec = PLAIN.model_copy(update={"clip_norm": 1.0})
    train(detector, quadratic(2, 3, 2), spec, lr=0.5, warmup_steps=0, seed=1, client="1", rule=rule)
    assert rule.calls == [("begin", 1, None), ("correct", 1, -4), ("correct", 0.5, -5)]
    assert float(detector.w.detach()) == pytest.approx(0, abs=1e-5)


def test_the_gradient_is_not_scaled_with_mixed_precision() -> None:
    rule = Seen()
    train(Quadratic(1.0), quadratic(2, 3, 1), AMP, lr=0.5, warmup_steps=0, seed=1, client="1", rule=rule)
    assert rule.calls[1] == ("correct", 1, -4)


@pytest.mark.parametrize(("batches", "steps"), [(2, 1), (3, 2)])
def test_a_step_of_several_batches_is_corrected_once(batches: int, steps: int) -> None:
    """In the last step, which has one batch, the gradient is its whole gradient."""
    rule, detector = Seen(), Quadratic(1.0)
    spec = PLAIN.model_copy(update={"accumulate": 2})
    train(detector, quadratic(2, 3, batches), spec, lr=0.01, warmup_steps=0, seed=1, client="1", rule=rule)
    assert rule.calls[1:] == [("correct", 1, -4), ("correct", pytest.approx(0.04), pytest.approx(-5.92))][:steps]


def test_the_second_gradient_comes_first_and_its_batches_are_those_of_the_step() -> None:
    rule = SeenTwice()
    spec = PLAIN.model_copy(update={"accumulate": 2})
    batches = [*quadratic(2, 3, 1), *quadratic(4, 0, 1)]  # gradients at 1: -4 and 4; their mean is 0
    batches += quadratic(2, 0, 1)
    train(Quadratic(1.0), batches, spec, lr=0.01, warmup_steps=0, seed=1, client="1", rule=rule)
    assert [call[0] for call in rule.calls] == ["begin", "first", "correct", "first", "correct"]
    assert [call[2] for call in rule.calls[1:3]] == pytest.approx([0, 0], abs=1e-6)
    # The third batch alone is passed again. Its gradient was halved, and is doubled before the correction.
    first, corrected = rule.calls[3][2], rule.calls[4][2]
    assert first is not None
    assert corrected == pytest.approx(4 * first)


def test_a_rule_that_changes_nothing_changes_no_bit() -> None:
    states = []
    for rule in (None, LocalRule()):
        detector = Small()
        train(detector, colours([4, 4]), TrainingSpec(), lr=0.1, warmup_steps=1, seed=1, client="1", rule=rule)
        states.append(detector.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_term_is_added_or_becomes_the_gradient() -> None:
    parameter, term = nn.Parameter(torch.zeros(2)), torch.tensor([1.0, 0.0])
    add_to_gradient(parameter, torch.zeros(2))
    assert parameter.grad is None  # an optimiser would decay the weight
    for expected in ([1, 0], [2, 0]):
        add_to_gradient(parameter, term)
        assert parameter.grad is not None
        assert parameter.grad.tolist() == expected
        assert term.tolist() == [1, 0]


def test_rates_are_those_of_the_steps_taken() -> None:
    spec = TrainingSpec(optimizer=Sgd(momentum=0), accumulate=2)
    result = train(Quadratic(), quadratic(1, 1, 7), spec, lr=0.4, warmup_steps=3, seed=1, client="1")
    assert result.rates == pytest.approx((0.4 / 3, 0.8 / 3, 0.4, 0.4))
    assert result.steps == 4
