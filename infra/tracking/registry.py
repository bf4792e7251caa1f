"""MLflow's model registry: one registered model a federation, with a version for each model that was its best.

On request a client's own model is registered too, under a name of its own. A version is found by the sha256 of its
weights, so that nothing is registered twice. The alias ``best`` names the newest best. A version is a pyfunc *model
from code* with a safetensors artifact. Nothing is pickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from infra.tracking.client import TAG_FEDERATION
from infra.tracking.federation import TAG_SPEC_DIGEST, TAG_VERSION, Tracker
from infra.tracking.model_folder import CARD_FILE, ModelFiles, Origin, save_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "best"
TAG_WEIGHTS = "fedbench.weights_sha256"
TAG_ROUND = "fedbench.round"
TAG_CLIENT = "fedbench.client"
CLIENT_MARK = "+"  # MLflow's URIs accept it; names of federations and clients have none
_DESCRIPTION_LENGTH = 5000  # limit of MLflow's database


@dataclass(frozen=True)
class BestModel:
    """The best model of a federation or of one of its clients, to be registered.

    name: the registered model's. MLflow accepts all characters of a federation's name, which is the default.
    client: whose own model it is; None for the shared one.
    weights_sha256: digest of the weights, by which a version is found.
    files: the parts of the model. The card is also the version's description.
    """

    name: str
    federation: str
    round: int
    spec_digest: str
    code_version: str
    weights_sha256: str
    files: ModelFiles
    tags: Mapping[str, str] = field(default_factory=dict)
    client: str | None = None

    @property
    def owner(self) -> Owner:
        return Owner(self.federation, self.client)


@dataclass(frozen=True)
class Owner:
    """Whose models a registered model has. federation: None if fedbench did not make it. client: None if shared."""

    federation: str | None
    client: str | None

    @property
    def tags(self) -> dict[str, str]:
        """Return the tags of the registered model by which :func:`owner_of` finds this again."""
        tags = {TAG_FEDERATION: self.federation, TAG_CLIENT: self.client}
        return {name: value for name, value in tags.items() if value is not None}


def own_name(federation: str, client: str) -> str:
    """Return the name of the registered model of a client's own models. No federation can have this name."""
    return f"{federation}{CLIENT_MARK}{client}"


def model_uri(name: str) -> str:
    """Return the URI of the best version of a registered model, for MLflow's commands and ``load_model``."""
    return f"models:/{name}@{ALIAS}"


def register_best(tracker: Tracker, best: BestModel, scratch: Path, *, alias: bool = True) -> str:
    """Register ``best`` unless it is registered already, and let the alias name it. Return its version.

    alias: False leaves the alias as it is, for a model of a round that is not the best.
    scratch: a folder that nothing else uses, with room for two copies of the model file. It is emptied first and
        removed at the end.

    Raises:
        TrackingUnavailable: MLflow or its artifact store does not answer or refuses.
        Whatever ``files.write_model`` raises.
    """
    with tracker.answering() as client:
        version = _find(client, best.name, best.weights_sha256)
        if version is None:
            version = _add(client, tracker, best, scratch)
        if alias:
            client.set_registered_model_alias(best.name, ALIAS, version)
    return version


def registered_version(tracker: Tracker, name: str, weights_sha256: str) -> str | None:
    """Return the newest version of the registered model ``name`` with these weights; None: there is none.

    Raises:
        TrackingUnavailable: MLflow does not answer.
    """
    with tracker.answering() as client:
        return _find(client, name, weights_sha256)


def owner_of(tracker: Tracker, name: str) -> Owner | None:
    """Return whose models the registered model ``name`` has; None: there is no such registered model.

    Raises:
        TrackingUnavailable: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with tracker.answering() as client:
        try:
            tags = client.get_registered_model(name).tags
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
    return Owner(tags.get(TAG_FEDERATION), tags.get(TAG_CLIENT))


def _find(client: MlflowClient, name: str, weights_sha256: str) -> str | None:
    versions = client.search_model_versions(
        f"name = '{name}' and tag.`{TAG_WEIGHTS}` = '{weights_sha256}'", order_by=["version_number DESC"]
    )
    return str(versions[0].version) if versions else None


def _add(client: MlflowClient, tracker: Tracker, best: BestModel, scratch: Path) -> str:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.exceptions import MlflowException

    tags = {
        **best.tags,
        **best.owner.tags,
        TAG_SPEC_DIGEST: best.spec_digest,
        TAG_VERSION: best.code_version,
        TAG_ROUND: str(best.round),
        TAG_WEIGHTS: best.weights_sha256,
    }
    logged = client.create_logged_model(
        tracker.experiment_id,
        name=best.name.replace(".", "-"),  # MLflow takes no dot in this name
        source_run_id=tracker.run_id,
        tags=tags,
    )
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed here
        scratch.mkdir(mode=0o700, parents=True)
        folder = scratch / "mlflow"
        save_folder(best.files, folder, Origin(model_id=logged.model_id, run_id=tracker.run_id))
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    except BaseException:
        with suppress(Exception):  # the first error counts
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    client.log_outputs(tracker.run_id, [LoggedModelOutput(logged.model_id, best.round)])
    try:
        client.create_registered_model(best.name, tags=best.owner.tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        best.name,
        source=logged.artifact_location,  # models:/<id> would be looked up at this process's tracking URI
        run_id=tracker.run_id,
        tags=tags,
        description=_shortened(best.files.card),
        model_id=logged.model_id,
    )
    return str(version.version)


def _shortened(card: str) -> str:
    rest = f"\n\n(The rest is in {CARD_FILE}.)\n"
    if len(card) <= _DESCRIPTION_LENGTH:
        return card
    return card[: _DESCRIPTION_LENGTH - len(rest)].rpartition("\n")[0] + rest
