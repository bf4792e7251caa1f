"""``<home>/stack.env`` (0600): variables with which `prefect`, `mlflow`, boto3 and fedbench find a running stack."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from infra.environment.proxies import LOOPBACK_HOSTS, NO_PROXY
from infra.files.durable import write_durably
from infra.servers.credentials import USER, StackKeys
from infra.settings_groups import S3Settings


def environment_path(home: Path) -> Path:
    return home.absolute() / "stack.env"


def stack_environment(home: Path, addresses: Mapping[str, str], store: S3Settings, keys: StackKeys) -> dict[str, str]:
    """Return the variables. addresses: by service. store: with the credentials of the stack's S3 server."""
    access_key = store.access_key.get_secret_value() if store.access_key is not None else ""
    secret_key = store.secret_key.get_secret_value() if store.secret_key is not None else ""
    return {
        "FEDBENCH_HOME": str(home.absolute()),
        "FEDBENCH_S3__ENDPOINT": addresses["s3"],
        "FEDBENCH_S3__BUCKET": store.bucket,
        "FEDBENCH_S3__ACCESS_KEY": access_key,
        "FEDBENCH_S3__SECRET_KEY": secret_key,
        "FEDBENCH_PREFECT_API_URL": addresses["prefect"],
        "FEDBENCH_MLFLOW_TRACKING_URI": addresses["mlflow"],
        "PREFECT_API_URL": addresses["prefect"],
        "PREFECT_API_AUTH_STRING": keys.prefect_auth,
        "MLFLOW_TRACKING_URI": addresses["mlflow"],
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": keys.mlflow_password,
        # MLflow's clients read and write artifacts in the store themselves.
        "MLFLOW_S3_ENDPOINT_URL": addresses["s3"],
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_SESSION_TOKEN": "",
        "AWS_DEFAULT_REGION": store.region,
    }


def write_environment(home: Path, addresses: Mapping[str, str], store: S3Settings, keys: StackKeys) -> Path:
    """Write the file, for the shell's `source`. Return its path."""
    lines = ["# Written by fedbench up; fedbench down removes it. It holds credentials."]
    lines += export_lines(stack_environment(home, addresses, store, keys))
    servers = [urlsplit(address).hostname or "" for address in addresses.values()]
    hosts = ",".join(dict.fromkeys((*LOOPBACK_HOSTS, *filter(None, servers))))
    for name in NO_PROXY:  # added to what the shell has; * means every host, but only alone
        lines.append(f'[ "${{{name}-}}" = "*" ] || export {name}="${{{name}:+${name},}}{hosts}"')
    path = environment_path(home)
    write_durably(path, "\n".join(lines) + "\n")
    return path


def export_lines(variables: Mapping[str, str]) -> list[str]:
    """Return the lines of a shell that set the variables, for it and its programs."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def remove_environment(home: Path) -> None:
    environment_path(home).unlink(missing_ok=True)
