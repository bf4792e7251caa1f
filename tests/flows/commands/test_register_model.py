"""``register``: models of a finished run become versions on request. The store, MLflow's SQLite and files are real."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from flows.commands.open_model import open_model
from flows.commands.register_model import RegisteredVersion, register_model
from flows.commands.verify import verify_model
from infra.errors import RunLocked, TrackingUnavailable
from infra.files.lock import run_lock
from infra.servers.database import mlflow_database_uri
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.store.weights import WeightStore
from infra.tracking.federation import Tracker
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of, state_sha256, write_state
from tasks.errors import DataError, FedbenchError, SpecError
from tasks.models.file import load_model, write_model
from tasks.spec.data import SyntheticStreet
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.plans import ClientFailure, WeightRef
from tasks.spec.records import Decision, Metrics, RoundRecord
from tests.flows.command import fedbench
from tests.records import WEIGHTS, client_info, evaluation_record, round_record

CLIENTS = ("3", "cam-4")
PLAIN = FederationSpec(
    data=SyntheticStreet(train_images=40, test_images=5), detector=YoloV3TinySpec(width=64, height=64)
)
DITTO = with_fields(PLAIN, {"strategy.kind": "ditto"}, source="test")
FEDPER = with_fields(PLAIN, {"strategy.kind": "fedper"}, source="test")
STOPPED = Decision(stop=True, reason="patience", best_round=0)


@dataclass(frozen=True)
class Place:
    """A store with runs of two rounds, the first the best: ditto, plain, fedper, going (unfinished), unscored.

    No round of mapless has a mAP.
    """

    settings: Settings

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(mlflow_database_uri(self.settings))

    def register(self, reference: str, **options: Any) -> RegisteredVersion:
        return register_model(reference, self.settings, **options)

    def versions(self, name: str) -> list[Any]:
        return list(self.client.search_model_versions(f"name = '{name}'"))


def detector_of(seed: int) -> Any:
    return build_detector(PLAIN.detector, 1, seed=seed)


def record_of(name: str, spec: FederationSpec, number: int, model: WeightRef, **fields: Any) -> RoundRecord:
    own = {"loss": 0.5, "map50_voc10": 0.75, "map50_voc07": 0.7, "recall": 0.9}
    return round_record(
        number,
        federation=name,
        spec_digest=spec.digest,
        clients=tuple(client_info(client, class_counts={"chair": 1}) for client in CLIENTS),
        model=model,
        metrics=Metrics(map50_voc10=0.25, map_coco=0.125),
        evaluations=(evaluation_record(*CLIENTS, map50_voc10=0.25),),
        personal=tuple(evaluation_record(client, **own) for client in CLIENTS) if spec.strategy.personal else (),
        **{"decision": STOPPED, **fields},
    )


@pytest.fixture(scope="module")
def place(s3_settings: S3Settings, tmp_path_factory: pytest.TempPathFactory) -> Place:
    resolved = s3_settings.model_copy(update={"prefix": "registering"})
    root = tmp_path_factory.mktemp("registering")
    settings = Settings(home=root / "home", s3=resolved)
    objects = ObjectStore(resolved)
    weights = WeightStore(objects, settings.home / "cache" / "weights", 2000)

    def put(key: str, seed: int) -> WeightRef:
        write_state(state_of(detector_of(seed)), root / "draft.safetensors")
        stored = weights.put(key, root / "draft.safetensors")
        return WeightRef(key=stored.key, sha256=stored.sha256, bytes=stored.bytes)

    going = Decision(stop=False, best_round=0)
    failed = ClientFailure(client="3", phase="stop_and_eval", kind="client-error", reason="no memory")
    for name, spec, fields in (
        ("ditto", DITTO, {}),
        ("plain", PLAIN, {}),
        ("fedper", FEDPER, {}),
        ("mapless", DITTO, {"metrics": Metrics(loss=0.5)}),
        ("going", DITTO, {"decision": going}),
        ("unscored", DITTO, {"evaluations": (), "personal": (), "dropped": (failed,)}),
    ):
        layout = FederationLayout("registering", name)
        objects.put_json(layout.spec, spec.model_dump(mode="json"))
        for number in range(2):
            model = put(layout.global_weights(number), number) if name in ("ditto", "mapless", "plain") else WEIGHTS
            states = {}
            if name == "ditto":
                states = {
                    client: put(layout.client_state(number, client), 10 + 2 * number + i)
                    for i, client in enumerate(CLIENTS)
                }
            record = record_of(name, spec, number, model, states=states)
            record = record.model_copy(update=fields)
            objects.put_json(layout.marker(number), record.model_dump(mode="json"))
    for name in ("ditto", "fedper", "mapless"):
        Tracker.open(
            uri=mlflow_database_uri(settings),
            experiment=settings.mlflow_experiment,
            artifact_location=str(root / "artifacts"),
            federation=name,
            spec_digest=DITTO.digest,
            params={},
            spec_yaml="",
            tags={},
        ).close("FINISHED")
    return Place(settings)


def weights_sha256(seed: int) -> str:
    return state_sha256(state_of(detector_of(seed)))


def test_a_clients_own_model_is_registered_once_with_its_tags(place: Place) -> None:
    said: list[str] = []
    first = place.register("ditto@cam-4", say=said.append)
    assert first == RegisteredVersion("ditto@cam-4, round 0", "models:/ditto+cam-4@best", "1", new=True)
    again = place.register("ditto@cam-4", say=said.append)
    assert again == RegisteredVersion("ditto@cam-4, round 0", "models:/ditto+cam-4@best", "1", new=False)
    assert said == ["registering ditto@cam-4, round 0 …"]
    (version,) = place.versions("ditto+cam-4")
    assert version.tags == {
        "fedbench.federation": "ditto",
        "fedbench.client": "cam-4",
        "fedbench.round": "0",
        "fedbench.spec_digest": DITTO.digest,
        "fedbench.version": "0",
        "fedbench.weights_sha256": weights_sha256(11),
        "fedbench.method": DITTO.strategy.label,
        "fedbench.metric": "map50_voc10",
        "fedbench.map50_voc10": "0.75",
        "fedbench.map50_voc07": "0.7",
    }
    (run,) = place.client.search_runs([version_experiment(place)], filter_string="tags.`fedbench.federation` = 'ditto'")
    assert (version.run_id, run.info.status) == (run.info.run_id, "FINISHED")
    assert "# ditto" in version.description
    assert "| client | cam-4 |" in version.description
    assert "The weights are the mean of the clients' updates" not in version.description
    assert "fedbench verify models:/ditto+cam-4@best --save model" in version.description


def version_experiment(place: Place) -> str:
    experiment = place.client.get_experiment_by_name(place.settings.mlflow_experiment)
    assert experiment is not None
    return str(experiment.experiment_id)


def test_mlflow_loads_the_clients_own_model(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = place.register("ditto@cam-4").uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database_uri(place.settings))
    loaded = mlflow.pyfunc.load_model(uri)
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, format="PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    (answer,) = loaded.predict(pd.DataFrame({"image": [image]}), params={"score_threshold": 0.0, "max_detections": 3})
    assert len(answer["detections"]) == 3
    assert {found["class"] for found in answer["detections"]} == {"chair"}
    folder = Path(place.versions("ditto+cam-4")[0].source)
    detector, card = load_model(folder / "artifacts" / "model.safetensors")
    assert (card.federation, card.round, card.clients) == ("ditto", 0, ("cam-4",))
    assert card.notes[0] == "The own model of client cam-4, not the federation's shared model."
    expected = detector_of(11).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in detector.state_dict().items())


def test_another_round_is_a_version_without_the_alias(place: Place) -> None:
    best = place.register("ditto@3")
    other = place.register("ditto@3", number=1)
    assert (best.uri, other.uri) == ("models:/ditto+3@best", f"models:/ditto+3/{other.version}")
    assert best.version != other.version
    assert str(place.client.get_model_version_by_alias("ditto+3", "best").version) == best.version
    tags = place.client.get_model_version("ditto+3", other.version).tags
    assert (tags["fedbench.round"], tags["fedbench.weights_sha256"]) == ("1", weights_sha256(12))


def test_the_shared_model_is_registered_under_the_runs_name(place: Place) -> None:
    assert place.register("ditto") == RegisteredVersion("ditto, round 0", "models:/ditto@best", "1", new=True)
    (version,) = place.versions("ditto")
    assert version.tags["fedbench.weights_sha256"] == weights_sha256(0)
    assert version.tags["fedbench.map_coco"] == "0.125"
    assert "fedbench.client" not in version.tags
    assert "The weights are the mean of the clients' updates" in version.description


def test_a_registered_model_may_have_a_name_of_ones_own(place: Place) -> None:
    registered = place.register("ditto@3", name="street-detector")
    assert registered.uri == "models:/street-detector@best"
    with pytest.raises(
        SpecError,
        match=r"^street-detector: expected a registered model of ditto@cam-4, found in MLflow one of ditto@3; choose",
    ):
        place.register("ditto@cam-4", name="street-detector")
    with pytest.raises(SpecError, match=r"of the run ditto, found in MLflow one of ditto@3"):
        place.register("ditto", name="street-detector")
    place.client.create_registered_model("theirs")
    with pytest.raises(SpecError, match=r"found in MLflow one of an unknown origin \(no tag fedbench\.federation\)"):
        place.register("ditto@3", name="theirs")
    with pytest.raises(SpecError, match="--name plain: expected a name that no other run has"):
        place.register("ditto@3", name="plain")
    with pytest.raises(SpecError, match="--name: expected letters, digits"):
        place.register("ditto@3", name="a/b")
    verified = verify_model(place.settings, registered.uri, run="ditto@3")
    assert verified.differences == verified.notes == ()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "nobody@3",
            "nobody: no such federation in the store; expected one of: ditto, fedper, going, mapless, plain, unscored",
        ),
        ("ditto@9", "ditto@9: no such client in round 0; the run has ditto@3, ditto@cam-4"),
        ("ditto@", "ditto@: no such client in round 0; the run has ditto@3, ditto@cam-4"),
        ("plain@3", "plain@3: expected a run whose clients keep models of their own, found strategy.kind fedavg"),
        ("fedper", "fedper: expected a client's own model, because strategy.kind fedper has no complete shared model"),
        ("going@3", "going: expected a finished run, found one that is stopped; go on with: fedbench resume going"),
        ("m.safetensors", "m.safetensors: expected RUN or RUN@CLIENT, found a model that is a file"),
        ("models:/ditto@best", "models:/ditto@best: expected RUN or RUN@CLIENT, found a model that is a file or"),
    ],
)
def test_what_cannot_be_registered_is_refused(place: Place, reference: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        place.register(reference)
    assert str(caught.value).startswith(message)


def test_a_round_that_is_not_there_is_refused(place: Place) -> None:
    with pytest.raises(SpecError, match=r"--round 2: expected 0 to 1, the committed rounds of ditto"):
        place.register("ditto@3", number=2)


def test_a_run_without_figures_is_refused(place: Place) -> None:
    with pytest.raises(FedbenchError, match=r"unscored: every evaluation failed, .* client 3: no memory"):
        place.register("unscored@3")


def test_no_round_of_a_run_without_a_map_is_registered_as_the_best(place: Place) -> None:
    for reference in ("mapless", "mapless@3"):
        with pytest.raises(SpecError, match=r"^mapless: expected --round, because no round has a map50_voc10, so none"):
            place.register(reference)
    found = place.register("mapless", number=0)
    assert found.uri == f"models:/mapless/{found.version}"
    assert not place.client.get_registered_model("mapless").aliases


def test_a_run_that_mlflow_does_not_have_is_refused_with_the_command_that_logs_it(place: Place) -> None:
    with pytest.raises(
        TrackingUnavailable, match=r"plain: MLflow's experiment fedbench has no run of it; .* report plain"
    ):
        place.register("plain")


def test_a_run_that_another_process_works_on_is_refused(place: Place) -> None:
    with run_lock(place.settings.home, "ditto"), pytest.raises(RunLocked, match="ditto: already running"):
        place.register("ditto@3")


def test_the_command_prints_the_uri_and_the_version(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.cli.exporting.machine_settings", lambda home: place.settings)
    place.register("ditto@3")
    done = fedbench("register", "ditto@3")
    assert done.exit_code == 0, done.output
    assert done.output == "ditto@3, round 0: models:/ditto+3@best, version 1, registered before\n"
    refused = fedbench("register", "ditto@9")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_a_clients_registered_model_is_opened_from_the_runs_record(place: Place) -> None:
    place.register("ditto@cam-4")
    opened = open_model("models:/ditto+cam-4@best", place.settings)
    assert opened.title == "models:/ditto+cam-4@best (ditto@cam-4, round 0)"
    assert (opened.client, opened.spec) == ("cam-4", DITTO)
    expected = detector_of(11).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.detector.state_dict().items())


def changed(folder: Path) -> None:
    """Change a weight in the model's file."""
    path = folder / "artifacts" / "model.safetensors"
    detector, card = load_model(path)
    state = state_of(detector)
    next(iter(state.values())).add_(1)
    write_model(path, card, state)


