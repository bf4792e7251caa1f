"""The fields of what was run: those that all experiments have in common, and those in which they differ."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.report import text
from tasks.report.tables import Table, TableCell
from tasks.spec.federation import FederationSpec, flatten
from tasks.spec.strategies import FedAvgSpec

# The most important fields of an experiment. Those that do not differ are listed too.
_MAIN = (
    "data.kind", "data.name", "data.split", "data.test", "data.train_images", "data.clients.kind",
    "data.clients.clients", "participation.clients", "participation.clients_per_round", "detector.kind",
    "detector.width", "detector.height", "max_rounds", "training.local_epochs", "training.batch_size",
    "training.optimizer.kind", "training.optimizer.lr", "training.device", "strategy.kind",
)  # fmt: skip


def common_fields(specs: Sequence[FederationSpec]) -> list[tuple[str, str]]:
    """Return the main fields, and their values, that are the same in all of ``specs``.

    All fields of a method are main fields, unless it is plain FedAvg.
    """
    flat = [_flat(spec) for spec in specs]
    names = list(_MAIN)
    if any(spec.strategy != FedAvgSpec() for spec in specs):
        names += [name for name in flat[0] if name.startswith("strategy.") and name not in _MAIN]
    return [
        (name, _value(flat[0][name]))
        for name in names
        if flat and flat[0].get(name) is not None and all(fields.get(name) == flat[0][name] for fields in flat)
    ]


def differing_fields(specs: dict[str, FederationSpec]) -> Table | None:
    """Return the table of every field in which any two experiments differ, or None if they do not differ."""
    flat = {name: _flat(spec) for name, spec in specs.items()}
    names = sorted({name for fields in flat.values() for name in fields})
    rows = []
    for name in names:
        values = [fields.get(name) for fields in flat.values()]
        if any(value != values[0] for value in values):
            rows.append([TableCell(name), *(TableCell(_value(value), words=True) for value in values)])
    if not rows:
        return None
    return Table("Where the experiments differ", ["field", *flat], rows, prose=True)


def _flat(spec: FederationSpec) -> dict[str, object]:
    return {name: value for name, value in flatten(spec.model_dump(mode="json")).items() if name != "seed"}


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return text.NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)
