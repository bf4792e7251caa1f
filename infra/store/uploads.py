"""Find and end incomplete uploads in parts, over an S3 client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from infra.store.s3_errors import code_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Answers to a listing of uploads in parts: from stores that do not support them, and from rclone before a bucket's
# first one.
_NO_UPLOADS = frozenset({"NotImplemented", "MethodNotAllowed", "NoSuchUpload"})


@dataclass(frozen=True)
class IncompleteUpload:
    """An upload in parts that was begun, and neither completed nor aborted. ``bytes``: size of its parts so far."""

    key: str
    upload_id: str
    bytes: int
    started: datetime


def list_uploads(s3: S3Client, bucket: str, prefix: str) -> Sequence[IncompleteUpload]:
    """Return the incomplete uploads of keys that start with ``prefix``; none if the store has no uploads in parts."""
    try:
        found = [
            (item["Key"], item["UploadId"], item["Initiated"])
            for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
            for item in page.get("Uploads", [])
        ]
    except ClientError as error:
        if code_of(error) in _NO_UPLOADS:
            return []
        raise
    return [IncompleteUpload(key, name, _bytes_of(s3, bucket, key, name), started) for key, name, started in found]


def end_upload(s3: S3Client, bucket: str, key: str, upload_id: str) -> None:
    """End an upload and remove its parts. An upload that has already ended is no error."""
    try:
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    except ClientError as error:
        if code_of(error) != "NoSuchUpload":
            raise


def _bytes_of(s3: S3Client, bucket: str, key: str, upload_id: str) -> int:
    """Return the size of an upload's parts in bytes; 0 if it has ended since it was listed."""
    try:
        pages = s3.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload_id)
        return sum(part["Size"] for page in pages for part in page.get("Parts", []))
    except ClientError as error:
        if code_of(error) == "NoSuchUpload":
            return 0
        raise
