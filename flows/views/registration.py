"""Register the best global model of a finished run as a version of a registered model, with a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def model_files(spec: FederationSpec, record: RoundRecord, weights: Callable[[], Path]) -> ModelFiles:
    """Return the parts of the registered model for ``record``'s round, made by the installed code.

    weights: returns a safetensors file with the round's checked weights; called when the model file is written.

    Raises:
        DataError: the record names no client.
    """
    # Imported here, because a finished run is printed without torch.
    from tasks.models.card import card_of
    from tasks.models.file import card_text, read_state, write_model

    card = card_of(spec, record)

    def write(path: Path) -> None:
        write_model(path, card, read_state(weights()))

    return ModelFiles(
        code=Path(__file__).with_name("served_model.py"),
        packages=(Path(tasks.__path__[0]),),
        requirements=REQUIREMENTS,
        write_model=write,
        card=card_text(card, uri=model_uri(record.federation)),
        config={"nms_iou": spec.evaluation.nms_iou},
    )


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
    """Register the best model of ``handles.history`` once, and note it in the run's ``folder``.

    tags: more tags of the model's version.

    Raises:
        TrackingUnavailable: MLflow or its artifact store failed.
        DataError, StoreUnavailable, StoreCorrupt: the weights cannot be read.
    """
    record = best_record(handles.history)

    def weights() -> Path:
        return handles.weights.get(record.model.key, record.model.sha256, record.model.bytes).path

    figures = record.shown.model_dump()
    on = {} if record.shown_on == "test" else {"fedbench.figures_on": record.shown_on}
    version = register_best(
        tracker,
        BestModel(
            name=name,
            round=record.round,
            spec_digest=record.spec_digest,
            code_version=record.environment.fedbench,
            weights_sha256=record.model.sha256,
            files=model_files(spec, record, weights),
            tags={
                f"fedbench.{measure}": str(value)
                for measure, value in figures.items()
                if measure.startswith("map") and value is not None
            }
            | on
            | dict(tags or {}),
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
