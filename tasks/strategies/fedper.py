"""FedPer: the head stays at the client; all else is averaged as in FedAvg.

Arivazhagan et al., *Federated Learning with Personalization Layers*, arXiv 1912.00818, Algorithms 1 and 2. A turn
trains body and head together. The head is the detector's (:meth:`tasks.detectors.base.Detector.head_names`).
"""

from __future__ import annotations

from tasks.spec.strategies import FedPerSpec
from tasks.strategies.partly_local import PartlyLocal


class FedPer(PartlyLocal[FedPerSpec]):
    """Each client keeps its head."""

    kept = "head"


METHOD = FedPer
