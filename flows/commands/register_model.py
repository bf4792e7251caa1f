"""``fedbench register``: make a finished run's model a version in MLflow's registry, on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flows.commands.open_model import MODEL_SUFFIX, SCHEME, open_round
from flows.commands.opened_model import OpenedModel
from flows.stored.runs import StoredRun, read_run, require_scores
from flows.views.registration import best_figure, best_record, files_of, version_tags
from infra.errors import TrackingUnavailable
from infra.files.lock import run_lock
from infra.settings import Settings, run_folder
from infra.stack.embedded import EmbeddedServices
from infra.store.layout import federations
from infra.store.objects import ObjectStore
from infra.tracking.client import turn_mlflow_to
from infra.tracking.federation import Tracker, find_tracker
from infra.tracking.registry import (
    TAG_CLIENT,
    TAG_FEDERATION,
    BestModel,
    Owner,
    model_uri,
    own_name,
    owner_of,
    register_best,
    registered_version,
)
from tasks.detectors.state import state_of, state_sha256
from tasks.errors import SpecError
from tasks.spec.base import check_name


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in MLflow's registry. ``uri``: by the alias for the best round, else by its number.

    ``title`` names the model. ``new``: it was not registered before.
    """

    title: str
    uri: str
    version: str
    new: bool


def register_model(
    reference: str,
    settings: Settings,
    *,
    name: str | None = None,
    number: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> RegisteredVersion:
    """Register the model ``RUN`` or ``RUN@CLIENT`` unless a version has its weights already.

    name: the registered model's; by default ``RUN`` or ``RUN+CLIENT``. number: a round; None: the best one.

    Raises:
        SpecError: there is no such finished run, client, round or model, or ``name`` belongs to another model.
        FedbenchError: no round of the run has an evaluation.
        RunLocked: another process works on the run.
        TrackingUnavailable: MLflow does not answer, or has no run of the federation.
        InfraError: the store cannot be reached.
    """
    if reference.startswith(SCHEME) or reference.endswith(MODEL_SUFFIX):
        raise SpecError(f"{reference}: expected RUN or RUN@CLIENT, found a model that is a file or registered already")
    federation, at, client = reference.partition("@")
    if name is not None:
        check_name(name, source="--name")
    with EmbeddedServices(settings, prefect=False) as services:
        objects = ObjectStore(services.s3_endpoint())
        objects.ensure_bucket()
        run = read_run(objects, settings, federation)
        _require_finished(run)
        if name not in (None, federation) and name in federations(settings.s3.prefix, objects.list(settings.s3.prefix)):
            raise SpecError(f"--name {name}: expected a name that no other run has; {name} is one in the store")
        chosen_by_figure = not at or run.spec.strategy.personal
        if number is None and chosen_by_figure and best_figure(run.records) is None:
            raise SpecError(
                f"{federation}: expected --round, because no round has a {run.records[-1].decision.best_name}, so none "
                "is the best"
            )
        with run_lock(settings.home, federation):
            opened = open_round(objects, settings, run, number, client if at else None)
            turn_mlflow_to(services.s3_endpoint())
            tracker = find_tracker(services.mlflow_tracking_uri, settings.mlflow_experiment, federation)
            if tracker is None:
                raise TrackingUnavailable(
                    f"{federation}: MLflow's experiment {settings.mlflow_experiment} has no run of it; make one: "
                    f"fedbench report {federation}"
                )
            default = federation if opened.client is None else own_name(federation, opened.client)
            return _register(tracker, run, opened, name or default, settings, say)


def _require_finished(run: StoredRun) -> None:
    if run.status != "finished":
        what_then = "wait for its end" if run.status == "running" else f"go on with: fedbench resume {run.name}"
        raise SpecError(f"{run.name}: expected a finished run, found one that is {run.status}; {what_then}")
    require_scores(run.name, run.records)


def _register(
    tracker: Tracker, run: StoredRun, opened: OpenedModel, name: str, settings: Settings, say: Callable[[str], None]
) -> RegisteredVersion:
    assert opened.spec is not None, "it is a run's"
    assert opened.record is not None, "it is a run's"
    owner, found = Owner(run.name, opened.client), owner_of(tracker, name)
    if found not in (None, owner):
        raise SpecError(
            f"{name}: expected a registered model of {_named(owner)}, found in MLflow one of {_named(found)}; choose "
            "another name with --name"
        )
    record, spec = opened.record, opened.spec
    state = state_of(opened.detector)
    weights_sha256 = state_sha256(state)
    # A fine-tuned model has the number of the last round and replaces no other one of its client.
    tuned = opened.client is not None and not spec.strategy.personal
    is_best = tuned or (best_figure(run.records) is not None and record.round == best_record(run.records).round)
    uri = model_uri(name)
    is_new = registered_version(tracker, name, weights_sha256) is None
    if is_new:
        say(f"registering {opened.title} …")
    version = register_best(
        tracker,
        BestModel(
            name=name,
            federation=run.name,
            client=opened.client,
            round=record.round,
            spec_digest=record.spec_digest,
            code_version=record.environment.fedbench,
            weights_sha256=weights_sha256,
            files=files_of(spec, opened.card, lambda: state, uri, opened.client),
            tags=version_tags(spec, record),
        ),
        scratch=run_folder(settings, run.name) / "registering",
        alias=is_best,
    )
    return RegisteredVersion(opened.title, uri if is_best else f"{SCHEME}{name}/{version}", version, is_new)


def _named(owner: Owner | None) -> str:
    """Return how a message names the models of ``owner``: by the tags that the registered model has."""
    tags = owner.tags if owner is not None else {}
    if not tags:
        return f"an unknown origin (no tag {TAG_FEDERATION})"
    run, client = tags.get(TAG_FEDERATION, "?"), tags.get(TAG_CLIENT)
    return f"the run {run}" if client is None else f"{run}@{client}"
