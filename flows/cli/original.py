"""``fedbench original`` and ``fedbench export``: convert files of the original benchmark, and write its CSV.

The original is FATE's ``federated_object_detection_benchmark`` (arXiv 1910.11089). Its task files become a
specification and its weight files a model file. A run's rounds are written as the original's table of rounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.shared import Home, machine_settings, out, plain_errors, shell_quoted
from flows.commands.arguments import choose_spec
from infra.files.private import data_cache
from tasks.errors import ClientError, DataError, SpecError

if TYPE_CHECKING:
    from infra.settings import Settings
    from tasks.data.samples import FederatedData
    from tasks.detectors.yolo_network import YoloNetwork
    from tasks.original.convert import Conversion
    from tasks.spec.federation import FederationSpec

original_app = typer.Typer(
    name="original",
    help="Convert the task files and weights of FATE's federated_object_detection_benchmark.",
    no_args_is_help=True,
)


@original_app.command()
def convert(
    task: Annotated[
        Path,
        typer.Argument(metavar="TASK.json", help="The server's task file, or a client's."),
    ],
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL.json]", help="Its model file. [the one that the task names]")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="SPEC.yaml", help="File of the specification. [standard output]"),
    ] = None,
) -> None:
    """Convert a task to a specification for `fedbench run`, and list what became of each of its fields.

    The clients' task files beside the server's are read too, for local_epoch and batch_size.

    `fedbench original convert data/task_configs/yolo/street_5/yolo_task.json -o street5.yaml`
    """
    from tasks.original.convert import convert_task

    with plain_errors():
        conversion = convert_task(task, model)
        text = conversion.to_yaml()
        if output is not None:
            _write(output, text)
    if output is None:
        typer.echo(text, nl=False)  # its head comment holds the table
        return
    _print(conversion)
    out.print(
        f"written: {shell_quoted(output)}; run it with: fedbench run {shell_quoted(output)}",
        soft_wrap=True,
        highlight=False,
    )


@original_app.command()
def weights(
    file: Annotated[Path, typer.Argument(metavar="FILE.pkl", help="Weights that the original's server wrote.")],
    spec: Annotated[
        str,
        typer.Option(
            "--spec", metavar="SPEC", help="YAML file or preset that has the detector and the data's classes."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL.safetensors", help="The model file.")],
    images: Annotated[
        int, typer.Option(min=1, help="Maximum number of training images for BatchNorm's statistics.")
    ] = 256,
    home: Home = None,
) -> None:
    """Convert a weight file to a model file. No code in the pickle is executed.

    The file has no BatchNorm statistics: they are estimated from the specification's training images.

    `fedbench original weights yolo_model.pkl --spec street5.yaml -o street5.safetensors`
    """
    with plain_errors():
        settings = machine_settings(home)
        federation = choose_spec(spec, {})[1]
        try:
            lines = _convert_weights(file, federation, settings, output, images)
        except ClientError as error:  # an image that cannot be read
            raise DataError(str(error)) from None
    for line in (*lines, f"written: {output}"):
        out.print(line, soft_wrap=True, highlight=False)


def export(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The federation's name, which `fedbench list` shows; RUN@CLIENT for a client's own model.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.csv", help="File of the CSV. [standard output]")
    ] = None,
    home: Home = None,
) -> None:
    """Write a run's rounds as the original benchmark's CSV: round,train_loss,test_map,test_recall.

    As in the original, row 0 is the first round that trains, which is round 1 of `fedbench show`. The initial model,
    round 0 of `fedbench show`, is left out: the original never scored it. test_map is map50_voc10.
    """
    from flows.stored.runs import check_client, opened_store, read_run
    from tasks.metrics.own_record import of_client
    from tasks.original.rounds_csv import rounds_csv

    with plain_errors():
        settings = machine_settings(home)
        run, at, client = name.partition("@")
        with opened_store(settings) as objects:
            stored = read_run(objects, settings, run)
        own = client if at else None
        if stored.records:
            check_client(stored, stored.records[-1], own)
        records = stored.records if own is None else [of_client(record, own) for record in stored.records]
        text = rounds_csv(records)
        if output is not None:
            _write(output, text)
    if output is None:
        typer.echo(text, nl=False)
        return
    rows = text.count("\n") - 1
    out.print(f"written: {shell_quoted(output)}, {rows} rounds", soft_wrap=True, highlight=False)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None


def _print(conversion: Conversion) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("original", "here", box=None)
    for column in table.columns:
        column.overflow = "fold"
    file = None
    for row in conversion.rows:
        if row.file != file:
            table.add_row(Text(row.file, "bold"), "")
        file = row.file
        table.add_row(f"  {row.field} {row.value}".rstrip(), row.became)
    out.print(table, highlight=False)


def _convert_weights(
    file: Path, federation: FederationSpec, settings: Settings, output: Path, images: int
) -> tuple[str, ...]:
    """Write the model file. Return the notes of its card."""
    from importlib import metadata

    from tasks.data.catalog import load_data, restrict
    from tasks.detectors.registry import build_detector
    from tasks.detectors.state import state_of
    from tasks.detectors.yolo_network import YoloNetwork
    from tasks.models.file import ModelCard, write_model
    from tasks.original.unpickle import read_arrays
    from tasks.original.weights import load_parameters

    if federation.detector.kind not in ("yolov3", "yolov3-tiny"):
        raise SpecError(f"detector.kind: expected yolov3 or yolov3-tiny, found {federation.detector.kind}")
    arrays = read_arrays(file)
    data = load_data(federation.data, root_of=settings.data_root, cache=data_cache(settings.home))
    if federation.participation.clients is not None:
        data = restrict(data, federation.participation.clients)
    detector = build_detector(federation.detector, len(data.classes), seed=federation.seed)
    assert isinstance(detector, YoloNetwork)
    report = load_parameters(detector, arrays, source=str(file))
    notes = (
        f"from {file.name} of the federated_object_detection_benchmark (arXiv 1910.11089): {report}",
        _estimate(detector, data, federation, images),
    )
    document = federation.data.model_dump(mode="json")
    card = ModelCard(
        detector=federation.detector,
        classes=data.classes,
        data=document | ({"digest": data.digest} if "digest" in document else {}),
        code_version=metadata.version("fedbench"),
        notes=notes,
    )
    write_model(output, card, state_of(detector))
    return notes


def _estimate(detector: YoloNetwork, data: FederatedData, federation: FederationSpec, images: int) -> str:
    """Estimate BatchNorm's statistics in place. Return a note that says how."""
    from tasks.data.image_cache import ImageCache
    from tasks.data.loading import EvaluationLoader
    from tasks.training.batch_norm import estimate_statistics, sample_images

    batch_size = federation.evaluation.batch_size
    every = [sample for samples in data.train.values() for sample in samples]
    chosen = sample_images(every, images, seed=federation.seed, batch_size=batch_size)
    loader = EvaluationLoader(
        chosen, width=detector.width, height=detector.height, batch_size=batch_size, cache=ImageCache(0)
    )
    count = estimate_statistics(detector, (batch.images for batch in loader))
    return (
        f"BatchNorm's running statistics, which the file does not have, were estimated from {count} of the "
        f"{len(every)} training images of {data.name}: means over batches of {min(batch_size, count)} in training "
        f"mode, seed {federation.seed}, no augmentation"
    )
