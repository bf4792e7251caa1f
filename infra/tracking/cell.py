"""What a suite passes to the process of one of its cells about the cell's run in MLflow: its parent, title and tags."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

CELL_VARIABLE = "FEDBENCH_MLFLOW_CELL"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's page shows a run below the run that this tag names


@dataclass(frozen=True)
class CellRun:
    """The place of a cell's MLflow run in its suite.

    title: the run's name. tags: for filters. parent: id of the suite's run; None if MLflow did not answer the suite.
    """

    title: str
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None

    def variables(self) -> dict[str, str]:
        """Return the environment variable by which the cell's process reads this."""
        return {CELL_VARIABLE: json.dumps(asdict(self))}

    @property
    def all_tags(self) -> dict[str, str]:
        """Return the tags, with the one that names the parent."""
        return {**self.tags, **({} if self.parent is None else {PARENT_TAG: self.parent})}


def this_cell() -> CellRun | None:
    """Return the cell that this process runs; None if a person or a deployment started the federation."""
    text = os.environ.get(CELL_VARIABLE)
    return None if text is None else CellRun(**json.loads(text))
