"""The sums of a round: several means, partial sums, clients of weight 0, and updates that must leave no trace."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pytest
import torch

from tasks.aggregate import aggregate_updates
from tasks.detectors.roles import Roles, TensorRole, tensor_roles
from tasks.errors import ClientError, FedbenchError
from tasks.handles import Handles
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.plans import UpdateRecord
from tasks.spec.strategies import AnyStrategy, FedAvgMSpec, FedAvgSpec, FedDynSpec, ScaffoldSpec
from tasks.strategies.registry import strategy_class
from tasks.strategies.sums import Counted, Sums
from tasks.strategies.updates import reference_of
from tests.tasks.phase_handles import make_plan, make_update, put_state
from tests.tasks.strategies.small_federation import (
    COLOURS,
    PLAIN,
    Federation,
    Small,
    State,
    bits,
    copied,
    written,
)

pytestmark = pytest.mark.usefixtures("one_thread")
ADDITIVE = [spec for spec in get_args(AnyStrategy) if spec.additive]


class Two:
    """A method with two means: by the clients' weights, and by these times a figure."""

    means: ClassVar[tuple[str, ...]] = ("model", "other")

    def weights_of(self, client: Counted) -> dict[str, float]:
        return {"model": client.weight, "other": client.weight * client.figures.get("f", 1)}


def state(value: float, count: int = 1) -> State:
    variance = torch.tensor([abs(float(value))])
    return {"w": torch.tensor([float(value), -value]), "bn.running_var": variance, "n": torch.tensor(count)}


def counted(name: str, weight: float, figure: float = 1) -> Counted:
    return Counted(name, weight, {"f": figure})


def result(sums: Sums) -> tuple[bytes, bytes]:
    return bits(sums.take()), bits(sums.take("other"))


def test_each_mean_has_its_own_weights(tmp_path: Path) -> None:
    sums = Sums(Two())
    sums.accumulate(written(state(1, 3), tmp_path / "a"), [counted("a", 1, 6)])
    sums.accumulate(written(state(5, 2), tmp_path / "b"), [counted("b", 3, 2)])
    assert (sums.weight(), sums.weight("other")) == (4, 12)
    first, second = sums.take(), sums.take("other")
    assert (first["w"].tolist(), first["n"].item()) == ([4, -4], 3)
    assert (second["w"].tolist(), second["n"].item()) == ([3, -3], 3)
    assert [client.client for client in sums.counted] == ["a", "b"]


def test_a_partial_sum_holds_every_mean_by_a_prefix_and_is_added_as_a_whole(tmp_path: Path) -> None:
    clients = [counted("a", 1, 6), counted("b", 3, 2), counted("c", 2, 5)]
    part, whole, each = Sums(Two()), Sums(Two()), Sums(Two())
    for client, value in zip(clients[:2], (1, 5), strict=True):
        part.accumulate_state(state(value), client)
    tensors = part.partial_sum()
    assert tensors.keys() == {f"{prefix}{name}" for prefix in ("", "other/") for name in state(0)}
    whole.accumulate(written(tensors, tmp_path / "sum"), clients[:2], partial_sum=True)
    last = Sums(Two())
    last.accumulate_state(state(-2, 7), clients[2])
    whole.accumulate(written(last.partial_sum(), tmp_path / "last"), clients[2:], partial_sum=True)
    for client, value in zip(clients, (1, 5, -2), strict=True):
        each.accumulate(written(state(value, 7 if value < 0 else 1), tmp_path / client.client), [client])
    assert whole.weight("other") == each.weight("other") == 22
    for name in Two.means:
        found, expected = whole.take(name), each.take(name)
        for tensor in found:
            torch.testing.assert_close(found[tensor], expected[tensor], rtol=1e-6, atol=1e-6)


