"""An opened model: a detector and its card, with the run and the round that it is from."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.detectors.base import Detector
from tasks.models.file import ModelCard
from tasks.spec.data import DataSpec
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.records import RoundRecord
from tasks.spec.training import EvaluationSpec


@dataclass(frozen=True)
class OpenedModel:
    """A detector in evaluation mode, on the CPU, with its card.

    ``title`` names it on the terminal. ``spec`` and ``record`` are those of its run; None for a model file.
    ``client``: whose own model it is, and whose view of the round ``record`` is; None for a shared model.
    """

    title: str
    detector: Detector
    card: ModelCard
    spec: FederationSpec | None = None
    record: RoundRecord | None = None
    client: str | None = None

    @property
    def data(self) -> DataSpec | None:
        """The data that the model was trained on; None if the card names none.

        Raises:
            SpecError: this version of fedbench does not know the kind of the card's data, or a field of them.
        """
        if self.spec is not None:
            return self.spec.data
        if self.card.data is None:
            return None
        return parse_spec({"data": self.card.data}, source=f"{self.title}: card").data

    @property
    def evaluation(self) -> EvaluationSpec:
        """The rules that scored the run; the default rules if the card of a model file has none."""
        return (self.spec or self.card).evaluation or EvaluationSpec()
