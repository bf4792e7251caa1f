"""Credentials of a home's servers: drawn once, kept over restarts, in a file that only its owner can read (0600).

All servers of a home accept the same credentials, those of ``fedbench up`` and those of a run. So runs that share a
server find them in the file, and credentials stored in a browser stay valid.
"""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

from pydantic import BaseModel, ValidationError

from infra.errors import ServiceFailed
from infra.files.durable import write_durably
from infra.files.lock import FileLock

USER = "fedbench"
FILE = "stack-keys.json"


class StackKeys(BaseModel):
    """Passwords of the user ``fedbench`` at Prefect and MLflow, and the key of MLflow's page forms.

    The store's keys are those of :class:`infra.servers.s3.S3Keys`.
    """

    prefect_password: str
    mlflow_password: str
    mlflow_secret_key: str

    @property
    def prefect_auth(self) -> str:
        """``user:password``, which Prefect calls an auth string. Its page asks for it."""
        return f"{USER}:{self.prefect_password}"

    @property
    def mlflow_auth(self) -> str:
        return f"{USER}:{self.mlflow_password}"


def draw_keys(folder: Path) -> StackKeys:
    """Return the credentials in ``folder``. Draw them if there are none.

    Raises:
        ServiceFailed: the file is damaged.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    lock = FileLock(folder / f"{FILE}.lock")
    lock.acquire(timeout=None)  # runs that start at the same time have the same credentials
    try:
        if not (folder / FILE).exists():
            # URL-safe, so that shells and URLs need no escapes.
            prefect, mlflow, secret = (secrets.token_urlsafe(24) for _ in range(3))
            keys = StackKeys(prefect_password=prefect, mlflow_password=mlflow, mlflow_secret_key=secret)
            write_durably(folder / FILE, keys.model_dump_json())
    finally:
        lock.release()
    return read_keys(folder)


def read_keys(folder: Path) -> StackKeys:
    """Return the credentials in ``folder``.

    Raises:
        ServiceFailed: they are missing or damaged.
    """
    try:
        return StackKeys.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        raise ServiceFailed(
            f"{folder / FILE}: expected the stack's credentials; fedbench down, then remove the file and "
            f"{folder / 'mlflow-auth.db'} to have new ones drawn"
        ) from None


def basic_auth(user_and_password: str) -> dict[str, str]:
    """Return the HTTP header of basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(user_and_password.encode()).decode()}
