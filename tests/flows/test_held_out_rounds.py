"""Rounds that score held-out images: which figures decide, which are shown, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.views.mlflow_figures import round_figures
from flows.views.prefect_page import client_table, round_description, summary
from flows.views.tables import best_line, class_table, round_table
from infra.settings_groups import S3Settings
from infra.views import Views
from tasks.client_eval import client_eval
from tasks.decide import decide_stop
from tasks.errors import FedbenchError, SpecError
from tasks.figures.plots import rounds_plot
from tasks.handles import Leavings
from tasks.metrics.over_clients import aggregate_metrics
from tasks.models.card import card_of
from tasks.models.file import card_text
from tasks.replies import checked, not_counted
from tasks.report.csv import rounds_csv
from tasks.report.html import report_html
from tasks.report.latex import latex_tables
from tasks.report.markdown import report_markdown
from tasks.spec.data import Holdout
from tasks.spec.federation import FederationSpec, parse_spec, with_fields
from tasks.spec.plans import ClientFailure, ClientInfo
from tasks.spec.records import Metrics, RoundRecord
from tasks.spec.suite import Cell
from tasks.spec.turns import EvaluationRequest, TurnReply, WakeUpRequest
from tasks.stop_and_eval import images_to_score
from tasks.suite.results import cell_result
from tasks.usable import model_fault
from tests.flows.empty_federation import SPEC, EmptyFederation, without_prefect_and_learning
from tests.records import SHA, client_info, evaluation_record, result_of_suite, round_record, update_record

HELD = {"data.holdout.fraction": 0.4, "data.holdout.least": 4, "participation.clients": ("1", "2", "3")}


def spec_of(on: str, **fields: Any) -> FederationSpec:
    return with_fields(SPEC, HELD | {"evaluation.on": on, "max_rounds": 2} | fields, source="test")


@pytest.fixture(autouse=True)
def without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    without_prefect_and_learning(monkeypatch)


# --- rounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["holdout", "both"])
def test_rounds_score_the_images_that_the_specification_names(s3_settings: S3Settings, tmp_path: Path, on: str) -> None:
    spec = spec_of(on)
    asked: list[Any] = []
    federation = EmptyFederation(s3_settings, tmp_path, "held-out", f"held-{on}", spec)
    history = federation.run(asked.append)
    data = federation.site.data(spec.data)
    few = f"no figure on held-out images for client 3 ({len(data.holdout['3'])}): fewer than data.holdout.least (4)"
    assert few in federation.said.messages
    assert [record.round for record in history] == [0, 1, 2]
    scored = [client for client in "123" if len(data.holdout[client]) >= 4]
    assert scored == ["1", "2"]
    for record in history:
        assert [(info.train_size, info.holdout_size) for info in record.clients] == [
            (len(data.train[client]), len(data.holdout[client])) for client in "123"
        ]
        held = record.evaluations_on("holdout")
        assert [(item.clients, item.test_size) for item in held] == [
            ((client,), len(data.holdout[client])) for client in scored
        ]
        assert [item.clients for item in record.evaluations_on("test")] == ([("1", "2", "3")] if on == "both" else [])
        assert record.scored_on == spec.evaluation.parts
        assert (record.decision.on, record.shown_on) == ("holdout", "test" if on == "both" else "holdout")
        assert record.metrics.holdout is not None
        assert record.metrics.holdout.map50_voc10 == 0
        assert (record.metrics.map50_voc10 is None) == (on == "holdout")
        assert record.shown.map50_voc10 == 0
        assert not record.dropped
        assert RoundRecord.model_validate_json(record.model_dump_json()) == record
    evaluations = [request for request in asked if isinstance(request, EvaluationRequest)]
    assert {request.on for request in evaluations} == set(spec.evaluation.parts)
    assert history[-1].plan is not None
    assert history[-1].plan.train_sizes == {client: len(data.train[client]) for client in "123"}


def test_too_few_held_out_images_everywhere_are_refused_with_the_fields(
    s3_settings: S3Settings, tmp_path: Path
) -> None:
    with pytest.raises(FedbenchError, match=r"evaluation\.on: both needs a client with at least 500 .*data\.holdout"):
        EmptyFederation(s3_settings, tmp_path, "held-out", "few", spec_of("both", **{"data.holdout.least": 500})).run()


def test_held_out_images_that_changed_are_not_scored(s3_settings: S3Settings, tmp_path: Path) -> None:
    federation = EmptyFederation(s3_settings, tmp_path, "held-out", "changed", spec_of("holdout"))
    request = EvaluationRequest.model_validate(
        {"federation": "changed", "spec": federation.spec, "clients": ("1",), "round": 0, "on": "holdout",
         "model": {"key": "k", "sha256": SHA, "bytes": 1}, "test_digest": SHA, "test_size": 3, "part": 0, "parts": 1}
    )  # fmt: skip
    (failure,) = client_eval(federation.site, request).failures
    assert "client 1: its held-out images have changed since wake_up: expected digest aaaa" in failure.reason


# --- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "fields", "reason"),
    [
        (SPEC, {"holdout_size": 3, "holdout_digest": SHA}, "holdout_size: expected 0, because data.holdout"),
        (spec_of("both"), {"holdout_size": 3}, "holdout_digest: expected one exactly if"),
        (spec_of("both"), {"holdout_digest": SHA}, "holdout_digest: expected one exactly if"),
        (spec_of("both"), {"holdout_size": 10**7, "holdout_digest": SHA}, "holdout_size: expected at most 1000000"),
    ],
)
def test_impossible_counts_drop_their_client(spec: FederationSpec, fields: dict[str, Any], reason: str) -> None:
    request = WakeUpRequest(federation="f", spec=spec, clients=("1", "2"))
    reply = checked(request, TurnReply(ready=(client_info("1", **fields), client_info("2"))))
    assert [info.client for info in reply.ready] == ["2"]
    assert reason in reply.failures[0].reason


def test_no_client_shares_another_ones_held_out_images() -> None:
    same = {"holdout_size": 9, "holdout_digest": SHA}
    infos = [client_info("1", **same), client_info("2", **same), client_info("3"), client_info("4", holdout_size=3,
             holdout_digest=SHA)]  # fmt: skip
    assert [(on, [info.client for info in group]) for on, group in images_to_score(spec_of("both"), infos)] == [
        ("test", ["1", "2", "3", "4"]), ("holdout", ["1"]), ("holdout", ["2"]),
    ]  # fmt: skip


def test_a_failure_on_one_part_stays_on_record() -> None:
    lost = ClientFailure(client="1", phase="stop_and_eval", kind="deadline", reason="held-out images: late")
    scored = [evaluation_record("1", "2"), evaluation_record("2", on="holdout")]
    assert not_counted([lost], [], scored, of_each=2) == (lost,)
    assert not_counted([lost], [], scored, of_each=1) == ()


def test_a_model_is_unusable_if_it_is_at_most_clients_on_either_part() -> None:
    bad = evaluation_record("1", on="holdout", loss=None)
    assert model_fault([evaluation_record("1", "2"), bad], []) is None
    assert model_fault([evaluation_record("1"), bad], []) is not None


# --- figures -----------------------------------------------------------------------------------------------


def test_figures_on_held_out_images_are_means_by_their_number() -> None:
    test = evaluation_record("1", "2", map50_voc10=0.9)
    held = [
        evaluation_record(c, on="holdout", test_size=n, map50_voc10=v) for c, n, v in (("1", 10, 0.4), ("2", 30, 0.8))
    ]
    both = aggregate_metrics([update_record("1")], [held[0], test, held[1]])
    assert both.map50_voc10 == 0.9
    assert both.holdout is not None
    assert both.holdout.map50_voc10 == pytest.approx(0.7)
    assert both.holdout.unweighted["map50_voc10"] == pytest.approx(0.6)
    assert both.train_loss == both.holdout.train_loss == 1.0
    assert aggregate_metrics([], [test]).holdout is None
    assert aggregate_metrics([], held).map50_voc10 is None
    with pytest.raises(FedbenchError, match="expected each client once"):
        aggregate_metrics([], [held[0], held[0]])


def metrics(test: float, held: float, loss: float = 1.0) -> Metrics:
    return Metrics(map50_voc10=test, loss=1.0, holdout=Metrics(map50_voc10=held, loss=loss))


def test_held_out_images_decide_the_best_round_patience_and_target() -> None:
    history = [metrics(0.1, 0.1), metrics(0.5, 0.3), metrics(0.2, 0.6, 0.5)]
    by_test, by_held = (decide_stop(spec_of(on, target_map=0.6), 2, history) for on in ("test", "both"))
    assert (by_test.on, by_test.best_round, by_test.best, by_test.stop) == ("test", 1, 0.5, True)  # max_rounds
    assert (by_held.on, by_held.best_round, by_held.best, by_held.reason) == ("holdout", 2, 0.6, "target_map")
    worse = [*history, metrics(0.9, 0.5, 0.7)]
    for fields in ({"patience": 1}, {"patience": 1, "patience_metric": "loss"}):
        assert decide_stop(spec_of("both", max_rounds=9, **fields), 3, worse).reason == "patience"
        assert decide_stop(spec_of("holdout", max_rounds=9, **fields), 3, worse).reason == "patience"
    assert not decide_stop(spec_of("test", max_rounds=9, patience=1), 3, worse).stop


def test_older_records_are_of_test_sets() -> None:
    record = round_record(evaluations=(evaluation_record("1"),))
    document = record.model_dump(mode="json")
    del document["decision"]["on"], document["metrics"]["holdout"], document["evaluations"][0]["on"]
    assert RoundRecord.model_validate(document) == record
    assert (record.shown_on, record.scored_on, record.decision.best_name) == ("test", ("test",), "map50_voc10")
    info = client_info().model_dump(mode="json")
    del info["holdout_size"], info["holdout_digest"]
    assert ClientInfo.model_validate(info) == client_info()


# --- what people see ---------------------------------------------------------------------------------------


def history_of(on: str) -> list[RoundRecord]:
    spec = spec_of(on)
    found: list[RoundRecord] = []
    for number, (test, held) in enumerate(((0.1, 0.2), (0.5, 0.3), (0.4, 0.6))):
        evaluations = [evaluation_record("1", "2", map50_voc10=test, per_class={"car": test}, objects={"car": 3})]
        evaluations += [
            evaluation_record(client, on="holdout", map50_voc10=held, per_class={"car": held}, objects={"car": 4})
            for client in "12"
        ]
        chosen = tuple(item for item in evaluations if item.on in spec.evaluation.parts)
        figures = aggregate_metrics([], chosen)
        decision = decide_stop(spec, number, [*(record.metrics for record in found), figures])
        infos = tuple(client_info(c, holdout_size=5, holdout_digest=SHA, class_counts={"car": 2}) for c in "12")
        found.append(round_record(number, evaluations=chosen, metrics=figures, decision=decision, clients=infos))
    return found


def text_of(table: Any, width: int = 200) -> str:
    console = Console(width=width, record=True, quiet=True)
    console.quiet = False
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("on", ["test", "holdout", "both"])
def test_tables_and_pages_name_the_images(on: str) -> None:
    history = history_of(on)
    for wide in (False, True):
        rows = " ".join(text_of(round_table(history, wide=wide)).split())
        assert ("held-out" in rows) == (on != "test")
        assert ("test" in rows) == (on != "holdout")
        assert ("0.600" in rows) == (on != "test")
    best = best_line(history[-1].decision)
    assert best == ("round 1, map50_voc10 0.500" if on == "test" else "round 2, held-out map50_voc10 0.600")
    objects = text_of(class_table(history[-1]))
    assert ("held-out objects" in objects) == (on == "holdout")
    assert ("8" in objects) == (on == "holdout")
    page = summary("f", history, Leavings({}, None, None), Views())
    assert ("held-out loss" in page, "test loss" in page) == (on != "test", on != "holdout")
    figures = round_figures(history[-1]).figures
    assert ("holdout/map50_voc10" in figures, "global/map50_voc10" in figures) == (on != "test", on != "holdout")
    assert ("client/1/holdout_map50_voc10" in figures) == (on != "test")
    axes = rounds_plot(history).axes
    titles = [axis.get_title(loc) for axis in axes for loc in ("left", "right")]
    assert any("best held-out map50_voc10 0.600, round 2" in title for title in titles) == (on != "test")
    columns = client_table(history[-1])[0]
    assert columns.get("held-out") == (None if on == "test" else "0.600")
    assert ("held-out: map50_voc10" in round_description(history[-1])) == (on != "test")
    card = card_of(spec_of(on), history[-1])
    assert (card.on, card.metrics["map50_voc10"]) == (("holdout", 0.6) if on == "holdout" else ("test", 0.4))
    assert f"Figures on the {'held-out' if on == 'holdout' else 'test'} data" in card_text(card)


@pytest.mark.parametrize("on", ["test", "holdout", "both"])
def test_a_suites_report_says_which_images_chose_the_best_round(on: str) -> None:
    cell = Cell(experiment="yards", role="federated", seed=1, spec=spec_of(on))
    found = cell_result(cell, "f", history_of(on), metric="map50_voc10", target=0.5)
    assert (found.on, found.best_round) == {
        "test": ("test", None), "holdout": ("holdout", 2), "both": ("test", 2),
    }[on]  # fmt: skip
    assert found.last.figures["map50_voc10"] == (0.6 if on == "holdout" else 0.4)
    result = result_of_suite(found)
    for text in (report_html(result), report_markdown(result), latex_tables(result)):
        said = "held-out images chose the best round" in text or "held-out images, not on a test set" in text
        assert said == (on != "test")
    best = {"test": 0.5, "holdout": 0.6, "both": 0.4}[on]
    assert f"{best:.3f}" in report_markdown(result)
    head, *rows = rounds_csv(result).splitlines()
    assert head.endswith("gpu_seconds") == (on == "test")
    assert on == "test" or rows[-1].endswith(f"{found.on},2")


# --- specifications ----------------------------------------------------------------------------------------


def test_scoring_held_out_images_without_any_names_the_options_that_make_it_run() -> None:
    for on in ("holdout", "both"):
        with pytest.raises(SpecError) as error:
            with_fields(FederationSpec(), {"evaluation.on": on}, source="x")
        assert f"evaluation.on: expected test, because data.holdout keeps no images out of training, found {on}" in str(
            error.value
        )
        options = [
            word for word in str(error.value).split() if word.startswith(("data.", "evaluation.")) and "=" in word
        ]
        assert len(options) == 2
        for option in options:
            name, value = option.split("=")
            fields = {"evaluation.on": on, name: value if name == "evaluation.on" else float(value)}
            with_fields(FederationSpec(), fields, source="x")


@pytest.mark.parametrize(
    ("holdout", "fault"),
    [
        ({"fraction": 0}, "data.holdout.fraction: expected a number above 0|more than 0|greater"),
        ({"fraction": 0.6}, "data.holdout.fraction: expected at most 0.5"),
        ({"fraction": True}, "data.holdout.fraction"),
        ({"seed": -1}, "data.holdout.seed"),
        ({"least": 0}, "data.holdout.least: expected at least 1"),
        ({"part": 0.2}, "data.holdout.part"),
        (0.2, "data.holdout"),
    ],
)
def test_bad_fields_are_named(holdout: Any, fault: str) -> None:
    with pytest.raises(SpecError, match=fault):
        parse_spec({"data": {"kind": "synthetic-street", "holdout": holdout}}, source="x")


def test_the_defaults_leave_digests_as_they_were() -> None:
    spec = FederationSpec()
    document = spec.model_dump(mode="json")
    del document["data"]["holdout"], document["evaluation"]["on"]
    assert parse_spec(document, source="x").digest == spec.digest
    held = with_fields(spec, {"data.holdout.seed": 1}, source="x")
    assert held.data.holdout == Holdout()
    assert len({spec.digest, held.digest, with_fields(held, {"evaluation.on": "both"}, source="x").digest}) == 3
