"""The files of a stack (state, ports, credentials, environment), and the URLs of the databases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, text

from infra.errors import InfraError, ServiceFailed, SettingsError
from infra.processes.logs import follow_logs, last_lines
from infra.servers.credentials import draw_keys
from infra.servers.database import (
    MLFLOW_DRIVERS,
    check_postgresql,
    mlflow_database_uri,
    prefect_database_url,
    refuse_password,
    shown,
)
from infra.servers.s3 import S3Service
from infra.settings import Settings, load_settings
from infra.settings_groups import S3Settings
from infra.stack.environment_file import remove_environment, stack_environment, write_environment
from infra.stack.services import stack_mlflow, stack_prefect, stack_s3
from infra.stack.stack import Stack
from infra.stack.state import (
    PortChoice,
    StackState,
    read_state,
    state_path,
    without_own_addresses,
    write_state,
)

ADDRESSES = {"s3": "http://127.0.0.1:9000", "prefect": "http://127.0.0.1:4200/api", "mlflow": "http://127.0.0.1:5000"}
STORE = S3Settings(endpoint=ADDRESSES["s3"], access_key=SecretStr("id"), secret_key=SecretStr("it's $HOME"))


def test_a_chosen_port_is_kept_until_the_settings_ask_for_another() -> None:
    state = StackState(ports={"s3": PortChoice(asked=9000, chosen=43211)})
    assert state.port("s3", 9000) == 43211
    assert state.port("s3", 9001) == 9001
    assert state.port("mlflow", 5000) == 5000


def test_the_state_is_private_and_read_back(tmp_path: Path) -> None:
    assert read_state(tmp_path) == StackState()
    url = "postgresql+asyncpg://user:hidden@db/prefect"
    state = StackState(up=True, addresses=ADDRESSES, prefect_database_url=url)
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert state_path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert state_path(tmp_path).parent.stat().st_mode & 0o777 == 0o700
    assert "hidden" not in repr(state)
    state_path(tmp_path).write_text('{"up": "perhaps"}')
    with pytest.raises(ServiceFailed, match=r"stack\.json: expected the stack's state"):
        read_state(tmp_path)


def test_credentials_are_drawn_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "services"
    keys = draw_keys(folder)
    assert draw_keys(folder) == keys
    other = draw_keys(tmp_path / "other")
    words = {*keys.model_dump().values(), *other.model_dump().values()}
    assert len(words) == 6
    assert all(len(word) >= 32 for word in words)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "stack-keys.json").stat().st_mode & 0o777 == 0o600
    (folder / "stack-keys.json").write_text("{}")
    with pytest.raises(ServiceFailed, match=r"stack-keys\.json: expected the stack's credentials"):
        draw_keys(folder)


def test_a_shell_that_sources_the_environment_file_has_the_variables(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    keys = draw_keys(home / "services")
    path = write_environment(home, ADDRESSES, STORE, keys)
    assert path.stat().st_mode & 0o777 == 0o600
    script = 'source "$1"; exec "$2" -c "import json, os; print(json.dumps(dict(os.environ)))"'
    output = subprocess.check_output(["bash", "-c", script, "-", str(path), sys.executable], text=True)
    found, expected = json.loads(output), stack_environment(home, ADDRESSES, STORE, keys)
    assert {name: found.get(name) for name in expected} == expected
    assert found["FEDBENCH_S3__SECRET_KEY"] == "it's $HOME"
    assert found["PREFECT_API_AUTH_STRING"] == f"fedbench:{keys.prefect_password}"
    remove_environment(home)
    assert not path.exists()
    remove_environment(home)


def test_only_addresses_of_the_own_stack_are_removed_from_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = draw_keys(tmp_path / "services")
    for name, value in stack_environment(tmp_path, ADDRESSES, STORE, keys).items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.s3.endpoint == ADDRESSES["s3"]
    state = StackState(addresses=ADDRESSES)
    own = without_own_addresses(settings, state)
    assert (own.s3, own.prefect_api_url, own.mlflow_tracking_uri) == (S3Settings(), None, None)
    monkeypatch.setenv("FEDBENCH_S3__ENDPOINT", "http://s3.example:9000")
    monkeypatch.setenv("FEDBENCH_PREFECT_API_URL", "http://prefect.example/api")
    mixed = without_own_addresses(load_settings(), state)
    assert (mixed.s3.endpoint, mixed.prefect_api_url) == ("http://s3.example:9000", "http://prefect.example/api")
    assert mixed.s3.secret_key == SecretStr("it's $HOME")
    assert mixed.mlflow_tracking_uri is None


def _settings(home: Path, **urls: str) -> Settings:
    return Settings(home=home, **{name: SecretStr(url) for name, url in urls.items()})  # type: ignore[arg-type]


def test_databases_are_sqlite_unless_a_url_is_set(tmp_path: Path) -> None:
    assert prefect_database_url(Settings(home=tmp_path)) is None
    assert mlflow_database_uri(Settings(home=tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    url = "postgresql+asyncpg://user:hidden@db.example:5433/prefect"
    assert prefect_database_url(_settings(tmp_path, prefect_database_url=url)) == url
    assert "hidden" not in repr(_settings(tmp_path, prefect_database_url=url))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u:hidden@db/prefect", r"starts with postgresql\+asyncpg://, found postgresql://"),
        ("sqlite:////tmp/p.db", r"starts with postgresql\+asyncpg://, found sqlite://"),
        ("postgresql+asyncpg://u:hidden@db", "a database's name at its end, found PostgreSQL u@db"),
        ("postgresql+asyncpg://u:hidden@db:port/p", "Port could not be cast"),
    ],
)
def test_a_wrong_prefect_url_is_refused_without_printing_its_password(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        prefect_database_url(_settings(tmp_path, prefect_database_url=url))
    assert str(caught.value).startswith("prefect_database_url: expected ")
    assert "hidden" not in str(caught.value)


def test_mlflows_url_names_the_installed_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings(tmp_path, mlflow_database_url="postgresql://u@db/mlflow?sslmode=require")
    there: set[str] = set()
    monkeypatch.setattr("infra.servers.database.find_spec", lambda name: object() if name in there else None)
    with pytest.raises(SettingsError, match=r"expected psycopg or psycopg2, .* with the extra postgresql"):
        mlflow_database_uri(settings)
    for driver in reversed(MLFLOW_DRIVERS):
        there.add(driver)
        assert mlflow_database_uri(settings) == f"postgresql+{driver}://u@db/mlflow?sslmode=require"
    there.remove("psycopg2")
    named = _settings(tmp_path, mlflow_database_url="postgresql+psycopg2://u@db/mlflow")
    with pytest.raises(SettingsError, match="expected psycopg2, PostgreSQL's driver, to be installed"):
        mlflow_database_uri(named)


@pytest.mark.parametrize("url", ["postgresql://u:hidden@db/p", "postgresql://u@db/p?password=hidden"])
def test_a_password_on_the_command_line_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="FEDBENCH_PREFECT_DATABASE_URL, or prefect_database_url in") as caught:
        refuse_password(url, "--prefect-database-url")
    assert "hidden" not in str(caught.value)
    refuse_password("postgresql://u@db/p", "--prefect-database-url")


def test_a_printed_url_has_no_password() -> None:
    assert shown("postgresql+asyncpg://u:hidden@db:5433/p?password=hidden") == "PostgreSQL u@db:5433/p"
    assert shown("postgresql://u@/p?host=/run/postgresql") == "PostgreSQL u@/run/postgresql/p"
    assert shown("sqlite:////home/me/mlflow.db") == "SQLite /home/me/mlflow.db"


def test_a_missing_database_is_named_without_its_password() -> None:
    with pytest.raises(
        InfraError, match=r"mlflow_database_url: PostgreSQL u@127\.0\.0\.1:9/p cannot be reached"
    ) as caught:
        check_postgresql("postgresql://u:hidden@127.0.0.1:9/p", "mlflow_database_url", trigrams=False)
    assert "hidden" not in str(caught.value)


def test_errors_about_damaged_settings_have_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBENCH_HOME", str(tmp_path))
    (tmp_path / "settings.yaml").write_text("ports: {postgres: 5432}\n")
    with pytest.raises(SettingsError, match=r"ports\.postgres: no such setting; expected one of: prefect, mlflow, s3"):
        load_settings()
    (tmp_path / "settings.yaml").write_text("prefect_database_url: 20261125\nports: {s3: 0}\n")
    with pytest.raises(SettingsError, match=r"ports\.s3: .*greater than or equal to 1") as caught:
        load_settings()
    assert "20261125" not in str(caught.value)


def test_a_log_is_read_from_its_end_and_followed(tmp_path: Path) -> None:
    path = tmp_path / "s3.log"
    assert last_lines(path, 3) == ([], 0)
    path.write_text("".join(f"line {number}\n" for number in range(20_000)))
    lines, offset = last_lines(path, 3)
    assert (lines, offset) == (["line 19997", "line 19998", "line 19999"], path.stat().st_size)
    assert last_lines(path, 0) == ([], offset)
    assert len(last_lines(path, 10**6)[0]) == 20_000
    seen: list[str] = []
    offsets = {"s3": offset}
    arguments = ({"s3": path}, offsets, lambda name, line: seen.append(f"{name} {line}"))
    threading.Thread(target=follow_logs, args=arguments, daemon=True).start()
    with path.open("a") as file:
        file.write("more\nhal")
        file.flush()
        _await(lambda: seen == ["s3 more"])
        file.write("f\n")
        file.flush()
        _await(lambda: seen == ["s3 more", "s3 half"])
    path.replace(tmp_path / "s3.log.1")
    path.write_text("anew\n")
    _await(lambda: seen[2:] == ["s3 anew"])


def _await(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_test_sees_the_settings_of_its_caller() -> None:
    assert [name for name in os.environ if name.startswith("FEDBENCH_")] == []


def test_the_servers_listen_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBENCH_HOME", str(tmp_path))
    monkeypatch.setenv("FEDBENCH_PORTS__HOST", "203.0.113.7")
    settings = load_settings()
    draw_keys(tmp_path / "services")
    S3Service(tmp_path).prepare()
    state = StackState(host=str(settings.ports.host))
    s3, prefect = stack_s3(settings, state), stack_prefect(settings, state)
    mlflow = stack_mlflow(settings, state, STORE)
    assert [service.address_at(1234) for service in (s3, prefect, mlflow)] == [
        "http://203.0.113.7:1234", "http://203.0.113.7:1234/api", "http://203.0.113.7:1234",
    ]  # fmt: skip
    assert "203.0.113.7:1234" in s3.command(1234)
    for service in (prefect, mlflow):
        command = service.command(1234)
        assert command[command.index("--host") + 1] == "203.0.113.7"
    variables = mlflow.environment(1234)
    assert "203.0.113.7:*" in variables["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert variables["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "http://203.0.113.7:1234"
    assert prefect.environment(1234)["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://203.0.113.7:1234"
    # A browser on this machine may use either name for it. Names of other machines are refused.
    local = stack_mlflow(settings, StackState(), STORE).environment(1234)
    assert local["MLFLOW_SERVER_ALLOWED_HOSTS"] == "localhost,localhost:*,127.0.0.1,127.0.0.1:*"
    both = "http://127.0.0.1:1234,http://localhost:1234"
    assert local["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == both
    assert stack_prefect(settings, StackState()).environment(1234)["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == both


@pytest.mark.parametrize("host", ["0.0.0.0", "224.0.0.1", "example"])
def test_an_address_that_no_machine_can_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("FEDBENCH_HOME", str(tmp_path))
    monkeypatch.setenv("FEDBENCH_PORTS__HOST", host)
    with pytest.raises(SettingsError, match=r"ports\.host: "):
        load_settings()


def test_a_stack_that_is_up_stays_at_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBENCH_HOME", str(tmp_path))
    monkeypatch.setenv("FEDBENCH_PORTS__HOST", "203.0.113.7")
    write_state(tmp_path, StackState(up=True))
    with pytest.raises(SettingsError, match=r"ports\.host: .* is up at 127\.0\.0\.1, found 203.*fedbench down"):
        Stack(load_settings()).up(lambda line: None, lambda prefect: None)
    write_state(tmp_path, StackState())
    with pytest.raises(ServiceFailed, match=r"203\.0\.113\.7: expected an address of this machine \(ports\.host\)"):
        Stack(load_settings()).up(lambda line: None, lambda prefect: None)
    assert not read_state(tmp_path).up


@pytest.mark.parametrize("name", ["plain", "a b", "a?b=c", "a#b", "50%20", "100%", "a:b@c", "é", "[b]x", "%3F"])
def test_a_home_of_any_name_contains_mlflows_database(name: str, tmp_path: Path) -> None:
    home = tmp_path / name
    home.mkdir()
    url = mlflow_database_uri(Settings(home=home))
    with create_engine(url).connect() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [home / "mlflow.db"]
    assert shown(url) == f"SQLite {home / 'mlflow.db'}"
    assert shown(f"{url}?timeout=5") == f"SQLite {home / 'mlflow.db'}"
