"""Transfer the content of objects over an S3 client: bytes and files, in parts if they are large, up to a limit."""

from __future__ import annotations

import base64
import hashlib
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import IncompleteReadError

from infra.errors import StoreCorrupt
from infra.store.s3_errors import OtherSizeError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef, PutObjectOutputTypeDef

PART_BYTES = 16 * 1024 * 1024  # size of a part
WHOLE_BYTES = 64 * 1024 * 1024  # larger files are sent in parts; smaller ones are faster whole
_TRANSFER = TransferConfig(
    multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4, num_download_attempts=3
)
# Copies in one request up to S3's limit for that (5 GB), because not every store copies in parts.
_COPY = TransferConfig(multipart_threshold=5_000_000_000)


@dataclass(frozen=True)
class ObjectAddress:
    """An object's bucket and key. ``where``: bucket and endpoint, for messages."""

    bucket: str
    key: str
    where: str

    def check_size(self, found: int, limit: int) -> None:
        """
        Raises:
            StoreCorrupt: ``found`` bytes are more than ``limit``.
        """
        if found > limit:
            raise StoreCorrupt(f"{self.key}: expected at most {limit} bytes in {self.where}, found {found} or more")


def put_body(s3: S3Client, at: ObjectAddress, body: bytes, **condition: Any) -> PutObjectOutputTypeDef:
    """Write an object, with the MD5 of its body. condition: ``IfMatch`` or ``IfNoneMatch``."""
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    return s3.put_object(Bucket=at.bucket, Key=at.key, Body=body, ContentMD5=digest, **condition)


def get_body(s3: S3Client, at: ObjectAddress, limit: int | None) -> bytes:
    """Return an object's content.

    limit: the most bytes that it may have. A larger one is refused before its content is read.

    Raises:
        StoreCorrupt: it is larger than ``limit``.
    """
    answer = s3.get_object(Bucket=at.bucket, Key=at.key)
    # `with answer["Body"]` would give urllib3's stream, which does not raise botocore's errors.
    with closing(answer["Body"]) as body:
        if limit is None:
            return body.read()
        size = answer["ContentLength"]
        at.check_size(size, limit)
        content = body.read(limit + 1)  # the server may send more than the length that it named
    at.check_size(len(content), limit)
    if len(content) < size:  # boto3 checks that only if it reads without a limit
        raise IncompleteReadError(actual_bytes=len(content), expected_bytes=size)
    return content


def send_file(s3: S3Client, at: ObjectAddress, path: Path, size: int) -> None:
    """Write a file of ``size`` bytes as an object."""
    if size <= WHOLE_BYTES:
        put_body(s3, at, path.read_bytes())
        return
    s3.upload_file(str(path), at.bucket, at.key, Config=_TRANSFER)
    found = s3.head_object(Bucket=at.bucket, Key=at.key)["ContentLength"]
    if found != size:
        raise OtherSizeError(expected=size, found=found)


def receive_file(s3: S3Client, at: ObjectAddress, path: Path, limit: int | None) -> None:
    """Write an object's content to ``path``, with the limit and errors of :func:`get_body`."""
    if limit is None:
        s3.download_file(at.bucket, at.key, str(path), Config=_TRANSFER)
        return
    if limit < PART_BYTES:
        path.write_bytes(get_body(s3, at, limit))
        return
    at.check_size(s3.head_object(Bucket=at.bucket, Key=at.key)["ContentLength"], limit)
    written, counting = 0, threading.Lock()

    def count(more: int) -> None:
        # A larger object may have replaced it since its size was read.
        nonlocal written
        with counting:
            written += more
            at.check_size(written, limit)

    s3.download_file(at.bucket, at.key, str(path), Config=_TRANSFER, Callback=count)


def copy_object(s3: S3Client, at: ObjectAddress, target: str) -> None:
    """Copy an object to the key ``target`` of the same bucket."""
    source: CopySourceTypeDef = {"Bucket": at.bucket, "Key": at.key}
    s3.copy(source, at.bucket, target, Config=_COPY)
