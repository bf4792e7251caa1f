"""What Prefect's pages show of a federation: its progress, each round's clients, and a summary with its plots."""

from __future__ import annotations

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

from flows.stored import stopped
from infra.place import Leavings
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord

# Those that the summary shows; the others are in MLflow.
PLOTS = ("rounds.png", "sheet.png")


def artifact_key(kind: str, name: str) -> str:
    """Keys have small letters, digits and dashes."""
    return f"{kind}-{name}".lower().replace(".", "-").replace("_", "-")


async def show_clients(record: RoundRecord) -> None:
    """The round's table of clients, on its flow run's page."""
    await acreate_table_artifact(
        key=artifact_key("round", record.federation),
        table=client_table(record),
        description=f"Round {record.round} of {record.federation}: its clients.",
    )


class RunArtifacts:
    """Progress and summary of one federation's flow run."""

    def __init__(self, name: str, spec: FederationSpec) -> None:
        self._name, self._spec = name, spec
        self._progress: UUID | None = None

    def _done(self, history: Sequence[RoundRecord]) -> float:
        """Per cent of the rounds; a federation that stops early is done too."""
        if stopped(self._spec, history):
            return 100.0
        return 100.0 * len(history) / (self._spec.max_rounds + 1)

    async def begin(self, history: Sequence[RoundRecord]) -> None:
        self._progress = await acreate_progress_artifact(
            progress=self._done(history),
            key=artifact_key("progress", self._name),
            description=f"{self._name}: rounds 0 to {self._spec.max_rounds}",
        )

    async def round_committed(self, history: Sequence[RoundRecord]) -> None:
        if self._progress is not None:
            last = history[-1]
            score = "–" if last.metrics.map50_voc10 is None else f"{last.metrics.map50_voc10:.3f}"
            await aupdate_progress_artifact(
                self._progress,
                progress=self._done(history),
                description=f"{self._name}: round {last.round} of {self._spec.max_rounds}, map50_voc10 {score}",
            )

    async def finish(self, history: Sequence[RoundRecord], leavings: Leavings) -> None:
        await acreate_markdown_artifact(
            key=artifact_key("federation", self._name),
            markdown=summary(self._name, history, leavings),
            description=f"Federation {self._name}",
        )


def _small(png: bytes) -> bytes:
    """The plot for a page that holds it inside: the whole one is in MLflow."""
    with Image.open(io.BytesIO(png)) as image:
        shown = image.convert("RGB")
    shown.thumbnail((1200, 1200))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def summary(name: str, history: Sequence[RoundRecord], leavings: Leavings) -> str:
    """The federation's rounds as a Markdown table, its plots, and where to read on."""
    last = history[-1].decision
    best = "–" if last.best is None else f"{last.best_metric} {last.best:.4g}"
    lines = [f"# {name}", "", f"Best: round {last.best_round}, {best}. Stopped by: {last.reason or 'nothing yet'}.", ""]
    if leavings.page is not None:
        lines += [f"[MLflow run]({leavings.page})", ""]
    if leavings.model is not None:
        lines += [f"Model: `{leavings.model}`", ""]
    lines += [
        "| round | clients | train loss | test loss | map50_voc10 | map_coco | recall | MB up | seconds |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for record in history:
        metrics = record.metrics
        values = (metrics.train_loss, metrics.loss, metrics.map50_voc10, metrics.map_coco, metrics.recall)
        shown = " | ".join("–" if value is None else f"{value:.4g}" for value in values)
        tail = f"{record.bytes_up / 1e6:.1f} | {sum(record.seconds.values()):.1f}"
        lines.append(f"| {record.round} | {len(record.updates)} | {shown} | {tail} |")
    for plot in PLOTS:
        if plot in leavings.plots:
            image = base64.b64encode(_small(leavings.plots[plot])).decode()
            lines += ["", f"![{plot}](data:image/jpeg;base64,{image})"]
    return "\n".join(lines)


def client_table(record: RoundRecord) -> list[dict[str, object]]:
    """Rows of the round's table artifact: one a client."""
    updates = {update.client: update for update in record.updates}
    reasons = {failure.client: f"{failure.kind}: {failure.reason}" for failure in record.dropped}
    rows: list[dict[str, object]] = []
    for client in sorted({info.client for info in record.clients} | reasons.keys(), key=lambda c: (len(c), c)):
        update = updates.get(client)
        rows.append(
            {
                "client": client,
                "images": update.train_size if update else None,
                "train loss": round(update.train_loss, 4) if update else None,
                "steps": update.steps if update else None,
                "seconds": round(update.seconds, 1) if update else None,
                "MB up": round(update.bytes_up / 1e6, 2) if update else None,
                "dropped": reasons.get(client, ""),
            }
        )
    return rows
