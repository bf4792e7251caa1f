"""Embedded services are started, shared, restarted on their port, and ended with their starter."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from infra.errors import HomeInUse, ServiceFailed, SettingsError, StoreUnavailable
from infra.processes.publication import Publication
from infra.servers.credentials import basic_auth, read_keys
from infra.servers.mlflow_server import MlflowService
from infra.servers.prefect_server import PrefectService
from infra.servers.s3 import S3Service
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.stack.embedded import EmbeddedServices
from infra.store.objects import ObjectStore
from tests.infra.processes import WithChildren, session
from tests.waiting import eventually, gone


@pytest.fixture
def services(tmp_path: Path) -> Iterator[EmbeddedServices]:
    with EmbeddedServices(Settings(home=tmp_path / "home"), prefect=False) as started:
        yield started


def _published(home: Path) -> Publication:
    return Publication.model_validate_json((home / "services" / "s3.json").read_bytes())


def test_secrets_are_private_and_not_on_the_command_line(services: EmbeddedServices) -> None:
    home = services.settings.home
    secret = services.s3_endpoint().secret_key
    assert secret is not None
    process = psutil.Process(_published(home).pid)
    assert secret.get_secret_value() not in " ".join(process.cmdline())
    assert secret.get_secret_value() not in (home / "logs" / "s3.log").read_text(encoding="utf-8")
    assert os.getsid(process.pid) == process.pid  # a terminal's Ctrl-C does not reach it
    for folder in ("services", "s3"):
        assert (home / folder).stat().st_mode & 0o777 == 0o700
    for file in ("s3.json", "s3-keys.json", "s3.lock"):
        assert (home / "services" / file).stat().st_mode & 0o777 == 0o600


def test_a_killed_server_is_restarted_on_its_port_and_requests_wait_for_it(
    services: EmbeddedServices,
) -> None:
    assert services.s3 is not None
    before = services.s3_endpoint()
    store = ObjectStore(before, outage_seconds=20.0)
    store.ensure_bucket()
    store.put_bytes("a", b"kept")
    assert services.ensure() == []
    pid = _published(services.settings.home).pid
    half = services.settings.home / "s3" / "fedbench" / ".rclone_temp_put_half"
    half.write_bytes(b"half")
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: gone(pid), 30)
    with pytest.raises(StoreUnavailable):
        ObjectStore(before, outage_seconds=0.0).get_bytes("a")
    child = os.fork()  # another process asks while the server is down
    if child == 0:
        status = 1
        try:
            status = 0 if store.get_bytes("a") == b"kept" else 2
        finally:
            os._exit(status)
    time.sleep(0.3)
    assert services.ensure() == ["s3"]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert services.s3_endpoint() == before
    assert not half.exists()
    assert store.get_bytes("a") == b"kept"


def test_a_restart_does_not_wait_for_a_taken_port(services: EmbeddedServices) -> None:
    assert services.s3 is not None
    home = services.settings.home
    published = _published(home)
    services.s3.stop()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", published.port))
        taken.listen()
        assert services.ensure() == ["s3"]
    assert _published(home).port != published.port
    ObjectStore(services.s3_endpoint()).ensure_bucket()


HOLDER = """
import os, sys, time
from pathlib import Path
from infra.servers.s3 import S3Service
service = S3Service(Path(sys.argv[1]))
service.ensure()
print(service.address, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_another_run_shares_a_service_and_takes_it_over_from_a_killed_holder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    second = S3Service(tmp_path)
    try:
        assert holder.stdout is not None
        address = holder.stdout.readline().strip()
        second.ensure()
        assert (second.address, second.is_holder, second.is_alive()) == (address, False, False)
        server = _published(tmp_path).pid
        assert psutil.Process(server).ppid() == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert eventually(lambda: gone(server), 30)
        assert second.ensure()
        assert (second.address, second.is_holder, second.is_alive()) == (address, True, True)
    finally:
        holder.kill()
        holder.wait()
        second.stop()


def test_a_service_left_behind_is_ended_only_when_it_is_ours(tmp_path: Path) -> None:
    # Like a service whose starter was killed, on a system that does not end its children.
    stray = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "--addr=127.0.0.1:45999"],
        start_new_session=True,
    )
    service = S3Service(tmp_path)
    (tmp_path / "services").mkdir()
    created = psutil.Process(stray.pid).create_time()
    try:
        for port, when in ((45999, created - 100.0), (45998, created)):
            note = {"port": port, "pid": stray.pid, "created": when}
            (tmp_path / "services" / "s3.json").write_text(json.dumps(note), encoding="utf-8")
            service.ensure()
            service.stop()
            assert stray.poll() is None
        # The start is compared as seconds since boot, because setting the clock changes the other time.
        since_boot = created - psutil.boot_time()
        note = {"port": 45999, "pid": stray.pid, "created": created + 7200.0, "since_boot": since_boot}
        (tmp_path / "services" / "s3.json").write_text(json.dumps(note), encoding="utf-8")
        service.ensure()
        assert stray.poll() is not None
    finally:
        service.stop()
        stray.kill()
        stray.wait()


