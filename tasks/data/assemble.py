"""Turn what a reader found into a federation's data: check devices, open images, give each client its images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.data.device_names import take_devices_from_names
from tasks.data.entries import Entry, Faults, Parsed, natural, read_bytes, shown
from tasks.data.images import Reading, read_image
from tasks.data.partition import partition_samples
from tasks.data.samples import FederatedData, ImageSample, samples_digest
from tasks.documents.errors import DocumentError
from tasks.documents.yaml_text import read_document
from tasks.errors import DataError
from tasks.spec.base import LONGEST_CLASS, MOST_CLASSES
from tasks.spec.clients import ByField, ByName, Named, Partition
from tasks.spec.data import OwnData

_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # tasks.spec.base.ClientId

Samples = tuple[ImageSample, ...]


def check_devices(
    train: Sequence[Entry], test: Sequence[Entry], where: str, faults: Faults, devices: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return the devices in order: the expected ``devices``, or those of the training entries.

    Report devices without a training image, devices whose name cannot be a client's id, and entries of other devices.
    Missing images are not reported once a file could not be read: they may be in it. ``where`` is the file or folder,
    and the field, that messages name.
    """
    known = tuple(devices or sorted({entry.device for entry in train if entry.device is not None}, key=natural))
    listed = f"from {known[0]} to {known[-1]}" if len(known) > 1 else ", ".join(known) or "(none)"
    for device in known:
        if not _DEVICE.fullmatch(device):
            faults.add(
                f"{where}: expected a device named by letters, digits, '.', '_' and '-', at most 64, "
                f"found {shown(device)}"
            )
    expected, present = set(known), {entry.device for entry in train}
    strangers: dict[str, list[str]] = {}
    for entry in (*train, *test):
        if entry.device is not None and entry.device not in expected:
            strangers.setdefault(entry.device, []).append(entry.where)
    for device, places in strangers.items():
        hint = "" if device in present else "; no training image is of it, so no client could be scored on it"
        faults.add_summed(places, f"{where}: expected a device {listed}, found {device!r}{hint}", where)
    missing = [device for device in known if device not in present]
    if missing and not faults.unread:
        faults.add(f"{where}: no images of device {', '.join(missing)}; expected some of each device {listed}")
    if not train and not faults.unread:
        faults.add(f"{where}: expected at least one training image")
    return known


def require_devices(train: Sequence[Entry], field: str, where: str, faults: Faults) -> None:
    """Report each training image without a device. If none has a device, report that once."""
    if train and all(entry.device is None for entry in train):
        faults.add(
            f"{where}: no training image has {field!r}: expected the device that each came from; name the field in "
            "data.clients.field, or set data.clients.kind to list, name, iid, dirichlet or size"
        )
        return
    without = [entry.where for entry in train if entry.device is None]
    faults.add_summed(without, f"{field}: missing; expected the device that the image came from", where)


def named_devices(root: Path, clients: Named, parsed: Parsed, where: str, faults: Faults) -> tuple[str, ...]:
    """Return the devices named by a field of the images, by a list in ``root`` or by the images' names, in order.

    ``where`` is the path of the labels that hold the field. Messages name it.
    """
    if isinstance(clients, ByName):
        where = f"{root}: data.clients.pattern {clients.pattern!r}"
        take_devices_from_names(clients, parsed, where, faults)
        return check_devices(parsed.train, parsed.test, where, faults)
    if isinstance(clients, ByField):
        require_devices(parsed.train, clients.field, where, faults)
        parsed.test = devices_in_all_or_none(parsed.test, clients.field, faults)
        return check_devices(parsed.train, parsed.test, f"{where}: {clients.field}", faults)
    listed = list_devices(root, clients.file, parsed, faults)
    parsed.test = devices_in_all_or_none(parsed.test, clients.file, faults)
    return check_devices(parsed.train, parsed.test, str(root / clients.file), faults, listed or None)


