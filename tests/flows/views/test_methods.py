"""Every description of a run names its method and the fields that are not defaults. Plain FedAvg is as before."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.commands.listing_table import described
from flows.deployments.table import of_file
from flows.views.mlflow_figures import method_tags, suite_figures
from flows.views.prefect_page import summary
from flows.views.tables import describe
from infra.views import Views
from tasks.handles import Leavings
from tasks.models.card import card_of
from tasks.report.fields import common_fields, differing_fields
from tasks.report.html import report_html
from tasks.report.markdown import report_markdown
from tasks.report.method_tables import methods
from tasks.spec.federation import FederationSpec
from tasks.spec.strategies import AnyStrategy, FedAdamSpec, FedAvgSpec, FedProxSpec, FedYogiSpec, ScaffoldSpec
from tests.records import client_info, round_record
from tests.tasks.suite.suite_results import cell, result

ADAM = FederationSpec.model_validate({"strategy": {"kind": "fedadam", "server_lr": 0.03, "weights": "uniform"}})
PLAIN = FederationSpec()
LABEL = "fedadam (weights uniform, server_lr 0.03)"


@pytest.mark.parametrize(
    ("strategy", "label"),
    [
        (FedAvgSpec(), "fedavg"),
        (FedAvgSpec(weights="objects"), "fedavg (weights objects)"),
        (FedProxSpec(), "fedprox"),
        (FedProxSpec(mu=0), "fedprox (mu 0)"),
        (FedYogiSpec(tau=1e-9, beta1=0.123456789), "fedyogi (beta1 0.123456789, tau 1e-09)"),
        (ScaffoldSpec(server_lr=1.0), "scaffold"),
        (ADAM.strategy, LABEL),
    ],
)
def test_a_label_has_the_fields_that_are_not_defaults(strategy: AnyStrategy, label: str) -> None:
    assert strategy.label == label


def test_terminal() -> None:
    assert describe(ADAM).endswith(f" local epoch · {LABEL}")
    assert describe(PLAIN).endswith(" local epoch · fedavg")
    assert described(ADAM) == f"synthetic-street · yolov3-tiny · {LABEL} · {ADAM.digest[:8]}"
    assert described(PLAIN) == f"synthetic-street · yolov3-tiny · {PLAIN.digest[:8]}"


def test_mlflow() -> None:
    assert method_tags(ADAM) == {"fedbench.method": LABEL}
    assert method_tags(PLAIN) == {}
    cells = (cell("a", "federated", 1, [0.1, 0.2]), cell("a", "centralised", 1, [0.1, 0.2]))
    tags = [one.tags for one in suite_figures(result(*cells, specs={"a": ADAM})).cells]
    assert [one.get("fedbench.method") for one in tags] == [LABEL, None]
    assert all("fedbench.method" not in one.tags for one in suite_figures(result(*cells)).cells)


def test_prefect() -> None:
    history, nothing, views = [round_record(0)], Leavings({}, None, None), Views()
    assert f"\nMethod: {LABEL}\n" in summary("a", history, nothing, views, method=LABEL)
    assert "Method" not in summary("a", history, nothing, views)


def test_the_tags_of_a_deployment(tmp_path: Path) -> None:
    for name, spec in (("adam", ADAM), ("plain", PLAIN)):
        (tmp_path / f"{name}.yaml").write_text(spec.to_yaml())
    tags = [of_file(tmp_path / f"{name}.yaml", "pool").tags for name in ("adam", "plain")]
    assert tags == [(*tags[1], "fedadam"), ("fedbench", "synthetic-street", "yolov3-tiny")]


def test_the_card_of_a_model() -> None:
    record = round_record(
        1, clients=(client_info(class_counts={"car": 1}),), committed=datetime(2026, 1, 2, tzinfo=UTC)
    )
    assert f"Trained with the federated method {LABEL}." in card_of(ADAM, record).notes
    assert not [note for note in card_of(PLAIN, record).notes if "method" in note]


def test_reports() -> None:
    cells = [cell(name, "federated", 1, [0.1, 0.2]) for name in ("a", "b")]
    mixed, same = result(*cells, specs={"a": PLAIN, "b": ADAM}), result(*cells)
    assert methods(mixed.specs) == ["a: fedavg", f"b: {LABEL}"]
    assert methods(same.specs) == []
    assert f"- b: {LABEL}\n" in report_markdown(mixed)
    assert "fedadam" in report_html(mixed)
    assert "fedavg" not in report_markdown(same)


def test_tables_of_fields() -> None:
    assert {name: value for name, value in common_fields([ADAM, ADAM]) if name.startswith("strategy.")} == {
        "strategy.kind": "fedadam",
        "strategy.weights": "uniform",
        "strategy.server_lr": "0.03",
        "strategy.beta1": "0.9",
        "strategy.beta2": "0.99",
        "strategy.tau": "0.001",
    }
    assert [name for name, _ in common_fields([PLAIN, PLAIN]) if name.startswith("strategy.")] == ["strategy.kind"]
    other = ADAM.model_copy(update={"strategy": FedAdamSpec(server_lr=0.01, weights="uniform")})
    table = differing_fields({"a": ADAM, "b": other})
    assert table is not None
    assert [[cell.text for cell in row] for row in table.rows] == [["strategy.server_lr", "0.03", "0.01"]]
