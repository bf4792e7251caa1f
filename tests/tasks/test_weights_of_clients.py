"""A round's plan fixes the weights of clients from their image counts at wake_up. Updates cannot change them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from infra.store.objects import ObjectStore
from tasks.aggregate import aggregate_updates
from tasks.check_client_resource import check_client_resource, read_plan
from tasks.errors import FedbenchError
from tasks.handles import Handles, set_handles
from tasks.quorum import counted_weights, require_quorum
from tasks.request_update import answers_plan, stored_updates
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.plans import ClientInfo, ResourceAnswer, RoundPlan, UpdateRecord
from tasks.spec.turns import ResourceRequest, TurnReply
from tasks.wake_up import wake_up
from tests.records import client_info, round_record
from tests.tasks.phase_handles import Notes, make_handles, make_plan, make_update, put_state
from tests.tasks.sum_rounds import Here

SPEC = FederationSpec()
LIMITED = FederationSpec(participation=Participation(max_weight_share=0.4, min_updates=1))
SIZES = {"1": 10, "2": 900, "3": 30, "4": 20}
LIE = 10**9


@pytest.fixture
def noted(object_store: ObjectStore, tmp_path: Path, federation: str) -> tuple[Handles, Notes]:
    def answer(asked: ResourceRequest) -> TurnReply:
        return TurnReply(answers=tuple(ResourceAnswer(client=name, load=0, free_memory=1) for name in asked.clients))

    handles, notes = make_handles(object_store, tmp_path, federation, take_turn=answer)
    handles.slots = Here()
    return handles, notes


@pytest.fixture
def handles(noted: tuple[Handles, Notes]) -> Handles:
    return noted[0]


def infos(sizes: dict[str, int]) -> list[ClientInfo]:
    return [client_info(client, train_size=size, test_size=1) for client, size in sizes.items()]


def planned(
    handles: Handles, spec: FederationSpec, sizes: dict[str, int], objects: dict[str, dict[str, int]] | None = None
) -> RoundPlan:
    """Return the plan of round 3. objects: each client's training boxes by class; left out, none."""
    clients = [info.model_copy(update={"class_counts": (objects or {}).get(info.client, {})}) for info in infos(sizes)]

    async def run() -> RoundPlan:
        set_handles(handles)
        model = put_state(handles, handles.layout.global_weights(2), {"w": torch.zeros(3)})
        return await check_client_resource.fn(handles.layout.federation, spec, 3, clients, model)

    return asyncio.run(run())


def update_of(
    handles: Handles, plan: RoundPlan, client: str, value: float | None = None, **fields: Any
) -> UpdateRecord:
    state = {"w": torch.full((3,), float(client) if value is None else value)}
    weights = put_state(handles, handles.layout.update_weights(3, client), state)
    return make_update(handles, plan, client, weights, **{"train_size": SIZES[client], **fields})


# --- the plan --------------------------------------------------------------------------------------------------


def test_a_plan_has_the_weights_of_its_clients(handles: Handles) -> None:
    plan = planned(handles, SPEC, SIZES)
    assert plan.train_sizes == plan.weights == SIZES
    assert plan.weights is not None
    assert {type(weight) for weight in plan.weights.values()} == {int}
    stored = handles.objects.get_json(handles.layout.plan(3))
    assert parse(RoundPlan, stored, source="plan.json", newest=RECORD_VERSION) == plan
    assert read_plan(handles, SPEC, 3, infos(SIZES), plan.model) == plan
    # A client whose images have changed can only answer a new plan.
    assert read_plan(handles, SPEC, 3, infos({**SIZES, "3": 31}), plan.model) is None


def test_a_plan_with_a_limit_lowers_weights_and_keeps_the_counts(handles: Handles) -> None:
    plan = planned(handles, LIMITED, SIZES)
    assert plan.train_sizes == SIZES
    assert plan.weights == {"1": 10, "2": 40.0, "3": 30, "4": 20}
    stored = parse(
        RoundPlan, handles.objects.get_json(handles.layout.plan(3)), source="plan.json", newest=RECORD_VERSION
    )
    assert stored == plan
    assert stored.weights is not None
    assert [type(weight) for weight in stored.weights.values()] == [int, float, int, int]


def test_a_cohort_too_small_for_the_limit_does_not_train(handles: Handles) -> None:
    says = r"round 3: participation\.max_weight_share \(0\.4\): expected at least 3 clients with a weight, found 2"
    with pytest.raises(FedbenchError, match=says):
        planned(handles, LIMITED, {"1": 10, "2": 10})
    assert handles.objects.get_json(handles.layout.plan(3)) is None


def weighted(weights: str, **participation: Any) -> FederationSpec:
    return FederationSpec.model_validate(
        {"strategy": {"kind": "fedavg", "weights": weights}, "participation": {"min_updates": 1, **participation}}
    )


