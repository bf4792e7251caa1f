"""The output of ``fedbench data check``: counts, errors and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from tasks.plain_text import plain, plain_name
from tasks.spec.data import DataSpec, FederatedStreet

if TYPE_CHECKING:
    from tasks.data.check import DataReport
    from tasks.data.notes import Finding

MESSAGE_LIMIT = 100_000  # characters; a message may list many files
_MOST_DEVICES = 100
_MOST_KINDS = 20  # of errors, printed without --all


def print_report(report: DataReport, spec: DataSpec, out: Console, every: bool) -> None:
    """Print the counts, then errors, then warnings. Of data that could not be read, print the errors alone."""
    if report.was_read:
        _print_counts(report, spec, out)
    _print_errors(report, out, every)
    for finding in report.findings if report.was_read else ():
        _print_finding(finding, out, every)
    counted = f"{len(report.errors)} errors, {len(report.findings)} warnings"
    if not report.was_read:
        counted = f"{len(report.errors)} errors; nothing of the data set could be read"
    elif report.data.digest:
        counted += f" · content digest {report.data.digest}"
    out.print(counted, soft_wrap=True, highlight=False)


def _print_errors(report: DataReport, out: Console, every: bool) -> None:
    """Print the errors, a line each: the first few of each kind, or ``every`` one."""
    from tasks.data.notes import MOST_NAMED

    kinds = report.errors_by_kind if every else report.errors_by_kind[:_MOST_KINDS]
    for messages in kinds:
        named = messages if every else messages[:MOST_NAMED]
        lines = [f"error: {plain(message, MESSAGE_LIMIT)}" for message in named]
        if len(named) < len(messages):
            lines.append(f"  and {len(messages) - len(named)} more errors of this kind; --all lists them")
        out.print("\n".join(lines), soft_wrap=True, highlight=False)
    left = sum(map(len, report.errors_by_kind[len(kinds) :]))
    if left:
        out.print(f"and {left} errors of other kinds; --all lists them", soft_wrap=True, highlight=False)


def _print_finding(finding: Finding, out: Console, every: bool) -> None:
    """Print a warning and its places, a line each: the first few, or ``every`` one."""
    from tasks.data.notes import MOST_NAMED

    places = finding.items if every else finding.items[:MOST_NAMED]
    text = f"warning: {finding if len(finding.items) == 1 else finding.summary}"
    lines = [plain(text, MESSAGE_LIMIT)]
    if len(finding.items) > 1:
        lines += [f"  {plain(place, MESSAGE_LIMIT)}" for place in places]
    if len(places) < len(finding.items):
        lines.append(f"  and {len(finding.items) - len(places)} more; --all lists them")
    out.print("\n".join(lines), soft_wrap=True, highlight=False)


def _by_device(report: DataReport, width: int) -> Iterator[Table]:
    """Yield tables of the training boxes by class and device, each with as many devices as ``width`` has room for.

    Of very many devices only the picture has them.
    """
    if len(report.devices) > _MOST_DEVICES:
        return
    names = [plain_name(name) for name in report.data.classes]
    first = max(map(cell_len, ("training boxes", *names)))
    columns = [
        (plain_name(device.device), ["—" if count is None else str(count) for count in device.boxes.values()])
        for device in report.devices
    ]
    while columns:
        left, taken = width - first - 2, 0
        while taken < len(columns):
            left -= 2 + max(map(cell_len, (columns[taken][0], *columns[taken][1])))
            if left < 0 and taken:
                break
            taken += 1
        table = Table("training boxes", box=None)
        for device, _ in columns[:taken]:
            table.add_column(device, justify="right", no_wrap=True)
        for number, name in enumerate(names):
            table.add_row(name, *(counts[number] for _, counts in columns[:taken]))
        yield table
        columns = columns[taken:]


def _print_counts(report: DataReport, spec: DataSpec, out: Console) -> None:
    data = report.data
    boxes = sum(device.all_boxes for device in report.devices)
    holds_out = any(device.holdout_images for device in report.devices)
    held = f"{sum(device.holdout_images for device in report.devices)} held-out images · " if holds_out else ""
    out.print(
        f"{len(report.devices)} devices · {len(data.classes)} classes · {report.train_images} training images, "
        f"{boxes} boxes · {held}{report.test_images} test images, {sum(report.test_boxes.values())} boxes",
        soft_wrap=True,
        highlight=False,
    )
    if report.ignore_regions:
        out.print(
            f"{report.images_with_regions} images have {report.ignore_regions} ignore regions, "
            "which are neither objects nor background",
            soft_wrap=True,
            highlight=False,
        )
    devices = Table("device", box=None)
    for title in ("training images", "training boxes", *(["held-out images"] if holds_out else []), "test images"):
        devices.add_column(title, justify="right")
    for device in report.devices:
        kept_out = (device.holdout_images,) if holds_out else ()
        numbers = (device.train_images, device.all_boxes, *kept_out, device.test_images)
        devices.add_row(plain_name(device.device), *map(str, numbers))
    classes = Table("class", box=None)
    for title in ("training boxes", "on devices", "test boxes"):
        classes.add_column(title, justify="right")
    for name in data.classes:
        counts = [device.boxes[name] or 0 for device in report.devices]
        numbers = (sum(counts), sum(count > 0 for count in counts), report.test_boxes[name])
        classes.add_row(plain_name(name), *map(str, numbers))
    for table in (devices, classes, *_by_device(report, out.width)):
        if table.row_count:
            out.print(table)
    if spec.label_space is not None:
        out.print("—: not labelled on this device · 0: no such object", soft_wrap=True, highlight=False)
    division = f" (division: {spec.division})" if isinstance(spec, FederatedStreet) else ""
    out.print(
        f"{report.near_duplicates} of {report.test_images} test images are near-duplicates of a training image"
        f"{division}",
        soft_wrap=True,
        highlight=False,
    )