def test_a_file_and_a_state_in_memory_give_the_same_bits(tmp_path: Path) -> None:
    files, memory = Sums(Two()), Sums(Two())
    for number, value in enumerate((0.1, 0.7, -3.3)):
        client = counted(str(number), number + 1, 0.3 + number)
        files.accumulate(written(state(value), tmp_path / str(number)), [client])
        memory.accumulate_state(state(value), client)
    assert result(files) == result(memory)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_a_client_of_weight_0_counts_and_adds_nothing(order: Sequence[int], tmp_path: Path) -> None:
    sums, without, memory = Sums(Two()), Sums(Two()), Sums(Two())
    for number in order:
        client = counted(str(number), number)  # client 0 has the weight 0
        file = written(state(number + 1), tmp_path / str(number))
        sums.accumulate(file, [client])
        memory.accumulate_state(state(number + 1), client)
        if number:
            without.accumulate(file, [client])
    assert [client.client for client in sums.counted] == [str(number) for number in order]
    assert result(sums) == result(memory) == result(without)


def test_without_any_weight_there_is_no_mean_but_a_partial_sum_that_adds_nothing(tmp_path: Path) -> None:
    nothing = Sums(Two())
    for number in range(2):
        nothing.accumulate_state(state(number), counted(str(number), 0))
    with pytest.raises(FedbenchError, match="expected an update with a weight of more than 0, found none"):
        nothing.take()
    sums, expected = Sums(Two()), Sums(Two())
    sums.accumulate(
        written(nothing.partial_sum(), tmp_path / "0"), [counted("0", 0), counted("1", 0)], partial_sum=True
    )
    third = Sums(Two())
    third.accumulate_state(state(3), counted("2", 5))
    sums.accumulate(written(third.partial_sum(), tmp_path / "2"), [counted("2", 5)], partial_sum=True)
    expected.accumulate_state(state(3), counted("2", 5))
    assert [client.client for client in sums.counted] == ["0", "1", "2"]
    assert result(sums) == result(expected)


@pytest.mark.parametrize("weight", [0, 2])
def test_a_second_update_of_a_client_is_refused(weight: float, tmp_path: Path) -> None:
    says = "client a: expected one update in a round, found a second"
    file = written(state(1), tmp_path / "a")
    sums = Sums(Two())
    sums.accumulate(file, [counted("a", weight)])
    with pytest.raises(ClientError, match=says):
        sums.accumulate(file, [counted("a", weight)])
    with pytest.raises(ClientError, match=says):
        sums.accumulate_state(state(1), counted("a", weight))
    memory = Sums(Two())
    memory.accumulate_state(state(1), counted("a", weight))
    with pytest.raises(ClientError, match=says):
        memory.accumulate_state(state(2), counted("a", weight))
    assert (len(sums.counted), len(memory.counted)) == (1, 1)
    assert sums.weight() == memory.weight() == weight


BAD: list[tuple[State, str]] = [
    ({**state(2), "w": torch.tensor([1.0, float("nan")])}, "tensor w: expected finite values"),
    ({**state(2), "w": torch.zeros(3)}, r"tensor w: expected float32 \[2\], found float32 \[3\]"),
    ({**state(2), "bn.running_var": torch.tensor([-1.0])}, "tensor bn.running_var: expected variances of at least 0"),
    ({**state(2), "more": torch.zeros(1)}, "tensor more: expected no such tensor"),
    ({"w": torch.zeros(2)}, "found no such tensor"),
]


@pytest.mark.parametrize(("bad", "says"), BAD)
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("weight", [0, 2])
def test_a_refused_update_changes_nothing(bad: State, says: str, before: bool, weight: float, tmp_path: Path) -> None:
    good, sums, memory = (Sums(Two(), reference_of(state(0))) for _ in range(3))
    if before:
        for each in (good, sums, memory):
            each.accumulate_state(state(1), counted("1", 3))
    with pytest.raises(ClientError, match=f"client bad: .*{says}"):
        sums.accumulate(written(bad, tmp_path / "bad"), [counted("bad", weight)])
    with pytest.raises(ClientError, match=f"client bad: .*{says}"):
        memory.accumulate_state(bad, counted("bad", weight))
    for each in (good, sums, memory):
        each.accumulate_state(state(4), counted("2", 3))
    assert sums.counted == memory.counted == good.counted
    assert result(good) == result(sums) == result(memory)