OBJECTS = {"1": {"car": 30, "bus": 3}, "2": {}, "3": {"car": 7}, "4": {"bus": 60}}


def test_weights_by_objects_are_the_clients_training_boxes(handles: Handles) -> None:
    """Client 2 has most images and no box: it counts, but adds nothing."""
    spec = weighted("objects")
    plan = planned(handles, spec, SIZES, OBJECTS)
    assert plan.weights == {"1": 33, "2": 0, "3": 7, "4": 60}
    assert plan.train_sizes == SIZES
    updates = [update_of(handles, plan, client) for client in "1234"]
    new = aggregate_updates(handles, spec, plan, updates)
    assert new.counted == updates
    torch.testing.assert_close(new.result.model["w"], torch.full((3,), (33 * 1 + 7 * 3 + 60 * 4) / 100))


def test_uniform_weights_count_every_client_the_same(handles: Handles) -> None:
    spec = weighted("uniform")
    plan = planned(handles, spec, SIZES, OBJECTS)
    assert plan.weights == dict.fromkeys(SIZES, 1)
    new = aggregate_updates(handles, spec, plan, [update_of(handles, plan, client) for client in "1234"])
    torch.testing.assert_close(new.result.model["w"], torch.full((3,), 2.5))


@pytest.mark.parametrize("share", [None, 0.5])
def test_weights_by_objects_need_an_object(handles: Handles, share: float | None) -> None:
    spec = weighted("objects", max_weight_share=share)
    with pytest.raises(FedbenchError) as refused:
        planned(handles, spec, SIZES, {"1": {"car": 0}})
    says = "round 3: strategy.weights objects: expected a training object, found none at clients 1, 2, 3, 4"
    assert str(refused.value) == says
    assert handles.objects.get_json(handles.layout.plan(3)) is None


def test_a_warning_of_a_large_weight_names_what_counts(noted: tuple[Handles, Notes]) -> None:
    handles, notes = noted
    planned(handles, weighted("objects"), SIZES, OBJECTS)
    (warning,) = [text for (text,) in notes.of("message") if "warning" in text]
    assert "client 4 holds 60.00% of the weight, by its own count of its training objects;" in warning


def test_a_client_with_more_than_half_of_the_weight_is_reported_once(noted: tuple[Handles, Notes]) -> None:
    handles, notes = noted
    plan = planned(handles, SPEC, SIZES)
    (warning,) = [text for (text,) in notes.of("message") if "warning" in text]
    assert warning == (
        "round 3: warning: client 2 holds 93.75% of the weight, by its own count of its training images; "
        "participation.max_weight_share limits it"
    )
    handles.history = [round_record(3, plan=plan)]
    handles.objects.delete([handles.layout.plan(3)])
    planned(handles, SPEC, SIZES)
    assert len(notes.of("message")) == 1
    planned(handles, LIMITED, SIZES)
    assert len(notes.of("message")) == 1


def test_a_client_with_more_than_half_of_the_test_images_is_reported(noted: tuple[Handles, Notes]) -> None:
    handles, notes = noted

    def woken(sizes: dict[str, int]) -> list[str]:
        ready = [info.model_copy(update={"test_size": sizes[info.client]}) for info in infos(dict.fromkeys(sizes, 9))]
        handles.take_turn = lambda request: TurnReply(ready=tuple(ready))
        notes.calls.clear()

        async def run() -> None:
            set_handles(handles)
            await wake_up.fn(handles.layout.federation, SPEC, tuple(sizes), 2)

        asyncio.run(run())
        return [text for (text,) in notes.of("message")]

    assert woken({"1": 50, "2": 50}) == []  # one test set for all
    assert woken({"1": 50, "2": 150}) == [
        "warning: client 2 counts for 75.00% of the test figures, by its own count of its images"
    ]


# --- updates ---------------------------------------------------------------------------------------------------


def test_an_update_with_another_number_of_images_does_not_count(handles: Handles) -> None:
    plan = planned(handles, SPEC, SIZES)
    honest = [update_of(handles, plan, client) for client in "124"]
    liar = update_of(handles, plan, "3", train_size=LIE)
    new = aggregate_updates(handles, SPEC, plan, [*honest, liar])
    assert new.counted == honest
    assert [(failure.client, failure.reason) for failure in new.dropped] == [
        ("3", f"an update that was not asked for: client 3: train_size: expected 30, found {LIE}")
    ]
    torch.testing.assert_close(new.result.model["w"], torch.full((3,), (10 * 1 + 900 * 2 + 20 * 4) / 930))
    handles.objects.put_json(handles.layout.update_record(3, "3"), liar.model_dump(mode="json"))
    assert stored_updates(handles, plan) == {}


