"""Keys of a federation's objects."""

import pytest
from pydantic import TypeAdapter, ValidationError

from infra.store.layout import FederationLayout, federations
from tasks.spec.base import ClientId

LAYOUT = FederationLayout("federations", "street5")


def test_keys() -> None:
    assert LAYOUT.spec == "federations/street5/spec.json"
    assert LAYOUT.best == "federations/street5/best.json"
    assert LAYOUT.plan(7) == "federations/street5/rounds/0007/plan.json"
    assert LAYOUT.global_weights(0) == "federations/street5/rounds/0000/global.safetensors"
    assert LAYOUT.update_weights(12, "c1") == "federations/street5/rounds/0012/updates/c1.safetensors"
    assert LAYOUT.update_record(12, "c1") == "federations/street5/rounds/0012/updates/c1.json"
    assert LAYOUT.partial_sum(12, "c1") == "federations/street5/rounds/0012/updates/_sum-c1.safetensors"
    assert LAYOUT.partial_sum(12, "c1").startswith(LAYOUT.updates(12))
    assert LAYOUT.evaluation_part(1, "5", "a-0") == LAYOUT.evaluations(1) + "5/a-0.safetensors"
    assert LAYOUT.detections(12) == "federations/street5/rounds/0012/detections.npz"
    assert LAYOUT.evaluation_tensors(1, "a-0") == "federations/street5/rounds/0001/evaluations/a-0.safetensors"
    assert LAYOUT.evaluation_record(1, "a-0") == "federations/street5/rounds/0001/evaluations/a-0.json"
    assert LAYOUT.marker(12345) == "federations/street5/rounds/12345/round.json"


def test_keys_of_rounds_put_aside() -> None:
    assert LAYOUT.superseded_record(2) == "federations/street5/superseded/0002/superseded.json"
    key = LAYOUT.put_aside(LAYOUT.update_record(12, "c1"), 2)
    assert key == "federations/street5/superseded/0002/0012/updates/c1.json"
    keys = [key, LAYOUT.superseded_record(10), LAYOUT.plan(3), LAYOUT.update_record(12, "c1"), LAYOUT.spec]
    assert LAYOUT.superseded_folders(keys) == [2, 10]
    assert LAYOUT.begun_rounds(keys) == [3, 12]
    assert LAYOUT.committed_rounds([LAYOUT.put_aside(LAYOUT.marker(3), 1)]) == []


def test_prefix_may_be_empty_or_have_slashes() -> None:
    assert FederationLayout("", "a").spec == "a/spec.json"
    assert FederationLayout("/x/y/", "a").spec == "x/y/a/spec.json"


def test_a_negative_round_is_refused() -> None:
    with pytest.raises(ValueError, match="round: expected 0 or more, found -1"):
        LAYOUT.plan(-1)


def test_only_markers_commit_a_round() -> None:
    keys = [LAYOUT.marker(number) for number in (10000, 2, 0)]
    keys += [
        LAYOUT.plan(3),
        LAYOUT.global_weights(3),
        LAYOUT.marker(4) + ".tmp",
        FederationLayout("federations", "street55").marker(5),
        f"{LAYOUT.rounds}7/round.json",
        f"{LAYOUT.round(8)}updates/round.json",
    ]
    assert LAYOUT.committed_rounds(keys) == [0, 2, 10000]


def test_no_client_can_have_the_name_of_a_partial_sum() -> None:
    name = LAYOUT.partial_sum(1, "c1").removeprefix(LAYOUT.updates(1)).removesuffix(".safetensors")
    with pytest.raises(ValidationError):
        TypeAdapter(ClientId).validate_python(name)


def test_only_folders_with_a_spec_are_federations() -> None:
    keys = ["f/b/spec.json", "f/a/spec.json", "f/c/best.json", "g/d/spec.json", "f/a/x/spec.json"]
    assert federations("f", keys) == ["a", "b"]