class _SlowAtSecondStart(S3Service):
    starts = 0

    def command(self, port: int) -> list[str]:
        self.starts += 1
        return ["/bin/sleep", "60"] if self.starts == 2 else super().command(port)


def test_a_server_killed_again_during_its_restart_keeps_its_port(tmp_path: Path) -> None:
    service = _SlowAtSecondStart(tmp_path)
    try:
        service.ensure()
        address = service.address
        assert service._process is not None
        service._process.kill()
        service._process.wait()
        with ThreadPoolExecutor(1) as pool:
            ensured = pool.submit(service.ensure)
            assert eventually(lambda: service.starts == 2 and service.is_alive(), 30)
            service._process.kill()
            assert ensured.result(timeout=60)
        assert (service.address, service.starts) == (address, 3)
        assert service.answers()
    finally:
        service.stop()


class _Broken(S3Service):
    def command(self, port: int) -> list[str]:
        return [sys.executable, "-c", "import sys; sys.exit('no such bucket of bolts')"]


def test_the_error_of_a_service_that_fails_to_start_has_the_end_of_its_log(tmp_path: Path) -> None:
    service = _Broken(tmp_path)
    with pytest.raises(ServiceFailed, match=r"s3: ended with status 1, 3 times; log .*s3.log ends:\nno such bucket"):
        service.ensure()
    assert not service.is_holder
    with pytest.raises(ServiceFailed, match="s3: not started"):
        _ = service.address


class _Silent(S3Service):
    def command(self, port: int) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(60)"]


def test_stop_does_not_wait_for_a_start_in_another_thread(tmp_path: Path) -> None:
    service = _Silent(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(service.ensure)
        assert eventually(service.is_alive, 30)
        service.stop()
        with pytest.raises(ServiceFailed, match="s3: stopped while it was coming up"):
            starting.result(timeout=service.start_seconds)
    assert not service.is_alive()
    assert not service.is_holder


def test_the_children_of_a_service_end_with_it(tmp_path: Path) -> None:
    service = WithChildren(tmp_path)
    service.ensure()
    leader = _published(tmp_path).pid
    assert len(session(leader)) == 3  # launcher, command, its child
    service.stop()
    assert eventually(lambda: session(leader) == [], 30)


def test_no_service_is_started_when_the_settings_name_one(tmp_path: Path) -> None:
    store = S3Settings(endpoint="http://s3.example:9000", access_key="a", secret_key="b")
    settings = Settings(home=tmp_path, s3=store, prefect_api_url="http://prefect.example/api")
    with EmbeddedServices(settings) as services:
        assert services.services == []
        assert services.ensure() == []
        assert services.s3_endpoint() == store
        assert services.prefect_api_url == "http://prefect.example/api"
        assert services.mlflow_tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_commands_and_variables_of_the_servers(tmp_path: Path) -> None:
    store = S3Settings(endpoint="http://127.0.0.1:9000", access_key="key", secret_key="hidden")
    mlflow = MlflowService(tmp_path, store, "postgresql://user:hidden@db/mlflow")
    assert "hidden" not in " ".join(mlflow.command(5000))
    assert mlflow.environment(5000)["MLFLOW_BACKEND_STORE_URI"] == "postgresql://user:hidden@db/mlflow"
    assert mlflow.environment(5000)["AWS_SECRET_ACCESS_KEY"] == "hidden"
    with pytest.raises(SettingsError, match=r"mlflow_tracking_uri: expected a database URI .* http://mlflow:5000"):
        MlflowService(tmp_path, store, "http://mlflow:5000")
    prefect = PrefectService(tmp_path)
    assert prefect.address_at(4200) == "http://127.0.0.1:4200/api"
    assert prefect.environment(5000)["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    keys = read_keys(tmp_path / "services")  # drawn by the first service that needs them
    assert prefect.environment(5000)["PREFECT_SERVER_API_AUTH_STRING"] == keys.prefect_auth
    assert mlflow.environment(5000)["MLFLOW_AUTH_ADMIN_PASSWORD"] == keys.mlflow_password
    for service in (mlflow, prefect):
        assert not any(word in " ".join(service.command(5000)) for word in keys.model_dump().values())


def test_runs_that_start_at_the_same_time_share_their_credentials(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from infra.servers.credentials import draw_keys; "
    script += "sys.stdin.readline(); print(draw_keys(Path(sys.argv[1])).model_dump_json())"
    command = [sys.executable, "-c", script, str(tmp_path / "services")]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]  # fmt: skip
    for process in started:
        assert process.stdin is not None
        process.stdin.write("now\n")
        process.stdin.flush()
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1


class TakesAnybody(S3Service):
    """A server that answers without credentials, like those of older versions."""

    healthy = frozenset({200})

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]


class AsksForCredentials(TakesAnybody):
    def health_headers(self) -> dict[str, str]:
        return basic_auth("fedbench:password")


def test_an_older_runs_server_without_credentials_is_not_shared(tmp_path: Path) -> None:
    older = TakesAnybody(tmp_path)
    older.ensure()
    try:
        with pytest.raises(HomeInUse, match=rf"s3: process {os.getpid()}, of an older fedbench, .* no credentials"):
            AsksForCredentials(tmp_path).ensure()
    finally:
        older.stop()