def test_a_clients_registered_model_is_verified_and_a_changed_one_is_not(place: Place, tmp_path: Path) -> None:
    place.register("ditto@cam-4")
    saved = tmp_path / "saved"
    for reference in ("ditto@cam-4", "models:/ditto+cam-4@best", "models:/ditto+cam-4/1"):
        verified = verify_model(place.settings, reference, save=None if saved.exists() else saved)
        assert verified.differences == verified.notes == ()
        assert verified.title.endswith("(ditto@cam-4, round 0)")
    assert verify_model(place.settings, str(saved), run="ditto@cam-4").differences == ()
    (saved / "registered_model_meta").write_text("model_name: ditto+cam-4\nmodel_version: '1'\n")
    assert verify_model(place.settings, str(saved)).differences == ()
    (other,) = {item.path for item in verify_model(place.settings, str(saved), run="ditto@3").differences} & {
        "artifacts/model.safetensors"
    }
    assert other == "artifacts/model.safetensors"
    changed(saved)
    (difference,) = verify_model(place.settings, str(saved)).differences
    assert difference.path == "artifacts/model.safetensors"
    assert difference.reason.endswith("are not those of ditto@cam-4, round 0")
    place.client.create_model_version("ditto+cam-4", source=str(saved))
    with pytest.raises(DataError, match=r"models:/ditto\+cam-4/2: expected the weights of ditto@cam-4, round 0, found"):
        open_model("models:/ditto+cam-4/2", place.settings)


def test_a_method_without_a_shared_model_has_none_to_verify(place: Place) -> None:
    with pytest.raises(SpecError, match=r"fedper: strategy\.kind fedper has no .* own model is called fedper@CLIENT"):
        verify_model(place.settings, "fedper")
