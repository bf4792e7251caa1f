"""Over a federation's rounds: which is the best, and what was spent up to each: image passes, seconds, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.spec.federation import MapName
from tasks.spec.records import Metrics, RoundRecord


def best_round(history: Sequence[Metrics], metric: MapName = "map50_voc10") -> tuple[int, float | None]:
    """Number (from 0) and ``metric`` of the best round so far; the first of equals."""
    best: int = 0
    value: float | None = getattr(history[0], metric)
    for number, metrics in enumerate(history):
        found = getattr(metrics, metric)
        if found is not None and (value is None or found > value):
            best, value = number, found
    return best, value


@dataclass(frozen=True)
class Costs:
    """Sums over all rounds up to one.

    ``images`` are those trained on, each as often as it was; ``passes`` is how often that is for one training image,
    on the mean over the images of all clients. ``seconds`` is wall time. ``exchanged`` is the bytes of weights that
    clients needed and sent, whatever a cache spared; ``moved`` the bytes that went to and from the store.
    """

    images: int
    passes: float
    seconds: float
    exchanged: int
    moved: int


def costs_by_round(records: Sequence[RoundRecord], local_epochs: int) -> list[Costs]:
    """The costs up to each of ``records``, rounds 0 to the last in order."""
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
