"""Compare what the settings ask for with the stack that is up."""

from __future__ import annotations

import re

from infra.errors import SettingsError
from infra.processes.ports import LOOPBACK
from infra.servers.database import check_postgresql, mlflow_database_uri, prefect_database_url
from infra.settings import Settings
from infra.stack.state import StackState, without_own_addresses


def with_databases(settings: Settings, state: StackState) -> StackState:
    """Return ``state`` with the databases that the settings name; a stack that is up keeps its own.

    Raises:
        SettingsError: the settings name another database than that of the stack that is up.
    """
    asked = {
        "prefect_database_url": prefect_database_url(settings),
        "mlflow_database_uri": None if settings.mlflow_database_url is None else mlflow_database_uri(settings),
    }
    if not state.up:
        return state.model_copy(update=asked)
    for name, url in asked.items():
        if url is not None and url != getattr(state, name):
            raise SettingsError(
                f"{name[:-4]}_url: the stack of {settings.home.absolute()} is up with another database; first: "
                "fedbench down"
            )
    return state


def with_host(settings: Settings, state: StackState) -> StackState:
    """Return ``state`` with the address that the settings name; a stack that is up keeps its own.

    Raises:
        SettingsError: the settings name another address than that of the stack that is up.
    """
    asked = settings.ports.host
    if not state.up:
        return state.model_copy(update={"host": LOOPBACK if asked is None else str(asked)})
    if asked is not None and str(asked) != state.host:
        raise SettingsError(
            f"ports.host: the stack of {settings.home.absolute()} is up at {state.host}, found {asked}; first: "
            "fedbench down"
        )
    return state


def check_databases(state: StackState) -> None:
    """Connect to the databases of ``state``, so that a fault is reported before a server starts.

    Raises:
        SettingsError: a database URL cannot be used.
        InfraError: a database cannot be reached.
    """
    if state.prefect_database_url is not None:
        check_postgresql(state.prefect_database_url, "prefect_database_url", trigrams=True)
    if state.mlflow_database_uri is not None:
        check_postgresql(state.mlflow_database_uri, "mlflow_database_url", trigrams=False)


def foreign_addresses(settings: Settings, state: StackState) -> dict[str, str]:
    """Return the addresses that the settings name instead of this stack's services, by setting, without passwords."""
    rest = without_own_addresses(settings, state)
    named = {
        "s3.endpoint": rest.s3.endpoint,
        "prefect_api_url": rest.prefect_api_url,
        "mlflow_tracking_uri": rest.mlflow_tracking_uri,
    }
    return {
        setting: re.sub(r"//[^/@]*@", "//***@", address) for setting, address in named.items() if address is not None
    }
