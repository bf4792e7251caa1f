"""Databases count as guarded when only servers with credentials have opened them."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.servers.exposed import LIST, Finding, is_guarded, note_guarded, report
from infra.servers.prefect_server import PrefectService

POSTGRESQL = "postgresql+asyncpg://user:hidden@db/prefect"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "prefect").mkdir()
    return tmp_path


def test_a_new_database_is_guarded_from_its_first_server_on(home: Path) -> None:
    assert not is_guarded(home, None)
    PrefectService(home, auth="fedbench:secret").prepare()
    assert is_guarded(home, None)
    (home / "prefect" / "prefect.db").touch()
    PrefectService(home, auth="fedbench:secret").prepare()
    assert is_guarded(home, None)


def test_a_database_of_an_earlier_version_is_guarded_only_after_a_check(home: Path) -> None:
    (home / "prefect" / "prefect.db").touch()
    PrefectService(home, auth="fedbench:secret").prepare()
    assert not is_guarded(home, None)
    note_guarded(home, None)
    assert is_guarded(home, None)


def test_each_database_is_listed_by_itself_and_without_its_password(home: Path) -> None:
    PrefectService(home, auth="fedbench:secret", database_url=POSTGRESQL).prepare()
    assert not is_guarded(home, POSTGRESQL)  # it may not be new
    note_guarded(home, POSTGRESQL)
    assert is_guarded(home, POSTGRESQL)
    assert not is_guarded(home, None)
    (written,) = (home / "prefect").iterdir()
    assert "hidden" not in written.read_text()
    assert written.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "{}", "[1, {}]", '{"SQLite": true}'])
def test_a_damaged_list_guards_nothing(home: Path, content: str) -> None:
    (home / "prefect" / LIST).write_text(content)
    assert not is_guarded(home, None)


def test_a_flood_of_plants_is_counted_and_not_printed(tmp_path: Path) -> None:
    lines = report([Finding("block", f"slack/{number}", "") for number in range(500)], tmp_path / "all.json")
    assert len(lines) == 13
    assert lines[-2] == "  490 more of kind block"


def test_every_module_that_starts_a_server_has_its_database_checked() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in Path("flows").rglob("*.py")}
    starters = {str(path) for path, text in sources.items() if ".prefect_environment()" in text}
    assert starters >= {"flows/coordinator/session.py", "flows/commands/pages.py", "flows/cli/cleaning.py"}
    assert [path for path in sorted(starters) if "hold_back_planted(" not in sources[Path(path)]] == []
