"""Made-up records of federations and suites. Every field has a default; a test names the fields that it is about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tasks.spec.plans import ClientInfo, RoundPlan, UpdateRecord, WeightRef
from tasks.spec.records import Decision, Environment, EvaluationRecord, Metrics, RoundRecord
from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult, SuiteResult

SHA = "a" * 64
NOW = datetime(2026, 1, 1, tzinfo=UTC)
WEIGHTS = WeightRef(key="k", sha256=SHA, bytes=1)
ENVIRONMENT = Environment(fedbench="0", python="3", torch="2", torchvision="0", cpu="x", threads=1)


def client_info(client: str = "1", **fields: Any) -> ClientInfo:
    """Return the answer of a ready client with 10 training and 5 test images."""
    defaults = {
        "train_size": 10, "test_size": 5, "test_digest": SHA, "class_counts": {}, "host": "h", "device": "cpu",
    }  # fmt: skip
    return ClientInfo.model_validate({"client": client, **defaults, **fields})


def round_plan(*cohort: str, **fields: Any) -> RoundPlan:
    """Return the plan of round 1, in which each client of ``cohort`` has a turn of its own."""
    defaults = {
        "federation": "street", "round": 1, "spec_digest": SHA, "model": WEIGHTS, "draws": (),
        "shards": tuple((client,) for client in cohort), "learning_rate": 0.001, "created": NOW,
        "seeds": {client: seed for seed, client in enumerate(cohort, 1)},
    }  # fmt: skip
    return RoundPlan.model_validate({"cohort": cohort, **defaults, **fields})


def update_record(client: str = "1", **fields: Any) -> UpdateRecord:
    """Return a client's update of round 1: one step over 10 images in one second."""
    defaults = {
        "federation": "street", "round": 1, "spec_digest": SHA, "model": SHA, "seed": 1, "weights": WEIGHTS,
        "train_size": 10, "train_loss": 1.0, "steps": 1, "seconds": 1, "train_seconds": 1, "bytes_down": 1,
        "host": "h", "device": "cpu",
    }  # fmt: skip
    return UpdateRecord.model_validate({"client": client, **defaults, **fields})


def evaluation_record(*clients: str, **fields: Any) -> EvaluationRecord:
    """Return an evaluation on 5 images, the test set of ``clients``."""
    defaults = {
        "test_digest": SHA, "test_size": 5, "loss": 1.0, "map50_voc10": 0.5, "recall": 0.5, "per_class": {},
        "score_threshold": 0.001, "seconds": 1,
    }  # fmt: skip
    return EvaluationRecord.model_validate({"clients": clients, **defaults, **fields})


def round_record(number: int = 1, **fields: Any) -> RoundRecord:
    """Return a committed round without clients, evaluations and figures; round 0 is the best."""
    defaults = {
        "federation": "street", "spec_digest": SHA, "clients": (), "model": WEIGHTS, "evaluations": (),
        "metrics": Metrics(), "decision": Decision(stop=False, best_round=0), "seconds": {},
        "environment": ENVIRONMENT, "committed": NOW,
    }  # fmt: skip
    return RoundRecord.model_validate({"round": number, **defaults, **fields})


def result_of_cell(experiment: str, role: Role = "federated", seed: int = 1, **fields: Any) -> CellResult:
    """Return the result of a suite's federation of 5 clients. It has no rounds."""
    defaults = {
        "experiment": experiment, "role": role, "seed": seed, "spec_digest": SHA, "federation": "f", "clients": 5,
        "points": (), "per_class": {}, "moved": 0,
    }  # fmt: skip
    return CellResult.model_validate({**defaults, **fields})


def result_of_suite(*cells: CellResult, **fields: Any) -> SuiteResult:
    """Return the result of a run of the suite ``street`` that aims at a map50_voc10 of 0.5."""
    defaults = {
        "suite": "street", "suite_run": "street-1", "suite_digest": SHA, "metric": "map50_voc10", "target": 0.5,
        "code_version": "c", "environment": ENVIRONMENT, "created": NOW,
    }  # fmt: skip
    return SuiteResult.model_validate({"cells": cells, **defaults, **fields})
