"""The environment file of worker jobs (0600): servers with credentials, and this machine's settings of data folders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from infra.environment.certificates import FILES
from infra.environment.proxies import LOOPBACK_HOSTS, NO_PROXY, PROXIES
from infra.errors import SettingsError
from infra.files.durable import write_durably
from infra.files.private import private_home
from infra.servers.credentials import read_keys
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.slurm.script import environment_path, log_path
from infra.stack.environment_file import export_lines
from infra.stack.services import stack_s3
from infra.stack.state import StackState, read_state, without_own_addresses
from infra.stack.status import service_status

# Settings of the submitting machine that mean nothing in a job, or hold credentials that a worker does not need.
_NOT_CARRIED = (
    "FEDBENCH_HOME",
    "FEDBENCH_SETTINGS",
    "FEDBENCH_SLOT",  # and FEDBENCH_SLOTS
    "FEDBENCH_S3__",
    "FEDBENCH_PREFECT_",
    "FEDBENCH_MLFLOW_",
    "FEDBENCH_PORTS__",
)
_CARRIED_TOO = (*FILES, *NO_PROXY, *PROXIES, *(name.upper() for name in PROXIES))


@dataclass(frozen=True)
class Servers:
    """The servers that workers connect to. ``credentials``: further variables, for servers that are not the stack's."""

    prefect: str
    prefect_auth: str | None
    store: S3Settings
    credentials: Mapping[str, str]

    @property
    def addresses(self) -> dict[str, str]:
        return {"Prefect": self.prefect, "S3": self.store.endpoint or ""}

    @property
    def on_loopback(self) -> list[str]:
        """The servers, with their addresses, that only this machine reaches."""
        return [
            f"{name} {address}"
            for name, address in self.addresses.items()
            if (urlsplit(address).hostname or "") in LOOPBACK_HOSTS
        ]


def find_servers(settings: Settings, environment: Mapping[str, str] = os.environ) -> Servers:
    """Return the servers that the settings name, else those of the home's stack.

    Raises:
        SettingsError: the settings do not name both, and the stack is not up or does not answer.
    """
    state = read_state(settings.home)
    named = without_own_addresses(settings, state)
    credentials: dict[str, str] = {}
    if named.s3.endpoint is None or named.prefect_api_url is None:
        _require_stack(settings, state, named)
    store = named.s3
    if store.endpoint is None:
        store = stack_s3(settings, state).resolved(settings.s3, state.addresses["s3"])
    elif store.access_key is None:
        credentials |= {name: value for name, value in environment.items() if name.startswith("AWS_")}
    if named.prefect_api_url is None:
        auth = read_keys(settings.home.absolute() / "services").prefect_auth
        return Servers(state.addresses["prefect"], auth, store, credentials)
    wanted = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_CLIENT_CUSTOM_HEADERS")
    credentials |= {name: environment[name] for name in wanted if name in environment}
    return Servers(named.prefect_api_url, None, store, credentials)


def _require_stack(settings: Settings, state: StackState, named: Settings) -> None:
    needed = {"s3": named.s3.endpoint, "prefect": named.prefect_api_url}
    if not state.up:
        raise SettingsError(
            f"the stack of {settings.home.absolute()} is not up: expected servers for the workers; start them: "
            "fedbench up, or name them: FEDBENCH_PREFECT_API_URL and FEDBENCH_S3__ENDPOINT"
        )
    for name, address in needed.items():
        if address is None and (found := service_status(settings, name, state).state) != "up":
            raise SettingsError(f"{name}: expected a server that answers, found it {found}; see: fedbench status")


def job_environment(
    settings: Settings, servers: Servers, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the variables of a job: the servers with their credentials, and this machine's settings and proxies."""
    variables = {
        name: value
        for name, value in environment.items()
        if (name.startswith("FEDBENCH_") and not name.startswith(_NOT_CARRIED)) or name in _CARRIED_TOO
    }
    file = Path(environment.get("FEDBENCH_SETTINGS") or settings.home / "settings.yaml").absolute()
    if file.exists():
        variables["FEDBENCH_SETTINGS"] = str(file)
    # Relative paths would count from the job's folder.
    if settings.street_dir is not None:
        variables["FEDBENCH_STREET_DIR"] = str(settings.street_dir.absolute())
    if settings.data_roots:
        roots = {name: str(path.absolute()) for name, path in settings.data_roots.items()}
        variables["FEDBENCH_DATA_ROOTS"] = json.dumps(roots)
    store = servers.store
    variables |= {
        "PREFECT_API_URL": servers.prefect,
        "FEDBENCH_PREFECT_API_URL": servers.prefect,
        "FEDBENCH_S3__ENDPOINT": store.endpoint or "",
        "FEDBENCH_S3__BUCKET": store.bucket,
        "FEDBENCH_S3__PREFIX": store.prefix,
        "FEDBENCH_S3__REGION": store.region,
    }
    if store.access_key is not None and store.secret_key is not None:
        variables["FEDBENCH_S3__ACCESS_KEY"] = store.access_key.get_secret_value()
        variables["FEDBENCH_S3__SECRET_KEY"] = store.secret_key.get_secret_value()
        # A profile of the user's belongs to other servers.
        variables["AWS_CONFIG_FILE"] = variables["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    if servers.prefect_auth is not None:
        variables["PREFECT_API_AUTH_STRING"] = servers.prefect_auth
    return {**variables, **servers.credentials}


def write_job_environment(home: Path, variables: Mapping[str, str]) -> Path:
    """Write the file (0600), and make the folder of the jobs' logs. Return the file's path.

    Raises:
        OSError: it cannot be written.
    """
    private_home(home)
    path = environment_path(home)
    log_path(home, "job").parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = ["# Written by fedbench slurm up; fedbench slurm down removes it. It holds credentials."]
    lines += export_lines(dict(sorted(variables.items())))
    write_durably(path, "\n".join(lines) + "\n")
    return path
