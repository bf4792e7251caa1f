"""Load the data of a specification: find the folder of a named data set, or draw a synthetic one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tasks.data.bdd100k import load_bdd100k
from tasks.data.coco import load_coco
from tasks.data.entries import Faults, is_utf8
from tasks.data.holdout import hold_out
from tasks.data.images import Reading
from tasks.data.kitti import load_kitti
from tasks.data.label_space import with_label_space
from tasks.data.samples import FederatedData, ImageSample
from tasks.data.street import load_street
from tasks.data.street_clean import clean_division
from tasks.data.synthetic import make_synthetic_street
from tasks.data.visdrone import load_visdrone
from tasks.data.voc import load_voc
from tasks.data.yolo import load_yolo
from tasks.errors import DataError
from tasks.spec.data import POOLED_CLIENT, DataSpec, FederatedStreet, SyntheticStreet, VocFolders
from tasks.spec.data_parts import OwnDataFields


def load_data(
    spec: DataSpec,
    *,
    root_of: Callable[[str], Path | None],
    cache: Path,
    faults: Faults | None = None,
    whole: bool = False,
) -> FederatedData:
    """Load the data that ``spec`` names.

    ``root_of`` returns this machine's folder of a named data set, or None. Synthetic sets are drawn once and kept in
    the folder ``cache``. If ``faults`` collects mistakes, mistakes in the data are added to it and the usable part of
    the data is returned. Data of every kind are read by device first. Then each device's images get its label space and
    are held out, and the data are pooled (:func:`pool`) or cut down to one device (:func:`alone`), so that these have
    the same label spaces and hold out the same images.

    whole: whether every device of the data set must be on this machine. A silo has only its own.

    Raises:
        DataError: this machine has no folder for the named data set, or something in the data set is wrong.
    """
    data = _load_devices(spec, root_of=root_of, cache=cache, faults=faults)
    if spec.label_space is not None:
        data = with_label_space(data, spec.label_space, faults or Faults(), whole=whole)
    if spec.holdout is not None:
        data = hold_out(data, spec.holdout, cache=cache / "hashes", faults=faults or Faults())
    if spec.local_only is not None:
        return alone(data, spec.local_only)
    return pool(data, spec.pooled_devices) if spec.pooled else data


def _load_devices(
    spec: DataSpec, *, root_of: Callable[[str], Path | None], cache: Path, faults: Faults | None
) -> FederatedData:
    """Load the data by device, whether or not ``spec`` pools them."""
    if isinstance(spec, SyntheticStreet):
        root = make_synthetic_street(spec, cache / spec.kind)
        return load_street(root, spec.split, name=spec.kind, expected_digest=None, faults=faults)
    folder = root_of(spec.name)
    if folder is None:
        raise DataError(_unknown_name(spec))
    if not is_utf8(str(folder)):
        raise DataError(f"data.name: {spec.name}: expected a folder whose path is in UTF-8, found {str(folder)!r}")
    return _LOADERS[spec.kind](folder, spec, faults=faults)


def _load_federated_street(folder: Path, spec: FederatedStreet, *, faults: Faults | None) -> FederatedData:
    faults = faults or Faults()
    clean = spec.division == "clean"
    published = spec.model_copy(update={"digest": None}) if clean else spec  # the clean division has its own check
    if spec.form == "voc":
        same = published.model_dump(include={"name", "digest", "exif", "drop_duplicate_objects"})
        devices = VocFolders.model_validate(same)
        root = folder / f"street_{spec.split}"
        data = load_voc(root, devices, devices=spec.own_devices, faults=faults)
    else:
        root, reading = folder, Reading(spec.exif, spec.drop_duplicate_objects)
        data = load_street(
            root, spec.split, name=spec.name, expected_digest=published.digest, faults=faults, reading=reading
        )
    return clean_division(data, root, spec.digest, faults) if clean else data


# By the kind of a specification: the reader of its data.
_LOADERS: Mapping[str, Callable[..., FederatedData]] = {
    "federated-street": _load_federated_street,
    "voc-folders": load_voc,
    "coco": load_coco,
    "yolo": load_yolo,
    "bdd100k": load_bdd100k,
    "visdrone": load_visdrone,
    "kitti": load_kitti,
}


def _unknown_name(spec: FederatedStreet | OwnDataFields) -> str:
    start = f"data.name: no folder is known for data set {spec.name!r} on this machine; set "
    if isinstance(spec, FederatedStreet):
        holds = "its train_label.json" if spec.form == "json" else f"its street_{spec.split}/"
        return f"{start}FEDBENCH_STREET_DIR, or {spec.name!r} in data_roots, to the folder of {holds}"
    return f"{start}{spec.name!r} in data_roots (settings.yaml, or FEDBENCH_DATA_ROOTS as JSON) to its folder"


def pool(data: FederatedData, devices: Sequence[str] | None = None) -> FederatedData:
    """Give the training images of ``devices`` (None: all) to one client, ``all``. Name, digest and classes stay.

    Images keep the data set's order of devices and each device's order of images. A test set that the devices share
    stays as it is, so that figures are comparable to the bit. Separate test sets become their union in the same order,
    as do the devices' held-out images.

    Raises:
        DataError: the data set does not have one of the devices.
    """
    chosen = data if devices is None else restrict(data, devices)
    train = tuple(sample for samples in chosen.train.values() for sample in samples)
    held = tuple(sample for samples in chosen.holdout.values() for sample in samples)
    return replace(
        data,
        train={POOLED_CLIENT: train},
        test={POOLED_CLIENT: _all_tests(chosen)},
        holdout={POOLED_CLIENT: held} if chosen.holdout else {},
    )


def alone(data: FederatedData, device: str) -> FederatedData:
    """Keep one client, ``device``, with its own training and held-out images.

    Its test images are all devices', as in :func:`pool`.

    Raises:
        DataError: the data set does not have the device.
    """
    return replace(restrict(data, [device]), test={device: _all_tests(data)})


def _all_tests(data: FederatedData) -> tuple[ImageSample, ...]:
    tests = list({id(samples): samples for samples in data.test.values()}.values())
    return tests[0] if len(tests) == 1 else tuple(dict.fromkeys(sample for samples in tests for sample in samples))


def restrict(data: FederatedData, clients: Iterable[str]) -> FederatedData:
    """Return ``data`` with only these clients, in the data set's order. Name, digest and classes stay.

    Raises:
        DataError: the data set does not have one of the clients.
    """
    wanted = set(clients)
    unknown = sorted(wanted - data.train.keys())
    if unknown:
        raise DataError(
            f"data set {data.name!r}: no client {', '.join(unknown)}; its clients are {', '.join(data.train)}"
        )
    return replace(
        data,
        train={client: samples for client, samples in data.train.items() if client in wanted},
        test={client: samples for client, samples in data.test.items() if client in wanted},
        holdout={client: samples for client, samples in data.holdout.items() if client in wanted},
    )
