"""The data sets of a federation as MLflow's page lists them, from records alone: no image is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from infra.tracking.data_sets import DataSet
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import PARTS, ClientInfo
from tasks.spec.records import EvaluationRecord
from tasks.spec.training import PART_NAMES, ScoredOn

MOST = 20  # data sets of one kind; beyond, there is one for all clients, whose profile has a line for each
TRAINING = "training"


def data_name(spec: FederationSpec) -> str:
    """Return a short name of the data: the data set's own, with its number of devices; else the kind of data."""
    data = spec.data
    split = getattr(data, "split", "")
    return f"{getattr(data, 'name', data.kind)}{split}"


def data_sets(
    spec: FederationSpec, clients: Sequence[ClientInfo], evaluations: Sequence[EvaluationRecord]
) -> list[DataSet]:
    """Return the data sets that ``clients`` train on and are scored on.

    Each client has a training set, named ``street5 client 3``, and one of held-out images if it has any. A test set
    that clients share is one data set, named ``street5 test``. With more than ``MOST`` clients, one stands for all.
    evaluations: count the objects of test sets and held-out images.
    """
    name, clients = data_name(spec), sorted(clients, key=lambda info: (len(info.client), info.client))
    trained = {info.client: _training(info) for info in clients}
    found = _by_client(spec, trained, name, TRAINING)
    objects = {item.test_digest: item.objects for item in evaluations}
    for part in PARTS:
        found += _scored(name, part, clients, objects)
    return found


def _training(info: ClientInfo) -> dict[str, Any]:
    return _counts(info.train_size, info.class_counts)


def _counts(images: int, objects: Mapping[str, int]) -> dict[str, Any]:
    return {"images": images, "objects": sum(objects.values()), "objects_by_class": dict(objects)}


def _by_client(spec: FederationSpec, profiles: Mapping[str, dict[str, Any]], name: str, context: str) -> list[DataSet]:
    # The records have no digests of the clients' images, but data and specification decide which images they are.
    def digest(what: object) -> str:
        text = json.dumps([spec.data.model_dump(mode="json"), what], sort_keys=True)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]

    if len(profiles) > MOST:
        profile = {"clients": len(profiles), **_total(profiles), "by_client": dict(profiles)}
        return [_data_set(f"{name} {context}", context, digest(profile), profile)]
    return [
        _data_set(f"{name} client {client}", context, digest([client, profile]), profile)
        for client, profile in profiles.items()
    ]


def _total(profiles: Mapping[str, dict[str, Any]]) -> dict[str, int]:
    return {key: sum(profile[key] for profile in profiles.values()) for key in ("images", "objects")}


def _scored(
    name: str, part: ScoredOn, clients: Sequence[ClientInfo], objects: Mapping[str, Mapping[str, int]]
) -> list[DataSet]:
    """Return the data sets of a part that is scored, one for each digest of the images."""
    profiles: dict[str, dict[str, Any]] = {}
    first: dict[str, str] = {}
    for info in clients:
        digest = info.test_digest if part == "test" else info.holdout_digest
        if digest is None or not info.scored_size(part):
            continue
        known = {} if digest not in objects else _counts(info.scored_size(part), objects[digest])
        profile = profiles.setdefault(digest, {"images": info.scored_size(part), **known, "clients": []})
        profile["clients"].append(info.client)
        first.setdefault(digest, info.client)
    what = PART_NAMES[part]
    for profile in profiles.values():
        names_of = profile["clients"]
        profile["clients"] = names_of if len(names_of) <= MOST else len(names_of)
    if len(profiles) > MOST:
        joined = hashlib.sha256("".join(profiles).encode()).hexdigest()
        total = {"images": sum(profile["images"] for profile in profiles.values())}
        return [_data_set(f"{name} {what}", what, joined[:16], {**total, "by_digest": profiles})]
    names = {
        digest: f"{name} {what}" + ("" if len(profiles) == 1 else f" client {first[digest]}") for digest in profiles
    }
    return [_data_set(names[digest], what, digest[:16], profile) for digest, profile in profiles.items()]


def _data_set(name: str, context: str, digest: str, profile: dict[str, Any]) -> DataSet:
    return DataSet(name, context, digest, profile, {"mlflow.source.name": "fedbench"})