def list_devices(root: Path, file: str, parsed: Parsed, faults: Faults) -> tuple[str, ...]:
    """Assign to ``parsed``'s images the devices that a YAML or JSON file lists. Return the devices in order.

    The file maps each device to a list of image names. Both are read as text: 000010 is not a number. An image is
    named by its key, its file's name or its path inside the data set. Every training image needs a device. Either all
    test images are listed (a test set per device) or none.
    """
    path = root / file
    owner: dict[str, str] = {}
    names: dict[str, set[str]] = {}
    for entry in (*parsed.train, *parsed.test):
        for alias in (entry.key, PurePosixPath(entry.inside).name, entry.inside):
            names.setdefault(alias, set()).add(entry.inside)
    document = _read_list(path, parsed, file, faults)
    for device, listed in document.items():
        for name in listed:
            found = names.get(str(name), set())
            if not found:
                faults.add(f"{path}: device {device}: no image {shown(name)} in the data set")
            elif len(found) > 1:
                faults.add(
                    f"{path}: device {device}: expected the path of one image, found {shown(name)}, which names "
                    f"{' and '.join(sorted(found))}"
                )
            else:
                image = next(iter(found))
                if image in owner:
                    faults.add(
                        f"{path}: device {device}: expected every image once, found {shown(name)} under device "
                        f"{owner[image]} already"
                    )
                owner.setdefault(image, device)
    parsed.train = [replace(entry, device=owner.get(entry.inside)) for entry in parsed.train]
    parsed.test = [replace(entry, device=owner.get(entry.inside)) for entry in parsed.test]
    if document:
        without = [entry.where for entry in parsed.train if entry.device is None]
        faults.add_summed(without, f"expected the image in {path}, under the device that it came from", str(path))
    return tuple(sorted(document, key=natural))


