"""A federation on Prefect's pages: its progress, each round's clients, and a summary with plots."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Sequence
from uuid import UUID

from PIL import Image
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)

from flows.stored.runs import stopped
from infra.views import Views
from tasks.handles import Handles, Leavings
from tasks.plain_text import link_target, markdown
from tasks.report.drawn import image_bytes
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import PARTS
from tasks.spec.records import RoundRecord
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.training import PART_NAMES, ScoredOn

# Prefect's page gives the summary a column of some 700 pixels.
WIDTH = 1040
# The figures of each round in the summary.
_SHOWN = ("map50_voc10", "map_coco", "recall")
_HELD_OUT = PART_NAMES["holdout"]
_REASONS = 10  # of dropped clients, at most this many are above the table
_PROGRESS = "the progress on Prefect's page"


def artifact_key(kind: str, name: str) -> str:
    """Return the key of an artifact: small letters, digits and dashes, as Prefect requires."""
    return f"{kind}-{name}".lower().replace(".", "-").replace("_", "-")


async def show_clients(handles: Handles, record: RoundRecord) -> None:
    """Put the round's table of clients on the page of its flow run."""
    with handles.views.showing("the table of clients on Prefect's page"):
        await acreate_table_artifact(
            key=artifact_key("round", record.federation),
            table=client_table(record),
            description=round_description(record),
        )


def round_description(record: RoundRecord) -> str:
    """Return the Markdown above the table: how many clients took part, and why the first of the others did not.

    The reasons are here because the page breaks no line of a table, and cuts one off that is wider than its column.
    """
    lines = [f"Round {record.round}: {len(record.updates)} of {_clients_asked(record)} clients."]
    if record.evaluations_on("holdout"):
        lines += ["", f"{_HELD_OUT}: map50_voc10 on the client's held-out images."]
    if record.dropped:
        lines.append("")
    lines += [
        f"* client {markdown(failure.client)} dropped: {markdown(f'{failure.kind}: {failure.reason}')}"
        for failure in record.dropped[:_REASONS]
    ]
    if len(record.dropped) > _REASONS:
        lines.append(f"* and {len(record.dropped) - _REASONS} more; the log of the federation's run has all")
    return "\n".join(lines)


def _clients_asked(record: RoundRecord) -> int:
    return len(record.updates) if record.plan is None else len(record.plan.cohort)


class RunArtifacts:
    """Progress and summary on the page of one federation's flow run. A failure is noted in ``views``."""

    def __init__(self, name: str, spec: FederationSpec, views: Views) -> None:
        self._name, self._spec, self._views = name, spec, views
        self._progress: UUID | None = None
        self._method = None if spec.strategy == FedAvgSpec() else spec.strategy.label

    def _done(self, history: Sequence[RoundRecord]) -> float:
        """Return the committed rounds in whole per cent; 100 also for a federation that stopped early."""
        if stopped(self._spec, history):
            return 100.0
        return 100.0 * len(history) // (self._spec.max_rounds + 1)

    async def begin(self, history: Sequence[RoundRecord]) -> None:
        with self._views.showing(_PROGRESS):
            await self._begin(history)

    async def _begin(self, history: Sequence[RoundRecord]) -> None:
        self._progress = await acreate_progress_artifact(
            progress=self._done(history),
            key=artifact_key("progress", self._name),
            description=f"Rounds 0 to {self._spec.max_rounds}",
        )

    async def round_committed(self, history: Sequence[RoundRecord]) -> None:
        with self._views.showing(_PROGRESS):
            if self._progress is None:  # an earlier attempt failed
                await self._begin(history)
            if self._progress is not None:
                last = history[-1]
                score = _fraction(last.shown.map50_voc10)
                name = "map50_voc10" if last.shown_on == "test" else f"{PART_NAMES[last.shown_on]} map50_voc10"
                await aupdate_progress_artifact(
                    self._progress,
                    progress=self._done(history),
                    description=f"Round {last.round} of {self._spec.max_rounds}, {name} {score}",
                )

    async def finish(self, history: Sequence[RoundRecord], leavings: Leavings) -> None:
        with self._views.showing("the summary on Prefect's page"):
            await acreate_markdown_artifact(
                key=artifact_key("federation", self._name),
                markdown=await asyncio.to_thread(
                    summary, self._name, history, leavings, self._views, method=self._method
                ),
                description=f"Best: {_best(history)}.",
            )


def _best(history: Sequence[RoundRecord]) -> str:
    last = history[-1].decision
    return f"round {last.best_round}, {last.best_name} {_fraction(last.best)}"


