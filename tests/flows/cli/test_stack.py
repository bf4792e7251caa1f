"""``fedbench up``, ``down``, ``status`` and ``logs`` while nothing runs: what they print and refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli.stack import deployments_line
from flows.deployments.table import deployments
from infra.settings import Settings
from tests.flows.command import fedbench

pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDBENCH_HOME", str(tmp_path / "home"))
    # `up` sets its URLs in this process's environment. monkeypatch removes them after the test.
    for setting in ("PREFECT", "MLFLOW"):
        monkeypatch.setenv(f"FEDBENCH_{setting}_DATABASE_URL", "")
    return tmp_path / "home"


def test_status_and_down_without_a_stack_create_nothing(home: Path) -> None:
    result = fedbench("status")
    assert result.exit_code == 1
    rows = [line.split()[:2] for line in result.output.splitlines()[1:]]
    assert rows == [["s3", "down"], ["prefect", "down"], ["mlflow", "down"], ["supervisor", "down"]]
    result = fedbench("down")
    assert (result.exit_code, result.output) == (0, "is down already; nothing was running\n")
    assert not home.exists()


def test_a_url_with_a_password_is_refused_before_anything_starts(home: Path) -> None:
    for option in ("--prefect-database-url", "--mlflow-database-url"):
        result = fedbench("up", option, "postgresql://user:hidden@db/name")
        assert result.exit_code == 2
        assert f"{option}: expected a URL without a password" in result.output
        assert "hidden" not in result.output
    assert not home.exists()


def test_a_database_url_that_prefect_cannot_use_is_refused(home: Path) -> None:
    result = fedbench("up", "--prefect-database-url", "mysql://db/name")
    assert result.exit_code == 2
    assert "prefect_database_url: expected a URL that starts with postgresql+asyncpg://" in result.output
    assert not (home / "logs").exists()


def test_the_line_about_deployments_names_one_and_lists_them_by_a_command(home: Path) -> None:
    line = deployments_line(Settings(home=home))
    names = [item.full_name for item in deployments()]
    assert line.startswith(f"deployments: {len(names)} (fedbench deploy --dry-run --home {home} lists them)")
    assert line.endswith("prefect deployment run federation/smoke")
    assert "federation/smoke" in names


def test_logs_of_all_services_or_of_one_are_printed(home: Path) -> None:
    assert "no log yet" in fedbench("logs").output
    result = fedbench("logs", "postgres")
    assert result.exit_code == 2
    assert (
        "SERVICE: expected one of s3, prefect, mlflow, worker, coordinator, supervisor, found postgres" in result.output
    )
    home.mkdir(mode=0o700)
    (home / "logs").mkdir()
    (home / "logs" / "s3.log").write_text("first\n[bold]second[/]\n")
    (home / "logs" / "mlflow.log").write_text("third\n")
    result = fedbench("logs", "-n", "1")
    assert result.output.splitlines() == ["s3          | [bold]second[/]", "mlflow      | third"]
    result = fedbench("logs", "s3")
    assert result.output.splitlines() == ["first", "[bold]second[/]"]