def test_without_a_limit_a_plan_with_weights_gives_the_same_bits_as_one_without(handles: Handles) -> None:
    plan = planned(handles, SPEC, SIZES)
    updates = [
        update_of(handles, plan, client, value) for client, value in zip("1234", (0.1, 1 / 3, 7e-5, 2.7), strict=True)
    ]
    before = plan.model_copy(update={"weights": None, "train_sizes": None})
    found = [save(aggregate_updates(handles, SPEC, one, updates).result.model) for one in (plan, before)]
    assert found[0] == found[1]


def test_a_limit_holds_among_the_clients_that_count(handles: Handles) -> None:
    plan = planned(handles, LIMITED, SIZES)
    updates = [update_of(handles, plan, client) for client in "1234"]
    state = aggregate_updates(handles, LIMITED, plan, updates).result.model
    torch.testing.assert_close(state["w"], torch.full((3,), (10 * 1 + 40 * 2 + 30 * 3 + 20 * 4) / 100))
    # With weights 10, 40 and 20 client 2 would have 4/7; with 10, 20 and 20 it has 2/5.
    for left in ([*updates[:2], updates[3]], [*updates[:2], update_of(handles, plan, "3", float("nan")), updates[3]]):
        new = aggregate_updates(handles, LIMITED, plan, left)
        assert [update.client for update in new.counted] == ["1", "2", "4"]
        assert counted_weights(LIMITED, plan, new.counted) == {"1": 10, "2": 20.0, "4": 20}
        torch.testing.assert_close(new.result.model["w"], torch.full((3,), (10 * 1 + 20 * 2 + 20 * 4) / 50))


def test_a_round_needs_as_many_clients_as_the_limit_requires(handles: Handles) -> None:
    plan = planned(handles, LIMITED, SIZES)
    updates = [update_of(handles, plan, client) for client in "12"]
    new = aggregate_updates(handles, LIMITED, plan, updates)
    says = r"round 3: 2 of 4 updates came, too few for participation\.max_weight_share \(0\.4\); missing: "
    with pytest.raises(FedbenchError, match=says):
        require_quorum(LIMITED, plan, new.counted, new.dropped)
    require_quorum(SPEC.model_copy(update={"participation": Participation(min_updates=1)}), plan, new.counted, [])


def test_the_limit_holds_for_clients_of_partial_sums_too(handles: Handles) -> None:
    plan = planned(handles, LIMITED, SIZES).model_copy(
        update={"partial_sums": True, "shards": (("1", "2"), ("3", "4"))}
    )
    sums = {"1": {"w": torch.full((3,), 1.0)}, "3": {"w": torch.full((3,), 2.0)}}
    updates = []
    for first, second in plan.shards:
        weights = put_state(handles, handles.layout.partial_sum(3, first), sums[first])
        updates += [
            make_update(handles, plan, client, weights, shard=(first, second), train_size=SIZES[client])
            for client in (first, second)
        ]
    state = aggregate_updates(handles, LIMITED, plan, updates).result.model
    torch.testing.assert_close(state["w"], torch.full((3,), (50 * 1 + 50 * 2) / 100))
    # Without client 4 and its sum, client 2 has 40 of 50 images, and no other sum could weigh more.
    assert counted_weights(LIMITED, plan, updates[:2]) is None
    loose = FederationSpec(participation=Participation(max_weight_share=0.8))
    assert counted_weights(loose, plan, updates[:2]) == {"1": 10, "2": 40.0}


def test_a_plan_without_weights_weighs_by_the_updates_counts(handles: Handles) -> None:
    model = put_state(handles, handles.layout.global_weights(2), {"w": torch.zeros(3)})
    document = make_plan(handles, SPEC, model, ("1", "2")).model_dump(mode="json")
    del document["weights"], document["train_sizes"]
    plan = parse(RoundPlan, document, source="plan.json", newest=RECORD_VERSION)
    updates = [update_of(handles, plan, client) for client in "12"]
    new = aggregate_updates(handles, SPEC, plan, updates)
    assert new.counted == updates
    torch.testing.assert_close(new.result.model["w"], torch.full((3,), (10 * 1 + 900 * 2) / 910))


def test_an_open_round_whose_plan_has_no_weights_takes_them_from_wake_up(handles: Handles) -> None:
    plan = planned(handles, SPEC, SIZES)
    key = handles.layout.plan(3)
    document = handles.objects.get_json(key)
    del document["weights"], document["train_sizes"]
    handles.objects.put_json(key, document)
    found = read_plan(handles, SPEC, 3, infos(SIZES), plan.model)
    assert found is not None
    assert (found.weights, found.train_sizes) == (SIZES, SIZES) == (plan.weights, plan.train_sizes)
    liar = update_of(handles, found, "1", train_size=10**9)
    assert "train_size: expected" in str(answers_plan(liar, found, liar.weights.key))
