"""Turns with a partial sum: the objects in the store after each kind of failure. No client counts twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.commit import apply_retention
from flows.round import GatheredUpdates, gather_updates
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.objects import ObjectStore
from tasks.handles import set_handles
from tasks.request_update import answers_plan, damaged_updates, stored_updates
from tasks.site import Site
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.plans import RoundPlan, UpdateRecord, WeightRef
from tasks.spec.records import Decision
from tasks.spec.turns import TurnReply
from tests.records import round_record
from tests.tasks.phase_handles import make_update, put_state
from tests.tasks.sum_rounds import Round, assert_mean_of, client_state


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, s3_settings: S3Settings) -> Site:
    home = tmp_path_factory.mktemp("site")
    return Site(Settings(home=home, s3=s3_settings.model_copy(update={"prefix": "phases"})))


@pytest.fixture
def round3(
    site: Site,
    object_store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    federation: str,
) -> Round:
    return Round(site, object_store, tmp_path, monkeypatch, federation)


WHOLE = ["1.json", "2.json", "3.json", "_sum-1.safetensors"]


def test_a_turn_stores_one_sum_and_a_record_of_each_client(round3: Round) -> None:
    reply = round3.run()
    assert round3.in_store_while_training == []
    assert round3.objects() == WHOLE
    assert [(update.client, update.train_size, update.shard) for update in reply.updates] == [
        ("1", 10, ("1", "2", "3")), ("2", 30, ("1", "2", "3")), ("3", 7, ("1", "2", "3")),
    ]  # fmt: skip
    (weights,) = {update.weights for update in reply.updates}
    assert weights.key == round3.handles.layout.partial_sum(3, "1")
    assert reply.uploaded == weights.bytes
    assert [update.bytes_up for update in reply.updates] == [weights.bytes, 0, 0]
    assert reply.downloaded == 12
    assert stored_updates(round3.handles, round3.plan) == {update.client: update for update in reply.updates}
    assert_mean_of("123", round3.mean(reply.updates))
    assert [client for _, client, _ in round3.notes.of("client_done")] == ["1", "2", "3"]


def test_a_sum_has_the_weights_of_the_plan(round3: Round) -> None:
    weights = {"1": 10, "2": 5.5, "3": 7}
    round3.plan = round3.plan.model_copy(update={"weights": weights, "train_sizes": {"1": 10, "2": 30, "3": 7}})
    state = round3.mean(round3.run().updates)
    exact = sum(weight * client_state(client)["w"].double() for client, weight in weights.items()) / 22.5
    torch.testing.assert_close(state["w"].double(), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("action", "says"), [("client-error", "bad image"), ("nan", "expected finite values")])
@pytest.mark.parametrize("client", ["1", "2"])
def test_a_client_that_fails_is_left_out_of_the_sum(round3: Round, client: str, action: str, says: str) -> None:
    round3.script = {client: [action]}
    reply = round3.run()
    others = "123".replace(client, "")
    assert [(update.client, update.shard) for update in reply.updates] == [(other, tuple(others)) for other in others]
    (failure,) = reply.failures
    assert (failure.client, failure.kind) == (client, "client-error")
    assert says in failure.reason
    assert round3.objects() == [*(f"{other}.json" for other in others), f"_sum-{others[0]}.safetensors"]
    assert_mean_of(others, round3.mean(reply.updates))


def test_a_turn_in_which_everybody_fails_stores_nothing(round3: Round) -> None:
    round3.script = {client: ["client-error"] for client in "123"}
    reply = round3.run()
    assert (reply.updates, reply.uploaded, len(reply.failures)) == ((), 0, 3)
    assert round3.objects() == []


@pytest.mark.parametrize("death", ["2", "record 1.json", "record 3.json"])
def test_a_turn_lost_midway_is_repeated_for_all_its_clients(round3: Round, death: str) -> None:
    round3.script = {death: ["die"]}
    reply = round3.run()
    assert "".join(round3.attempts) == ("12" if death == "2" else "123") + "123"
    assert reply.failures == ()
    assert {update.shard for update in reply.updates} == {("1", "2", "3")}
    assert round3.objects() == WHOLE
    assert_mean_of("123", round3.mean(reply.updates))
    assert {client for _, client, _, _ in round3.notes.of("client_retried")} == {"1", "2", "3"}


def test_a_turn_of_which_only_the_reply_was_lost_is_not_repeated(round3: Round) -> None:
    round3.turns = ["reply lost"]
    reply = round3.run()
    assert "".join(round3.attempts) == "123"
    assert_mean_of("123", round3.mean(reply.updates))


@pytest.mark.parametrize("client", ["1", "2"])
def test_a_client_that_failed_before_its_turns_reply_was_lost_counts_only_once(round3: Round, client: str) -> None:
    round3.script, round3.turns = {client: ["client-error", "ok"]}, ["reply lost"]
    reply = round3.run()
    others = "123".replace(client, "")
    assert "".join(round3.attempts) == "123" + client
    assert {update.client: update.shard for update in reply.updates} == {
        **dict.fromkeys(others, tuple(others)), client: (client,),
    }  # fmt: skip
    assert len([key for key in round3.objects() if key.startswith("_sum-")]) == 2
    assert_mean_of("123", round3.mean(reply.updates))


def test_a_deadline_is_for_the_whole_turn(round3: Round) -> None:
    rule = round3.spec.participation.model_copy(update={"turn_deadline": 5.0})
    round3.spec = round3.spec.model_copy(update={"participation": rule})
    round3.script = {"2": ["hang"]}
    reply = round3.run()
    assert round3.here.deadlines == [15.0]
    reason = "no answer within participation.turn_deadline (5 s for each of 3 clients)"
    assert [(item.client, item.kind, item.reason) for item in reply.failures] == [
        (client, "deadline", reason) for client in "123"
    ]
    assert reply.updates == ()
    assert "".join(round3.attempts) == "12"
    assert round3.objects() == []


def test_a_sum_with_a_refused_client_drops_all_its_clients(round3: Round) -> None:
    def other_seed(reply: TurnReply) -> TurnReply:
        first, second, third = reply.updates
        return reply.model_copy(update={"updates": (first, second.model_copy(update={"seed": 7}), third)})

    round3.tamper = other_seed
    reply = round3.run()
    assert reply.updates == ()
    reasons = {failure.client: failure.reason for failure in reply.failures}
    refusal = "an update that was not asked for: client 2: seed: expected 102, found 7"
    also = f"its partial sum also holds client 2, who does not count: {refusal}"
    assert reasons == {"1": also, "2": refusal, "3": also}
    assert {client for _, client, _, _ in round3.notes.of("client_failed")} == {"1", "2", "3"}


# --- what a round takes over after an interruption -------------------------------------------------------------


def changed(round3: Round, client: str, **fields: Any) -> None:
    key = round3.handles.layout.update_record(3, client)
    round3.handles.objects.put_json(key, {**round3.handles.objects.get_json(key), **fields})


def first_weights(round3: Round) -> dict[str, Any]:
    weights: dict[str, Any] = round3.handles.objects.get_json(round3.handles.layout.update_record(3, "1"))["weights"]
    return weights


@pytest.mark.parametrize(
    "damage",
    [
        lambda it: it.handles.objects.delete([it.handles.layout.update_record(3, "3")]),
        lambda it: changed(it, "3", seed=7),
        lambda it: changed(it, "3", round=2),
        lambda it: changed(it, "3", version=2),
        lambda it: changed(it, "3", shard=["1", "3"]),
        lambda it: changed(it, "2", shard=["1", "2", "3", "3"]),
        lambda it: changed(it, "3", shard=None),
        lambda it: changed(it, "3", weights={**first_weights(it), "sha256": "a" * 64}),
    ],
)  # fmt: skip
def test_a_sum_is_taken_over_whole_or_not_at_all(round3: Round, damage: Callable[[Round], Any]) -> None:
    round3.run()
    assert set(stored_updates(round3.handles, round3.plan)) == {"1", "2", "3"}
    damage(round3)
    assert stored_updates(round3.handles, round3.plan) == {}


@pytest.mark.parametrize("content", [None, b"other"])
def test_records_whose_sum_is_lost_are_not_taken_over(round3: Round, content: bytes | None) -> None:
    (update, *_) = round3.run().updates
    for weights in (round3.handles.weights, round3.site.weights):
        weights.path(update.weights.sha256).unlink(missing_ok=True)
    if content is None:
        round3.handles.objects.delete([update.weights.key])
    else:
        round3.handles.objects.put_bytes(update.weights.key, content)
    assert stored_updates(round3.handles, round3.plan) == {}


def test_a_broken_sum_leaves_the_sums_of_other_turns(round3: Round) -> None:
    plan = round3.plan = round3.plan.model_copy(update={"shards": (("1", "3"), ("2",))})
    state = {"w": torch.ones(3), "n": torch.tensor(1)}
    first = put_state(round3.handles, round3.handles.layout.partial_sum(3, "1"), state)
    second = put_state(round3.handles, round3.handles.layout.partial_sum(3, "2"), client_state("2"))
    records = {
        "1": make_update(round3.handles, plan, "1", first, shard=("1", "3")),
        "2": make_update(round3.handles, plan, "2", second, shard=("2",), train_size=30),
        "3": make_update(round3.handles, plan, "3", first, shard=("1", "3")),
    }
    for client in ("1", "2"):
        document = records[client].model_dump(mode="json")
        round3.handles.objects.put_json(round3.handles.layout.update_record(3, client), document)
    assert stored_updates(round3.handles, plan) == {"2": records["2"]}
    round3.handles.objects.put_json(round3.handles.layout.update_record(3, "3"), records["3"].model_dump(mode="json"))
    assert stored_updates(round3.handles, plan) == records
    found = round3.mean(list(records.values()))
    torch.testing.assert_close(found["w"], (20 * state["w"] + 30 * client_state("2")["w"]) / 50)


def test_a_round_that_takes_over_all_sums_counts_their_bytes_once(round3: Round) -> None:
    reply = round3.run()

    async def gather() -> GatheredUpdates:
        set_handles(round3.handles)
        return await gather_updates(round3.handles, round3.spec, round3.plan)

    gathered = asyncio.run(gather())
    assert gathered.updates == list(reply.updates)
    assert gathered.dropped == []
    assert (gathered.bytes_down, gathered.bytes_up) == (0, reply.updates[0].weights.bytes)
    apply_retention(round3.handles, round_record(3, decision=Decision(stop=False, best_round=3)))
    assert round3.objects() == []


def test_an_update_is_refused_if_the_plan_asks_for_the_other_form(round3: Round) -> None:
    layout = round3.handles.layout
    weights = WeightRef(key=layout.partial_sum(3, "1"), sha256="a" * 64, bytes=1)
    plain = round3.plan.model_copy(update={"partial_sums": False})
    summed = make_update(round3.handles, round3.plan, "1", weights, shard=("1", "2"))
    own = make_update(round3.handles, plain, "1", weights.model_copy(update={"key": layout.update_weights(3, "1")}))
    assert answers_plan(summed, round3.plan, summed.weights.key) is None
    assert answers_plan(own, plain, own.weights.key) is None
    assert answers_plan(summed, plain, summed.weights.key) == "client 1: shard: expected none, found 1, 2"
    turn = "client 1: shard: expected clients of its turn (1, 2, 3), itself among them, each once; found "
    assert answers_plan(own, round3.plan, own.weights.key) == turn + "none"
    foreign = make_update(round3.handles, round3.plan, "1", weights, shard=("2", "3"))
    assert answers_plan(foreign, round3.plan, weights.key) == turn + "2, 3"
    apart = round3.plan.model_copy(update={"shards": (("1",), ("2", "3"))})
    assert "of its turn (1)" in str(answers_plan(summed, apart, weights.key))
    elsewhere = make_update(round3.handles, round3.plan, "2", weights, shard=("2", "3"))
    assert "client 2: weights: expected" in str(answers_plan(elsewhere, round3.plan, layout.partial_sum(3, "2")))


def test_records_without_the_newer_fields_are_read(round3: Round) -> None:
    plan = round3.plan.model_dump(mode="json")
    del plan["partial_sums"]
    assert not parse(RoundPlan, plan, source="plan.json", newest=RECORD_VERSION).partial_sums
    weights = WeightRef(key="k", sha256="a" * 64, bytes=9)
    update = make_update(round3.handles, round3.plan, "1", weights).model_dump(mode="json")
    del update["shard"]
    read = parse(UpdateRecord, update, source="1.json", newest=RECORD_VERSION)
    assert (read.shard, read.bytes_up) == (None, 9)


def test_a_missing_state_of_one_client_is_reported_for_the_whole_sum(round3: Round) -> None:
    layout, updates = round3.handles.layout, []
    plan = round3.plan.model_copy(update={"states": {}})
    for update in round3.run().updates:
        state = put_state(round3.handles, layout.client_state(3, update.client), {"w": torch.ones(1)})
        updates.append(update.model_copy(update={"state": state}))
        size = state.bytes
    assert damaged_updates(round3.handles, plan, updates) == {}
    missing = layout.client_state(3, "2")
    round3.handles.objects.delete([missing])
    found = damaged_updates(round3.handles, plan, updates)
    assert found.keys() == {"1", "2", "3"}
    assert set(found.values()) == {f"{missing}: expected {size} bytes, found no object"}
