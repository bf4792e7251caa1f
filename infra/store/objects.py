"""Objects in an S3-compatible store: bytes, files and JSON, with one error for each cause.

Callers check integrity: the record that names weights has their sha256 (:mod:`infra.store.weights`). So the store's
own checksums, which halve the reading speed, are off. Every request that writes has the MD5 of its body, so that a
store does not accept half a body as an object: a record may not be read again before the federation ends. After a file
was sent in parts, its size is checked instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from infra.errors import StoreCorrupt, StoreUnavailable
from infra.store.connection import StoreConnection
from infra.store.foreign_json import read_foreign
from infra.store.s3_errors import MISSING, MissingBucketError, MissingObjectError, code_of
from infra.store.sealed import seal, unseal
from infra.store.transfers import ObjectAddress, copy_object, get_body, put_body, receive_file, send_file
from infra.store.uploads import IncompleteUpload, end_upload, list_uploads
from tasks.documents.json_text import read_json

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import DeleteObjectsOutputTypeDef

_DELETE_BATCH = 1000  # the most that S3 accepts in one request
# Answers if a conditional write was not done. Stores that do not know conditions give the last two.
_CONDITION_FAILED = frozenset(
    {"412", "409", "PreconditionFailed", "ConditionalRequestConflict", "NotImplemented", "InvalidArgument"}
)


@dataclass(frozen=True)
class ObjectEntry:
    """An object in a listing: its size, and when it was written (with a time zone)."""

    key: str
    bytes: int
    modified: datetime


class ObjectStore(StoreConnection):
    """The objects of one bucket.

    Every method raises:
        StoreUnavailable: the store does not answer or fails (5xx); the message names the endpoint.
        SettingsError: wrong credentials, or no such bucket; the message names the setting.
    """

    def with_patience(self, seconds: float) -> ObjectStore:
        """Return the same store on the same connections, with requests that are repeated for ``seconds`` at most."""
        other = ObjectStore(self.settings, outage_seconds=seconds)
        other._connected = self
        return other

    def put_bytes(self, key: str, body: bytes) -> None:
        """Write an object; it appears whole or not at all."""
        self._call(key, lambda s3: put_body(s3, self._at(key), body), len(body))

    def get_bytes(self, key: str, limit: int | None = None) -> bytes:
        """Return the content of an object.

        limit: the most bytes that it may have. A larger one is refused before its content is read.

        Raises:
            StoreCorrupt: there is no such object, or it is larger than ``limit``.
        """
        return self._call(key, lambda s3: get_body(s3, self._at(key), limit))

    def put_if(self, key: str, body: bytes, tag: str | None = None) -> str | None:
        """Write an object if there is none at ``key``; with ``tag``, if the object there has this ETag.

        Returns the ETag of the written object; None if the store refused to write. Useful only in a store that honours
        conditions (:mod:`infra.store.conditional`). If an answer is lost, the request is repeated. Then the store may
        refuse because the first request of this call has written the object.
        """
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}

        def put(s3: S3Client) -> str | None:
            try:
                answer = put_body(s3, self._at(key), body, **condition)
            except ClientError as error:
                if code_of(error) in _CONDITION_FAILED or (tag is not None and code_of(error) in MISSING):
                    return None
                raise
            return answer.get("ETag", "")

        return self._call(key, put)

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Return a small object's content and ETag (empty if the store has no ETags); None if there is no object."""

        def get(s3: S3Client) -> tuple[bytes, str]:
            answer = s3.get_object(Bucket=self.bucket, Key=key)
            with closing(answer["Body"]) as body:
                return body.read(), answer.get("ETag", "")

        try:
            return self._call(key, get)
        except MissingObjectError:
            return None

    def put_file(self, key: str, path: Path) -> None:
        """Write a file as an object, in parts where large; it appears whole or not at all."""
        size = path.stat().st_size
        self._call(key, lambda s3: send_file(s3, self._at(key), path, size), size)

    def get_file(self, key: str, path: Path, limit: int | None = None) -> None:
        """Write an object's content to ``path``, in parallel parts where large. The caller checks the content.

        limit: the most bytes that the object may have. A larger one is refused before its content is written.

        Raises:
            StoreCorrupt: there is no such object, or it is larger than ``limit``.
        """
        self._call(key, lambda s3: receive_file(s3, self._at(key), path, limit))

    def copy(self, key: str, target: str) -> None:
        """Copy an object within the store, without a transfer of its content to this machine.

        Raises:
            StoreCorrupt: there is no such object.
        """
        self._call(key, lambda s3: copy_object(s3, self._at(key), target))

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes; None if it is missing, or the bucket is (HEAD does not tell which)."""
        try:
            return self._call(key, lambda s3: s3.head_object(Bucket=self.bucket, Key=key)["ContentLength"])
        except MissingObjectError:
            return None

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def list(self, prefix: str = "") -> dict[str, int]:
        """Return the keys that start with ``prefix``, in order, with their sizes in bytes."""

        def pages(s3: S3Client) -> dict[str, int]:
            found = s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return {item["Key"]: item["Size"] for page in found for item in page.get("Contents", [])}

        return dict(sorted(self._call(prefix, pages).items()))

    def entries(self, prefix: str = "") -> Sequence[ObjectEntry]:
        """Return the objects whose keys start with ``prefix``, in the order of their keys."""

        def pages(s3: S3Client) -> Sequence[ObjectEntry]:
            found = s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return [
                ObjectEntry(item["Key"], item["Size"], item["LastModified"])
                for page in found
                for item in page.get("Contents", [])
            ]

        return sorted(self._call(prefix, pages), key=lambda entry: entry.key)

    def incomplete_uploads(self, prefix: str = "") -> Sequence[IncompleteUpload]:
        """Return the incomplete uploads in parts of keys that start with ``prefix``."""
        return self._call(prefix, lambda s3: list_uploads(s3, self.bucket, prefix))

    def abort_upload(self, key: str, upload_id: str) -> None:
        """End an upload and remove its parts. An upload that has already ended is no error."""
        self._call(key, lambda s3: end_upload(s3, self.bucket, key, upload_id))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects. Missing ones are no error."""
        names = list(keys)
        failed = self.remove(names)
        if failed:
            key, reason = next(iter(failed.items()))
            raise StoreUnavailable(f"{self._where}: {len(failed)} of {len(names)} objects not removed; {key}: {reason}")

    def remove(self, keys: Iterable[str]) -> dict[str, str]:
        """Remove objects. Return a reason for each one that could not be removed; missing ones are no error."""
        names = list(keys)
        failed: dict[str, str] = {}
        for start in range(0, len(names), _DELETE_BATCH):
            batch = names[start : start + _DELETE_BATCH]
            answer = self._call(batch[0], partial(self._delete_batch, batch))
            for item in answer.get("Errors", []):
                if item.get("Code") not in MISSING:
                    failed[item.get("Key", "")] = f"{item.get('Code')} {item.get('Message')}"
        return failed

    def _delete_batch(self, keys: Sequence[str], s3: S3Client) -> DeleteObjectsOutputTypeDef:
        return s3.delete_objects(Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True})

    def put_json(self, key: str, document: Any) -> None:
        """Write a document; a mapping gets its digest. The same document gives the same bytes."""
        self.put_bytes(key, seal(document))

    def get_json(self, key: str, limit: int | None = None) -> Any:
        """Return the document at ``key``; None when there is none.

        limit: the most bytes that it may have, for documents that others than the coordinator write. Such a document
        is checked by :func:`infra.store.foreign_json.read_foreign`.

        Raises:
            StoreCorrupt: it is not JSON, is ``null``, is nested too deeply, does not match its digest, or is larger
                than ``limit``.
        """
        return self.get_sealed(key, limit)[0]

    def get_sealed(self, key: str, limit: int | None = None) -> tuple[Any, bool]:
        """Return the document as :meth:`get_json` does, and whether it had a digest, which was checked."""
        try:
            return self._get_document(key, limit)
        except MissingObjectError:
            return None, False
        except StoreCorrupt:
            # It may be damaged in transfer only.
            return self._get_document(key, limit)

    def _get_document(self, key: str, limit: int | None) -> tuple[Any, bool]:
        body = self.get_bytes(key, limit)
        try:
            document, sealed = unseal(read_json(body) if limit is None else read_foreign(body))
        except (ValueError, RecursionError) as error:
            raise StoreCorrupt(f"{key}: expected JSON in {self._where}: {error}") from None
        if document is None:  # the caller would take it for a missing object
            raise StoreCorrupt(f"{key}: expected a JSON document in {self._where}, found null")
        return document, sealed

    def ensure_bucket(self) -> None:
        """Create the bucket unless it is there."""
        try:
            self._call("", lambda s3: s3.head_bucket(Bucket=self.bucket))
        except (MissingObjectError, MissingBucketError):
            self._call("", self._create_bucket)

    def _create_bucket(self, s3: S3Client) -> None:
        options: dict[str, Any] = {}
        if self.settings.region != "us-east-1":
            options["CreateBucketConfiguration"] = {"LocationConstraint": self.settings.region}
        try:
            s3.create_bucket(Bucket=self.bucket, **options)
        except ClientError as error:
            if code_of(error) not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                raise

    def _at(self, key: str) -> ObjectAddress:
        return ObjectAddress(self.bucket, key, self._where)
