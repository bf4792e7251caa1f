"""Read the objects of a home's own store from its folder, without a server."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.errors import StoreUnavailable
from infra.settings_groups import S3Settings
from infra.store.objects import ObjectEntry, ObjectStore
from infra.store.s3_errors import MissingObjectError

_UNFINISHED = ".rclone_temp_"  # the start of the name of a file that the server is still writing


class FolderStore(ObjectStore):
    """The objects of the bucket that the embedded server of ``home`` keeps in ``<home>/s3``. It can only be read."""

    def __init__(self, store: S3Settings, home: Path) -> None:
        folder = home.absolute() / "s3"
        super().__init__(store.model_copy(update={"endpoint": str(folder)}))
        self._folder = folder / store.bucket

    def _call(self, key: str, operation: Any, size: int = 0) -> Any:
        raise StoreUnavailable(f"{key}: expected to read only, because {self._where} has no server at the moment")

    def get_bytes(self, key: str, limit: int | None = None) -> bytes:
        try:
            return (self._folder / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise MissingObjectError(f"{key}: no such object in {self._where}") from None
        except OSError as error:
            raise StoreUnavailable(f"{key}: cannot be read in {self._where}: {error.strerror or error}") from None

    def size(self, key: str) -> int | None:
        path = self._folder / key
        return path.stat().st_size if path.is_file() else None

    def list(self, prefix: str = "") -> dict[str, int]:
        return {entry.key: entry.bytes for entry in self.entries(prefix)}

    def entries(self, prefix: str = "") -> Sequence[ObjectEntry]:
        return sorted(self._found(prefix), key=lambda entry: entry.key)

    def _found(self, prefix: str) -> Iterator[ObjectEntry]:
        within = self._folder / prefix.rpartition("/")[0]
        paths: builtins.list[Path] = [] if not within.is_dir() else builtins.list(within.rglob("*"))
        for path in paths:
            key = path.relative_to(self._folder).as_posix()
            if key.startswith(prefix) and not path.name.startswith(_UNFINISHED) and path.is_file():
                status = path.stat()
                yield ObjectEntry(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))
