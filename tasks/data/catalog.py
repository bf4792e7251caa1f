"""From a data specification to the data: names become folders, synthetic sets are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from tasks.data.coco import load_coco
from tasks.data.entries import Faults
from tasks.data.samples import FederatedData
from tasks.data.street import load_street
from tasks.data.synthetic import make_synthetic_street
from tasks.data.voc import load_voc
from tasks.errors import DataError
from tasks.spec.data import Coco, DataSpec, FederatedStreet, SyntheticStreet, VocFolders


def load_data(
    spec: DataSpec, *, root_of: Callable[[str], Path | None], cache: Path, faults: Faults | None = None
) -> FederatedData:
    """Load the data that ``spec`` names.

    ``root_of`` gives this machine's folder of a named data set, or None; ``cache`` is the folder under which
    synthetic sets are drawn once and kept. With ``faults`` that collect, mistakes in the data are in there, and what
    is usable is returned.

    Raises:
        DataError: this machine has no folder of that name, or the data set is not as it must be.
    """
    if isinstance(spec, SyntheticStreet):
        root = make_synthetic_street(spec, cache / spec.kind)
        return load_street(root, spec.split, name=spec.kind, expected_digest=None, faults=faults)
    folder = root_of(spec.name)
    if folder is None:
        raise DataError(_unknown_name(spec))
    if isinstance(spec, Coco):
        return load_coco(folder, spec, faults=faults)
    if isinstance(spec, VocFolders):
        return load_voc(folder, spec, faults=faults)
    if spec.form == "voc":
        devices = VocFolders(name=spec.name, digest=spec.digest)
        return load_voc(folder / f"street_{spec.split}", devices, devices=spec.devices, faults=faults)
    return load_street(folder, spec.split, name=spec.name, expected_digest=spec.digest, faults=faults)


def _unknown_name(spec: FederatedStreet | VocFolders | Coco) -> str:
    start = f"data.name: no folder is known for data set {spec.name!r} on this machine; set "
    if isinstance(spec, FederatedStreet):
        holds = "its train_label.json" if spec.form == "json" else f"its street_{spec.split}/"
        return f"{start}FEDBENCH_STREET_DIR, or {spec.name!r} in data_roots, to the folder of {holds}"
    return f"{start}{spec.name!r} in data_roots (settings.yaml, or FEDBENCH_DATA_ROOTS as JSON) to its folder"


def restrict(data: FederatedData, clients: Iterable[str]) -> FederatedData:
    """``data`` with only these clients, in the data set's order; name, digest and classes stay.

    Raises:
        DataError: a client that the data set does not have.
    """
    wanted = set(clients)
    unknown = sorted(wanted - data.train.keys())
    if unknown:
        raise DataError(
            f"data set {data.name!r}: no client {', '.join(unknown)}; its clients are {', '.join(data.train)}"
        )
    return FederatedData(
        name=data.name,
        digest=data.digest,
        classes=data.classes,
        train={client: samples for client, samples in data.train.items() if client in wanted},
        test={client: samples for client, samples in data.test.items() if client in wanted},
    )
