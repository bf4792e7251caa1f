"""A small Ceph cluster with its S3 server, ``radosgw``, on loopback: a store that enforces policies.

One monitor and one OSD that keeps objects in memory, without a manager and without authentication between them. They
are the programs of Debian's packages ``ceph-mon``, ``ceph-osd`` and ``radosgw``. All ends, and all is removed, with the
context.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from pydantic import SecretStr

from infra.settings_groups import S3Settings
from tests.integration.debian import program
from tests.waiting import eventually

PROGRAMS = {
    "ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "radosgw": "radosgw", "radosgw-admin": "radosgw",
    "monmaptool": "ceph-mon", "ceph-authtool": "ceph-common", "ceph": "ceph-common",
}  # fmt: skip
BUCKET, REGION = "fedbench", "us-east-1"
COMMAND_SECONDS, START_SECONDS = 300.0, 300.0
CONFIGURATION = """\
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = [v2:127.0.0.1:{mon_port}/0]
public_network = 127.0.0.0/8
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
keyring = {folder}/keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data = {folder}/mon
mon_data_avail_crit = 1
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_class_load_list = *
osd_class_default_list = *
ms_bind_ipv6 = false
ms_mon_client_mode = crc
rgw_frontends = beast endpoint=127.0.0.1:{s3_port}
rgw_data = {folder}/rgw
rgw_thread_pool_size = 32
rgw_enable_usage_log = false
rgw_dynamic_resharding = false
"""


@dataclass(frozen=True)
class User:
    """A user of the S3 server, with keys."""

    name: str
    access_key: str
    secret_key: str


class Ceph:
    """A running cluster. ``endpoint``: URL of its S3 API. ``folder``: its logs and state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs = {name: program(name, package) for name, package in PROGRAMS.items()}
        mon_port, s3_port = _free_ports(2)
        self.endpoint = f"http://127.0.0.1:{s3_port}"
        self._fsid, self._mon_port = str(uuid.uuid4()), mon_port
        self._configuration = folder / "ceph.conf"
        values = {"fsid": self._fsid, "mon_port": mon_port, "s3_port": s3_port, "folder": folder}
        self._configuration.write_text(CONFIGURATION.format(**values))
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        keyring, monmap = self.folder / "keyring", self.folder / "monmap"
        self.command("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        address = f"[v2:127.0.0.1:{self._mon_port}/0]"
        self.command("monmaptool", "--create", "--addv", "a", address, "--fsid", self._fsid, monmap)
        self.command("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._daemon("ceph-mon", "-i", "a")
        self.command("ceph", "osd", "new", self._fsid, "0")
        self.command("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", self._fsid)
        self._daemon("ceph-osd", "-i", "0")
        self._daemon("radosgw", "-n", "client.rgw.a")
        port = int(self.endpoint.rpartition(":")[2])
        assert eventually(lambda: _answers(port), START_SECONDS), self.logs()

    def command(self, name: str, *arguments: object) -> str:
        """Run one of Ceph's programs to its end. Return what it printed."""
        command = [self._programs[name], "-c", str(self._configuration), *map(str, arguments)]
        if name in ("ceph-authtool", "monmaptool"):
            del command[1:3]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def user(self, name: str, policy: dict[str, Any] | None = None) -> User:
        """Create a user that has no right but those of ``policy``; None: those of a bucket's owner."""
        made = json.loads(
            self.command(
                "radosgw-admin", "user", "create", f"--uid={name}", f"--display-name={name}", "--max-buckets=1"
            )
        )
        (keys,) = made["keys"]
        user = User(name, keys["access_key"], keys["secret_key"])
        if policy is not None:
            self._iam().put_user_policy(UserName=name, PolicyName="own", PolicyDocument=json.dumps(policy))
        return user

    def _iam(self) -> Any:
        """Return a client that may give users policies."""
        with contextlib.suppress(AssertionError):
            self.command(
                *("radosgw-admin", "user", "create", "--uid=operator", "--display-name=operator"),
                *("--access-key=operator", "--secret-key=operator", "--caps=user-policy=*"),
            )
        return boto3.client(
            "iam", endpoint_url=self.endpoint, region_name=REGION, config=Config(proxies={}),
            aws_access_key_id="operator", aws_secret_access_key="operator",
        )  # fmt: skip

    def settings(self, user: User) -> S3Settings:
        return S3Settings(
            endpoint=self.endpoint,
            bucket=BUCKET,
            access_key=SecretStr(user.access_key),
            secret_key=SecretStr(user.secret_key),
        )

    def logs(self) -> str:
        found = sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*.out"))
        return "".join(f"\n{path}:\n{path.read_text(errors='replace')[-2000:]}" for path in found)

    def _daemon(self, name: str, *arguments: str) -> None:
        command = [self._programs[name], "-c", str(self._configuration), "-f", *arguments]
        with (self.folder / f"{name}.out").open("ab") as output:
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder)
            )

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def ceph() -> Iterator[Ceph]:
    """Start a cluster in a temporary folder with a short path, because sockets' paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ceph-", dir="/tmp"))
    try:
        cluster = Ceph(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in taken]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