def _read_list(path: Path, parsed: Parsed, file: str, faults: Faults) -> Mapping[str, list[Any]]:
    data = read_bytes(path, faults)
    if data is None:
        return {}
    parsed.files.append((file, hashlib.sha256(data).hexdigest()))
    try:
        document = read_document(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        faults.add_unread(f"{path}: expected YAML or JSON: {error}")
        return {}
    except DocumentError as error:
        faults.add_unread(error.of(path).replace("expected YAML", "expected YAML or JSON"))
        return {}
    if not isinstance(document, dict) or not all(isinstance(names, list) for names in document.values()):
        faults.add(f"{path}: expected a mapping of devices to lists of image names, found {shown(document)}")
        return {}
    return {str(device): names for device, names in document.items()}


def assemble_own(
    root: Path,
    spec: OwnData,
    parsed: Parsed,
    faults: Faults,
    *,
    where: str,
    slack: float = 0.0,
    devices: Sequence[str] | None = None,
) -> FederatedData:
    """Return the data of ``spec``, whose images come to clients as its ``clients`` says.

    where: the path of the labels that may name devices, for messages. slack: as in :class:`tasks.data.images.Reading`.
    devices: those whose folders the reader found, in order.

    Raises:
        DataError: as :func:`assemble`, or the images name no devices, or wrong ones.
    """
    if isinstance(spec.clients, Named):
        devices = named_devices(root, spec.clients, parsed, where, faults)
    return assemble(
        root,
        parsed,
        faults,
        name=spec.name,
        expected_digest=spec.digest,
        devices=devices,
        reading=Reading(spec.exif, spec.drop_duplicate_objects, slack),
        partition=spec.clients if isinstance(spec.clients, Partition) else None,
    )


def assemble(
    root: Path,
    parsed: Parsed,
    faults: Faults,
    *,
    name: str,
    expected_digest: str | None,
    devices: Sequence[str] | None,
    reading: Reading,
    partition: Partition | None = None,
) -> FederatedData:
    """Open every image once, and divide the images by the entries' ``device`` or by ``partition``.

    All clients share one test set if the test entries have no device, or if the devices' test sets are equal. If
    ``faults`` collects mistakes and a file or image could not be read, there is no content digest ("").

    Raises:
        DataError: an image, object or division is wrong, or the content's digest is not ``expected_digest``, unless
            ``faults`` collects mistakes.
    """
    _check_classes(root, parsed.classes, faults)
    train, test = _each_once(root, parsed, faults)
    samples: dict[str, ImageSample] = {}
    for entry in (*train, *test):
        sample = read_image(root, entry, parsed.classes, faults, reading)
        if sample is not None:
            samples[entry.inside] = sample
    lines = [f"{file} {digest}" for file, digest in parsed.files]
    lines += [f"{inside} {samples[inside].content}" for inside in sorted(samples)]
    # If mistakes are collected, a folder's name that is not UTF-8 gets this far. It has been reported already.
    digest = hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()
    if not samples or faults.unread or any(entry.inside not in samples for entry in (*train, *test)):
        digest = ""
    elif expected_digest is not None and digest != expected_digest:
        faults.add(
            f"{root}: data set {name!r} is not the one that was asked for: expected content digest "
            f"{expected_digest}, found {digest}"
        )

    def select(entries: Sequence[Entry]) -> Samples:
        chosen = (samples.get(entry.inside) for entry in entries)
        return tuple(sample for sample in chosen if sample is not None)

    def by_device(entries: Sequence[Entry], clients: Iterable[str]) -> dict[str, Samples]:
        own: dict[str, list[Entry]] = {client: [] for client in clients}
        for entry in entries:
            if entry.device is not None and entry.device in own:
                own[entry.device].append(entry)
        return {client: select(of_client) for client, of_client in own.items()}

    if partition is not None:
        by_client = {}
        try:
            by_client = partition_samples(select(train), partition, classes=len(parsed.classes))
        except DataError as error:
            if not faults.unread and (train or not faults.errors):
                faults.add(f"{root}: {error}")
    else:
        by_client = by_device(train, devices or ())
    if partition is None and any(entry.device is not None for entry in test):
        tests = by_device(test, by_client)
        if len({samples_digest(own) for own in tests.values()}) == 1:
            tests = dict.fromkeys(by_client, next(iter(tests.values())))
    else:
        tests = dict.fromkeys(by_client, select(test))
    return FederatedData(name=name, digest=digest, classes=parsed.classes, train=by_client, test=tests)


def _check_classes(root: Path, classes: Sequence[str], faults: Faults) -> None:
    """Report classes that no record of a run could hold."""
    if len(classes) > MOST_CLASSES:
        faults.add(f"{root}: expected at most {MOST_CLASSES} classes, found {len(classes)}")
    for name in classes:
        if len(name) > LONGEST_CLASS:
            faults.add(
                f"{root}: expected the name of a class of at most {LONGEST_CLASS} characters, found {len(name)}: "
                f"{shown(name)}"
            )


def _each_once(root: Path, parsed: Parsed, faults: Faults) -> tuple[list[Entry], list[Entry]]:
    """Return the training and the test entries, and report and leave out repeated images.

    An image listed twice has two sets of labels. An image in both parts would be tested after training on it.
    """
    seen: dict[str, str] = {}
    repeated: dict[tuple[str, str], list[str]] = {}  # by the lists that have the images
    kept: list[list[Entry]] = []
    for source, entries in zip(parsed.lists, (parsed.train, parsed.test), strict=True):
        once = []
        for entry in entries:
            if entry.inside in seen:
                repeated.setdefault((source, seen[entry.inside]), []).append(entry.where)
            else:
                seen[entry.inside] = source
                once.append(entry)
        kept.append(once)
    for (source, first), places in repeated.items():
        faults.add_summed(places, f"expected every image once, found it in {first} already", f"{root}: {source}")
    return kept[0], kept[1]


def devices_in_all_or_none(test: list[Entry], field: str, faults: Faults) -> list[Entry]:
    """Return the test entries. If only some have a device, report that and return all entries without a device."""
    without = next((entry for entry in test if entry.device is None), None)
    if without is None or all(entry.device is None for entry in test):
        return test
    faults.add(
        f"{without.where}: {field}: missing; expected it in every test image (a test set per device) "
        "or in none (one global test set)"
    )
    return [replace(entry, device=None) for entry in test]
