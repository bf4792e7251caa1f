"""Find a federation's best round, and sum the costs up to each round: image passes, seconds, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.spec.federation import MapName
from tasks.spec.records import Metrics, RoundRecord


def best_round(history: Sequence[Metrics], metric: MapName = "map50_voc10") -> tuple[int, float | None]:
    """Return the number (from 0) and the ``metric`` of the best round so far, the first of equals."""
    best: int = 0
    value: float | None = getattr(history[0], metric)
    for number, metrics in enumerate(history):
        found = getattr(metrics, metric)
        if found is not None and (value is None or found > value):
            best, value = number, found
    return best, value


@dataclass(frozen=True)
class Costs:
    """The costs of all rounds up to one.

    ``images`` counts every use of an image in training. ``passes`` is the mean number of uses of one training image,
    over the images of all clients. ``seconds`` is wall time. ``exchanged`` is the bytes of weights that clients needed
    and sent, including those that a cache spared. ``moved`` is the bytes transferred to and from the store.
    """

    images: int
    passes: float
    seconds: float
    exchanged: int
    moved: int


def costs_by_round(records: Sequence[RoundRecord], local_epochs: int) -> list[Costs]:
    """Return the costs up to each of ``records``, rounds 0 to the last in order."""
    sizes = {info.client: info.train_size for record in records for info in record.clients}
    total = sum(sizes.values())
    images, seconds, exchanged, moved = 0, 0.0, 0, 0
    costs = []
    for record in records:
        images += local_epochs * sum(update.train_size for update in record.updates)
        seconds += sum(record.seconds.values())
        exchanged += sum(update.bytes_up + update.bytes_down for update in record.updates)
        moved += record.bytes_up + record.bytes_down
        costs.append(Costs(images, images / total if total else 0.0, seconds, exchanged, moved))
    return costs
