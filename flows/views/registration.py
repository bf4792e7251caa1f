"""Register a model of a finished run, by itself the best global one, as a version of a registered model with a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

import tasks
from infra.files.durable import write_durably
from infra.store.weights import WeightStore
from infra.tracking.federation import Tracker
from infra.tracking.model_folder import ModelFiles
from infra.tracking.registry import BestModel, model_uri, register_best
from tasks.handles import Handles
from tasks.spec.base import Sha256
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.models.file import ModelCard

# Packages that flows/views/served_model.py imports, directly or through `tasks`.
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "safetensors", "torch", "torchvision")
FILE = "model.json"


class Registered(BaseModel):
    """``model.json`` in a run's folder: the model registered last, so that a finished run need not ask MLflow."""

    uri: str
    version: str
    weights_sha256: Sha256


def best_record(history: Sequence[RoundRecord]) -> RoundRecord:
    """Return the record of the best round, which the last decision names."""
    return history[history[-1].decision.best_round]


def best_figure(history: Sequence[RoundRecord]) -> float | None:
    """Return the figure for which the best round was chosen; None: no round has one, so none is the best.

    A run has none if no image that decides has an object, for example.
    """
    decision = history[-1].decision
    if decision.best is not None:
        return decision.best
    figure: float | None = getattr(best_record(history).figures_on(decision.on), decision.best_metric)
    return figure


def without_best(name: str, history: Sequence[RoundRecord]) -> str:
    """Return why no model of the federation ``name`` is registered as the best, and how to register one."""
    return (
        f"no model is registered: no round has a {history[-1].decision.best_name}, so none is the best; fedbench "
        f"register {name} --round N registers the model of round N"
    )


def model_files(spec: FederationSpec, record: RoundRecord, weights: Callable[[], Path], uri: str = "") -> ModelFiles:
    """Return the parts of the registered model for ``record``'s round, made by the installed code.

    weights: returns a safetensors file with the round's checked weights; called when the model file is written.
    uri: the registered model's; by default that of the federation's name.

    Raises:
        DataError: the record names no client.
    """
    # Imported here, because a finished run is printed without torch.
    from tasks.models.card import card_of
    from tasks.models.file import read_state

    uri = uri or model_uri(record.federation)
    return files_of(spec, card_of(spec, record), lambda: read_state(weights()), uri)


def files_of(
    spec: FederationSpec,
    card: ModelCard,
    state: Callable[[], Mapping[str, Tensor]],
    uri: str,
    client: str | None = None,
) -> ModelFiles:
    """Return the parts of a registered model, made by the installed code.

    state: returns the weights; called when the model file is written.
    uri: the registered model's. client: whose own model it is; None for a shared one.
    """
    from tasks.detectors.registry import DETECTORS
    from tasks.models.file import card_text, write_model

    def write(path: Path) -> None:
        write_model(path, card, state())

    return ModelFiles(
        code=Path(__file__).with_name("served_model.py"),
        packages=(Path(tasks.__path__[0]),),
        requirements=REQUIREMENTS,
        write_model=write,
        card=card_text(card, uri=uri, client=client),
        config={"nms_iou": spec.evaluation.nms_iou},
        modules=tuple(sorted({path.partition(":")[0] for path in DETECTORS.values()})),
    )


def version_tags(spec: FederationSpec, record: RoundRecord) -> dict[str, str]:
    """Return the tags of a model's version: the method, the metric that chose the round, and the round's figures.

    record: the round's, or a client's view of it.
    """
    metric = record.decision.best_metric
    figures = record.shown.model_dump()
    shown = {name for name in figures if name.startswith("map")} | {metric}
    return {
        **{f"fedbench.{name}": str(figures[name]) for name in figures if name in shown and figures[name] is not None},
        **({} if record.shown_on == "test" else {"fedbench.figures_on": record.shown_on}),
        "fedbench.method": spec.strategy.label,
        "fedbench.metric": metric,
    }


@dataclass(frozen=True)
class Trained:
    """A federation's committed rounds, and the store of their weights."""

    history: Sequence[RoundRecord]
    weights: WeightStore


def register(
    handles: Handles | Trained,
    tracker: Tracker,
    name: str,
    spec: FederationSpec,
    folder: Path,
    tags: Mapping[str, str] | None = None,
) -> Registered:
    """Register the best model of ``handles.history``, which has a best round, once, and note it in ``folder``.

    tags: more tags of the model's version.

    Raises:
        TrackingUnavailable: MLflow or its artifact store failed.
        DataError, StoreUnavailable, StoreCorrupt: the weights cannot be read.
    """
    record = best_record(handles.history)

    def weights() -> Path:
        return handles.weights.get(record.model.key, record.model.sha256, record.model.bytes).path

    version = register_best(
        tracker,
        BestModel(
            name=name,
            federation=name,
            round=record.round,
            spec_digest=record.spec_digest,
            code_version=record.environment.fedbench,
            weights_sha256=record.model.sha256,
            files=model_files(spec, record, weights),
            tags=version_tags(spec, record) | dict(tags or {}),
        ),
        scratch=folder / "registering",
    )
    registered = Registered(uri=model_uri(name), version=version, weights_sha256=record.model.sha256)
    write_durably(folder / FILE, registered.model_dump_json(indent=2) + "\n")
    return registered


def noted(folder: Path, history: Sequence[RoundRecord]) -> str | None:
    """Return the URI of the registered model if the note in the run's folder is about the best one of ``history``."""
    try:
        registered = Registered.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # pydantic's ValidationError is a ValueError
        return None
    return registered.uri if registered.weights_sha256 == best_record(history).model.sha256 else None
