"""The data sets of a run in MLflow, and its tags and description. No image is read: the data do not exist here."""

from __future__ import annotations

from flows.views.mlflow_data import MOST, data_name, data_sets
from flows.views.mlflow_texts import cell_title, description, filter_tags, parameters
from tasks.spec.federation import FederationSpec
from tasks.spec.records import Decision, Metrics
from tasks.spec.references import local_only, twin
from tests.records import client_info, evaluation_record, round_record

STREET = FederationSpec.model_validate({"data": {"kind": "federated-street"}})
A, B = "a" * 64, "b" * 64


def test_clients_train_on_their_own_data_and_share_a_test_set() -> None:
    clients = [client_info(client, train_size=4, class_counts={"car": 5, "bus": 1}) for client in ("10", "2")]
    found = data_sets(STREET, clients, [evaluation_record("10", "2", objects={"car": 7})])
    assert [(item.name, item.context) for item in found] == [
        ("street5 client 2", "training"),
        ("street5 client 10", "training"),
        ("street5 test", "test"),
    ]
    assert found[0].profile == {"images": 4, "objects": 6, "objects_by_class": {"car": 5, "bus": 1}}
    assert found[2].profile == {"images": 5, "objects": 7, "objects_by_class": {"car": 7}, "clients": ["2", "10"]}
    assert found[2].digest == A[:16]
    assert len({item.digest for item in found}) == 3
    assert data_sets(STREET, list(reversed(clients)), [])[0].digest == found[0].digest
    other = STREET.model_copy(update={"data": STREET.data.model_copy(update={"drop_duplicate_objects": True})})
    assert data_sets(other, clients, [])[0].digest != found[0].digest


def test_held_out_images_and_test_sets_of_their_own() -> None:
    clients = [
        client_info(client, test_digest=digest, holdout_size=2, holdout_digest=digest[::-1].replace(digest[0], "c"))
        for client, digest in (("1", A), ("2", B))
    ]
    clients[1] = clients[1].model_copy(update={"holdout_digest": "d" * 64})
    found = [(item.name, item.context) for item in data_sets(STREET, clients, []) if item.context != "training"]
    assert found == [
        ("street5 test client 1", "test"),
        ("street5 test client 2", "test"),
        ("street5 held-out client 1", "held-out"),
        ("street5 held-out client 2", "held-out"),
    ]


def test_many_clients_are_one_data_set_with_a_profile_of_each() -> None:
    clients = [
        client_info(str(number), train_size=number, test_digest=f"{number:064x}", class_counts={"car": 1})
        for number in range(1, 101)
    ]
    training, test = data_sets(STREET, clients, [])
    assert (training.name, training.context) == ("street5 training", "training")
    assert training.profile["clients"] == 100
    assert training.profile["images"] == 5050
    by_client = training.profile["by_client"]
    assert isinstance(by_client, dict)
    assert by_client["100"] == {"images": 100, "objects": 1, "objects_by_class": {"car": 1}}
    assert (test.name, test.profile["images"]) == ("street5 test", 500)
    shared = [info.model_copy(update={"test_digest": A}) for info in clients]
    assert data_sets(STREET, shared, [])[1].profile["clients"] == 100
    assert len(data_sets(STREET, clients[:MOST], [])) == 2 * MOST


def with_label_space(space: dict[str, list[str]]) -> FederationSpec:
    classes = sorted({name for named in space.values() for name in named})
    return FederationSpec.model_validate(
        {"data": {"kind": "coco", "name": "mine", "classes": classes, "label_space": space}}
    )


def test_the_label_spaces_of_a_few_clients_are_a_parameter_each() -> None:
    found = parameters(with_label_space({"a": ["car"], "b": ["bus", "car"]}))
    assert found["data.label_space.a"] == ["car"]
    assert found["data.label_space.b"] == ["bus", "car"]
    assert found["max_rounds"] == FederationSpec().max_rounds


def test_the_label_spaces_of_many_clients_are_one_short_parameter() -> None:
    space = {str(number): ["bus", "car"] if number % 3 else ["car"] for number in range(1, 3001)}
    found = parameters(with_label_space(space))
    named = {name: value for name, value in found.items() if "label_space" in name}
    assert named == {"data.label_space": "3000 clients: 2000 label bus, car; 1000 label car"}
    assert len(found) < 100
    own = {str(number): [f"class {number} {'x' * 300}", "car"] for number in range(2000)}
    text = parameters(with_label_space(own))["data.label_space"]
    assert isinstance(text, str)
    assert text.endswith("; 1990 more label spaces")
    assert len(text) < 3000


def test_tags_name_what_people_filter_by() -> None:
    assert filter_tags(STREET) == {
        "fedbench.data": "street5",
        "fedbench.detector": STREET.detector.kind,
        "fedbench.method": "fedavg",
        "fedbench.role": "federated",
        "fedbench.seed": str(STREET.seed),
    }
    roles = [filter_tags(spec)["fedbench.role"] for spec in (twin(STREET), local_only(STREET, "1"))]
    assert roles == ["centralised", "local-only"]
    assert "fedbench.method" not in filter_tags(twin(STREET))
    assert data_name(FederationSpec()) == "synthetic-street5"


def test_names_of_cells() -> None:
    assert cell_title("laptop", "federated", 1, None) == "laptop · seed 1"
    assert cell_title("laptop", "centralised", 1, None) == "laptop · seed 1 · centralised"
    assert cell_title("laptop", "local-only", 2, "5") == "laptop · seed 2 · device 5 alone"


def test_a_description_has_the_best_figures_and_no_link_to_a_server_that_ends() -> None:
    history = [
        round_record(0),
        round_record(1, metrics=Metrics(map50_voc10=0.5, map_coco=0.25),
                     evaluations=(evaluation_record("1"),)),
        round_record(2, decision=Decision(stop=True, reason="max_rounds", best_round=1)),
    ]  # fmt: skip
    text = description("mine", STREET, history, prefect=None, ui="fedbench ui mine")
    assert "Best round 1 of 2: map50_voc10 0.500, map_coco 0.250" in text
    assert "Stopped by max_rounds" in text
    assert "Prefect: `fedbench ui mine`" in text
    assert "http" not in text
    linked = description("mine", STREET, [], prefect="http://h/runs/flow-run/1", ui="fedbench ui mine")
    assert "Prefect: [flow run](http://h/runs/flow-run/1)" in linked
