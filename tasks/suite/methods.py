"""Compare the federated methods of a suite: each with FedAvg of the same local training, at the same seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.spec.federation import FederationSpec
from tasks.spec.references import STOPPING
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.suite_records import SuiteResult
from tasks.suite.spread import critical_t
from tasks.suite.summary import Paired, Spread, by_seed, paired_runs

# Probability that an interval holds the mean difference, if differences are normally distributed over seeds.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Compared:
    """A method's experiment beside its baseline.

    baseline: the experiment with FedAvg that differs in the strategy alone; None for a baseline itself.
    figure: the suite's metric at the last round; None if no run has it.
    seconds, moved: wall time of a run, and bytes to and from the store.
    paired: the method less its baseline, seed by seed; None if no seed has both.
    """

    experiment: str
    spec: FederationSpec
    baseline: str | None
    figure: Spread | None
    seconds: Spread
    moved: Spread
    paired: Paired | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the bounds of the confidence interval of the mean difference; None with fewer than two seeds."""
        difference = self.paired.difference if self.paired is not None else None
        if difference is None or difference.sd is None:
            return None
        half = critical_t((1 - CONFIDENCE) / 2, difference.n - 1) * difference.sd / math.sqrt(difference.n)
        return difference.mean - half, difference.mean + half


def compare_methods(result: SuiteResult) -> list[Compared]:
    """Return the baselines of ``result``, each followed by the methods that are compared with it.

    Experiments without a baseline, and baselines of none, are left out. So is an experiment without a federated run.
    """
    runs = {name: found for name in result.specs if (found := by_seed(result, name, "federated"))}
    baselines = {name: result.specs[name] for name in runs if result.specs[name].strategy == FedAvgSpec()}
    compared = []
    for baseline, spec in baselines.items():
        methods = [name for name in runs if name not in baselines and _alike(result.specs[name], spec)]
        for name in [baseline, *methods] if methods else []:
            cells = [cell for group in runs[name].values() for cell in group]
            figures = tuple(value for cell in cells if (value := cell.last.figures.get(result.metric)) is not None)
            compared.append(
                Compared(
                    experiment=name,
                    spec=result.specs[name],
                    baseline=None if name == baseline else baseline,
                    figure=Spread(figures) if figures else None,
                    seconds=Spread(tuple(cell.last.seconds for cell in cells)),
                    moved=Spread(tuple(float(cell.moved) for cell in cells)),
                    paired=None if name == baseline else paired_runs(result.metric, runs[name], runs[baseline]),
                )
            )
    return compared


def _alike(method: FederationSpec, baseline: FederationSpec) -> bool:
    """Return whether two specifications learn in the same way but for the strategy. When they stop does not matter.

    Nor does the seed, which is replaced in each run.
    """
    names = ("strategy", "seed", *STOPPING)
    return method.model_copy(update={name: getattr(baseline, name) for name in names}) == baseline
