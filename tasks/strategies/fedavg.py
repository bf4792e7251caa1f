"""FedAvg: ``x ← Σ p_i y_i``.

McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, arXiv 1602.05629,
Algorithm 1. The weights may be the clients' images, as there, their objects, or equal.
"""

from __future__ import annotations

from tasks.spec.strategies import FedAvgSpec
from tasks.strategies.base import Strategy


class FedAvg(Strategy[FedAvgSpec]):
    """The weighted mean of the updates; nothing changes in a local step."""


METHOD = FedAvg
