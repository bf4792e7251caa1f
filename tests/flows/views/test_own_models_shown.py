"""How tables, MLflow, Prefect's page and plots show the figures of clients' own models."""

from __future__ import annotations

import pytest
from rich.console import Console

from flows.views.mlflow_figures import own_figures, round_figures
from flows.views.prefect_page import _own_models
from flows.views.tables import own_lines, own_table, round_table
from tasks.figures.plots import rounds_plot
from tasks.metrics.over_clients import aggregate_metrics
from tasks.spec.records import Decision, FineTunedRecord, RoundRecord
from tests.records import NOW, SHA, WEIGHTS, evaluation_record, round_record

WORST, BEST = 0.25, 0.5


def record_of(number: int, *, shared_model: bool) -> RoundRecord:
    own = [evaluation_record("1", map50_voc10=BEST, loss=2.0), evaluation_record("2", map50_voc10=WORST, loss=1.0)]
    shared = [evaluation_record("1", "2", map50_voc10=0.125)] if shared_model else []
    return round_record(
        number,
        evaluations=shared,
        personal=own,
        metrics=aggregate_metrics([], shared, personal=own, shared_model=shared_model),
        decision=Decision(stop=False, best_round=0, best_map50_voc10=0.375),
    )


def printed(item: object) -> str:
    console = Console(width=120, record=True, color_system=None)
    with console.capture() as captured:
        console.print(item)
    return captured.get()


@pytest.mark.parametrize("shared_model", [True, False])
def test_a_table_has_the_mean_the_worst_client_and_the_spread(shared_model: bool) -> None:
    records = [record_of(number, shared_model=shared_model) for number in (0, 1)]
    rows = printed(round_table(records)).splitlines()
    assert ("0.125" if shared_model else "0.375") in rows[1]
    table = own_table(records)
    assert table is not None
    assert printed(table).splitlines()[1].split() == ["round", "0", "2", "1.500", "0.375", "0.250", "2", "0.125"]
    assert own_lines(records) == [
        "own models, round 0: map50_voc10 mean 0.375, worst 0.250 (client 2), deviation 0.125 over 2 clients, on the "
        "common test set"
    ]
    assert own_table([round_record()]) is None
    assert own_lines([round_record(0)]) == []


def test_fine_tuned_models_have_a_line() -> None:
    record = record_of(0, shared_model=True)
    tuned = FineTunedRecord(
        federation="street", round=0, spec_digest=SHA, model=WEIGHTS, updates=(), evaluations=record.personal,
        metrics=record.metrics, seconds=1, created=NOW,
    )  # fmt: skip
    assert own_lines([record], tuned)[1].startswith("fine-tuned, after round 0: map50_voc10 mean 0.375, worst 0.250")


def test_mlflow_has_means_worst_clients_and_each_clients_figures() -> None:
    figures = round_figures(record_of(1, shared_model=False)).figures
    assert "global/map50_voc10" not in figures
    assert figures["own_models/map50_voc10"] == 0.375
    assert figures["own_models/map50_voc10_worst"] == 0.25
    assert figures["own_models/map50_voc10_deviation"] == 0.125
    assert (figures["client/1/own_loss"], figures["client/2/own_map50_voc10"]) == (2.0, 0.25)
    assert own_figures(None, "own_models") == {}


def test_prefects_page_has_a_table_of_own_models() -> None:
    lines = _own_models([record_of(0, shared_model=False)])
    assert lines[-1] == "| 0 | 2 | 0.375 | 0.250 | 0.125 | 2 |"
    assert _own_models([round_record()]) == []


@pytest.mark.parametrize("shared_model", [True, False])
def test_the_plot_has_lines_of_the_mean_and_the_worst_client(shared_model: bool) -> None:
    figure = rounds_plot([record_of(number, shared_model=shared_model) for number in (0, 1)])
    lines = {str(line.get_label()): list(line.get_ydata()) for line in figure.axes[2].get_lines()}  # type: ignore[arg-type]
    assert lines["own models, worst client"] == [0.25, 0.25]
    assert lines["VOC 2010, IoU 0.5"] == [0.125 if shared_model else 0.375] * 2
    assert lines.get("own models, VOC 2010, IoU 0.5") == ([0.375] * 2 if shared_model else None)
