"""Partial sums: the setting, the numbers, how a round aggregates them, and the sum of a real shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from infra.settings import Settings
from infra.settings_groups import S3Settings
from tasks.aggregate import aggregate_updates, initial_weights
from tasks.client_update import client_update
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.errors import ClientError
from tasks.handles import Handles
from tasks.request_update import stored_updates
from tasks.site import Site
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import FcosLite0Spec, RandomWeights, YoloV3TinySpec
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.participation import Participation
from tasks.spec.plans import RoundPlan, UpdateRecord
from tasks.spec.presets import preset
from tasks.spec.references import twin
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.training import TrainingSpec
from tasks.spec.turns import TurnReply, UpdateRequest
from tasks.strategies.mean import WeightedMean
from tests.tasks.phase_handles import make_plan, make_update, put_state
from tests.tasks.sum_rounds import SIZES, SPEC, SUMS, State, client_state

# --- the specification ---------------------------------------------------------------------------------------


def test_the_field_counts_for_the_digest_only_if_it_is_set() -> None:
    # These digests are from before the field existed.
    assert FederationSpec().digest == "96184cc12cd3db5264874e9553dbf7deb80ba71ecc319fb24e9aed580f57914c"
    assert preset("smoke").digest == "7d2e11f4ca930c8a02f50392ac11e0c17871dec0d37e5daad150beeab2df63e6"
    assert parse_spec({"participation": {"partial_sums": False}}, source="a").digest == FederationSpec().digest
    assert parse_spec({"participation": {"partial_sums": True}}, source="a").digest != FederationSpec().digest


def test_a_strategy_that_does_more_than_add_is_refused() -> None:
    class Median(FedAvgSpec):
        additive: ClassVar[bool] = False

    assert FederationSpec(strategy=Median()).strategy == Median()
    with pytest.raises(ValueError, match=r"participation\.partial_sums: expected a strategy that adds updates only"):
        FederationSpec(strategy=Median(), participation=SUMS)
    assert SPEC.strategy.additive


def test_the_twin_of_one_client_has_nothing_to_sum() -> None:
    assert not twin(SPEC).participation.partial_sums


# --- the numbers ---------------------------------------------------------------------------------------------


def small_state(model: int) -> State:
    generator = torch.Generator().manual_seed(model)
    return {
        "conv.weight": torch.randn(8, 3, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last),
        "bn.running_var": torch.rand(8, generator=generator),
        "scale": torch.randn((), generator=generator),
        "bn.num_batches_tracked": torch.tensor(100 - model),
        "mask": torch.tensor([model % 2 == 0, False]),
    }


def detector_state(spec: Any) -> State:
    return state_of(build_detector(spec, 7, seed=3))


MODELS: dict[str, Callable[[], State]] = {
    "small": lambda: small_state(0),
    "yolov3-tiny": lambda: detector_state(YoloV3TinySpec(width=64, height=64)),
    "fcos-lite0": lambda: detector_state(FcosLite0Spec(width=96, height=64, weights=RandomWeights(), frozen_blocks=0)),
}


def trained_states(base: State, clients: int) -> list[State]:
    """Return states like those of local training from ``base``: values moved a little, counters by differing steps."""
    states = []
    for client in range(clients):
        generator = torch.Generator().manual_seed(client)
        states.append(
            {
                name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
                if tensor.is_floating_point()
                else tensor + client % 3
                if tensor.dtype != torch.bool
                else tensor
                for name, tensor in base.items()
            }
        )
        for name in states[-1]:
            if name.endswith("running_var"):
                states[-1][name].abs_()
    return states


@pytest.mark.parametrize("shards", [[[0, 1, 2, 3, 4]], [[4, 2], [0, 1, 3]], [[4], [3], [2], [1], [0]]])
@pytest.mark.parametrize("model", MODELS)
def test_the_mean_of_means_is_the_mean(model: str, shards: list[list[int]], tmp_path: Path) -> None:
    states, sizes = trained_states(MODELS[model](), 5), list(SIZES.values())
    overall = WeightedMean()
    for number, shard in enumerate(shards):
        mean = WeightedMean()
        for client in shard:
            mean.accumulate_state(states[client], sizes[client], client=str(client))
        file = tmp_path / str(number)
        save_file(mean.result(), file)
        overall.accumulate(file, sum(sizes[client] for client in shard), client=str(shard))
    each = WeightedMean()
    for client, state in enumerate(states):
        each.accumulate_state(state, sizes[client], client=str(client))
    found, expected = overall.result(), each.result()
    assert found.keys() == expected.keys() == states[0].keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        if not tensor.is_floating_point():
            assert torch.equal(tensor, expected[name]), name
            assert torch.equal(tensor, torch.stack([state[name] for state in states]).amax(0)), name
            continue
        exact = sum(size * state[name].double() for size, state in zip(sizes, states, strict=True)) / sum(sizes)
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-6)


def test_a_state_in_memory_and_its_file_give_the_same_bits(tmp_path: Path) -> None:
    states = trained_states(small_state(0), 3)
    memory, files = WeightedMean(), WeightedMean()
    for client, state in enumerate(states):
        before = {name: tensor.clone() for name, tensor in state.items()}
        memory.accumulate_state(state, 3 + client, client=str(client))
        file = tmp_path / str(client)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
        files.accumulate(file, 3 + client, client=str(client))
        assert all(torch.equal(state[name], before[name]) for name in state)  # the input is not changed
    first, second = memory.result(), files.result()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_state_that_does_not_fit_leaves_the_sum_as_it_was() -> None:
    good, (other,) = small_state(0), trained_states(small_state(0), 1)
    mean = WeightedMean()
    mean.accumulate_state(good, 10, client="1")
    bad: list[tuple[State, str]] = [
        ({**other, "scale": torch.tensor(float("nan"))}, "client 2: tensor scale: expected finite values"),
        ({**other, "scale": torch.tensor(3e38)}, "client 2: tensor scale: expected finite values"),
        ({**other, "scale": torch.zeros(2)}, r"client 2: tensor scale: expected float32 \[\], found float32 \[2\]"),
        ({**other, "more": torch.zeros(2)}, "client 2: tensor more: expected no such tensor"),
        ({"scale": other["scale"]}, "found no such tensor"),
    ]
    for state, says in bad:
        with pytest.raises(ClientError, match=says):
            mean.accumulate_state(state, 10, client="2")
    with pytest.raises(ClientError, match="client 1: expected one update in a round, found a second"):
        mean.accumulate_state(other, 10, client="1")
    result = mean.result()
    assert all(torch.equal(result[name], good[name]) for name in good)


# --- aggregate -------------------------------------------------------------------------------------------------


def two_turns(handles: Handles, states: Mapping[str, State]) -> tuple[RoundPlan, list[UpdateRecord]]:
    """Return the plan and updates of two turns, of clients 1 and 3, and 2 and 4.

    ``states`` has each turn's partial sum by its first client.
    """
    model = put_state(handles, handles.layout.global_weights(2), client_state("0"))
    plan = make_plan(handles, SPEC, model, ("1", "2", "3", "4"))
    plan = plan.model_copy(update={"partial_sums": True, "shards": (("1", "3"), ("2", "4"))})
    updates = []
    for first, second in plan.shards:
        weights = put_state(handles, handles.layout.partial_sum(3, first), states[first])
        updates += [
            make_update(handles, plan, client, weights, shard=(first, second), train_size=SIZES[client])
            for client in (first, second)
        ]
    return plan, updates


def test_the_order_of_updates_does_not_change_the_mean_of_sums(handles: Handles) -> None:
    states = {"1": client_state("1"), "2": client_state("2")}
    plan, updates = two_turns(handles, states)
    found = []
    for order in (updates, updates[::-1], updates[1:] + updates[:1]):
        new = aggregate_updates(handles, SPEC, plan, order)
        found.append(save(new.result.model))
        counted = [(update.client, update.train_size) for update in new.counted]
        assert counted == [("1", 10), ("2", 30), ("3", 7), ("4", 1)]
    assert found[0] == found[1] == found[2]
    expected = (17 * states["1"]["w"] + 31 * states["2"]["w"]) / 48
    torch.testing.assert_close(new.result.model["w"], expected)


@pytest.mark.parametrize("trouble", ["missing record", "another seed", "not finite", "lost"])
def test_a_sum_that_does_not_fit_drops_all_its_clients(handles: Handles, trouble: str) -> None:
    bad = client_state("2")
    if trouble == "not finite":
        bad["w"] = torch.tensor([1.0, float("inf"), 0.0])
    plan, updates = two_turns(handles, {"1": client_state("1"), "2": bad})
    if trouble == "missing record":
        del updates[3]
    elif trouble == "another seed":
        updates[3] = updates[3].model_copy(update={"seed": 7})
    elif trouble == "lost":
        weights = updates[3].weights.model_copy(update={"sha256": "f" * 64})
        updates[2:] = [update.model_copy(update={"weights": weights}) for update in updates[2:]]
    new = aggregate_updates(handles, SPEC, plan, updates)
    assert [update.client for update in new.counted] == ["1", "3"]
    torch.testing.assert_close(new.result.model["w"], client_state("1")["w"])
    reasons = {failure.client: failure.reason for failure in new.dropped}
    assert list(reasons) == (["2"] if trouble == "missing record" else ["2", "4"])
    says = {
        "missing record": "also holds client 4, who does not count: no record of that client names this sum",
        "another seed": "also holds client 4, who does not count: an update that was not asked for: client 4: seed",
        "not finite": "client 2, 4: tensor w: expected finite values",
        "lost": "client 2, 4: ",
    }
    assert says[trouble] in reasons["2"]


def test_a_client_in_two_sums_counts_once(handles: Handles) -> None:
    plan, updates = two_turns(handles, {"1": client_state("1"), "2": client_state("2")})
    plan = plan.model_copy(update={"shards": (("1", "2", "3", "4"),)})
    weights = put_state(handles, handles.layout.partial_sum(3, "3"), client_state("3"))
    again = [make_update(handles, plan, client, weights, shard=("3", "4")) for client in ("3", "4")]
    new = aggregate_updates(handles, SPEC, plan, [*updates, *again])
    assert [update.client for update in new.counted] == ["1", "2", "3", "4"]
    assert {update.weights.key for update in new.counted}.isdisjoint({weights.key})
    assert new.dropped == []  # a client that counts is not recorded as dropped


# --- a real site -----------------------------------------------------------------------------------------------


def test_a_real_shard_is_the_mean_of_its_clients_own_updates(
    s3_settings: S3Settings, handles: Handles, tmp_path: Path, one_thread: None, federation: str
) -> None:
    spec = FederationSpec(
        data=SyntheticStreet(train_images=40, test_images=5, width=64, height=64),
        detector=YoloV3TinySpec(width=64, height=64),
        training=TrainingSpec(batch_size=4),
        participation=SUMS,
    )
    site = Site(Settings(home=tmp_path, s3=s3_settings.model_copy(update={"prefix": "phases"})))
    model = initial_weights(handles, spec, 7)
    plan = make_plan(handles, spec, model, ("3", "4", "5")).model_copy(update={"partial_sums": True})

    def turn(participation: Participation, lr: float = 1e-3, epochs: int = 1) -> TurnReply:
        training = spec.training.model_copy(update={"local_epochs": epochs})
        asked = spec.model_copy(update={"participation": participation, "training": training})
        request = UpdateRequest(
            federation=federation, spec=asked, clients=("5", "4", "3"),
            round=3, spec_digest=spec.digest, model=model, seeds=plan.seeds, learning_rate=1e-3,
        )  # fmt: skip
        # The request's validation refuses rates as large as 1e30; a copy is not validated.
        return client_update(site, request.model_copy(update={"learning_rate": lr}))

    path = site.data(spec.data).train["4"][0].path
    good = path.read_bytes()
    path.write_bytes(good[:100])
    try:
        own, summed = turn(Participation()), turn(SUMS)
    finally:
        path.write_bytes(good)
    assert [update.client for update in own.updates] == [update.client for update in summed.updates] == ["5", "3"]
    assert [failure.client for failure in summed.failures] == ["4"]
    assert summed.uploaded == own.updates[0].weights.bytes
    assert own.uploaded == 2 * summed.uploaded
    same = {"weights", "shard", "seconds", "train_seconds"}
    assert [json.loads(update.model_dump_json(exclude=same)) for update in own.updates] == [
        json.loads(update.model_dump_json(exclude=same)) for update in summed.updates
    ]
    mean = WeightedMean()
    for update in own.updates:
        file = handles.weights.get(update.weights.key, update.weights.sha256, update.weights.bytes).path
        mean.accumulate(file, update.train_size, client=update.client)
    weights = summed.updates[0].weights
    found = load_file(handles.weights.get(weights.key, weights.sha256, weights.bytes).path)
    expected = mean.result()
    assert all(torch.equal(found[tensor], expected[tensor]) for tensor in expected)
    assert set(stored_updates(handles, plan)) == {"3", "5"}
    # If no client's weights are finite, nothing is stored.
    handles.objects.delete(list(handles.objects.list(handles.layout.updates(3))))
    diverged = turn(SUMS, lr=1e30, epochs=3)
    assert diverged.updates == ()
    assert {failure.client for failure in diverged.failures} == {"3", "4", "5"}
    assert list(handles.objects.list(handles.layout.updates(3))) == []
