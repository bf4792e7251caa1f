"""``fedbench data``: check a data set before a run uses it, divide it anew, write the synthetic one in any form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from flows.cli.data_report import MESSAGE_LIMIT, print_report
from flows.cli.shared import (
    EXIT_USAGE,
    Home,
    field_values,
    machine_settings,
    out,
    plain_errors,
    print_warnings,
    shell_quoted,
)
from flows.commands.arguments import ChosenData, Form, choose_data
from flows.commands.data_block import data_lines
from flows.commands.written_data import MadeForm, WrittenForm, write_split, write_synthetic
from infra.files.private import data_cache, private_home
from infra.views import Views
from tasks.errors import SpecError
from tasks.plain_text import plain, plain_name, visible
from tasks.spec.data import SyntheticStreet
from tasks.spec.federation import FederationSpec, with_fields

if TYPE_CHECKING:
    from tasks.data.check import DataReport
    from tasks.data.samples import FederatedData

TestSets = Literal["global", "per-device"]

EXIT_ERRORS = 1

data_app = typer.Typer(name="data", help="Check a data set; divide it; write the synthetic one.", no_args_is_help=True)

Fields = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="FIELD=VALUE", help="A field below `data` of the specification; repeatable."),
]


@data_app.command()
def check(
    what: Annotated[str, typer.Argument(metavar="DATA", help="A folder, or a preset or YAML file that names data.")],
    form: Annotated[Form | None, typer.Option(help="Form of the folder. [found by its files]")] = None,
    assignments: Fields = None,
    near_bits: Annotated[
        int, typer.Option(min=0, max=256, help="Most bits, of 256, in which hashes of near-duplicates differ.")
    ] = 16,
    picture: Annotated[Path | None, typer.Option(help="File of the class-by-device picture. [below home]")] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="List every error and every place of each warning, not the first few of each kind."),
    ] = False,
    home: Home = None,
) -> None:
    """Count images, boxes, classes and devices, and list everything that is wrong, each with its file.

    Exit code 0: no errors, at most warnings. 1: errors; a run would refuse the data or drop clients. 2: the file of
    --picture cannot be written.

    `fedbench data check street20` · `fedbench data check DIR -s clients.kind=dirichlet -s clients.alpha=0.3`
    """
    from tasks.data.check import check_data

    with plain_errors():
        settings = machine_settings(home)
        chosen = choose_data(what, form, field_values(assignments or []))
        # Only a synthetic set, which is drawn, and hashes for held-out images are kept, and need a private home.
        keeps = isinstance(chosen.spec, SyntheticStreet) or chosen.spec.holdout is not None
        cache = data_cache(settings.home) if keeps else settings.home
        report = check_data(chosen.spec, root_of=chosen.roots(settings), cache=cache, near_bits=near_bits)
    print_report(report, chosen.spec, out, every)
    if not report.was_read:
        raise typer.Exit(EXIT_ERRORS)
    _print_block(chosen)
    path = picture or settings.home / "checks" / f"{Path(what).resolve().stem}.png"
    views = Views()
    with views.showing(f"the picture {path}"):
        if picture is None:
            private_home(settings.home)
        _draw(report, path)
    print_warnings(views)
    if views.failed and picture is not None:
        raise typer.Exit(EXIT_USAGE)
    if not views.failed:
        out.print(f"classes by device: {shell_quoted(path)}", soft_wrap=True, highlight=False)
    if report.errors:
        raise typer.Exit(EXIT_ERRORS)


@data_app.command()
def make(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")],
    form: Annotated[
        MadeForm,
        typer.Option(
            help="street: as Federated Street is published; coco; coco2017: in the files and folders of COCO as "
            "published; voc, yolo: a folder for each device; bdd100k, visdrone, kitti: as published."
        ),
    ] = "street",
    assignments: Fields = None,
    home: Home = None,
) -> None:
    """Write the synthetic street: the same fields give the same images and boxes in every form.

    `fedbench data make DIR` · `fedbench data make DIR --form coco -s train_images=200 -s split=20`
    """
    with plain_errors():
        settings = machine_settings(home)
        fields = {f"data.{name}": value for name, value in field_values(assignments or []).items()}
        spec = with_fields(FederationSpec(), fields, source="--set").data
        if not isinstance(spec, SyntheticStreet):
            raise SpecError(
                f"--set kind: expected {SyntheticStreet().kind}, the only set that can be drawn, found {spec.kind}"
            )
        _require_new(folder)
        written = write_synthetic(spec, form, folder, data_cache(settings.home))
    _print_written(folder, written)


@data_app.command()
def split(
    what: Annotated[str, typer.Argument(metavar="DATA", help="A folder, or a preset or YAML file that names data.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")],
    group: Annotated[
        bool, typer.Option("--group-near-duplicates", help="Keep near-duplicates together, in training or in test.")
    ] = False,
    fraction: Annotated[
        float | None,
        typer.Option(
            "--test-fraction",
            help="Part of each device's images to draw as test images. [without: only near-duplicates that are on "
            "both sides move]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the draw.")] = 1,
    near_bits: Annotated[
        int, typer.Option(min=0, max=256, help="Most bits, of 256, in which hashes of near-duplicates differ.")
    ] = 16,
    tests: Annotated[
        TestSets | None, typer.Option("--test", help="One test set, or one for each device. [as in DATA]")
    ] = None,
    to: Annotated[
        WrittenForm,
        typer.Option(
            help="Form of DIR. coco; coco2017: COCO's own layout; voc, yolo: a folder for each device; bdd100k, "
            "visdrone, kitti: as published."
        ),
    ] = "coco",
    form: Annotated[Form | None, typer.Option(help="Form of the folder DATA. [found by its files]")] = None,
    assignments: Fields = None,
    home: Home = None,
) -> None:
    """Divide a data set into training and test images, and write it to DIR. Each device keeps its images.

    `fedbench data split DATA DIR --group-near-duplicates` moves only near-duplicates that are on both sides, and keeps
    sizes and classes of devices as near as it can.

    `fedbench data split DATA DIR --group-near-duplicates --test-fraction 0.2 --seed 1` draws all test images anew.
    """
    from tasks.data.catalog import load_data
    from tasks.data.split import split_data

    with plain_errors():
        if fraction is None and not group:
            raise SpecError("expected --group-near-duplicates, --test-fraction or both, found neither")
        if fraction is not None and not 0 < fraction < 1:
            raise SpecError(f"--test-fraction: expected a number between 0 and 1, found {fraction:g}")
        settings = machine_settings(home)
        chosen = choose_data(what, form, field_values(assignments or []))
        _require_new(folder)
        _print_block(chosen)
        spec = chosen.spec.model_copy(
            update={
                "pooled": False,
                "pooled_devices": None,
                "local_only": None,
                "holdout": None,
                "label_space": None,
            }
        )
        cache = data_cache(settings.home)
        done = split_data(
            load_data(spec, root_of=chosen.roots(settings), cache=cache),
            fraction=fraction,
            seed=seed,
            group=group,
            bits=near_bits,
            per_device=None if tests is None else tests == "per-device",
            cache=cache / "hashes",
        )
        fields = write_split(done.data, to, folder)
    _print_sizes(done.data)
    out.print(
        f"{done.to_test} images moved to test, {done.to_training} to training · groups of near-duplicates in training "
        f"and in test: {done.crossed} before, {done.cross} now",
        soft_wrap=True,
        highlight=False,
    )
    if done.cross and not group:
        out.print("--group-near-duplicates keeps such groups on one side", soft_wrap=True, highlight=False)
    _print_written(folder, fields)


def _print_block(chosen: ChosenData) -> None:
    """Print how a folder's data were read, for a specification."""
    if chosen.folder is not None:
        for line in data_lines(chosen.spec, chosen.folder, chosen.divided):
            out.print(visible(line), soft_wrap=True, highlight=False)