def _fraction(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:#.4g}"


def _inlined(text: str, image: Image.Image, kind: str, **options: int) -> list[str]:
    """Return the Markdown of a picture that is embedded in the page, so that no server has to deliver it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return ["", f"![{text}](data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()})"]


def _curves(history: Sequence[RoundRecord]) -> list[str]:
    from tasks.figures.plots import rounds_plot

    png = image_bytes(rounds_plot(history, stacked=True), "png")
    with Image.open(io.BytesIO(png)) as image:
        return _inlined("Loss, recall and mean average precision by round", image.convert("RGB").quantize(64), "png")


def _sheet(png: bytes) -> list[str]:
    with Image.open(io.BytesIO(png)) as image:
        shown = image.convert("RGB")
    shown.thumbnail((WIDTH, 2 * WIDTH))
    return _inlined("Test images with what is there and what was found", shown, "jpeg", quality=85)


def summary(
    name: str, history: Sequence[RoundRecord], leavings: Leavings, views: Views, *, method: str | None = None
) -> str:
    """Return Markdown with the federated method, links to MLflow's run and model, the table of rounds, and the plots.

    method: named if it is not None, which stands for plain FedAvg.

    A plot that cannot be drawn is noted in ``views``, and left out. Where the settings say so, none is drawn.
    """
    reason = history[-1].decision.reason or "nothing yet"
    lines = [f"# {markdown(name)}", "", f"Best: {_best(history)}. Stopped by: {reason}.", ""]
    if method is not None:
        lines += [f"Method: {markdown(method)}", ""]
    if leavings.page is not None:
        lines += [f"All figures, plots and the model: [MLflow run]({link_target(leavings.page)})", ""]
    if leavings.model is not None:
        lines += [f"Model: {markdown(leavings.model)}", ""]
    lines += _rounds(history)
    lines += _own_models(history)
    if leavings.drawn:
        with views.showing("the plot of rounds on Prefect's page"):
            lines += _curves(history)
    if "sheet.png" in leavings.plots:
        with views.showing("the sheet of detections on Prefect's page"):
            lines += _sheet(leavings.plots["sheet.png"])
    return "\n".join(lines)


def _rounds(history: Sequence[RoundRecord]) -> list[str]:
    """Return the Markdown of the tables of rounds: their figures, and their costs.

    Figures on several parts of the data have a table each. The page gives text a column of 65 characters, and in a
    window of 1280 pixels less; it cuts a wider table off.
    """
    scored = [part for part in PARTS if any(part in record.scored_on for record in history)] or ["test"]
    rounds = ["round", *(str(record.round) for record in history)]
    learned = [
        ["clients", "train loss"],
        *([str(len(record.updates)), _loss(record.metrics.train_loss)] for record in history),
    ]
    figures = [[_figure_heads(part), *(_figures(record, part) for record in history)] for part in scored]
    costs = [
        ["MB up", "seconds"],
        *([f"{record.bytes_up / 1e6:.1f}", f"{sum(record.seconds.values()):.1f}"] for record in history),
    ]
    if len(figures) == 1:
        learned = [[*left, *right] for left, right in zip(learned, figures.pop(), strict=True)]
    lines = []
    for columns in (learned, *figures, costs):
        lines += ["", *_table([[number, *row] for number, row in zip(rounds, columns, strict=True)])]
    return lines[1:]


def _figure_heads(part: ScoredOn) -> list[str]:
    return [f"{PART_NAMES[part]} loss", *(name if part == "test" else f"{PART_NAMES[part]} {name}" for name in _SHOWN)]


def _figures(record: RoundRecord, part: ScoredOn) -> list[str]:
    metrics = record.figures_on(part)
    return [_loss(metrics.loss), *(_fraction(getattr(metrics, name)) for name in _SHOWN)]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the Markdown of a table whose first row is its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [head, f"|{' ---: |' * len(rows[0])}", *body]


def _own_models(history: Sequence[RoundRecord]) -> list[str]:
    """Return the Markdown of a table of the clients' own models by round; nothing if the method keeps none."""
    metric, rows = history[-1].decision.best_metric, []
    for record in history:
        own = record.metrics.on(record.decision.on).personal
        spread = own.figures.get(metric) if own is not None else None
        if spread is not None:
            figures = " | ".join(_fraction(value) for value in (spread.mean, spread.worst, spread.deviation))
            rows.append(f"| {record.round} | {spread.clients} | {figures} | {markdown(spread.worst_client)} |")
    if not rows:
        return []
    heads = f"| round | clients | mean {metric} | worst | deviation | worst client |"
    return ["", "The clients' own models:", "", heads, "|" + " ---: |" * 6, *rows]


def _held_out(record: RoundRecord, client: str) -> dict[str, object]:
    """Return a client's columns on held-out images: none if the round scored none, a dash without a figure."""
    held = record.evaluations_on("holdout")
    if not held:
        return {}
    value = next((item.map50_voc10 for item in held if client in item.clients), None)
    return {_HELD_OUT: _fraction(value)}


def client_table(record: RoundRecord) -> list[dict[str, object]]:
    """Return one row for each client of the round. Texts are escaped, as Prefect's page renders them as Markdown.

    In a window of 1280 pixels the page has room for 580 pixels of it, so headings are short and ``dropped`` is a word.
    """
    updates = {update.client: update for update in record.updates}
    reasons = {failure.client: failure.kind for failure in record.dropped}
    rows: list[dict[str, object]] = []
    for client in sorted({info.client for info in record.clients} | reasons.keys(), key=lambda c: (len(c), c)):
        update = updates.get(client)
        rows.append(
            {
                "client": markdown(client),
                "images": update.train_size if update else None,
                **_held_out(record, client),
                "train loss": float(_loss(update.train_loss)) if update else None,
                "steps": update.steps if update else None,
                "seconds": round(update.seconds, 1) if update else None,
                "MB up": round(update.bytes_up / 1e6, 2) if update else None,
                "dropped": reasons.get(client, ""),
            }
        )
    return rows
