"""Names, tags and descriptions of runs for MLflow's page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from flows.views.mlflow_data import MOST, data_name
from flows.views.tables import describe
from infra.tracking.cell import CellRun
from tasks.plain_text import link_target, markdown
from tasks.spec.federation import FederationSpec, flatten
from tasks.spec.records import RoundRecord
from tasks.spec.references import is_reference
from tasks.spec.suite import Cell, Role

_LABEL_SPACES = 10  # most label spaces in a summary
_CLASSES_LENGTH = 200  # most characters of a label space there
_DESCRIBED = ("map50_voc10", "map_coco", "recall")


def filter_tags(spec: FederationSpec) -> dict[str, str]:
    """Return the tags by which people find runs: data, detector, method, role and seed."""
    role = "centralised" if spec.data.pooled else "local-only" if is_reference(spec) else "federated"
    return {
        "fedbench.data": data_name(spec),
        "fedbench.detector": spec.detector.kind,
        "fedbench.role": role,
        "fedbench.seed": str(spec.seed),
        **({"fedbench.method": spec.strategy.label} if role == "federated" else {}),
    }


def parameters(spec: FederationSpec) -> dict[str, object]:
    """Return the fields of ``spec`` by their dotted names. Their number does not grow with that of clients.

    ``data.label_space`` of many clients is one field, a summary; the file ``spec.yaml`` of the run has it whole.
    """
    document = spec.model_dump(mode="json")
    space = document["data"].get("label_space")
    if space is not None and len(space) > MOST:
        document["data"]["label_space"] = _label_spaces(space)
    return flatten(document)


def _label_spaces(space: Mapping[str, Sequence[str]]) -> str:
    """Return how many clients label which classes, the most frequent label spaces first."""
    counts = Counter(tuple(sorted(classes)) for classes in space.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{count} label {_shortened(', '.join(classes))}" for classes, count in ordered[:_LABEL_SPACES]]
    more = [f"{len(ordered) - len(lines)} more label spaces"] if len(ordered) > len(lines) else []
    return f"{len(space)} clients: {'; '.join([*lines, *more])}"


def _shortened(text: str) -> str:
    return text if len(text) <= _CLASSES_LENGTH else text[: _CLASSES_LENGTH - 1] + "…"


def cell_title(experiment: str, role: Role, seed: int, device: str | None) -> str:
    """Return the name of a cell's run, as ``laptop · seed 1`` or ``laptop · seed 1 · centralised``."""
    ending = {"federated": "", "centralised": " · centralised", "local-only": f" · device {device} alone"}[role]
    return f"{experiment} · seed {seed}{ending}"


def cell_run(suite: str, cell: Cell, parent: str | None) -> CellRun:
    """Return the place of ``cell`` in its suite. parent: id of the suite's run in MLflow, if it is known."""
    tags = {
        "fedbench.suite": suite,
        "fedbench.cell": cell.name,
        "fedbench.experiment": cell.experiment,
        "fedbench.role": cell.role,
        "fedbench.seed": str(cell.seed),
        **({"fedbench.device": cell.device} if cell.device is not None else {}),
    }
    return CellRun(cell_title(cell.experiment, cell.role, cell.seed, cell.device), tags, parent)


def description(
    name: str, spec: FederationSpec, history: Sequence[RoundRecord], *, prefect: str | None, ui: str
) -> str:
    """Return the description (Markdown) of a federation's run: what it is, its best figures, where to see more.

    prefect: the address of Prefect's page; None if its server ends with the command. ui: the command that serves it.
    """
    lines = [f"{markdown(describe(spec))} · data {markdown(data_name(spec))} · seed {spec.seed}", ""]
    if history:
        last, best = history[-1], history[history[-1].decision.best_round]
        figures = best.figures_on(best.shown_on)
        shown = [f"{key} {value:.3f}" for key in _DESCRIBED if (value := getattr(figures, key)) is not None]
        if shown:
            lines.append(f"- Best round {best.round} of {last.round}: {', '.join(shown)}")
        if last.decision.reason is not None:
            lines.append(f"- Stopped by {last.decision.reason}")
    link = f"`{ui}`" if prefect is None else f"[flow run]({link_target(prefect)})"
    lines += [f"- Prefect: {link}", f"- Commands: `fedbench show {name}` · `fedbench compare {name} OTHER`"]
    return "\n".join(lines) + "\n"