def _require_new(folder: Path) -> None:
    """
    Raises:
        SpecError: ``folder`` exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder}: expected a folder that does not exist yet, or is empty")


def _print_written(folder: Path, fields: str) -> None:
    out.print(f"written: {shell_quoted(folder)}", soft_wrap=True, highlight=False)
    out.print(
        f"to train on it: data: {{{plain(fields, MESSAGE_LIMIT)}}} in a specification, and in the settings "
        f"data_roots: {{mine: {folder.absolute()}}}",
        soft_wrap=True,
        highlight=False,
    )


def _print_sizes(data: FederatedData) -> None:
    from tasks.data.samples import has_global_test_set

    is_global = has_global_test_set(data)
    sizes = Table("device", box=None)
    for title in ("training images", *([] if is_global else ["test images"])):
        sizes.add_column(title, justify="right")
    for device, samples in data.train.items():
        sizes.add_row(plain_name(device), str(len(samples)), *([] if is_global else [str(len(data.test[device]))]))
    out.print(sizes)
    count = sum(map(len, data.train.values()))
    tests = len(next(iter(data.test.values()))) if is_global else sum(map(len, data.test.values()))
    out.print(
        f"{len(data.train)} devices · {count} training images · {tests} test images", soft_wrap=True, highlight=False
    )


def _draw(report: DataReport, path: Path) -> None:
    from tasks.figures.plots import class_by_device_plot

    path.parent.mkdir(parents=True, exist_ok=True)
    class_by_device_plot(report.boxes_by_device).savefig(path)
