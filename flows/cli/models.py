"""``fedbench evaluate``, ``predict``, ``verify`` and ``save-model``: use a trained model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.json_output import print_json
from flows.cli.shared import EXIT_USAGE, Home, err, field_values, machine_settings, out, plain_errors, shell_quoted
from infra.errors import SettingsError
from tasks.errors import DataError, SpecError
from tasks.plain_text import plain_name

if TYPE_CHECKING:
    from flows.commands.opened_model import OpenedModel
    from tasks.metrics.detections import ImageDetections

EXIT_ERRORS = 1
MOST_DIFFERENCES = 50
SCORE = 0.3  # equals tasks.figures.boxes.DRAWN_SCORE, the least score of boxes on a sheet

Device = Literal["cpu", "cuda"]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run's name, RUN@CLIENT for a client's own model, a model file (*.safetensors), or "
        "models:/NAME/VERSION, models:/NAME@ALIAS of the registry.",
    ),
]
Round = Annotated[int | None, typer.Option("--round", min=0, help="Round of a run. [its best round]")]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the results to this file as JSON; `-`: print JSON alone."),
]
STANDARD_OUTPUT = Path("-")


def evaluate(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="A folder, or a preset or YAML file that names data. [the model's own]"),
    ] = None,
    number: Round = None,
    on: Annotated[
        Literal["test", "holdout", "both"] | None,
        typer.Option(help="Score test sets, images that data.holdout keeps out of training, or both. [test]"),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="FIELD=VALUE", help="A field below evaluation or data; repeatable."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Write precision-recall curves, a confusion matrix and types of errors here, as plots and tables.",
        ),
    ] = None,
    device: Annotated[Device | None, typer.Option(help="Device to compute on. [the run's; for a file: cpu]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [the run's; for a file: all cores]")] = None,
    json_file: Json = None,
    home: Home = None,
) -> None:
    """Score a model on the test split of its own data set, or of another one.

    For a round of a run, the figures equal, to the bit, those that the run recorded.

    `fedbench evaluate synthetic5-e6b255e8` · `fedbench evaluate m.safetensors --data street5 -s evaluation.nms_iou=0.4`
    """
    from flows.commands.evaluate_model import (
        analysis_documents,
        classes_table,
        evaluate_opened,
        figures_table,
        title_of,
        write_analyses,
    )
    from flows.commands.open_model import open_model

    with plain_errors():
        settings = machine_settings(home)
        fields = field_values(assignments or []) | ({"evaluation.on": on} if on is not None else {})
        opened = open_model(model, settings, number)
        evaluated = evaluate_opened(
            opened,
            settings,
            data=data,
            fields=fields,
            device=_device(device or (opened.spec.training.device if opened.spec else "cpu")),
            threads=threads or (opened.spec.training.threads if opened.spec else None),
            console=err,
        )
        document = {"model": model, **evaluated.as_json()}
        written: list[str] = []
        if folder is not None:
            analyses = evaluated.analyses()
            document["analysis"] = analysis_documents(analyses)
            written = write_analyses(analyses, opened.title, folder)
        if json_file == STANDARD_OUTPUT:
            print_json(document)
            return
        out.print(title_of(evaluated), soft_wrap=True, highlight=False)
        out.print(figures_table(evaluated))
        out.print(classes_table(evaluated))
        if folder is not None:
            out.print(f"{folder}: {', '.join(written)}", soft_wrap=True, highlight=False)
        if json_file is not None:
            _write_json(json_file, document)


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES…", help="Image files, or folders of them.")],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the drawn copies.")] = Path("predictions"),
    score: Annotated[float, typer.Option(min=0, max=1, help="Detections under this score are left out.")] = SCORE,
    nms_iou: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="IoU above which the weaker of two boxes is dropped. [as evaluated]"),
    ] = None,
    number: Round = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = "cpu",
    json_file: Json = None,
    home: Home = None,
) -> None:
    """Draw a model's detections into copies of images: boxes, class names and scores. Boxes in JSON are in pixels.

    Images are read as in training: stretched to the input, turned by EXIF only if data.exif said so, and cut to the
    upper 8 bits if they have 16. Exit code 1 if an image cannot be read; the others are still drawn.

    `fedbench predict street5-1a2b3c4d photo.jpg camera/ --out drawn --json boxes.json`
    """
    from flows.commands.open_model import open_model
    from tasks.models.predict import drawn_files, image_files

    with plain_errors():
        settings = machine_settings(home)
        targets = drawn_files(image_files(images), folder)
        _device(device)
        opened = open_model(model, settings, number)
        overlap = opened.evaluation.nms_iou if nms_iou is None else nms_iou
        options = {"score": score, "nms_iou": overlap, "device": device}
        found: list[dict[str, Any]] = []
        errors: list[str] = []
        for file, target in targets.items():
            try:
                line, entry = _predict_one(opened, file, target, options)
            except DataError as error:
                errors.append(str(error))
                err.print(f"error: {error}", soft_wrap=True, highlight=False)
                continue
            found.append(entry)
            if json_file != STANDARD_OUTPUT:
                out.print(line, soft_wrap=True, highlight=False)
        if json_file is not None:
            card = opened.card
            origin = {
                "version": 1,
                "model": model,
                "federation": card.federation,
                "round": card.round,
                "classes": card.classes,
            }
            _write_json(json_file, {**origin, **options, "images": found, "errors": errors})
        if len(targets) > 1 and json_file != STANDARD_OUTPUT:
            boxes = sum(len(entry["detections"]) for entry in found)
            out.print(
                f"{len(found)} images, {boxes} boxes with score ≥ {score:g} · {len(errors)} errors", highlight=False
            )
    if errors:
        raise typer.Exit(EXIT_ERRORS)


def verify(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="models:/NAME@ALIAS, models:/NAME/VERSION, a run or RUN@CLIENT (its registered best), or a downloaded "
            "folder.",
        ),
    ],
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Run whose model it must be, or RUN@CLIENT. [the registered name; of a folder: as its card]",
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep the downloaded model here if nothing differs.")
    ] = None,
    home: Home = None,
) -> None:
    """Compare every file of a registered model with the run's record and the installed code. Exit code 2: they differ.

    MLflow runs a model's code without any check. Run this before `mlflow models serve`.

    `fedbench verify models:/street5@best --save model && mlflow models serve -m model --env-manager local`
    """
    from flows.commands.verify import verify_model

    with plain_errors():
        verified = verify_model(machine_settings(home), model, run=run, save=save)
    for difference in verified.differences[:MOST_DIFFERENCES]:
        out.print(str(difference), soft_wrap=True, highlight=False)
    if len(verified.differences) > MOST_DIFFERENCES:
        out.print(f"and {len(verified.differences) - MOST_DIFFERENCES} more")
    for note in verified.notes:
        err.print(f"note: {note}", soft_wrap=True, highlight=False)
    count = len(verified.differences)
    found = f"{count} differ: do not serve this model" if count else "as on record"
    out.print(f"{verified.title}: {verified.files} files, {found}", soft_wrap=True, highlight=False)
    if verified.differences:
        raise typer.Exit(EXIT_USAGE)


def save_model(
    model: Model,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The model file, *.safetensors; an existing one is replaced.")
    ],
    number: Round = None,
    home: Home = None,
) -> None:
    """Write a model to one file that is usable without the run: weights, classes, data and figures.

    `fedbench save-model synthetic5-e6b255e8 best.safetensors`
    """
    from flows.commands.open_model import MODEL_SUFFIX, open_model
    from tasks.detectors.state import state_of
    from tasks.models.file import write_model

    with plain_errors():
        settings = machine_settings(home)
        if file.suffix != MODEL_SUFFIX:
            raise SpecError(f"{file}: expected a name that ends in {MODEL_SUFFIX}")
        opened = open_model(model, settings, number)
        write_model(file, opened.card, state_of(opened.detector))
        size = file.stat().st_size
    out.print(f"{opened.title}: {shell_quoted(file)}, {size / 1e6:.1f} MB", soft_wrap=True, highlight=False)


def _device(device: str) -> str:
    """Return ``device`` if this machine has it.

    Raises:
        SettingsError: this machine has no such device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device: expected cpu, found cuda: this machine has no usable CUDA device")
    return device


