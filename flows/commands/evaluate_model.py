"""Evaluate a model for the terminal: choose its data and rules, and make tables of its figures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flows.commands.arguments import ChosenData, choose_data
from flows.commands.opened_model import OpenedModel
from infra.files.private import data_cache
from infra.settings import Settings
from tasks.analysis.analyse import DetectionAnalysis, analyse
from tasks.data.batches import Batch
from tasks.data.catalog import load_data
from tasks.data.entries import Faults
from tasks.data.loading import EvaluationLoader
from tasks.errors import DataError, SpecError
from tasks.metrics.over_clients import aggregate_metrics
from tasks.metrics.scored import ScoredModel
from tasks.models.card import FIGURES
from tasks.models.evaluate import EvaluationSet, evaluation_sets, score_sets
from tasks.plain_text import few_of, plain, plain_name
from tasks.report.detections import analysis_files
from tasks.spec.data import DataSpec
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.plans import IMAGES_HAVE
from tasks.spec.records import EvaluationRecord, Metrics, RoundRecord
from tasks.spec.training import PART_NAMES, ScoredOn

MOST_COLUMNS = 6  # most test sets that have a column each in the table of classes; JSON has all
_PLAIN: dict[str, Any] = {"box": None, "header_style": "dim", "pad_edge": False, "padding": (0, 1, 0, 0)}


@dataclass(frozen=True)
class Evaluated:
    """A model's figures, and the detections that they are of.

    ``on_record``: they have the same data and rules as the figures in its card.
    """

    model: OpenedModel
    spec: FederationSpec
    data_digest: str
    device: str
    records: list[EvaluationRecord]
    metrics: Metrics
    on_record: bool
    scored: ScoredModel

    def analyses(self) -> dict[ScoredOn, DetectionAnalysis]:
        """Return the analysis of the detections on each part of the data that was scored."""
        parts = dict.fromkeys(record.on for record in self.records)
        return {part: analyse(self.scored.on(part)) for part in parts}

    def as_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "card": self.model.card.model_dump(mode="json"),
            "data": self.spec.data.model_dump(mode="json"),
            "data_digest": self.data_digest,
            "evaluation": self.spec.evaluation.model_dump(mode="json"),
            "device": self.device,
            "metrics": self.metrics.model_dump(mode="json"),
            "evaluations": [record.model_dump(mode="json") for record in self.records],
        }


def evaluate_opened(
    model: OpenedModel,
    settings: Settings,
    *,
    data: str | None,
    fields: dict[str, Any],
    device: str,
    threads: int | None,
    console: Console,
) -> Evaluated:
    """Score ``model`` on the test split of ``data`` (a folder, preset or file; None: its own), with ``fields`` set.

    The field ``evaluation.on`` says whether held-out images are scored instead, or also. On its own data a model is
    scored for the clients on record. ``console`` shows the progress, and warnings about data that may lower the
    figures.

    Raises:
        SpecError: the data are unknown, or a field is neither one of the data nor a rule of evaluation.
        DataError: the data cannot be used, do not fit the model, or are no longer those of the run.
    """
    chosen = choose_data(data) if data is not None else _own(model)
    spec = _specified(model, chosen.spec, fields)
    own = data is None and spec.data == model.data
    rules = fields.keys() - {"evaluation.on"}
    faults = Faults()
    cache = data_cache(settings.home)
    loaded = load_data(spec.data, root_of=chosen.roots(settings), cache=cache, faults=faults)
    for finding in faults.notes.findings(spec.data):
        console.print(f"warning: {finding}", soft_wrap=True)
    sets: list[EvaluationSet] = []
    for on in spec.evaluation.parts:
        digests = _recorded_digests(model.record, on) if model.record is not None and own else {}
        clients = model.card.clients if own and model.card.on == on else None
        least = spec.data.holdout.least if spec.data.holdout is not None and on == "holdout" else 1
        of_part = evaluation_sets(loaded, model.card.classes, digests or clients, on=on, least=least)
        _check_unchanged(of_part, digests)
        sets += of_part
    with _counted(console, sum(len(item.samples) for item in sets)) as watched:
        found = score_sets(
            model.detector,
            sets,
            model.card.classes,
            spec.evaluation,
            device=device,
            threads=threads,
            unlabelled_score=spec.data.unlabelled_score,
            watched=watched,
        )
    records = [record for record, _ in found]
    metrics, most = aggregate_metrics([], records), spec.evaluation.max_detections
    images = tuple(images for _, images in found)
    scored = ScoredModel(tuple(model.card.classes), spec.evaluation.score_threshold, most, images)
    return Evaluated(model, spec, loaded.digest, device, records, metrics, own and not rules, scored)


def analysis_documents(analyses: Mapping[ScoredOn, DetectionAnalysis]) -> dict[str, Any]:
    """Return the analyses for JSON, by part of the data."""
    return {part: analysis.as_json() for part, analysis in analyses.items()}


def write_analyses(analyses: Mapping[ScoredOn, DetectionAnalysis], title: str, folder: Path) -> list[str]:
    """Write the plots and tables of each analysis into ``folder``. Return the files' names.

    With several parts of the data, each has a folder of its own.

    Raises:
        DataError: a file cannot be written; the message names it.
    """
    written = []
    for part, analysis in analyses.items():
        below = folder / part if len(analyses) > 1 else folder
        for name, make in analysis_files(analysis, title).items():
            file = below / name
            try:
                below.mkdir(parents=True, exist_ok=True)
                file.write_bytes(make())
            except OSError as error:
                raise DataError(f"{file}: cannot be written: {error.strerror or error}") from None
            written.append(str(file.relative_to(folder)))
    return written


def title_of(evaluated: Evaluated) -> str:
    """Return one line: model, detector, data, rules."""
    spec, rules = evaluated.spec, evaluated.spec.evaluation
    return (
        f"{plain(evaluated.model.title)} · {spec.detector.kind} {spec.detector.width}x{spec.detector.height} · "
        f"{spec.data.kind} · score > {rules.score_threshold:g}, NMS over {rules.nms_iou:g}"
    )


def figures_table(evaluated: Evaluated) -> Table:
    """Return a table of figures: over all clients, by test set if there are several, and those on record.

    Held-out images follow, or stand alone.
    """
    parts: tuple[ScoredOn, ...] = tuple(dict.fromkeys(record.on for record in evaluated.records)) or ("test",)
    table = Table("test set" if parts == ("test",) else "images", **_PLAIN)
    for name in ("images", *FIGURES):
        table.add_column(name, justify="right")
    card = evaluated.model.card
    client = evaluated.model.client
    for part in parts:
        records = [record for record in evaluated.records if record.on == part]
        images = sum(record.test_size for record in records)
        which = "" if parts == ("test",) else f", {PART_NAMES[part]}"
        rows: list[tuple[str, int, Metrics | EvaluationRecord]] = [
            (f"{'all clients' if client is None else f'client {client}'}{which}", images, evaluated.metrics.on(part))
        ]
        if len(records) > 1:
            rows += [(f"{_clients(record)}{which}", record.test_size, record) for record in records]
        for title, count, values in rows:
            table.add_row(title, str(count), *(_three_decimals(getattr(values, name)) for name in FIGURES))
        if evaluated.on_record and card.metrics and card.on == part:
            table.add_row("on record", "", *(_three_decimals(card.metrics.get(name)) for name in FIGURES), style="dim")
    return table


def classes_table(evaluated: Evaluated) -> Table:
    """Return a table of AP and recall by class over all clients, and of AP by test set if there are only a few.

    With both, it is of the test sets.
    """
    part: ScoredOn = evaluated.records[0].on if evaluated.records else "test"
    metrics, records = evaluated.metrics.on(part), [record for record in evaluated.records if record.on == part]
    columns = [
        ("AP50 (voc10)", metrics.per_class),
        ("AP (coco)", metrics.per_class_coco),
        ("recall", metrics.per_class_recall),
    ]
    if 1 < len(records) <= MOST_COLUMNS:
        columns += [(f"AP50, {_clients(record)}", record.per_class) for record in records]
    table = Table("class", **_PLAIN)
    for title, _ in columns:
        table.add_column(title, justify="right")
    for name in evaluated.model.card.classes:
        table.add_row(Text(plain_name(name)), *(_three_decimals(values.get(name)) for _, values in columns))
    return table


def _own(model: OpenedModel) -> ChosenData:
    if model.data is None:
        raise SpecError(f"{model.title}: its card names no data; expected --data with a folder, a preset or a file")
    return ChosenData(model.data)


def _specified(model: OpenedModel, data: DataSpec, fields: dict[str, Any]) -> FederationSpec:
    """Return a specification of the model's detector and rules of evaluation with ``data``, and with ``fields`` set."""
    for name in fields:
        if name.split(".")[0] not in ("data", "evaluation"):
            raise SpecError(f"--set {name}: expected a field below evaluation or data")
    rules = model.evaluation.model_copy(update={"on": "test"})
    spec = FederationSpec(detector=model.card.detector, data=data, evaluation=rules)
    return with_fields(spec, fields, source="--set") if fields else spec


