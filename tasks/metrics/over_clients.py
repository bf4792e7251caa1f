"""Phase 7: aggregate a round's figures over its clients.

The train loss is weighted by training images, as updates are in FedAvg (arXiv 1602.05629, Alg. 1). Test figures are
weighted by test images, and figures on held-out images by their number. Beside them is the plain mean over clients,
which the original benchmark (arXiv 1910.11089) reported.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from tasks.errors import FedbenchError
from tasks.spec.plans import UpdateRecord
from tasks.spec.records import PERSONAL_FIGURES, ClientSpread, EvaluationRecord, Metrics, PersonalMetrics
from tasks.spec.shares import Weight, limiting_factors

_FIGURES = ("loss", "map50_voc10", "map50_voc07", "map50_coco", "map_coco", "recall")
_BY_CLASS = ("per_class", "per_class_coco", "per_class_recall")

# For each update or evaluation: its weight, its weight in the plain mean (its number of clients), and the figure.
Rows = list[tuple[Fraction, int, float | None]]


def aggregate_metrics(
    updates: Sequence[UpdateRecord],
    evaluations: Sequence[EvaluationRecord],
    *,
    weights: Mapping[str, Weight] | None = None,
    max_share: float | None = None,
    personal: Sequence[EvaluationRecord] = (),
    shared_model: bool = True,
) -> Metrics:
    """Aggregate a round's updates (none in round 0) and evaluations.

    The figures on held-out images, if there are any, are ``holdout``, with the train loss once more.

    weights: the weight of each client's update; None: its number of training images.
    max_share: the largest part of the whole that one client's test images may count for. If there are too few clients
        for that, each counts the same.
    personal: the evaluations of clients' own models, one client each.
    shared_model: whether the method has a complete shared model; without one, the clients' own models decide.

    Clients that share an evaluation all count. A client without a figure (None) is left out of the figure's mean, and
    the mean over no client is None. ``unweighted`` holds the plain means under ``train_loss``, ``loss``, the mAPs'
    names, ``recall`` and ``per_class/<class>``.

    Raises:
        FedbenchError: a client has two updates or is in two evaluations of one part; the message names it.
    """
    parts = {on: [item for item in evaluations if item.on == on] for on in ("test", "holdout")}
    found = {on: _of_part(updates, of_part, weights, max_share) for on, of_part in parts.items()}
    for on, metrics in found.items():
        own = personal_metrics([item for item in personal if item.on == on], decides=not shared_model)
        found[on] = metrics.model_copy(update={"personal": own})
    held_out = parts["holdout"] or found["holdout"].personal
    return found["test"].model_copy(update={"holdout": found["holdout"] if held_out else None})


def personal_metrics(evaluations: Sequence[EvaluationRecord], *, decides: bool) -> PersonalMetrics | None:
    """Return the figures of clients' own models over clients; None without any.

    The worst client is the first of equals. Each client counts the same, because each has its own model.

    Raises:
        FedbenchError: a client is in two evaluations; the message names it.
    """
    if not evaluations:
        return None
    _each_once((client for evaluation in evaluations for client in evaluation.clients), "evaluations of own models")
    figures = {}
    for name in PERSONAL_FIGURES:
        values = {item.clients[0]: getattr(item, name) for item in evaluations if getattr(item, name) is not None}
        if values:
            worst = (max if name == "loss" else min)(values, key=values.__getitem__)
            figures[name] = ClientSpread(
                mean=_mean((1, value) for value in values.values()),
                worst=values[worst],
                worst_client=worst,
                deviation=statistics.pstdev(values.values()),
                clients=len(values),
            )
    images = {evaluation.test_digest for evaluation in evaluations}
    return PersonalMetrics(
        figures=figures, clients=len(evaluations), common=len(images) == 1 < len(evaluations), decides=decides
    )


def _of_part(
    updates: Sequence[UpdateRecord],
    evaluations: Sequence[EvaluationRecord],
    weights: Mapping[str, Weight] | None,
    max_share: float | None,
) -> Metrics:
    _each_once((update.client for update in updates), "updates")
    _each_once((client for evaluation in evaluations for client in evaluation.clients), "evaluations")
    counted = {update.client: update.train_size for update in updates} if weights is None else weights
    losses: Rows = [(Fraction(counted[update.client]), 1, update.train_loss) for update in updates]
    figures: dict[str, Rows] = {"train_loss": losses}
    rows = list(zip(_weights(evaluations, max_share), map(_clients, evaluations), evaluations, strict=True))
    for name in _FIGURES:
        figures[name] = [(*both, getattr(evaluation, name)) for *both, evaluation in rows]
    by_class = {field: _rows_by_class(rows, field) for field in _BY_CLASS}
    unweighted = {name: _plain(rows) for name, rows in figures.items()}
    unweighted |= {f"per_class/{name}": _plain(rows) for name, rows in by_class["per_class"].items()}
    return Metrics.model_validate(
        {name: _weighted(rows) for name, rows in figures.items()}
        | {field: {name: _weighted(rows) for name, rows in classes.items()} for field, classes in by_class.items()}
        | {"unweighted": unweighted}
    )


def _rows_by_class(rows: Sequence[tuple[Fraction, int, EvaluationRecord]], field: str) -> dict[str, Rows]:
    # Sorted names: Metrics must not depend on which evaluation came first.
    classes = sorted({name for _, _, evaluation in rows for name in getattr(evaluation, field)})
    return {
        name: [(weight, clients, getattr(evaluation, field).get(name)) for weight, clients, evaluation in rows]
        for name in classes
    }


def _weighted(rows: Rows) -> float | None:
    return _mean((weight, value) for weight, _, value in rows)


def _plain(rows: Rows) -> float | None:
    return _mean((plain, value) for _, plain, value in rows)


def _clients(evaluation: EvaluationRecord) -> int:
    return len(evaluation.clients)


def _weights(evaluations: Sequence[EvaluationRecord], max_share: float | None) -> list[Fraction]:
    """Return each evaluation's weight by test images, summed over its clients."""
    sizes = [evaluation.test_size * _clients(evaluation) for evaluation in evaluations]
    if max_share is None:
        return [Fraction(size) for size in sizes]
    parts = [(size, evaluation.test_size) for size, evaluation in zip(sizes, evaluations, strict=True)]
    factors = limiting_factors(parts, max_share)
    if factors is None:
        return [Fraction(_clients(evaluation) if evaluation.test_size else 0) for evaluation in evaluations]
    return [size * factor for size, factor in zip(sizes, factors, strict=True)]


def _mean(rows: Iterable[tuple[Fraction | int, float | None]]) -> float | None:
    """Return the weighted mean, rounded once: equal figures have that mean, and the order of clients changes no bit."""
    present = [(weight, Fraction(value)) for weight, value in rows if value is not None]
    total = sum((weight for weight, _ in present), Fraction())
    return float(sum((weight * value for weight, value in present), Fraction()) / total) if total else None


def _each_once(clients: Iterable[str], what: str) -> None:
    twice = sorted(client for client, times in Counter(clients).items() if times > 1)
    if twice:
        raise FedbenchError(f"{what}: expected each client once, found {', '.join(twice)} more than once")
