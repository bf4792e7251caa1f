"""Make a cell's result from records, and experiments from any runs."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tasks.errors import FedbenchError
from tasks.spec.data import SyntheticStreet
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import WeightRef
from tasks.spec.records import Metrics, RoundRecord
from tasks.spec.references import local_only, twin
from tasks.spec.strategies import FedProxSpec
from tasks.spec.suite import Cell
from tasks.spec.training import TrainingSpec
from tasks.suite.grouping import Run, cells_of_runs, result_of_runs
from tasks.suite.results import FIGURES, cell_result
from tests.records import SHA, client_info, evaluation_record, round_record, update_record
from tests.tasks.suite.suite_results import ENVIRONMENT, NOW

SPEC = FederationSpec(max_rounds=2, training=TrainingSpec(local_epochs=2))
WEIGHTS = WeightRef(key="k", sha256=SHA, bytes=3_000)
SIZES = {"1": 30, "2": 10}


def record_of(
    number: int, score: float | None, sizes: dict[str, int] = SIZES, *, own_tests: bool = False
) -> RoundRecord:
    """Return the record of a round of 10 s in which each client receives 3 kB and sends 3 kB."""
    clients = tuple(
        client_info(client, train_size=size, test_size=4, class_counts={"chair": size}, device="NVIDIA H100")
        for client, size in sizes.items()
    )
    updates = tuple(
        update_record(
            client,
            federation="f",
            round=number,
            weights=WEIGHTS,
            train_size=size,
            train_loss=1.5,
            steps=size // 5,
            seconds=4,
            train_seconds=3,
            bytes_down=3_000,
            device="NVIDIA H100",
        )
        for client, size in (sizes.items() if number else ())
    )
    groups = [(client,) for client in sizes] if own_tests else [tuple(sizes)]
    evaluations = tuple(
        evaluation_record(
            *group,
            test_digest=str(place) * 64,
            test_size=4,
            loss=2.0 + place,
            map50_voc10=score,
            per_class={"chair": score},
            seconds=0.5,
        )
        for place, group in enumerate(groups)
    )
    return round_record(
        number,
        federation="f",
        clients=clients,
        updates=updates,
        model=WEIGHTS,
        evaluations=evaluations,
        seconds={"a": 8.0, "b": 2.0},
        metrics=Metrics(
            train_loss=1.5 if number else None,
            loss=2.5,
            map50_voc10=score,
            map_coco=0.1,
            recall=0.5,
            per_class={"chair": score, "table": None},
        ),
        bytes_up=100,
        bytes_down=50,
        environment=ENVIRONMENT,
        committed=NOW,
    )


def outcome(scores: list[float | None], spec: FederationSpec = SPEC, **more: Any) -> Any:
    cell = Cell(experiment="a", role="federated", seed=spec.seed, spec=spec)
    records = [record_of(number, score, **more) for number, score in enumerate(scores)]
    return cell_result(cell, "run-a", records[::-1], metric="map50_voc10", target=0.3, mlflow_url="u")


def test_a_cell_has_every_round_with_its_costs() -> None:
    found = outcome([None, 0.3, 0.2])
    assert (found.experiment, found.role, found.seed, found.device) == ("a", "federated", 1234, None)
    assert (found.spec_digest, found.federation, found.clients) == (SPEC.digest, "run-a", 2)
    assert [point.round for point in found.points] == [0, 1, 2]
    assert [point.passes for point in found.points] == [0, 2, 4]
    assert [point.seconds for point in found.points] == [10, 20, 30]
    assert [point.exchanged for point in found.points] == [0, 12_000, 24_000]
    # Each round has a client with 30 images and 6 steps, and one with 10 images and 2.
    assert [point.steps for point in found.points] == [0, 5, 10]
    assert [point.committed for point in found.points] == [NOW] * 3
    assert found.hosts == (hashlib.sha256(b"h").hexdigest()[:8],)
    assert found.moved == 450
    assert set(found.last.figures) == set(FIGURES)
    assert found.last.figures["map50_voc10"] == 0.2
    assert found.last.figures["train_loss"] == 1.5
    assert found.points[0].figures["map50_voc10"] is found.last.figures["map50_coco"] is None
    assert found.per_class == {"chair": 0.2, "table": None}
    assert found.rounds_to_target == 1
    assert found.mlflow_url == "u"
    assert outcome([0.1, 0.2]).rounds_to_target is None


def test_gpu_time_is_the_turns_time_if_the_specification_uses_a_gpu() -> None:
    assert outcome([0.1, 0.2]).gpu_seconds == 0
    on_gpu = SPEC.model_copy(update={"training": TrainingSpec(local_epochs=2, device="cuda")})
    # Two clients take 4 s each in rounds 1 and 2. An evaluation takes 0.5 s in each of three rounds.
    assert outcome([0.1, 0.2, 0.3], on_gpu).gpu_seconds == 2 * 2 * 4 + 3 * 0.5
    # Two clients claim more time than a record can hold. The result is still made.
    claims = [record_of(number, 0.1) for number in range(2)]
    updates = tuple(update.model_copy(update={"seconds": 1e10}) for update in claims[1].updates)
    cell = Cell(experiment="a", role="federated", seed=1, spec=on_gpu)
    records = [claims[0], claims[1].model_copy(update={"updates": updates})]
    assert cell_result(cell, "run-a", records, metric="map50_voc10", target=0.3).gpu_seconds == 1e10


def test_clients_have_their_own_figures_only_with_their_own_test_sets() -> None:
    assert outcome([0.1, 0.2]).per_client == {}
    clients = outcome([0.1, 0.2], own_tests=True).per_client
    assert list(clients) == ["1", "2"]
    assert clients["2"] == {
        "map50_voc10": 0.2, "map50_voc07": None, "map50_coco": None, "map_coco": None, "recall": 0.5, "loss": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize(("numbers", "says"), [((), "found none"), ((0, 2), "found 0, 2")])
def test_a_result_needs_all_rounds(numbers: tuple[int, ...], says: str) -> None:
    cell = Cell(experiment="a", role="federated", seed=1, spec=SPEC)
    records = [record_of(number, 0.1) for number in numbers]
    with pytest.raises(FedbenchError, match=f"run-a: expected committed rounds from 0 to the last, {says}"):
        cell_result(cell, "run-a", records, metric="map50_voc10", target=0.5)


# --- any runs ----------------------------------------------------------------------------------------------


def run_of(name: str, spec: FederationSpec, sizes: dict[str, int] | None = None, seed: int = 1234) -> Run:
    if sizes is None:
        sizes = {"all": 40} if spec.data.pooled else SIZES
        if spec.data.local_only is not None:
            sizes = {spec.data.local_only: SIZES[spec.data.local_only]}
    return Run(name, spec.model_copy(update={"seed": seed}), [record_of(0, 0.1, sizes), record_of(1, 0.2, sizes)])


def grouped(*runs: Run) -> list[tuple[str, str, int, str | None, str]]:
    return [(cell.experiment, cell.role, cell.seed, cell.device, run.name) for cell, run in cells_of_runs(runs)]


def test_runs_that_differ_only_in_the_seed_are_one_experiment_with_their_references() -> None:
    runs = [
        run_of("central", twin(SPEC), seed=2),
        run_of("Street_5.s1", SPEC, seed=1),
        run_of("second", SPEC, seed=2),
        run_of("alone-1", local_only(SPEC, "1"), seed=1),
        run_of("alone-2", local_only(SPEC, "2"), seed=1),
    ]
    assert grouped(*runs) == [
        ("street-5", "federated", 1, None, "Street_5.s1"),
        ("street-5", "federated", 2, None, "second"),
        ("street-5", "centralised", 2, None, "central"),
        ("street-5", "local-only", 1, "1", "alone-1"),
        ("street-5", "local-only", 1, "2", "alone-2"),
    ]


def test_an_experiment_has_the_name_that_its_seeds_begin_with() -> None:
    names = ["street-20261130T145505", "street-20261130T145810", "other.s1"]
    fedprox = SPEC.model_copy(update={"strategy": FedProxSpec()})
    runs = [
        run_of(names[0], SPEC, seed=1),
        run_of(names[1], SPEC, seed=2),
        run_of("street-twin", twin(SPEC), seed=2),
        run_of(names[2], fedprox, seed=1),
    ]
    assert list(dict.fromkeys(experiment for experiment, *_ in grouped(*runs))) == ["street", "other"]
    runs.append(run_of("street", fedprox, seed=1))  # a second run of that seed
    assert list(dict.fromkeys(experiment for experiment, *_ in grouped(*runs))) == ["street", "other", "street-2"]


def test_a_second_run_of_a_seed_is_another_experiment_and_both_share_their_twin() -> None:
    runs = [run_of("first", SPEC), run_of("again", SPEC), run_of("central", twin(SPEC))]
    assert grouped(*runs) == [
        ("first", "federated", 1234, None, "first"),
        ("first", "centralised", 1234, None, "central"),
        ("again", "federated", 1234, None, "again"),
        ("again", "centralised", 1234, None, "central"),
    ]


def test_references_without_a_federation_of_the_same_images_stand_alone() -> None:
    other = SPEC.model_copy(update={"data": SyntheticStreet(seed=8)})
    runs = [
        run_of("alone-1", local_only(other, "1")),
        run_of("alone-2", local_only(other, "2")),
        run_of("fewer", SPEC, {"1": 30}),  # one client never took part
        run_of("central", twin(SPEC)),
        run_of("device", local_only(SPEC, "2")),
    ]
    assert [(experiment, role, name) for experiment, role, _, _, name in grouped(*runs)] == [
        ("alone", "local-only", "alone-1"),
        ("alone", "local-only", "alone-2"),
        ("fewer", "federated", "fewer"),
        ("central", "centralised", "central"),
        ("device", "local-only", "device"),
    ]


def test_experiments_of_any_runs_have_different_short_names() -> None:
    specs = [SPEC.model_copy(update={"max_rounds": number + 1}) for number in range(4)]
    names = ["A b.c".replace(" ", "_"), "a-b-c", "x" * 40, "x" * 39 + "y"]
    found = [row[0] for row in grouped(*(run_of(name, spec) for name, spec in zip(names, specs, strict=True)))]
    assert found[:2] == ["a-b-c", "a-b-c-2"]
    assert len(set(found)) == 4
    assert max(map(len, found)) == 32


def test_the_result_of_runs_is_like_a_suites() -> None:
    runs = [run_of("first", SPEC), run_of("central", twin(SPEC))]
    result = result_of_runs(runs, metric="map50_voc10", target=0.2, created=NOW)
    assert result.suite_run == "first_and_central"
    assert result.code_version == "9.8.7"
    assert result.specs == {"first": SPEC}
    assert [(cell.role, cell.rounds_to_target) for cell in result.cells] == [("federated", 1), ("centralised", 1)]
    many = [run_of(f"{letter * 60}", SPEC, seed=place) for place, letter in enumerate("abc")]
    assert len(result_of_runs(many, metric="map_coco", target=0.2, created=NOW).suite_run) == 100
