"""A federation with an unreadable record resumes from an earlier round and reaches the undisturbed weights."""

from __future__ import annotations

import pytest

from infra.store.sealed import seal
from tasks.spec.records import RoundRecord
from tests.integration.conftest import FinishedRun
from tests.integration.homes import Home, assert_consistent, assert_tracked_once, digests, tiny

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NAME, ROUNDS = "back", 2


def test_a_damaged_round_is_put_aside_and_run_again(shared_home: Home, undisturbed: FinishedRun) -> None:
    home, layout = shared_home, shared_home.layout(NAME)
    first = home.run("run", home.spec_file(tiny(max_rounds=ROUNDS), NAME), "--name", NAME, "--slots", 2, "-q")
    assert first.returncode == 0, first.stdout
    marker = home.object_path(layout.marker(ROUNDS))
    document = home.document(layout.marker(ROUNDS))
    document["updates"][0]["train_size"] = 10**400
    marker.write_bytes(seal(document))  # as an earlier fedbench without these bounds would have written it

    refused = home.run("resume", NAME, "-q")
    assert refused.returncode == 2, refused.stdout
    assert f"{layout.marker(ROUNDS)}: updates.0.train_size: expected at most 1000000000" in refused.stdout
    assert f"fedbench resume {NAME} --from ROUND" in refused.stdout

    back = home.run("resume", NAME, "--from", ROUNDS - 1, "--slots", 2, "-q")
    assert back.returncode == 0, back.stdout
    assert f"goes on from round 1; rounds put aside in {layout.superseded}0001/: 2" in back.stdout
    records = assert_consistent_without_superseded(home)
    assert digests(records) == digests(undisturbed.records[: ROUNDS + 1])
    assert home.document(layout.put_aside(layout.marker(ROUNDS), 1)) == document
    assert_tracked_once(home, NAME, "FINISHED", records)
    assert_tracked(home, f"{NAME} (superseded)")

    # Now the round looks as if it was interrupted before its commit.
    marker.unlink()
    again = home.run("resume", NAME, "--retrain", "3", "--slots", 2, "-q")
    assert again.returncode == 0, again.stdout
    assert "client 3: no update of round 2 is stored" in again.stdout
    assert digests(home.records(NAME)) == digests(records)


def assert_consistent_without_superseded(home: Home) -> list[RoundRecord]:
    aside = home.layout(NAME).superseded

    class WithoutAside(Home):
        def keys(self, name: str) -> list[str]:
            return [key for key in super().keys(name) if not key.startswith(aside)]

    return assert_consistent(WithoutAside(home.path), NAME, ROUNDS)


def assert_tracked(home: Home, name: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home.path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fedbench")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`fedbench.federation` = '{name}'")
    assert (run.info.run_name, run.info.status) == (name, "KILLED")