def test_a_refused_partial_sum_changes_nothing(tmp_path: Path) -> None:
    """The fault is in its last mean: the first one must not have been added."""
    sums, part = Sums(Two()), Sums(Two())
    sums.accumulate_state(state(1), counted("a", 3))
    part.accumulate_state(state(2), counted("b", 3))
    tensors = part.partial_sum()
    bad = [
        ({**tensors, "other/w": torch.tensor([1.0, float("inf")])}, "client b, c: tensor other/w: expected finite"),
        ({**tensors, "other/bn.running_var": torch.tensor([-1.0])}, "other/bn.running_var: expected variances"),
        ({name: tensor for name, tensor in tensors.items() if "/" not in name}, "found no such tensor"),
        ({**tensors, "third/w": tensors["w"].clone()}, "tensor third/w: expected no such tensor"),
    ]
    for changed, says in bad:
        with pytest.raises(ClientError, match=says):
            sums.accumulate(written(changed, tmp_path / "bad"), [counted("b", 3), counted("c", 3)], partial_sum=True)
    expected = Sums(Two())
    expected.accumulate_state(state(1), counted("a", 3))
    assert result(sums) == result(expected)


@pytest.mark.parametrize("weight", [-1, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    sums = Sums(Two())
    with pytest.raises(ClientError, match="client a: expected weights of at least 0"):
        sums.accumulate_state(state(1), counted("a", weight))
    assert sums.counted == []


# --- every additive method ---------------------------------------------------------------------------------


def shard_updates(
    strategy: AnyStrategy, shards: Sequence[Sequence[str]] | None, rounds: int = 3
) -> tuple[Federation, list[bytes]]:
    federation = Federation(strategy, Small(), COLOURS)
    return federation, [bits(federation.round(shards=shards).model) for _ in range(rounds)]


@pytest.mark.parametrize("kind", ADDITIVE)
def test_partial_sums_give_the_run_without_them_to_1e_6(kind: type[Any]) -> None:
    """The first round starts from the same model; in later ones, differences of training would be measured too."""
    summed, first = shard_updates(kind(), (["1", "3"], ["2"]), rounds=2)
    again, second = shard_updates(kind(), (["1", "3"], ["2"]), rounds=2)
    assert first == second
    assert {name: bits(state) for name, state in summed.states.items()} == {
        name: bits(state) for name, state in again.states.items()
    }
    summed, alone = (Federation(kind(), Small(), COLOURS) for _ in range(2))
    summed.round(shards=(["1", "3"], ["2"]))
    alone.round()
    for name, tensor in alone.model.items():
        torch.testing.assert_close(summed.model[name], tensor, rtol=1e-6, atol=1e-6)
    for found, expected in ((summed.server, alone.server), (summed.shared, alone.shared)):
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    # A client's state does not depend on how its update is sent.
    assert {name: bits(state) for name, state in summed.states.items()} == {
        name: bits(state) for name, state in alone.states.items()
    }


@pytest.mark.parametrize("kind", ADDITIVE)
def test_the_order_of_arrival_changes_no_bit(
    kind: type[Any], handles: Handles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aggregation sorts partial sums as the plan lists their clients."""
    shards = (("1", "3"), ("2",))
    training = PLAIN.model_copy(update={"batch_size": 4})
    spec = FederationSpec(strategy=kind(), training=training, participation=Participation(partial_sums=True, shards=2))
    federation = Federation(kind(), Small(), COLOURS, training=training)
    roles: Roles = tensor_roles(Small())
    monkeypatch.setattr("tasks.aggregate.roles_of", lambda spec, classes: roles)
    start = put_state(handles, handles.layout.global_weights(2), federation.model)
    plan = make_plan(handles, spec, start, ("1", "2", "3")).model_copy(
        update={
            "partial_sums": True,
            "shards": shards,
            "figures": federation.method.figures,
            "weights": {client: federation.weight(client) for client in COLOURS},
        }
    )
    federation.lr = plan.learning_rate
    federation.round()
    updates: list[UpdateRecord] = []
    for shard in shards:
        part = Sums(federation.method)
        outcomes = {client: federation.outcomes[client] for client in shard}
        for client, outcome in outcomes.items():
            moved = {
                name: tensor + 0.01 * int(client) if tensor.is_floating_point() else tensor
                for name, tensor in copied(federation.model).items()
            }
            part.accumulate_state(moved, Counted(client, federation.weight(client), outcome.figures))
        weights = put_state(handles, handles.layout.partial_sum(3, shard[0]), part.partial_sum())
        updates += [
            make_update(handles, plan, client, weights, shard=shard, figures=outcome.figures)
            for client, outcome in outcomes.items()
        ]
    found = set()
    for order in itertools.permutations(updates):
        new = aggregate_updates(handles, spec, plan, order)
        assert [update.client for update in new.counted] == ["1", "2", "3"], new.dropped
        found.add(tuple(bits(part or {}) for part in (new.result.model, new.result.server, new.result.shared)))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("strategy", "kept", "before", "after", "model"),
    [
        (FedAvgMSpec(momentum=0.5), "server", 2.0, 0.5 * 2 + 1, 2.0),
        (FedDynSpec(alpha=0.5), "server", -1.0, -1 - 0.5 / 4, 1 + 1.125 / 0.5),
        (ScaffoldSpec(), "shared", 8.0, 8 * 3 / 4 - 1 / 0.01 / 4, 1.0),
    ],
    ids=["fedavgm", "feddyn", "scaffold"],
)
def test_aggregation_starts_from_the_servers_state_that_the_plan_names(
    handles: Handles,
    monkeypatch: pytest.MonkeyPatch,
    strategy: AnyStrategy,
    kept: Literal["server", "shared"],
    before: float,
    after: float,
    model: float,
) -> None:
    """One of four clients moves ``w`` from 0 to 1, in one step of the rate 0.01."""
    monkeypatch.setattr("tasks.aggregate.roles_of", lambda spec, classes: {"w": TensorRole("parameter", 1.0)})
    participation = Participation(clients=("1", "2", "3", "4"))
    training = PLAIN.model_copy(update={"batch_size": 64})
    spec = FederationSpec(strategy=strategy, training=training, participation=participation)
    layout, names = handles.layout, strategy_class(spec).figures
    start = put_state(handles, layout.global_weights(2), {"w": torch.zeros(1)})
    state = put_state(handles, f"{layout.round(2)}{kept}.safetensors", {"w": torch.tensor([before])})
    plan = make_plan(handles, spec, start, ("1",)).model_copy(
        update={kept: state, "figures": names, "train_sizes": {"1": 10}}
    )
    update = make_update(
        handles,
        plan,
        "1",
        put_state(handles, layout.update_weights(3, "1"), {"w": torch.ones(1)}),
        figures=dict.fromkeys(names, plan.learning_rate),
        started_from=(state.sha256,) if kept == "shared" else (),
    )
    new = aggregate_updates(handles, spec, plan, [update])
    assert new.dropped == []
    assert float(new.result.model["w"]) == pytest.approx(model)
    states = new.result.server if kept == "server" else new.result.shared
    assert states is not None
    assert float(states["w"]) == pytest.approx(after)


def test_weights_by_objects_leave_out_a_client_without_objects() -> None:
    empty: Mapping[str, Any] = {
        "4": [type(batch)(batch.images, [box[:0] for box in batch.boxes], [label[:0] for label in batch.labels], [0])
              for batch in COLOURS["1"]]
    }  # fmt: skip
    with_it = Federation(FedAvgSpec(weights="objects"), Small(), {**COLOURS, **empty})
    without = Federation(FedAvgSpec(weights="objects"), Small(), COLOURS)
    assert with_it.weight("4") == 0
    assert bits(with_it.round().model) == bits(without.round().model)
    alone = Federation(FedAvgSpec(weights="objects"), Small(), empty)
    with pytest.raises(FedbenchError, match="expected an update with a weight of more than 0"):
        alone.round()
