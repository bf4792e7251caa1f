"""The state of a home's stack, kept in ``<home>/services/stack.json`` (0600): whether it is up, ports, databases.

A stack is *up* from ``fedbench up`` to ``fedbench down``, even while a service has crashed: a process that needs the
service starts it again as it was.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from infra.errors import ServiceFailed
from infra.files.durable import write_durably
from infra.files.lock import FileLock
from infra.processes.ports import LOOPBACK
from infra.settings import Settings

NO_CREDENTIALS: dict[str, None] = {"endpoint": None, "access_key": None, "secret_key": None}
AT_WORK = "another fedbench up or down"  # note in the stack's lock


class PortChoice(BaseModel):
    """The port that the settings asked for, and the one that was free then."""

    asked: int
    chosen: int


class StackState(BaseModel):
    """State of a stack.

    workers: whether it has workers too.
    host: address at which its servers listen.
    addresses: those that clients got last, by service.
    prefect_database_url, mlflow_database_uri: None: SQLite under home. They may hold a password.
    """

    up: bool = False
    workers: bool = False
    host: str = LOOPBACK
    ports: dict[str, PortChoice] = Field(default_factory=dict)
    addresses: dict[str, str] = Field(default_factory=dict)
    prefect_database_url: str | None = Field(None, repr=False)
    mlflow_database_uri: str | None = Field(None, repr=False)

    def port(self, service: str, asked: int) -> int:
        """Return the port chosen before, unless the settings ask for another one now."""
        choice = self.ports.get(service)
        return choice.chosen if choice is not None and choice.asked == asked else asked


def state_path(home: Path) -> Path:
    return home.absolute() / "services" / "stack.json"


def stack_lock(home: Path) -> FileLock:
    """Return the lock that `up`, `down` and the supervisor hold while they start or end services."""
    return FileLock(home.absolute() / "services" / "stack.lock")


def read_state(home: Path) -> StackState:
    """Read the state of the home's stack. Without a file, return that of a stack that is down.

    Raises:
        ServiceFailed: the file is damaged.
    """
    path = state_path(home)
    try:
        return StackState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return StackState()
    except (OSError, ValidationError):
        raise ServiceFailed(f"{path}: expected the stack's state; remove the file, then: fedbench down") from None


def write_state(home: Path, state: StackState) -> None:
    path = state_path(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    write_durably(path, state.model_dump_json())


def without_own_addresses(settings: Settings, state: StackState) -> Settings:
    """Return ``settings`` without addresses of this home's own stack, which its environment file sets.

    The services are then found by the stack's state, even at another port or after a crash.
    """
    changes: dict[str, object] = {}
    if settings.s3.endpoint is not None and settings.s3.endpoint == state.addresses.get("s3"):
        changes["s3"] = settings.s3.model_copy(update=NO_CREDENTIALS)
    for setting, service in (("prefect_api_url", "prefect"), ("mlflow_tracking_uri", "mlflow")):
        address = getattr(settings, setting)
        if address is not None and address == state.addresses.get(service):
            changes[setting] = None
    return settings.model_copy(update=changes) if changes else settings
