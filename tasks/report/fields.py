"""The fields of what was run: those that all experiments have in common, and those in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from tasks.report import text
from tasks.report.tables import Table, TableCell
from tasks.spec.federation import FederationSpec, flatten
from tasks.spec.strategies import FedAvgSpec

# The most important fields of an experiment. They are listed even if they have their defaults.
_MAIN = (
    "data.kind", "data.name", "data.split", "data.test", "data.train_images", "data.clients.kind",
    "data.clients.clients", "participation.clients", "participation.clients_per_round", "detector.kind",
    "detector.width", "detector.height", "max_rounds", "training.local_epochs", "training.batch_size",
    "training.optimizer.kind", "training.optimizer.lr", "training.device", "strategy.kind", "data.division",
)  # fmt: skip
# So are all fields below these: the division of the images among clients with its seed, and the initial weights.
_WHOLE = ("data.clients.", "detector.weights.")


def common_fields(specs: Sequence[FederationSpec]) -> list[tuple[str, str]]:
    """Return the fields, and their values, that are the same in all of ``specs``, if they are worth naming.

    These are the main fields, and every field that has not its default in one of ``specs``. All fields of a method are
    main fields, unless it is plain FedAvg.
    """
    flat = [_flat(spec) for spec in specs]
    if not flat:
        return []
    main = [*_MAIN, *(name for name in flat[0] if name.startswith(_WHOLE) and name not in _MAIN)]
    if any(spec.strategy != FedAvgSpec() for spec in specs):
        main += [name for name in flat[0] if name.startswith("strategy.") and name not in main]
    changed = {name for spec in specs for name in changed_from_default(spec)}
    names = [name for name in main if name in flat[0]]
    names += [name for name in flat[0] if name in changed and name not in main]
    return [
        (name, _value(flat[0][name]))
        for name in names
        if (flat[0].get(name) is not None or name in changed)
        and all(name in fields and fields[name] == flat[0][name] for fields in flat)
    ]


def changed_from_default(spec: FederationSpec) -> list[str]:
    """Return the dotted names of the fields that do not have their default, except the seed of the run.

    Where a part is of another kind than the default, its fields are compared with that kind's own defaults. A part
    that is null by default has all of its fields in the list.
    """
    return [name for name in _changed(spec, "") if name != "seed"]


def _changed(model: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value, path = getattr(model, name), f"{prefix}{name}"
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel) and default is None:
            yield from (f"{path}.{inner}" for inner in flatten(value.model_dump(mode="json")))
        elif isinstance(value, BaseModel):
            if type(value) is not type(default) and "kind" in type(value).model_fields:
                yield f"{path}.kind"
            yield from (inner for inner in _changed(value, f"{path}.") if inner != f"{path}.kind")
        elif value != default:
            yield path


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
