"""The limit of one client's share of the weight: its computation, its specification, and its effect on figures."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tasks.metrics.over_clients import aggregate_metrics
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.plans import UpdateRecord
from tasks.spec.records import EvaluationRecord
from tasks.spec.references import local_only, twin
from tasks.spec.shares import Weight, least_clients, limited, limiting_factors, majority
from tests.present import present
from tests.records import evaluation_record, update_record

LIE = 10**9


def shares(weights: dict[str, Weight]) -> dict[str, float]:
    total = sum(weights.values())
    return {client: weight / total for client, weight in weights.items()}


# --- the numbers ---------------------------------------------------------------------------------------------


def test_a_share_over_the_limit_is_cut_and_the_others_keep_their_proportions() -> None:
    found = shares(limited({"a": LIE, "b": 10, "c": 20, "d": 5}, 0.4))
    assert found == pytest.approx({"a": 0.4, "b": 0.6 * 10 / 35, "c": 0.6 * 20 / 35, "d": 0.6 * 5 / 35})
    # Once the first is cut, the second is over the limit too.
    assert shares(limited({"a": 100, "b": 50, "c": 1}, 0.34)) == pytest.approx({"a": 0.34, "b": 0.34, "c": 0.32})
    assert shares(limited({"a": LIE, "b": 1, "c": 7, "d": 2, "e": 9}, 0.2)) == pytest.approx(
        dict.fromkeys("abcde", 0.2)
    )


def test_weights_under_the_limit_stay_integers() -> None:
    sizes = {"a": 344, "b": 212, "c": 37, "d": 0}
    for share in (None, 1.0, 0.6):
        found = limited(sizes, share)
        assert found == sizes
        assert {type(weight) for weight in found.values()} == {int}
    assert limited({"a": LIE, "b": 10, "c": 20}, 0.5) == {"a": 30.0, "b": 10, "c": 20}


def test_no_share_is_over_the_limit_and_order_changes_nothing() -> None:
    generator = random.Random(1)
    for _ in range(300):
        sizes = {str(n): round(10 ** generator.uniform(0, 9)) for n in range(generator.randint(1, 12))}
        limit = generator.uniform(1 / len(sizes), 1)
        found = limited(sizes, limit)
        assert max(shares(found).values()) <= limit * (1 + 1e-8)
        assert all(weight <= sizes[client] for client, weight in found.items())
        backwards = limited(dict(reversed(sizes.items())), limit)
        assert backwards == found
        # Clients that are not cut keep their proportions.
        kept = [client for client, weight in found.items() if weight == sizes[client]]
        assert all(found[client] * sizes[other] == found[other] * sizes[client] for client in kept for other in kept)
        # The limit among some of the clients gives what a plan for only those clients would give.
        some = dict(list(found.items())[: least_clients(limit)])
        factors = limiting_factors([(weight, weight) for weight in some.values()], limit)
        assert factors is not None
        again = shares({client: float(f * w) for (client, w), f in zip(some.items(), map(float, factors), strict=True)})
        assert again == pytest.approx(shares(limited({client: sizes[client] for client in some}, limit)))


@pytest.mark.parametrize(
    ("share", "clients"), [(0.2, 5), (0.3, 4), (1.0, 1), (1 / 3, 3), (0.1, 10), (0.3334, 3), (0.49, 3)]
)
def test_a_limit_needs_its_least_number_of_clients(share: float, clients: int) -> None:
    assert least_clients(share) == clients
    sizes = {str(number): number + 1 for number in range(clients)}
    assert max(shares(limited(sizes, share)).values()) <= share * (1 + 1e-8)
    del sizes["0"]
    if sizes:
        with pytest.raises(ValueError, match=f"expected at least {clients} clients with a weight, found {clients - 1}"):
            limited({**sizes, "empty": 0}, share)


def test_a_partial_sum_is_scaled_as_a_whole() -> None:
    # One sum has clients of 30 and 10 images, the other of 10 and 10. The client of 30 may have a share of 0.4.
    first, second = present(limiting_factors([(40, 30), (20, 10)], 0.4))
    assert second == 1
    assert float(30 * first / (40 * first + 20)) == pytest.approx(0.4)
    assert limiting_factors([(40, 30)], 0.4) is None  # there is no other sum that could weigh more


def test_the_majority_is_a_client_with_more_than_half() -> None:
    assert majority({"a": 3, "b": 1}) == ("a", 0.75)
    assert majority({"a": 1, "b": 10**400}) == ("b", 1.0)
    for nobody in ({"a": 1, "b": 1}, {"a": 5}, {}, {"a": 0, "b": 0}):
        assert majority(nobody) is None


# --- the specification ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_weight_share": 0.1}, r"max_weight_share: expected at least 0\.2, .* each of 5 clients, found 0\.1"),
        ({"max_weight_share": 0.3, "clients": ["1", "2", "3"]}, r"expected at least 0\.3334, .* each of 3 clients"),
        ({"max_weight_share": 0.3, "clients_per_round": 2}, r"expected at least 0\.5, .* each of 2 clients"),
        ({"max_weight_share": 0}, "max_weight_share: expected more than 0, found 0"),
        ({"max_weight_share": 1.5}, r"max_weight_share: expected at most 1, found 1\.5"),
    ],
)  # fmt: skip
def test_a_limit_that_cannot_be_kept_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(Exception, match=rf"a\.yaml: participation\.{'.*' if says[0] == 'e' else ''}{says}"):
        parse_spec({"participation": fields}, source="a.yaml")


def test_a_limit_counts_for_the_digest_if_it_is_set_and_references_have_none() -> None:
    spec = parse_spec({"participation": {"max_weight_share": 0.2}}, source="a")
    assert spec.digest != FederationSpec().digest
    assert parse_spec({"participation": {"max_weight_share": None}}, source="a").digest == FederationSpec().digest
    assert twin(spec) == twin(FederationSpec())
    assert local_only(spec, "1") == local_only(FederationSpec(), "1")


# --- a round's figures -----------------------------------------------------------------------------------------


def update(client: str, size: int, loss: float) -> UpdateRecord:
    return update_record(client, train_size=size, train_loss=loss)


def evaluation(client: str, size: int, loss: float) -> EvaluationRecord:
    return evaluation_record(
        client,
        test_size=size,
        loss=loss,
        map50_voc10=loss / 10,
        recall=None,
        per_class={"chair": loss / 10},
        score_threshold=0.1,
    )


def test_a_limit_holds_for_a_rounds_figures_too() -> None:
    updates = [update("1", LIE, 1.0), update("2", 10, 5.0), update("3", 10, 5.0)]
    tested = [evaluation("1", LIE, 1.0), evaluation("2", 10, 5.0), evaluation("3", 10, 5.0)]
    believed = aggregate_metrics(updates, tested)
    assert believed.loss == pytest.approx(1.0, abs=1e-6)
    held = aggregate_metrics(updates, tested, weights={"1": 10, "2": 5, "3": 5.0}, max_share=0.5)
    assert held.train_loss == 3.0
    assert held.loss == pytest.approx(3.0)
    assert held.per_class["chair"] == pytest.approx(0.3)
    assert held.unweighted == believed.unweighted
    # With too few test sets for the limit, each counts the same.
    assert aggregate_metrics([], tested[:2], max_share=0.4).loss == pytest.approx(3.0)
    assert aggregate_metrics([], [], max_share=0.4).loss is None
