"""FedBN: normalisation layers stay at the client; all else is averaged as in FedAvg.

Li et al., *FedBN: Federated Learning on Non-IID Features via Local Batch Normalization*, arXiv 2102.07623, Algorithm 1.
All tensors of these layers stay: weights, statistics and counters. The paper has BatchNorm; here GroupNorm's and
LayerNorm's weights stay too.
"""

from __future__ import annotations

from tasks.spec.strategies import FedBNSpec
from tasks.strategies.partly_local import PartlyLocal


class FedBN(PartlyLocal[FedBNSpec]):
    """Each client keeps its normalisation layers."""

    kept = "normalisation"


METHOD = FedBN
