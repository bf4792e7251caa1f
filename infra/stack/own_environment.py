"""Keep what the user's environment says about other servers away from a run.

Each of three servers that no setting names is the run's own: embedded, or of the home's stack. The user's variables and
files for the clients of such a server are not used:

========  ===========================  ====================================================================
server    variables that are removed   files that are not read
========  ===========================  ====================================================================
Prefect   ``PREFECT_*``                profiles; ``.env``, ``prefect.toml``, ``pyproject.toml`` of this folder
MLflow    ``MLFLOW_*``                 none
store     ``AWS_*``                    ``~/.aws/config``, ``~/.aws/credentials``
========  ===========================  ====================================================================

For a server that a setting names, they stay as the user has them. Requests to loopback never use a proxy
(:mod:`infra.environment.proxies`).
"""

from __future__ import annotations

import importlib
import os

from infra.environment.certificates import trust, use_certificates
from infra.environment.imports import keep_folder_out_of_imports
from infra.environment.proxies import PROXIES, bypass_proxies, drop_unusable_proxies, is_direct
from infra.errors import ServiceFailed
from infra.processes.ports import LOOPBACK
from infra.settings import Settings
from infra.stack.state import StackState, read_state, without_own_addresses

PREFECT_PREFIXES = ("PREFECT_",)
MLFLOW_PREFIXES = ("MLFLOW_", "_MLFLOW_")
STORE_PREFIXES = ("AWS_",)
# These stay: the command line sets them before its run starts, and a user's value changes only the logs.
KEPT = frozenset({"PREFECT_LOGGING_ROOT_HANDLERS", "MLFLOW_CONFIGURE_LOGGING"})


def use_own_environment(settings: Settings, *, deploys: bool = False) -> None:
    """Prepare this process's environment, which its children inherit, for a run with ``settings``.

    Call this before Prefect, MLflow or boto3 is imported, and before a service is started. A second call does no harm.

    deploys: whether, without a stack, Prefect's server is the one that the user's own Prefect settings name.

    Raises:
        SettingsError: a server is reached over TLS, and a variable names certificates that cannot be used; or ca_file
            names such.
    """
    keep_folder_out_of_imports(os.environ)
    state = _state(settings)
    named = without_own_addresses(settings, state)
    own_prefect = named.prefect_api_url is None and (state.up or not deploys)
    hosts = [host for host in (state.host, str(settings.ports.host or "")) if host and host != LOOPBACK]
    bypass_proxies(os.environ, hosts)
    remote = [
        url
        for url in (named.prefect_api_url, named.mlflow_tracking_uri)
        if url is not None and url.startswith(("http://", "https://")) and not is_direct(url, hosts)
    ]
    users_prefect = not own_prefect and named.prefect_api_url is None
    over_tls = users_prefect or any(
        url is not None and url.startswith("https://")
        for url in (named.prefect_api_url, named.mlflow_tracking_uri, named.s3.endpoint)
    )
    use_certificates(os.environ, over_tls=over_tls)
    if not remote and not users_prefect:
        # A store elsewhere must fail rather than be reached without the proxy that the user set for it.
        drop_unusable_proxies(os.environ, PROXIES if named.s3.endpoint is None else ["all_proxy"])
    if own_prefect:
        folder = settings.home.absolute() / "prefect"
        _remove(PREFECT_PREFIXES)
        os.environ["PREFECT_HOME"] = str(folder)
        os.environ["PREFECT_PROFILES_PATH"] = str(folder / "profiles.toml")
        # With Prefect's default profile, a client that finds no address would start a server without credentials.
        os.environ["PREFECT_SERVER_EPHEMERAL_ENABLED"] = "false"
        importlib.import_module("infra.environment.ignore_prefect_files")
    if named.mlflow_tracking_uri is None:
        _remove(MLFLOW_PREFIXES)
    if named.s3.endpoint is None:
        _remove(STORE_PREFIXES)
        os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    trust(os.environ, settings.ca_file)


def _state(settings: Settings) -> StackState:
    try:
        return read_state(settings.home)
    except ServiceFailed:  # whoever needs the stack reports it
        return StackState()


def _remove(prefixes: tuple[str, ...]) -> None:
    for name in list(os.environ):
        # Prefect reads its variables in any case.
        if name.upper().startswith(prefixes) and name.upper() not in KEPT:
            del os.environ[name]
