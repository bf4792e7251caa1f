"""What a loss takes of a batch."""

from __future__ import annotations

from tasks.data.batches import Batch
from tasks.detectors.base import Targets


def targets_of(batch: Batch) -> Targets:
    """Return the objects, ignore regions and label spaces of a batch."""
    return Targets(batch.boxes, batch.labels, batch.regions, batch.region_labels, batch.labelled)
