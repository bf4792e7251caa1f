"""Objects in an S3-compatible store, over boto3: bytes, files and JSON, with one error for each cause.

Every operation can be repeated without harm, and is, with backoff and jitter, for ``outage_seconds``: longer
than an embedded server takes to come back. Integrity is the caller's: weights carry a sha256 in the record
that names them (:mod:`infra.store.weights`), so the store's own checksums, which halve the reading speed, are
off. What is sent carries its MD5 (of files in parts, the store is asked for the size), so that a store does not take
half a request for an object: nobody may read a record again before the federation ends.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.session
from boto3.exceptions import Boto3Error, RetriesExceededError, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
)
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import S3ValidationError

from infra.environment.proxies import is_direct
from infra.errors import InfraError, SettingsError, StoreCorrupt, StoreRefused, StoreUnavailable
from infra.settings import S3Settings
from infra.store.causes import cause_of
from infra.store.foreign_json import read_foreign
from infra.store.sealed import seal, unseal
from tasks.documents.json_text import read_json

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef, DeleteObjectsOutputTypeDef, PutObjectOutputTypeDef

PART_BYTES = 16 * 1024 * 1024  # of an object that travels in parts
WHOLE_BYTES = 64 * 1024 * 1024  # files above this are sent in parts: below, parts and their threads cost more
_TRANSFER = TransferConfig(
    multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4, num_download_attempts=3
)
# A copy in one request, as far as S3 takes that (5 GB): not every store copies in parts.
_COPY = TransferConfig(multipart_threshold=5_000_000_000)
_DELETE_BATCH = 1000  # the most that S3 takes in one request
_REFUSED = frozenset(
    {
        "403",
        "AccessDenied",
        "Forbidden",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidToken",
        "ExpiredToken",
    }
)
# "BadDigest": other bytes than were sent have arrived.
_BUSY = frozenset({"SlowDown", "RequestTimeout", "Throttling", "BadDigest"})
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
# Answers to a conditional write that was not done; the last two are of stores that do not know conditions.
_CONDITION_FAILED = frozenset(
    {"412", "409", "PreconditionFailed", "ConditionalRequestConflict", "NotImplemented", "InvalidArgument"}
)
# Answers to a listing of uploads in parts: a store without them; rclone, until it has had the first one of a bucket.
_NO_UPLOADS = frozenset({"NotImplemented", "MethodNotAllowed", "NoSuchUpload"})

Result = TypeVar("Result")


class _OtherSizeError(BotoCoreError):
    """The store has another size of a file than was sent."""

    fmt = "expected {expected} bytes of the file that was sent, found {found}"


_TRANSIENT = (HTTPClientError, ConnectionError, IncompleteReadError, _OtherSizeError)


@dataclass(frozen=True)
class ObjectEntry:
    """An object in a listing: its size, and when it was written (with a time zone)."""

    key: str
    bytes: int
    modified: datetime


@dataclass(frozen=True)
class IncompleteUpload:
    """An upload in parts that was begun and neither completed nor aborted; ``bytes``: of the parts that are there."""

    key: str
    upload_id: str
    bytes: int
    started: datetime


class ObjectStore:
    """One bucket. Holds only settings until used: it pickles, and makes a client of its own in each process.

    ``store``: resolved settings, with an endpoint; without keys the AWS default chain gives the credentials.
    ``outage_seconds``: how long an unreachable store is tried before :class:`StoreUnavailable`.

    Every method raises:
        StoreUnavailable: the store does not answer or fails (5xx); names the endpoint.
        SettingsError: wrong credentials, or no such bucket; names the setting.
    """

    def __init__(self, store: S3Settings, outage_seconds: float = 30.0) -> None:
        if store.endpoint is None:
            raise SettingsError("s3.endpoint: expected the URL of an S3 API, found none")
        self.settings = store
        self.outage_seconds = outage_seconds
        self._client: S3Client | None = None
        self._client_process = 0
        self._connected: ObjectStore | None = None  # whose connections this uses: a client takes a while to make

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_client_process": 0}

    def with_patience(self, seconds: float) -> ObjectStore:
        """The same store and connections, tried for ``seconds`` when it does not answer."""
        other = ObjectStore(self.settings, outage_seconds=seconds)
        other._connected = self
        return other

    @property
    def bucket(self) -> str:
        return self.settings.bucket

    def put_bytes(self, key: str, body: bytes) -> None:
        """Write an object; it appears whole or not at all."""
        self._call(key, lambda s3: self._put(s3, key, body), len(body))

    def _put(self, s3: S3Client, key: str, body: bytes, **condition: Any) -> PutObjectOutputTypeDef:
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        return s3.put_object(Bucket=self.bucket, Key=key, Body=body, ContentMD5=digest, **condition)

    def get_bytes(self, key: str, limit: int | None = None) -> bytes:
        """Content of an object.

        limit: the most bytes that it may have. A larger one is refused before its content is read.

        Raises:
            StoreCorrupt: there is none, or it is larger than ``limit``.
        """

        def get(s3: S3Client) -> bytes:
            if limit is not None:
                return self._get_limited(s3, key, limit)
            # Not `with answer["Body"]`, which gives urllib3's stream, whose errors are none of botocore's.
            with closing(s3.get_object(Bucket=self.bucket, Key=key)["Body"]) as body:
                return body.read()

        return self._call(key, get)

    def put_if(self, key: str, body: bytes, tag: str | None = None) -> str | None:
        """Write an object if there is none at ``key``; with ``tag``, if what is there has this ETag.

        Returns the ETag of what was written; None when the store refused. Of use only in a store that honours
        conditions (:mod:`infra.store.conditional`). A lost answer is asked for again: then a refusal may be of what
        this very call wrote.
        """
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}

        def put(s3: S3Client) -> str | None:
            try:
                answer = self._put(s3, key, body, **condition)
            except ClientError as error:
                if _code(error) in _CONDITION_FAILED or (tag is not None and _code(error) in _MISSING):
                    return None
                raise
            return answer.get("ETag", "")

        return self._call(key, put)

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Content and ETag of a small object; None when there is none. A store without ETags gives an empty one."""

        def get(s3: S3Client) -> tuple[bytes, str]:
            answer = s3.get_object(Bucket=self.bucket, Key=key)
            with closing(answer["Body"]) as body:
                return body.read(), answer.get("ETag", "")

        try:
            return self._call(key, get)
        except _MissingObjectError:
            return None

    def put_file(self, key: str, path: Path) -> None:
        """Write a file as an object, in parts where large; it appears whole or not at all."""
        size = path.stat().st_size

        def put(s3: S3Client) -> None:
            if size <= WHOLE_BYTES:
                self._put(s3, key, path.read_bytes())
                return
            s3.upload_file(str(path), self.bucket, key, Config=_TRANSFER)
            found = s3.head_object(Bucket=self.bucket, Key=key)["ContentLength"]
            if found != size:
                raise _OtherSizeError(expected=size, found=found)

        self._call(key, put, size)

    def get_file(self, key: str, path: Path, limit: int | None = None) -> None:
        """Write an object's content to ``path``, in parallel parts where large. Not checked: that is the
        caller's.

        limit: the most bytes that the object may have. A larger one is refused before its content is written.

        Raises:
            StoreCorrupt: there is no such object, or it is larger than ``limit``.
        """
        self._call(key, partial(self._get_file, key, path, limit))

    def _get_file(self, key: str, path: Path, limit: int | None, s3: S3Client) -> None:
        if limit is None:
            s3.download_file(self.bucket, key, str(path), Config=_TRANSFER)
            return
        if limit < PART_BYTES:
            path.write_bytes(self._get_limited(s3, key, limit))
            return
        self._check_size(key, s3.head_object(Bucket=self.bucket, Key=key)["ContentLength"], limit)
        written, counting = 0, threading.Lock()

        def count(more: int) -> None:
            # The object may have been replaced by a larger one since its size was asked.
            nonlocal written
            with counting:
                written += more
                self._check_size(key, written, limit)

        s3.download_file(self.bucket, key, str(path), Config=_TRANSFER, Callback=count)

    def _get_limited(self, s3: S3Client, key: str, limit: int) -> bytes:
        answer = s3.get_object(Bucket=self.bucket, Key=key)
        size = answer["ContentLength"]
        with closing(answer["Body"]) as body:
            self._check_size(key, size, limit)
            content = body.read(limit + 1)  # whatever the length that the server named
        self._check_size(key, len(content), limit)
        if len(content) < size:  # boto3 sees that only of a body that is read without a limit
            raise IncompleteReadError(actual_bytes=len(content), expected_bytes=size)
        return content

    def _check_size(self, key: str, found: int, limit: int) -> None:
        if found > limit:
            raise StoreCorrupt(f"{key}: expected at most {limit} bytes in {self._where}, found {found} or more")

    def copy(self, key: str, target: str) -> None:
        """Copy an object within the store; its content does not travel.

        Raises:
            StoreCorrupt: there is no such object.
        """
        source: CopySourceTypeDef = {"Bucket": self.bucket, "Key": key}
        self._call(key, lambda s3: s3.copy(source, self.bucket, target, Config=_COPY))

    def size(self, key: str) -> int | None:
        """Bytes of an object; None when there is none (or no bucket: the answer to HEAD does not tell)."""
        try:
            return self._call(key, lambda s3: s3.head_object(Bucket=self.bucket, Key=key)["ContentLength"])
        except _MissingObjectError:
            return None

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def list(self, prefix: str = "") -> dict[str, int]:
        """Keys that start with ``prefix``, in order, with their sizes in bytes."""

        def pages(s3: S3Client) -> dict[str, int]:
            found = s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return {item["Key"]: item["Size"] for page in found for item in page.get("Contents", [])}

        return dict(sorted(self._call(prefix, pages).items()))

    def entries(self, prefix: str = "") -> Sequence[ObjectEntry]:
        """Objects whose keys start with ``prefix``, in the order of their keys."""

        def pages(s3: S3Client) -> Sequence[ObjectEntry]:
            found = s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return [
                ObjectEntry(item["Key"], item["Size"], item["LastModified"])
                for page in found
                for item in page.get("Contents", [])
            ]

        return sorted(self._call(prefix, pages), key=lambda entry: entry.key)

    def incomplete_uploads(self, prefix: str = "") -> Sequence[IncompleteUpload]:
        """Uploads in parts, of keys that start with ``prefix``, that are not complete; none in a store without them."""

        def pages(s3: S3Client) -> Sequence[IncompleteUpload]:
            try:
                found = [
                    (item["Key"], item["UploadId"], item["Initiated"])
                    for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
                    for item in page.get("Uploads", [])
                ]
            except ClientError as error:
                if _code(error) in _NO_UPLOADS:
                    return []
                raise
            return [IncompleteUpload(key, name, self._parts(s3, key, name), started) for key, name, started in found]

        return self._call(prefix, pages)

    def _parts(self, s3: S3Client, key: str, upload_id: str) -> int:
        """Bytes of an upload's parts; 0 when it has ended meanwhile."""
        try:
            pages = s3.get_paginator("list_parts").paginate(Bucket=self.bucket, Key=key, UploadId=upload_id)
            return sum(part["Size"] for page in pages for part in page.get("Parts", []))
        except ClientError as error:
            if _code(error) == "NoSuchUpload":
                return 0
            raise

    def abort_upload(self, key: str, upload_id: str) -> None:
        """End an upload and remove its parts; one that has ended is no error."""

        def abort(s3: S3Client) -> None:
            try:
                s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)
            except ClientError as error:
                if _code(error) != "NoSuchUpload":
                    raise

        self._call(key, abort)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        names = list(keys)
        failed = self.remove(names)
        if failed:
            key, reason = next(iter(failed.items()))
            raise StoreUnavailable(f"{self._where}: {len(failed)} of {len(names)} objects not removed; {key}: {reason}")

    def remove(self, keys: Iterable[str]) -> dict[str, str]:
        """Remove what can be removed, and say of each object that stayed why; those that are not there are no error."""
        names = list(keys)
        failed: dict[str, str] = {}
        for start in range(0, len(names), _DELETE_BATCH):
            batch = names[start : start + _DELETE_BATCH]
            answer = self._call(batch[0], partial(self._delete_batch, batch))
            for item in answer.get("Errors", []):
                if item.get("Code") not in _MISSING:
                    failed[item.get("Key", "")] = f"{item.get('Code')} {item.get('Message')}"
        return failed

    def _delete_batch(self, keys: Sequence[str], s3: S3Client) -> DeleteObjectsOutputTypeDef:
        return s3.delete_objects(Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True})

    def put_json(self, key: str, document: Any) -> None:
        """Write a document, a mapping with its digest; the same document gives the same bytes."""
        self.put_bytes(key, seal(document))

    def get_json(self, key: str, limit: int | None = None) -> Any:
        """The document at ``key``; None when there is none.

        limit: the most bytes that it may have. A document with a limit is one that others than the coordinator write:
        it is held to :func:`infra.store.foreign_json.read_foreign`.

        Raises:
            StoreCorrupt: it is not JSON, is ``null``, is nested too deeply, has not the content of its digest, or is
                larger than ``limit``.
        """
        return self.get_sealed(key, limit)[0]

    def get_sealed(self, key: str, limit: int | None = None) -> tuple[Any, bool]:
        """As :meth:`get_json`, and whether the document had a digest, with which its content was checked."""
        try:
            return self._get_document(key, limit)
        except _MissingObjectError:
            return None, False
        except StoreCorrupt:
            # Damaged on the way only, perhaps.
            return self._get_document(key, limit)

    def _get_document(self, key: str, limit: int | None) -> tuple[Any, bool]:
        body = self.get_bytes(key, limit)
        try:
            document, sealed = unseal(read_json(body) if limit is None else read_foreign(body))
        except (ValueError, RecursionError) as error:
            raise StoreCorrupt(f"{key}: expected JSON in {self._where}: {error}") from None
        if document is None:  # to the caller it would look like no object
            raise StoreCorrupt(f"{key}: expected a JSON document in {self._where}, found null")
        return document, sealed

    def ensure_bucket(self) -> None:
        """Create the bucket unless it is there."""
        try:
            self._call("", lambda s3: s3.head_bucket(Bucket=self.bucket))
        except (_MissingObjectError, _MissingBucketError):
            self._call("", self._create_bucket)

    def _create_bucket(self, s3: S3Client) -> None:
        options: dict[str, Any] = {}
        if self.settings.region != "us-east-1":
            options["CreateBucketConfiguration"] = {"LocationConstraint": self.settings.region}
        try:
            s3.create_bucket(Bucket=self.bucket, **options)
        except ClientError as error:
            if _code(error) not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                raise

    @property
    def _where(self) -> str:
        return f"bucket {self.bucket} at {self.settings.endpoint}"

    def _s3(self) -> S3Client:
        if self._connected is not None:
            return self._connected._s3()
        # Connections must not be shared with a forked child, so the client belongs to a process.
        if self._client is None or self._client_process != os.getpid():
            self._client, self._client_process = self._new_client(), os.getpid()
        return self._client

    def _new_client(self) -> S3Client:
        keys = self.settings
        loopback = is_direct(keys.endpoint or "")
        config = Config(
            region_name=keys.region,
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=16,
            retries={"mode": "standard", "total_max_attempts": 3},
            # A signature over the body is a sha256 of every byte, which says nothing new on loopback.
            s3={"addressing_style": "path", **({"payload_signing_enabled": False} if loopback else {})},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            proxies={} if loopback else None,  # {}: those of the environment do not apply
        )
        own = None if keys.access_key is None else _session_of_its_own()
        return boto3.session.Session(botocore_session=own).client(
            "s3",
            endpoint_url=keys.endpoint,
            config=config,
            aws_access_key_id=keys.access_key.get_secret_value() if keys.access_key else None,
            aws_secret_access_key=keys.secret_key.get_secret_value() if keys.secret_key else None,
        )

    def _call(self, key: str, operation: Callable[[S3Client], Result], size: int = 0) -> Result:
        """Run ``operation``, again while the store is unreachable, and raise this module's errors.

        size: bytes that it writes to the store.
        """
        deadline = time.monotonic() + self.outage_seconds
        attempt = 0
        while True:
            try:
                return operation(self._s3())
            except (BotoCoreError, ClientError, Boto3Error, ResponseParserError, S3ValidationError) as error:
                mapped = cause_of(_request_error(error), self.settings, size) or self._mapped(error, key)
                # Full jitter around a doubling delay, so that many slots do not return at one moment.
                delay = min(0.2 * 2**attempt, 4.0) * random.uniform(0.5, 1.5)
                if not isinstance(mapped, StoreUnavailable) or time.monotonic() + delay > deadline:
                    raise mapped from error
            time.sleep(delay)
            attempt += 1

    def _mapped(self, error: Exception, key: str) -> InfraError:
        cause = _request_error(error)
        if isinstance(cause, ClientError):
            code = _code(cause)
            status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code == "NoSuchBucket":
                return _MissingBucketError(f"s3.bucket: no {self._where}; create it, or name one that exists")
            if code in _REFUSED or status in (401, 403):
                return StoreRefused(
                    f"s3.access_key, s3.secret_key: refused ({code}) for {self._where}; "
                    "expected credentials that may read and write there"
                )
            if code in _MISSING:
                return _MissingObjectError(f"{key}: missing in {self._where}")
            if status < 500 and code not in _BUSY:
                return SettingsError(f"s3: {self._where} refused the request for {key!r}: {cause}")
        if isinstance(error, NoCredentialsError):
            return SettingsError(f"s3.access_key, s3.secret_key: no credentials for {self._where}")
        if isinstance(error, BotoCoreError) and not isinstance(error, _TRANSIENT):
            return SettingsError(f"s3: {self._where}: {error}")
        return StoreUnavailable(f"{self._where} does not answer: {error}; is s3.endpoint right, and the server up?")


def _session_of_its_own() -> botocore.session.Session:
    """A session that reads neither AWS's files nor its variables: whoever has keys of ours has no use for a profile,
    which may not exist, or ask for what the store does not have. Only AWS_CA_BUNDLE counts, for stores over TLS.
    """
    variables = {
        name: (None, None, default, conversion)
        for name, (_, _, default, conversion) in botocore.session.Session.SESSION_VARIABLES.items()
    }
    files = dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))
    return botocore.session.Session({**variables, **files, "ca_bundle": (None, "AWS_CA_BUNDLE", None, None)})


class _MissingObjectError(StoreCorrupt):
    """An object that is required is not there."""


class _MissingBucketError(SettingsError):
    """The bucket is not there."""


def _request_error(error: BaseException) -> BaseException | None:
    if isinstance(error, S3UploadFailedError | RetriesExceededError):
        # boto3's transfers wrap the error of the request; only a ClientError's code tells what happened.
        return error.__cause__ or error.__context__ or getattr(error, "last_exception", None)
    return error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
