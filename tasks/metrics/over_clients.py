"""Phase 7: the figures of a round over its clients.

The train loss is weighted by training images, as FedAvg weights the updates (arXiv 1602.05629, Alg. 1);
test figures by test images, beside the plain mean over clients that the original benchmark (arXiv
1910.11089) reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from tasks.errors import FedbenchError
from tasks.spec.records import EvaluationRecord, Metrics, UpdateRecord


def aggregate_metrics(updates: Sequence[UpdateRecord], evaluations: Sequence[EvaluationRecord]) -> Metrics:
    """Aggregate a round's updates (none in round 0) and evaluations.

    Clients that share an evaluation count each. A figure that a client does not have (None) is left out of
    the mean; one that no client has is None. ``unweighted`` holds the plain means under ``train_loss``,
    ``loss``, ``map50_voc10``, ``recall`` and ``per_class/<class>``.

    Raises:
        FedbenchError: a client has two updates or is in two evaluations; the message names it.
    """
    _each_once((update.client for update in updates), "updates")
    _each_once((client for evaluation in evaluations for client in evaluation.clients), "evaluations")
    # Sorted names: Metrics must not depend on which evaluation came first.
    classes = sorted({name for evaluation in evaluations for name in evaluation.per_class})
    train = [(update.train_size, 1, update.train_loss) for update in updates]
    figures = {
        "loss": [(*_weights(evaluation), evaluation.loss) for evaluation in evaluations],
        "map50_voc10": [(*_weights(evaluation), evaluation.map50_voc10) for evaluation in evaluations],
        "recall": [(*_weights(evaluation), evaluation.recall) for evaluation in evaluations],
    }
    per_class = {
        name: [(*_weights(evaluation), evaluation.per_class.get(name)) for evaluation in evaluations]
        for name in classes
    }
    unweighted = {"train_loss": _mean((plain, value) for _, plain, value in train)}
    unweighted |= {name: _mean((plain, value) for _, plain, value in rows) for name, rows in figures.items()}
    unweighted |= {
        f"per_class/{name}": _mean((plain, value) for _, plain, value in rows) for name, rows in per_class.items()
    }
    return Metrics(
        train_loss=_mean((weight, value) for weight, _, value in train),
        loss=_mean((weight, value) for weight, _, value in figures["loss"]),
        map50_voc10=_mean((weight, value) for weight, _, value in figures["map50_voc10"]),
        recall=_mean((weight, value) for weight, _, value in figures["recall"]),
        per_class={name: _mean((weight, value) for weight, _, value in rows) for name, rows in per_class.items()},
        unweighted=unweighted,
    )


def _weights(evaluation: EvaluationRecord) -> tuple[int, int]:
    """Weight by test images and weight as clients."""
    return evaluation.test_size * len(evaluation.clients), len(evaluation.clients)


def _mean(rows: Iterable[tuple[int, float | None]]) -> float | None:
    """Weighted mean, rounded once: equal figures give that figure; the order of clients changes no bit."""
    present = [(weight, Fraction(value)) for weight, value in rows if value is not None]
    total = sum(weight for weight, _ in present)
    return float(sum((weight * value for weight, value in present), Fraction()) / total) if total else None


def _each_once(clients: Iterable[str], what: str) -> None:
    twice = sorted(client for client, times in Counter(clients).items() if times > 1)
    if twice:
        raise FedbenchError(f"{what}: expected each client once, found {', '.join(twice)} more than once")
