"""Compare the federated methods of a suite: each with FedAvg of the same local training, at the same seeds.

Methods with one baseline are ranked by their mean paired difference. Student's interval and the bootstrap's are of this
mean (:mod:`tasks.suite.intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from tasks.spec.federation import FederationSpec
from tasks.spec.references import STOPPING
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.suite_records import SuiteResult
from tasks.suite.intervals import CONFIDENCE, Interval, image_interval, seed_interval
from tasks.suite.matches import ImageMatches
from tasks.suite.spread import critical_t
from tasks.suite.summary import Group, Paired, Spread, by_seed, paired_runs

NO_MATCHES: Mapping[str, ImageMatches] = MappingProxyType({})


@dataclass(frozen=True)
class Compared:
    """A method's experiment beside its baseline.

    baseline: the experiment with FedAvg that differs in the strategy alone; None for a baseline itself.
    figure: the suite's metric at the last round; None if no run has it.
    seconds, moved: wall time of a run, and bytes to and from the store.
    paired: the method less its baseline, seed by seed; None if no seed has both.
    rank: 1 for the greatest mean difference among the methods of one baseline; None for a baseline, and without one.
    over_seeds: the bootstrap interval of the mean difference over seeds; None with fewer than three.
    over_images: the same over seeds and test images, or with fewer than three seeds over images alone; None if the
        detections of a run are not at hand.
    """

    experiment: str
    spec: FederationSpec
    baseline: str | None
    figure: Spread | None
    seconds: Spread
    moved: Spread
    paired: Paired | None
    rank: int | None = None
    over_seeds: Interval | None = None
    over_images: Interval | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return Student's interval of the mean difference; None with fewer than two seeds.

        It holds the mean with a probability of 95 % if differences are normally distributed over seeds.
        """
        difference = self.paired.difference if self.paired is not None else None
        if difference is None or difference.sd is None:
            return None
        half = critical_t((1 - CONFIDENCE) / 2, difference.n - 1) * difference.sd / math.sqrt(difference.n)
        return difference.mean - half, difference.mean + half


def compare_methods(result: SuiteResult, matches: Mapping[str, ImageMatches] = NO_MATCHES) -> list[Compared]:
    """Return the baselines of ``result``, each followed by the methods that are compared with it, best first.

    matches: the matches of each run's last round, by the federation's name, as far as they are at hand.

    Experiments without a baseline, and baselines of none, are left out. So is an experiment without a federated run.
    """
    runs = {name: found for name in result.specs if (found := by_seed(result, name, "federated"))}
    baselines = {name: result.specs[name] for name in runs if result.specs[name].strategy == FedAvgSpec()}
    compared = []
    for baseline, spec in baselines.items():
        methods = [name for name in runs if name not in baselines and _alike(result.specs[name], spec)]
        group = []
        for name in [baseline, *methods] if methods else []:
            cells = [cell for group in runs[name].values() for cell in group]
            figures = tuple(value for cell in cells if (value := cell.last.figures.get(result.metric)) is not None)
            paired = None if name == baseline else paired_runs(result.metric, runs[name], runs[baseline])
            group.append(
                Compared(
                    experiment=name,
                    spec=result.specs[name],
                    baseline=None if name == baseline else baseline,
                    figure=Spread(figures) if figures else None,
                    seconds=Spread(tuple(cell.last.seconds for cell in cells)),
                    moved=Spread(tuple(float(cell.moved) for cell in cells)),
                    paired=paired,
                    over_seeds=None if paired is None else seed_interval(paired.difference.values),
                    over_images=None
                    if paired is None
                    else image_interval(_image_pairs(result.metric, runs[name], runs[baseline], matches), seeds=True),
                )
            )
        compared += _ranked(group)
    return compared


def _ranked(group: list[Compared]) -> list[Compared]:
    """Return a baseline and its methods with ranks, best first. Those without a difference follow without a rank."""
    without = [item for item in group if item.paired is None]  # the baseline is the first
    differences = [(item, item.paired.difference.mean) for item in group if item.paired is not None]
    ordered = [item for item, _ in sorted(differences, key=lambda pair: -pair[1])]
    ranked = [replace(item, rank=number) for number, item in enumerate(ordered, 1)]
    return [*without[:1], *ranked, *without[1:]]


def _image_pairs(
    metric: str, method: Mapping[int, Group], baseline: Mapping[int, Group], matches: Mapping[str, ImageMatches]
) -> list[tuple[ImageMatches, ImageMatches]]:
    """Return both runs' matches for each seed that both have; none unless all are at hand and are of equal passes.

    Nor are there any if a run's figure is not the mAP of its matches, as with a mean over several test sets.
    """
    pairs = []
    for seed in (seed for seed in method if seed in baseline):
        runs = (method[seed][0], baseline[seed][0])
        found = [matches[run.federation] for run in runs if run.federation in matches]
        if len(found) < len(runs) or not math.isclose(runs[0].last.passes, runs[1].last.passes, rel_tol=1e-9):
            return []
        if not all(_is_figure(run.last.figures.get(metric), its) for run, its in zip(runs, found, strict=True)):
            return []
        pairs.append((found[0], found[1]))
    return pairs


def _is_figure(figure: float | None, matches: ImageMatches) -> bool:
    return figure is not None and math.isclose(figure, float(matches.mean_average_precision()[0]), abs_tol=1e-6)


def _alike(method: FederationSpec, baseline: FederationSpec) -> bool:
    """Return whether two specifications learn in the same way but for the strategy. When they stop does not matter.

    Nor does the seed, which is replaced in each run.
    """
    names = ("strategy", "seed", *STOPPING)
    return method.model_copy(update={name: getattr(baseline, name) for name in names}) == baseline
