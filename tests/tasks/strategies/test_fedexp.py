"""FedExP: the rate of the server's step by hand, and the norms that clients report."""

from __future__ import annotations

import pytest
import torch

from tasks.data.batches import Batch
from tasks.errors import ClientError
from tasks.spec.strategies import FedAvgSpec, FedExPSpec
from tasks.strategies.base import LocalOutcome
from tasks.strategies.fedexp import SQUARED_NORM
from tests.tasks.strategies.small_federation import (
    COLOURS,
    Federation,
    Quadratic,
    Small,
    State,
    bits,
    colours,
    copied,
    quadratic,
    serve,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def disagreeing() -> tuple[Small, dict[str, list[Batch]]]:
    """Return a detector that guesses 1 object, and clients with 0 and 2 objects in every image."""
    detector = Small()
    with torch.no_grad():
        detector.head.bias.add_(1)
    batches = {}
    for client, count in (("1", 0), ("2", 2)):
        boxes, labels = [torch.zeros(count, 4)] * 4, [torch.zeros(count).long()] * 4
        batches[client] = [Batch(batch.images, boxes, labels, batch.indices) for batch in colours([4] * int(client))]
    return detector, batches


def test_identical_clients_give_the_bits_of_fedavg() -> None:
    """Their rate is max(1, 1/2)."""
    batches = dict.fromkeys("123", COLOURS["2"])
    first, second = (
        Federation(spec, Small(dropout=0), batches) for spec in (FedAvgSpec(weights="uniform"), FedExPSpec(epsilon=0))
    )
    for _ in range(3):
        assert bits(first.round().model) == bits(second.round().model)


@pytest.mark.parametrize(("epsilon", "rate"), [(0.0, 5.0), (1.0, 2.5), (100.0, 1.0)])
def test_opposed_clients_extrapolate(epsilon: float, rate: float) -> None:
    """Changes (3, 1) and (-3, 1): the squares are 20, that of the mean (0, 1) is 1, so the rate is 20 / (4 (1 + ε))."""
    start = {"w": torch.tensor([10.0, 20.0])}
    updates = [{"w": torch.tensor([13.0, 21.0])}, {"w": torch.tensor([7.0, 21.0])}]
    result = serve(FedExPSpec(epsilon=epsilon), start, updates, figures=[{SQUARED_NORM: 10.0}] * 2)
    assert result.model["w"].tolist() == pytest.approx([10, 20 + rate])


def test_a_mean_change_of_0_is_no_division_by_0() -> None:
    start = {"w": torch.tensor([1.0])}
    updates = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([-1.0])}]
    assert serve(FedExPSpec(epsilon=0), start, updates, figures=[{SQUARED_NORM: 4.0}] * 2).model["w"].tolist() == [1]
    same = serve(FedExPSpec(epsilon=0), start, [start, start], figures=[{SQUARED_NORM: 0.0}] * 2)
    assert same.model["w"].tolist() == [1]


def test_three_rounds_by_the_formula() -> None:
    updates: dict[str, State] = {}
    federation = Federation(
        FedExPSpec(epsilon=1e-6),
        *disagreeing(),
        change=lambda client, outcome: updates.update({client: copied(outcome.state)}),
    )
    names, rates = list(dict(Small().named_parameters())), []
    for _ in range(3):
        start = copied(federation.model)
        federation.round()
        changes = [
            {name: update[name].double() - start[name].double() for name in names} for update in updates.values()
        ]
        mean = {name: sum(change[name] for change in changes) / 2 for name in names}
        squares = [sum(float(part.square().sum()) for part in change.values()) for change in changes]
        # BatchNorm's statistics, which change by much more, are in no norm.
        assert [federation.outcomes[client].figures[SQUARED_NORM] for client in "12"] == pytest.approx(squares)
        of_mean = sum(float(torch.as_tensor(part).square().sum()) for part in mean.values())
        rates.append(max(1.0, sum(squares) / (4 * (of_mean + 1e-6))))
        for name in names:
            expected = start[name].double() + rates[-1] * mean[name]
            torch.testing.assert_close(federation.model[name].double(), expected, rtol=1e-6, atol=1e-6)
        buffers = serve(FedAvgSpec(weights="uniform"), start, list(updates.values())).model
        for name in federation.model.keys() - set(names):
            assert torch.equal(federation.model[name], buffers[name])
    assert max(rates) > 1.01


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.001])
def test_a_wrong_norm_is_refused(factor: float) -> None:
    def lie(client: str, outcome: LocalOutcome) -> None:
        outcome.figures[SQUARED_NORM] *= factor if client == "2" else 1

    batches = {"1": quadratic(1, 0, 3), "2": quadratic(4, 10, 3)}
    federation = Federation(FedExPSpec(), Quadratic(), batches, change=lie)
    with pytest.raises(ClientError, match=r"client 2: figures: squared_norm: expected 23\.8.*, found"):
        federation.round()


def test_another_field_gives_another_model() -> None:
    """The clients' changes must disagree, or the rate is 1 for every ε."""
    start = {"w": torch.zeros(2)}
    updates = [{"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([-3.0, 1.0])}]
    models = {
        bits(serve(FedExPSpec(epsilon=epsilon), start, updates, figures=[{SQUARED_NORM: 10.0}] * 2).model)
        for epsilon in (0.0, 1e-3, 1.0)
    }
    assert len(models) == 3
    first, second = (Federation(spec, *disagreeing()) for spec in (FedExPSpec(), FedAvgSpec(weights="uniform")))
    assert bits(first.round().model) != bits(second.round().model)
