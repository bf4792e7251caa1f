"""The rules of the phases: draws, shards, what counts as an update, the quorum, when to stop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tasks.aggregate import aggregate_updates
from tasks.check_client_resource import draw_clients, pack_shards, qualified_clients, read_plan
from tasks.decide import best_round, decide_stop, rounds_without_progress
from tasks.errors import ClientError, FedbenchError, SpecError
from tasks.handles import Handles
from tasks.quorum import quorum, require_quorum
from tasks.request_update import answers_plan, damaged_updates, stored_updates, update_fault
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.plans import ClientFailure, ClientInfo, ResourceAnswer, RoundPlan, UpdateRecord, WeightRef
from tasks.spec.records import Metrics, RoundRecord
from tasks.spec.strategies import ScaffoldSpec
from tasks.spec.training import Sgd, TrainingSpec
from tests.records import client_info, round_record
from tests.tasks.phase_handles import make_plan, make_update, put_state

READY = tuple(str(number) for number in range(1, 21))


def spec_of(**participation: Any) -> FederationSpec:
    return FederationSpec(participation=Participation(**participation))


# --- draws and shards --------------------------------------------------------------------------------------


def test_a_draw_depends_on_round_and_attempt_and_keeps_the_order_of_clients() -> None:
    spec = spec_of(clients_per_round=4)
    draws = {(r, a): draw_clients(spec, READY, r, a) for r in range(1, 6) for a in (1, 2)}
    assert draws == {(r, a): draw_clients(spec, READY, r, a) for r, a in draws}
    for drawn in draws.values():
        assert len(set(drawn)) == 4
        assert sorted(drawn, key=READY.index) == list(drawn)
    assert len(set(draws.values())) >= 9
    other = FederationSpec(seed=7, participation=spec.participation)
    assert [draw_clients(other, READY, r, a) for r, a in draws] != list(draws.values())


def test_every_client_is_drawn_as_often_as_the_others() -> None:
    spec = spec_of(clients_per_round=5)
    drawn = [client for number in range(1, 401) for client in draw_clients(spec, READY, number, 1)]
    counts = [drawn.count(client) for client in READY]
    assert sum(counts) == 2000
    assert max(counts) < 140  # 100 expected, standard deviation 8.7
    assert min(counts) > 60


@pytest.mark.parametrize("wanted", [None, 3, 5])
def test_all_ready_clients_are_drawn_unless_fewer_are_wanted(wanted: int | None) -> None:
    assert draw_clients(spec_of(clients_per_round=wanted), ("5", "2", "9"), 1, 1) == ("5", "2", "9")


def test_clients_qualify_below_the_load_limit_if_it_is_enforced() -> None:
    answers = [ResourceAnswer(client=str(n), load=load, free_memory=1) for n, load in enumerate((0.1, 0.4, 0.39, 2), 1)]
    assert qualified_clients(spec_of(check_load=True), answers) == ("1", "3")
    assert qualified_clients(spec_of(check_load=True, max_load=0.41), answers) == ("1", "2", "3")
    assert qualified_clients(spec_of(check_load=False), answers) == ("1", "2", "3", "4")


@pytest.mark.parametrize(
    ("shards", "expected"),
    [
        (None, [["2"], ["1"], ["5"], ["4"], ["3"]]),
        (9, [["2"], ["1"], ["5"], ["4"], ["3"]]),
        (1, [["2", "1", "5", "4", "3"]]),
        # Shards of 344 and 212 images; 122 go to the second (334), 50 too (384), 37 to the first (381).
        (2, [["1", "5", "4"], ["2", "3"]]),
    ],
)
def test_shards_are_packed_by_images(shards: int | None, expected: list[list[str]]) -> None:
    sizes = {"1": 212, "2": 344, "3": 37, "4": 50, "5": 122}
    assert [list(shard) for shard in pack_shards(sizes, shards)] == expected


def test_clients_of_one_size_keep_their_order() -> None:
    assert pack_shards({"b": 5, "a": 5, "c": 5}, 2) == (("b", "c"), ("a",))


# --- what answers a plan -----------------------------------------------------------------------------------


GLOBAL = {"w": torch.zeros(3), "n": torch.tensor(0)}
SPEC = FederationSpec()
SCAFFOLD = FederationSpec(strategy=ScaffoldSpec(), training=TrainingSpec(optimizer=Sgd(momentum=0.0), clip_norm=None))


@pytest.fixture
def plan(handles: Handles) -> RoundPlan:
    return make_plan(handles, SPEC, put_state(handles, handles.layout.global_weights(2), GLOBAL), ("1", "2", "3", "4"))


def update_of(
    handles: Handles, plan: RoundPlan, client: str, state: dict[str, torch.Tensor] | None = None, **fields: Any
) -> Any:
    state = state or {"w": torch.full((3,), float(client)), "n": torch.tensor(int(client))}
    weights = put_state(handles, handles.layout.update_weights(plan.round, client), state)
    return make_update(handles, plan, client, weights, **fields)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"federation": "another"}, "client 2: federation: expected .*, found another"),
        ({"round": 2}, "client 2: round: expected 3, found 2"),
        ({"spec_digest": "a" * 64}, "client 2: spec_digest: expected .*, found aaaa"),
        ({"model": "b" * 64}, "client 2: model: expected .*, found bbbb"),
        ({"seed": 101}, "client 2: seed: expected 102, found 101"),
        ({"client": "9"}, "client 9 is not in the cohort"),
        ({"bytes_down": 10**18}, "client 2: bytes_down: expected at most"),
        (
            {"weights": {"key": "elsewhere", "sha256": "a" * 64, "bytes": 1}},
            "client 2: weights: expected .*, found else",
        ),
    ],
)
def test_only_an_update_that_answers_the_plan_counts(
    handles: Handles, plan: RoundPlan, changes: dict[str, Any], reason: str
) -> None:
    key = handles.layout.update_weights(3, "2")
    asked = update_of(handles, plan, "2")
    assert answers_plan(asked, plan, key) is None
    found = answers_plan(UpdateRecord.model_validate(asked.model_dump() | changes), plan, key)
    assert found is not None
    assert re.match(reason, found)


def test_an_open_round_takes_over_the_updates_that_answer_its_plan(handles: Handles, plan: RoundPlan) -> None:
    good, other_round, lost, newer = (update_of(handles, plan, client) for client in "1234")
    records = {
        "1": good.model_dump(mode="json"),
        "2": {**other_round.model_dump(mode="json"), "round": 2},
        "3": {**lost.model_dump(mode="json"), "weights": {**lost.weights.model_dump(), "sha256": "d" * 64}},
        "4": {**newer.model_dump(mode="json"), "version": 2},
    }
    assert stored_updates(handles, plan) == {}
    for client, record in records.items():
        handles.objects.put_json(handles.layout.update_record(3, client), record)
    assert stored_updates(handles, plan) == {"1": good}


def ready(*clients: str) -> list[ClientInfo]:
    return [client_info(client, train_size=5, host="here") for client in clients]


def test_a_stored_plan_is_used_if_model_and_clients_are_the_same(handles: Handles, plan: RoundPlan) -> None:
    assert read_plan(handles, SPEC, 3, ready("1", "2", "3", "4"), plan.model) is None
    key = handles.layout.plan(3)
    sizes = dict.fromkeys(plan.cohort, 5)
    plan = plan.model_copy(update={"train_sizes": sizes, "weights": sizes})
    handles.objects.put_json(key, plan.model_dump(mode="json"))
    assert read_plan(handles, SPEC, 3, ready("1", "2", "3", "4", "5"), plan.model) == plan
    assert read_plan(handles, SPEC, 3, ready("1", "2", "3"), plan.model) is None
    other = plan.model.model_copy(update={"sha256": "e" * 64})
    assert read_plan(handles, SPEC, 3, ready("1", "2", "3", "4"), other) is None
    longer = FederationSpec(max_rounds=99)
    extended = read_plan(handles, longer, 3, ready("1", "2", "3", "4"), plan.model)
    assert extended == plan.model_copy(update={"spec_digest": longer.digest})
    handles.objects.put_json(key, {**plan.model_dump(mode="json"), "version": 9})
    with pytest.raises(SpecError, match=rf"{key}: version: 9 is newer"):
        read_plan(handles, SPEC, 3, ready("1", "2", "3", "4"), plan.model)


@pytest.fixture
def of_states(handles: Handles, plan: RoundPlan) -> tuple[RoundPlan, RoundRecord]:
    """Return a plan of SCAFFOLD, and the record of the round before, which has the states that the plan names."""
    layout = handles.layout
    shared = put_state(handles, layout.shared_state(2), GLOBAL)
    states = {
        client: put_state(handles, layout.client_state(int(client), client), {"w": torch.full((3,), float(client))})
        for client in ("1", "2")
    }
    sizes = dict.fromkeys(plan.cohort, 5)
    fields = {"train_sizes": sizes, "weights": sizes, "shared": shared, "states": states, "figures": ("sum_of_rates",)}
    other = put_state(handles, layout.client_state(2, "9"), GLOBAL)  # of a client that is not in the cohort
    before = round_record(2, model=plan.model, shared=shared, states={**states, "9": other})
    return plan.model_copy(update=fields), before


def test_a_stored_plan_is_used_only_with_the_states_of_the_last_record(
    handles: Handles, of_states: tuple[RoundPlan, RoundRecord]
) -> None:
    plan, before = of_states
    handles.objects.put_json(handles.layout.plan(3), plan.model_dump(mode="json"))

    def read(**fields: Any) -> RoundPlan | None:
        handles.history = [before.model_copy(update=fields)]
        return read_plan(handles, SCAFFOLD, 3, ready("1", "2", "3", "4", "9"), plan.model)

    assert read() == plan.model_copy(update={"spec_digest": SCAFFOLD.digest})
    other = plan.model.model_copy(update={"sha256": "e" * 64})
    assert read(states={name: before.states[name] for name in ("1", "2")}) is not None  # client 9 is not asked
    for states in ({}, {"1": before.states["1"]}, before.states | {"2": other}, before.states | {"3": other}):
        assert read(states=states) is None
    for fields in ({"shared": None}, {"shared": other}, {"server": other}):
        assert read(**fields) is None


def test_an_update_counts_only_with_the_states_of_the_plan(
    handles: Handles, of_states: tuple[RoundPlan, RoundRecord]
) -> None:
    plan, _ = of_states
    assert (plan.shared, plan.states) != (None, None)
    started = {client: tuple(ref.sha256 for ref in plan.states_of(client)) for client in plan.cohort}
    assert [len(started[client]) for client in plan.cohort] == [2, 2, 1, 1]
    key = handles.layout.client_state(3, "2")
    state = put_state(handles, key, {"w": torch.zeros(3)})
    good = update_of(
        handles, plan, "2", train_size=5, figures={"sum_of_rates": 0.1}, started_from=started["2"]
    ).model_copy(update={"state": state})
    assert update_fault(handles.layout, good, plan) is None
    for changes, reason in (
        ({"started_from": ()}, "started_from: expected .*, found no state"),
        ({"started_from": started["3"]}, "started_from: expected "),
        ({"started_from": tuple(reversed(started["2"]))}, "started_from: expected "),
        ({"state": None}, f"state: expected {key}, found none"),
        ({"state": state.model_copy(update={"key": "elsewhere"})}, f"state: expected {key}, found elsewhere"),
        ({"state": state.model_copy(update={"bytes": 10**9})}, "state: expected at most "),
        ({"figures": {}}, "figures: expected sum_of_rates, found none"),
    ):
        found = update_fault(handles.layout, good.model_copy(update=changes), plan)
        assert found is not None
        assert re.match(f"client 2: {reason}", found)
    handles.objects.put_json(handles.layout.update_record(3, "2"), good.model_dump(mode="json"))
    assert stored_updates(handles, plan) == {"2": good}
    another = plan.model_copy(update={"shared": None})
    assert stored_updates(handles, another) == {}
    handles.objects.put_bytes(key, b"cut")
    assert stored_updates(handles, plan) == {}
    assert damaged_updates(handles, plan, [good])["2"].startswith(f"{key}: expected {state.bytes} bytes, found 3 bytes")
    handles.objects.delete([key])
    assert damaged_updates(handles, plan, [good])["2"].endswith("found no object")


# --- aggregate ---------------------------------------------------------------------------------------------


def test_updates_that_do_not_fit_are_dropped_with_the_reason(handles: Handles, plan: RoundPlan) -> None:
    whole = {"w": torch.ones(3), "n": torch.tensor(1)}
    updates = [
        update_of(handles, plan, "4", {**whole, "w": torch.tensor([1.0, float("nan"), 1.0])}),
        update_of(handles, plan, "3", {**whole, "w": torch.ones(4)}),
        update_of(handles, plan, "9"),
        update_of(handles, plan, "2", train_size=30),
        update_of(handles, plan, "1", train_size=10),
    ]
    new = aggregate_updates(handles, SPEC, plan, updates)
    assert [update.client for update in new.counted] == ["1", "2"]
    assert new.result.model["w"].tolist() == [1.75] * 3
    assert int(new.result.model["n"]) == 2
    reasons = {failure.client: failure.reason for failure in new.dropped}
    assert list(reasons) == ["3", "4", "9"]
    assert "tensor w: expected float32 [3], found float32 [4]" in reasons["3"]
    assert "tensor w: expected finite values" in reasons["4"]
    assert reasons["9"] == "an update that was not asked for: client 9 is not in the cohort"
    assert {(failure.phase, failure.kind) for failure in new.dropped} == {("aggregate", "client-error")}


def test_repeated_stale_and_lost_updates_never_count(handles: Handles, plan: RoundPlan) -> None:
    first = update_of(handles, plan, "1")
    second = make_update(handles, plan, "1", first.weights, train_loss=9.0)
    stale = update_of(handles, plan, "2", round=2)
    lost = make_update(
        handles, plan, "3", WeightRef(key=handles.layout.update_weights(3, "3"), sha256="f" * 64, bytes=9)
    )  # fmt: skip
    new = aggregate_updates(handles, SPEC, plan, [first, second, stale, lost])
    assert new.counted == [first]
    reasons = [failure.reason for failure in new.dropped]
    # Client 1 counts with its first update, so it is not dropped.
    assert "round: expected 3, found 2" in reasons[0]
    assert reasons[1].startswith("client 3: ")
    assert "missing" in reasons[1]
    with pytest.raises(ClientError, match=r"round 3: no update counts: .*round: expected 3, found 2"):
        aggregate_updates(handles, SPEC, plan, [stale])


def test_the_order_of_updates_changes_no_bit(handles: Handles, plan: RoundPlan) -> None:
    generator = torch.Generator().manual_seed(1)
    updates = [
        update_of(
            handles, plan, client, {"w": torch.randn(3, generator=generator), "n": torch.tensor(1)}, train_size=7 * n
        )
        for n, client in enumerate("1234", 3)
    ]
    found = []
    for order in (updates, updates[::-1], updates[2:] + updates[:2]):
        found.append(save(aggregate_updates(handles, SPEC, plan, order).result.model))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(("cohort", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (20, 11)])
def test_the_default_quorum_is_more_than_half(cohort: int, needed: int) -> None:
    assert quorum(SPEC, cohort) == needed
    assert quorum(spec_of(min_updates=1), cohort) == 1


def test_a_missed_quorum_names_every_missing_client_and_why(handles: Handles, plan: RoundPlan) -> None:
    updates = [update_of(handles, plan, client) for client in "12"]
    dropped = [
        ClientFailure(client="3", phase="request_update", kind="deadline", reason="no answer within 9 s"),
        ClientFailure(client="4", phase="request_update", kind="infrastructure-lost", reason="lost 3 times"),
    ]
    require_quorum(spec_of(min_updates=2), plan, updates, dropped)
    with pytest.raises(FedbenchError) as caught:
        require_quorum(SPEC, plan, updates, dropped)
    assert str(caught.value) == (
        "round 3: 2 of 4 updates came, participation.min_updates is 3; missing: client 3 (deadline): no answer within "
        "9 s; client 4 (infrastructure-lost): lost 3 times"
    )


# --- decide ------------------------------------------------------------------------------------------------


def history(maps: Sequence[float | None], losses: Sequence[float | None] | None = None) -> list[Metrics]:
    losses = losses or [None] * len(maps)
    return [Metrics(map50_voc10=value, loss=loss) for value, loss in zip(maps, losses, strict=True)]


@pytest.mark.parametrize(
    ("fields", "maps", "losses", "reason"),
    [
        ({"max_rounds": 3}, [0.1, 0.2, 0.3], None, None),
        ({"max_rounds": 3}, [0.1, 0.2, 0.3, 0.1], None, "max_rounds"),
        ({"max_rounds": 3}, [None, None, None, None], None, "max_rounds"),
        ({"target_map": 0.3}, [0.1, 0.3], None, "target_map"),
        ({"target_map": 0.3}, [0.1, 0.29], None, None),
        ({"target_map": 0.3}, [0.4, None], None, None),  # the last round's model was not scored
        ({"patience": 2}, [0.1, 0.3, 0.2, 0.3], None, "patience"),  # equal is not better
        ({"patience": 2}, [0.1, 0.3, 0.2, 0.31], None, None),
        ({"patience": 3}, [0.1, 0.3, 0.2, 0.3], None, None),
        ({"patience": 2}, [0.1, None, None], None, "patience"),
        ({"patience": 2}, [None, None, 0.1, None], None, None),
        ({"patience": 2, "patience_metric": "loss"}, [0.1, 0.2, 0.3], [5.0, 5.5, 6.0], "patience"),
        ({"patience": 2, "patience_metric": "loss"}, [0.3, 0.2, 0.1], [5.0, 4.5, 4.0], None),
        ({"patience": 2, "patience_metric": "loss"}, [0.1] * 3, [5.0, None, 4.9], None),
        ({"patience": 1, "target_map": 0.2, "max_rounds": 1}, [0.3, 0.2], None, "target_map"),
        ({"patience": 1, "max_rounds": 1}, [0.3, 0.2], None, "patience"),
    ],
)  # fmt: skip
def test_when_a_federation_stops(
    fields: dict[str, Any], maps: list[float | None], losses: list[float | None] | None, reason: str | None
) -> None:
    decision = decide_stop(FederationSpec(**fields), len(maps) - 1, history(maps, losses))
    assert (decision.stop, decision.reason) == (reason is not None, reason)


def test_the_best_round_is_the_first_of_equals() -> None:
    assert best_round(history([0.1, 0.4, 0.4, 0.2])) == (1, 0.4)
    assert best_round(history([None, None])) == (0, None)
    assert best_round(history([None, 0.0, None])) == (1, 0.0)
    assert rounds_without_progress(history([None, 0.0, None]), "map50_voc10") == 1


def test_the_best_round_is_best_by_the_chosen_metric() -> None:
    rounds = [Metrics(map50_voc10=voc, map_coco=coco) for voc, coco in ((0.1, 0.2), (0.4, 0.1), (0.2, 0.3))]
    assert best_round(rounds, "map_coco") == (2, 0.3)
    decision = decide_stop(FederationSpec(best_metric="map_coco"), 2, rounds)
    assert (decision.best_round, decision.best_metric, decision.best, decision.best_map50_voc10) == (
        2, "map_coco", 0.3, 0.2,
    )  # fmt: skip
    assert decide_stop(FederationSpec(), 2, rounds).best == 0.4
    assert FederationSpec(best_metric="map_coco").digest != FederationSpec().digest


def test_a_plan_is_read_as_it_was_written(handles: Handles, plan: RoundPlan) -> None:
    handles.objects.put_json(handles.layout.plan(3), plan.model_dump(mode="json"))
    assert RoundPlan.model_validate(handles.objects.get_json(handles.layout.plan(3))) == plan
    assert plan.created == datetime(2026, 1, 1, tzinfo=UTC)
