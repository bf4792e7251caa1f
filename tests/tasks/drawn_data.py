"""The drawn street as data, without any folder of images."""

from __future__ import annotations

from pathlib import Path

from tasks.data.catalog import load_data
from tasks.data.samples import FederatedData
from tasks.spec.data import SyntheticStreet


def drawn_data(spec: SyntheticStreet, cache: Path) -> FederatedData:
    """Return the data set of ``spec``. Draw it below ``cache`` unless it is there already."""
    return load_data(spec, root_of=lambda name: None, cache=cache)
