"""The two references that a federation's figures are compared with: centralised, and local only.

Both use the federation's rounds, local epochs, schedule, seeds and evaluation, and pass over their images as often. The
*centralised* twin has all images at one client. Its lead over the federation is the cost of leaving the images where
they are. *Local only* is one device by itself, scored on every device's test images. The federation's lead over it is
the gain from taking part. The optimisers of both start afresh in each round, as every client's does. With
``data.holdout`` both leave out of training the images that the same devices hold out in the federation. The centralised
twin's held-out images are those of all its devices together, a device's alone are its own.
"""

from __future__ import annotations

from tasks.errors import SpecError
from tasks.spec.data import DataSpec
from tasks.spec.federation import FederationSpec, changed_fields
from tasks.spec.participation import Participation
from tasks.spec.strategies import FedAvgSpec

# Fields that only matter with several clients: with one there is nothing to draw, wait for or pack. A turn's deadline
# is left out too, because it is meant for one device's images.
_OF_SEVERAL = (
    "clients",
    "min_clients",
    "clients_per_round",
    "min_updates",
    "shards",
    "turn_deadline",
    "partial_sums",
    "max_weight_share",
)
# Fields that do not change what is learned in a round, so that a run and its twin may differ in them.
STOPPING = ("max_rounds", "patience", "patience_metric", "target_map", "target_metric", "best_metric")


def twin(spec: FederationSpec) -> FederationSpec:
    """Return ``spec`` with its clients' training images at one client, named ``all``.

    With ``participation.clients`` only those devices' images are pooled. A round of all clients and a round of the
    twin pass over the same images the same number of times; with ``clients_per_round`` a round of the federation
    passes over fewer. The strategy is plain averaging, which leaves a single client's weights as they are.

    Raises:
        SpecError: ``spec`` is a reference already.
    """
    change: dict[str, object] = {"pooled": True, "pooled_devices": spec.participation.clients}
    by_device = spec.data.holdout is not None or spec.data.label_space is not None
    if spec.participation.clients is None and "split" in type(spec.data).model_fields and not by_device:
        # Both splits have the same images in all, so their federations have one twin. Held-out images and label spaces
        # depend on the devices.
        change["split"] = 5
    return _of_one_client(spec, change)


def local_only(spec: FederationSpec, device: str) -> FederationSpec:
    """Return ``spec`` with ``device`` as its only client. The client keeps its id, and so its derived seeds.

    Raises:
        SpecError: ``spec`` is a reference already, or has no such client.
    """
    clients = spec.clients
    if clients is not None and device not in clients and not is_reference(spec):
        raise SpecError(f"data.local_only: expected one of the clients {', '.join(clients)}, found {device}")
    return _of_one_client(spec, {"local_only": device})


def _of_one_client(spec: FederationSpec, change: dict[str, object]) -> FederationSpec:
    for field, what in (("pooled", "centralised"), ("local_only", "one device alone")):
        if getattr(spec.data, field):
            raise SpecError(f"data.{field}: expected a federation of devices, found one that is {what} already")
    kept = spec.participation.model_dump(exclude=set(_OF_SEVERAL))
    data = {**spec.data.model_dump(), **change}
    method = {"strategy": FedAvgSpec().model_dump(), "fine_tuning": None}
    document = {**spec.model_dump(), "data": data, "participation": kept, **method}
    return FederationSpec.model_validate(document)


def is_twin(federation: FederationSpec, centralised: FederationSpec) -> bool:
    """Return whether ``centralised`` is the twin of ``federation``. When either of them stops does not matter.

    If the data must be read to know all devices, the pooled devices are not compared.
    """
    if is_reference(federation) or not centralised.data.pooled:
        return False
    return _alike(twin(federation), centralised)


def is_local_only(federation: FederationSpec, alone: FederationSpec) -> bool:
    """Return whether ``alone`` is a local-only reference of ``federation``. When either stops does not matter."""
    device = alone.data.local_only
    if is_reference(federation) or device is None:
        return False
    if federation.clients is not None and device not in federation.clients:
        return False
    return _alike(local_only(federation, device), alone)


def is_reference(spec: FederationSpec) -> bool:
    """Return whether there is only one client, because the images are pooled or the other devices left out."""
    return spec.data.pooled or spec.data.local_only is not None


def _alike(expected: FederationSpec, found: FederationSpec) -> bool:
    same = {name: getattr(expected, name) for name in STOPPING} | {"participation": Participation()}
    pair = [spec.model_copy(update={**same, "data": _in_order(spec.data)}) for spec in (expected, found)]
    return not changed_fields(*pair)


def _in_order(data: DataSpec) -> DataSpec:
    """Return ``data`` with its pooled devices in the data set's order.

    They are left out if they are all devices of the data set, or if these are unknown.
    """
    own, chosen = data.own_devices, data.pooled_devices
    if own is None or chosen is None or set(chosen) == set(own):
        return data.model_copy(update={"pooled_devices": None})
    return data.model_copy(update={"pooled_devices": tuple(device for device in own if device in chosen)})
