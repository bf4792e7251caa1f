"""``fedbench export-model`` and ``register``: bring a model to other programs and to MLflow's registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.models import Model, Round
from flows.cli.shared import Home, machine_settings, out, plain_errors, say, shell_quoted

IMAGES = 8


def export_model(
    model: Model,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="*.onnx for ONNX; *.pt or *.torchscript for TorchScript. An existing one is replaced."
        ),
    ],
    number: Round = None,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Detections under this score are left out. [as evaluated]")
    ] = None,
    nms_iou: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="IoU above which the weaker of two boxes is dropped. [as evaluated]"),
    ] = None,
    pixels: Annotated[
        Literal["uint8", "float32"], typer.Option(help="Type of the input's pixels, which are 0 to 255 in both.")
    ] = "uint8",
    check: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Compare the file's detections with the model's on N test images."),
    ] = IMAGES,
    home: Home = None,
) -> None:
    """Write a model with its decoding to an ONNX or TorchScript file: an image in, boxes, scores and labels out.

    The file is compared with the model first, if this machine has the test images. Its metadata have classes, input,
    sha256 of the weights and the licences that apply. ONNX needs the extra `export`.

    `fedbench export-model street5-1a2b3c4d street5.onnx` · `fedbench export-model RUN@3 own.torchscript --score 0.3`
    """
    from flows.commands.export_model import export_opened, require_exporter
    from flows.commands.open_model import open_model

    with plain_errors():
        settings = machine_settings(home)
        require_exporter(file)
        opened = open_model(model, settings, number)
        say("exporting …")
        rules = {"score_threshold": score, "nms_iou": nms_iou}
        fields = {name: value for name, value in rules.items() if value is not None}
        exported = export_opened(opened, file, settings, fields=fields, pixels=pixels, images=check)
    card = opened.card
    out.print(f"{opened.title}: {shell_quoted(file)}, {exported.bytes / 1e6:.1f} MB", soft_wrap=True, highlight=False)
    size = f"[1, 3, {card.detector.height}, {card.detector.width}]"
    what = f"input: images, {pixels} {size}, RGB, 0 to 255 · outputs: boxes, scores, labels"
    out.print(what, soft_wrap=True, highlight=False)
    if exported.checked is not None:
        out.print(f"compared with the model: {exported.checked}", soft_wrap=True, highlight=False)
    else:
        out.print(f"not compared with the model: {exported.unchecked}", soft_wrap=True, highlight=False)
    for note in card.notes:
        out.print(f"note: {note}", soft_wrap=True, highlight=False)


def register(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A finished run's name, or RUN@CLIENT for a client's own model.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Name of the registered model. [RUN, or RUN+CLIENT]")
    ] = None,
    number: Round = None,
    home: Home = None,
) -> None:
    """Register a model of a finished run in MLflow: a client's own one, another round's, or a suite cell's best.

    The alias `best` names the version of the best round. A model that is registered already gets no second version.

    `fedbench register street5-1a2b3c4d@3` · `fedbench register RUN --round 12`
    """
    from flows.commands.register_model import register_model

    with plain_errors():
        registered = register_model(model, machine_settings(home), name=name, number=number, say=say)
    before = "" if registered.new else ", registered before"
    out.print(
        f"{registered.title}: {registered.uri}, version {registered.version}{before}", soft_wrap=True, highlight=False
    )
