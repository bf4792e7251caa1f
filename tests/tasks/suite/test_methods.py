"""Methods beside FedAvg of the same local training: who is paired with whom, differences and their interval."""

from __future__ import annotations

import pytest

from tasks.report.latex import latex_tables
from tasks.report.markdown import report_markdown
from tasks.report.method_tables import methods_table
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.strategies import FedAdamSpec, FedAvgSpec, FedProxSpec, ScaffoldSpec
from tasks.spec.suite_records import SuiteResult
from tasks.suite.methods import compare_methods
from tests.tasks.suite.suite_results import between, cell, result

ADAMW = FederationSpec()
SGD = with_fields(
    ADAMW,
    {"training.optimizer.kind": "sgd", "training.optimizer.momentum": 0, "training.clip_norm": None},
    source="test",
)
SPECS = {
    "fedavg-adamw": ADAMW,
    "fedavg-sgd": SGD,
    "uniform": ADAMW.model_copy(update={"strategy": FedAvgSpec(weights="uniform"), "max_rounds": 3}),
    "fedadam": ADAMW.model_copy(update={"strategy": FedAdamSpec()}),
    "scaffold": SGD.model_copy(update={"strategy": ScaffoldSpec()}),
    "other": ADAMW.model_copy(
        update={"strategy": FedProxSpec(), "training": ADAMW.training.model_copy(update={"batch_size": 3})}
    ),
}
# The last round's figures at the seeds 1, 2, 3.
LAST = {
    "fedavg-adamw": (0.5, 0.4, 0.3),
    "fedavg-sgd": (0.2, 0.2),
    "uniform": (0.5,),
    "fedadam": (0.6, 0.6, 0.6),
    "scaffold": (0.1, 0.3),
    "other": (0.9,),
}


@pytest.fixture(scope="module")
def suite() -> SuiteResult:
    cells = [
        cell(name, "federated", seed, [0.0, 0.1, value])
        for name, values in LAST.items()
        for seed, value in enumerate(values, start=1)
    ]
    return result(*cells, specs=SPECS)


def test_a_method_is_paired_with_the_fedavg_that_trains_in_the_same_way(suite: SuiteResult) -> None:
    """``other`` has another batch size than any FedAvg, so it is in no table. When a run stops does not matter."""
    assert [(item.experiment, item.baseline) for item in compare_methods(suite)] == [
        ("fedavg-adamw", None),
        ("uniform", "fedavg-adamw"),
        ("fedadam", "fedavg-adamw"),
        ("fedavg-sgd", None),
        ("scaffold", "fedavg-sgd"),
    ]


def test_the_differences_are_by_seed_and_their_interval_is_students(suite: SuiteResult) -> None:
    found = {item.experiment: item for item in compare_methods(suite)}
    adam = found["fedadam"]
    assert adam.paired is not None
    assert adam.paired.difference.values == pytest.approx((0.1, 0.2, 0.3))
    # Mean 0.2, sample standard deviation 0.1, t(0.975; 2) = 4.302653.
    assert adam.interval == pytest.approx((0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5))
    uniform = found["uniform"]
    assert uniform.paired is not None
    assert uniform.paired.difference.values == (0.0,)
    assert uniform.interval is None  # one seed
    assert found["fedavg-sgd"].paired is None


def test_the_table_has_every_method(suite: SuiteResult) -> None:
    table = methods_table(suite)
    assert table is not None
    assert [[cell.text for cell in row[:5]] for row in table.rows] == [
        ["fedavg-adamw", "a baseline", "0.400 ± 0.100", "–", "–"],
        ["uniform", "fedavg-adamw", "0.500", "0.000", "–"],
        ["fedadam", "fedavg-adamw", "0.600 ± 0.000", "+0.200 ± 0.100", "−0.048 to +0.448"],
        ["fedavg-sgd", "a baseline", "0.200 ± 0.000", "–", "–"],
        ["scaffold", "fedavg-sgd", "0.200 ± 0.141", "0.000 ± 0.141", "−1.271 to +1.271"],
    ]
    assert "| fedadam | fedavg-adamw | **0.600 ± 0.000 (n = 3)** |" in report_markdown(suite)
    latex = latex_tables(suite)
    assert r"fedadam & fedavg-adamw & $0.600 \pm 0.000$ (3) & $+0.200 \pm 0.100$ (3) & $-0.048$ to $+0.448$" in latex


def test_without_methods_there_is_no_table() -> None:
    assert compare_methods(between()) == []
    assert methods_table(between()) is None
    assert "Methods" not in report_markdown(between())
