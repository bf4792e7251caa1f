"""What is kept of a home's stack in ``<home>/services/stack.json`` (0600): whether it is up, ports, databases.

A stack is *up* from ``fedbench up`` to ``fedbench down``, crashes included: whoever needs one of its services meanwhile
starts it again as it was.
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
AT_WORK = "another fedbench up or down"  # what a holder of the stack's lock writes there


class PortChoice(BaseModel):
    """The port that the settings asked for, and the one that was free then."""

    asked: int
    chosen: int


class StackState(BaseModel):
    """``addresses`` are those that clients were told last, by service.

    workers: it has workers too.
    host: where its servers listen.
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
        """The one chosen before, unless the settings ask for another now."""
        choice = self.ports.get(service)
        return choice.chosen if choice is not None and choice.asked == asked else asked


def state_path(home: Path) -> Path:
    return home.absolute() / "services" / "stack.json"


def stack_lock(home: Path) -> FileLock:
    """Held by whoever starts or ends services of the stack: `up`, `down`, the supervisor."""
    return FileLock(home.absolute() / "services" / "stack.lock")


def read_state(home: Path) -> StackState:
    """
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
    """``settings`` without addresses that name this home's own stack, as its environment file does.

    Its services are then found as without that file: at another port too, and after a crash.
    """
    changes: dict[str, object] = {}
    if settings.s3.endpoint is not None and settings.s3.endpoint == state.addresses.get("s3"):
        changes["s3"] = settings.s3.model_copy(update=NO_CREDENTIALS)
    for setting, service in (("prefect_api_url", "prefect"), ("mlflow_tracking_uri", "mlflow")):
        address = getattr(settings, setting)
        if address is not None and address == state.addresses.get(service):
            changes[setting] = None
    return settings.model_copy(update=changes) if changes else settings