def _predict_one(opened: OpenedModel, file: Path, target: Path, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Draw the detections in ``file`` into ``target``. Return the line to print and the entry for JSON.

    Raises:
        DataError: the image cannot be read, or its copy cannot be written.
    """
    from tasks.figures.boxes import draw_detections
    from tasks.models.predict import detect, read_picture, save_picture

    classes = opened.card.classes
    picture = read_picture(file, opened.card.exif)
    most = opened.evaluation.max_detections
    found = detect(opened.detector, picture.image, max_detections=most, **options)
    highest = None
    if not len(found.scores):
        everything = detect(opened.detector, picture.image, max_detections=most, **{**options, "score": 0.0})
        highest = next(iter(_as_json(everything, classes)), None)
    save_picture(draw_detections(picture.image, found, classes, score=options["score"]), target)
    counts = Counter(classes[label] for label in found.labels)
    what = ", ".join(f"{count} {plain_name(name)}" for name, count in counts.most_common()) or _nothing(
        highest, options["score"]
    )
    note = " (its orientation in EXIF is not applied)" if picture.turned else ""
    entry = {
        "file": str(file),
        "width": picture.image.width,
        "height": picture.image.height,
        "drawn": str(target),
        "exif_orientation_ignored": picture.turned,
        "detections": _as_json(found, classes),
        "highest_below": highest,
    }
    return f"{file}: {what} → {shell_quoted(target)}{note}", entry


def _nothing(highest: dict[str, Any] | None, least: float) -> str:
    """Return that nothing scored ``least``, with the highest score under it and the option that shows it."""
    from tasks.models.predict import score_below

    if highest is None:
        return "no detection at any score"
    score = highest["score"]
    return (
        f"no detection with a score of {least:g} or more; the highest is {score:.3g} ({plain_name(highest['class'])}), "
        f"which --score {score_below(score):g} shows"
    )


def _as_json(found: ImageDetections, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the detections, best first. Boxes are xmin, ymin, xmax, ymax in pixels of the image as it was read."""
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ordered = sorted(rows, key=lambda row: -row[1])
    return [{"class": classes[label], "score": score, "box": box} for box, score, label in ordered]


def _write_json(path: Path, document: dict[str, Any]) -> None:
    """Write ``document`` to a file; for ``-``, print it.

    Raises:
        DataError: the file cannot be written.
    """
    if path == STANDARD_OUTPUT:
        print_json(document)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: the JSON cannot be written: {error.strerror or error}") from None
