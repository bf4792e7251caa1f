"""``fedbench up`` over Debian's PostgreSQL: the settings name Prefect's and MLflow's databases by URL."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from infra.errors import InfraError
from infra.servers.database import MLFLOW_DRIVERS, check_postgresql
from tests.integration.homes import TINY, assert_no_process_left
from tests.integration.stacks import PATIENCE, free_ports, running_stack

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PASSWORD = "not-on-a-command-line"


@dataclass(frozen=True)
class Database:
    """A PostgreSQL server for these tests, with empty databases ``prefect`` and ``mlflow`` of the user ``bench``."""

    binaries: Path
    folder: Path
    port: int
    account: str | None

    def command(self, *arguments: object) -> str:
        return subprocess.run(
            [str(self.binaries / str(arguments[0])), *map(str, arguments[1:])],
            user=self.account,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
            cwd="/",
        ).stdout

    def ask(self, database: str, query: str) -> str:
        """Return the single value that ``query`` selects."""
        arguments = ("-h", self.folder, "-p", self.port, "-U", "keeper", "-d", database, "-Atc", query)
        return self.command("psql", *arguments).strip()

    def url(self, scheme: str, database: str, password: str = PASSWORD) -> str:
        return f"{scheme}://bench:{password}@127.0.0.1:{self.port}/{database}"


def _binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs. Debian keeps most of them off PATH."""
    if (pg_ctl := shutil.which("pg_ctl")) is not None:
        return Path(pg_ctl).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server (pg_ctl) is not installed")
    account = None
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            account = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL's server does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="fedbench-postgresql-"))  # other users cannot enter pytest's folders
    if account is not None:
        shutil.chown(folder, account)
    (port,) = free_ports(1)
    server = Database(binaries, folder, port, account)
    data = folder / "data"
    try:
        server.command("initdb", "-D", data, "-U", "keeper", "--auth-local=trust", "--auth-host=scram-sha-256", "-N")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        server.command("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            if not server.ask("postgres", "SELECT name FROM pg_available_extensions WHERE name = 'pg_trgm'"):
                pytest.skip("PostgreSQL's extension pg_trgm, which Prefect needs, is not installed")
            server.ask("postgres", f"CREATE ROLE bench LOGIN PASSWORD '{PASSWORD}'")
            for name in ("prefect", "mlflow"):
                server.ask("postgres", f"CREATE DATABASE {name} OWNER bench")
            yield server
        finally:
            server.command("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_an_unusable_database_is_refused_with_the_reason(database: Database) -> None:
    check_postgresql(database.url("postgresql+asyncpg", "prefect"), "prefect_database_url", trigrams=True)
    for name, password, reason in (
        ("prefect", "wrong", "password authentication failed"),
        ("attic", PASSWORD, "attic"),
    ):
        url = database.url("postgresql+asyncpg", name, password)
        with pytest.raises(InfraError, match=rf"prefect_database_url: .*cannot be reached: .*{reason}"):
            check_postgresql(url, "prefect_database_url", trigrams=True)


def test_a_stack_and_its_runs_are_kept_in_postgresql(database: Database, tmp_path: Path) -> None:
    driver = any(find_spec(name) is not None for name in MLFLOW_DRIVERS)
    settings = {"prefect_database_url": database.url("postgresql+asyncpg", "prefect")}
    if driver:
        settings["mlflow_database_url"] = database.url("postgresql", "mlflow")
    with running_stack(tmp_path / "home", "--servers-only", settings=settings, databases=False) as stack:
        home = stack.home
        assert f"prefect's database: PostgreSQL bench@127.0.0.1:{database.port}/prefect" in stack.output
        processes = home.processes()
        assert len(processes) >= 6
        lines = [Path(f"/proc/{process.pid}/cmdline").read_bytes().decode() for process in processes]
        assert not any(PASSWORD in text for text in (*lines, stack.output))
        run = home.run("run", home.spec_file(TINY | {"max_rounds": 1}), "--name", "kept", "-q", timeout=PATIENCE)
        assert run.returncode == 0, run.stdout
    assert_no_process_left(home)
    assert not (home.path / "prefect" / "prefect.db").exists()
    states = "SELECT string_agg(DISTINCT state_type::text, ',') FROM flow_run WHERE name LIKE 'kept%'"
    assert database.ask("prefect", states) == "COMPLETED"
    for path in (home.path / "logs").iterdir():
        assert PASSWORD not in path.read_text(errors="replace")
    if not driver:
        pytest.skip(f"MLflow over PostgreSQL: none of {', '.join(MLFLOW_DRIVERS)} is installed (extra: postgresql)")
    assert not (home.path / "mlflow.db").exists()
    assert database.ask("mlflow", "SELECT name || ' ' || status FROM runs") == "kept FINISHED"