def _recorded_digests(record: RoundRecord, on: ScoredOn) -> dict[str, str]:
    """Return the digest of each client's images: of those that the round scored, else of those that clients had."""
    scored = {client: item.test_digest for item in record.evaluations_on(on) for client in item.clients}
    had = {info.client: info.test_digest if on == "test" else info.holdout_digest for info in record.clients}
    return scored or {client: digest for client, digest in had.items() if digest is not None}


def _check_unchanged(sets: Iterable[EvaluationSet], digests: dict[str, str]) -> None:
    """Compare the digests of ``sets`` with ``digests``, those that the run recorded by client.

    Raises:
        DataError: a client's images have changed since the run.
    """
    for item in sets:
        for client in item.clients:
            if digests.get(client, item.digest) != item.digest:
                raise DataError(
                    f"client {client}: its {IMAGES_HAVE[item.on]} changed since the run: expected digest "
                    f"{digests[client]}, found {item.digest}"
                )


@contextlib.contextmanager
def _counted(console: Console, images: int) -> Iterator[Callable[[EvaluationLoader], Iterable[Batch]]]:
    """Yield a wrapper of loaders. On a terminal it shows how many images are scored, and the time left."""
    columns = (TextColumn("evaluating"), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=images)

        def watched(loader: EvaluationLoader) -> Iterator[Batch]:
            for batch in loader:
                yield batch
                progress.advance(task, len(batch.indices))

        yield watched


def _clients(record: EvaluationRecord) -> str:
    names = record.clients
    return f"client{'s' if len(names) > 1 else ''} {few_of(names)}"


def _three_decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
