"""The centralised twin of a federation: the same experiment, with all training images at one client.

It takes the same path (rounds, local epochs, schedule, seeds, evaluation), so what it reaches beyond the federation
is the cost of leaving the images where they are. Its optimiser starts anew each round, as every client's does.
"""

from __future__ import annotations

from tasks.errors import SpecError
from tasks.spec.data import DataSpec
from tasks.spec.federation import FedAvg, FederationSpec, Participation, changed_fields

# How a coordinator treats several clients; with one there is nothing to draw, wait for or pack. A turn's deadline is
# meant for one device's images.
_OF_SEVERAL = ("clients", "min_clients", "clients_per_round", "min_updates", "shards", "turn_deadline", "partial_sums")
# None of them says what is learned in a round: a run and its twin may differ in them.
_STOPPING = ("max_rounds", "patience", "patience_metric", "target_map", "target_metric", "best_metric")


def twin(spec: FederationSpec) -> FederationSpec:
    """``spec`` with its clients' training images at one client, named ``all``.

    With ``participation.clients`` only those devices' images are pooled. A round of all clients and a round of the
    twin pass over the same images the same number of times; with ``clients_per_round`` a round of the federation
    passes over fewer. The strategy is plain averaging, which leaves a single client's weights as they are.

    Raises:
        SpecError: ``spec`` is centralised already.
    """
    if spec.data.pooled:
        raise SpecError("data.pooled: expected a federation of devices, found one that is centralised already")
    kept = spec.participation.model_dump(exclude=set(_OF_SEVERAL))
    data = {**spec.data.model_dump(), "pooled": True, "pooled_devices": spec.participation.clients}
    document = {**spec.model_dump(), "data": data, "participation": kept, "strategy": FedAvg().model_dump()}
    return FederationSpec.model_validate(document)


def is_twin(federation: FederationSpec, centralised: FederationSpec) -> bool:
    """Whether ``centralised`` is the twin of ``federation``, whenever either of them stops.

    Where only the data tell the devices, which of them are pooled is not looked at.
    """
    if federation.data.pooled or not centralised.data.pooled:
        return False
    expected = twin(federation)
    same = {name: getattr(expected, name) for name in _STOPPING} | {"participation": Participation()}
    pair = [spec.model_copy(update={**same, "data": _in_order(spec.data)}) for spec in (expected, centralised)]
    return not changed_fields(*pair)


def _in_order(data: DataSpec) -> DataSpec:
    """Pooled ``data`` whose devices are in the data set's order, and not named when they are all of them."""
    own, chosen = data.own_devices, data.pooled_devices
    if own is None or chosen is None or set(chosen) == set(own):
        return data.model_copy(update={"pooled_devices": None})
    return data.model_copy(update={"pooled_devices": tuple(device for device in own if device in chosen)})
