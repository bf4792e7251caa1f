"""Map errors of S3 requests to fedbench's errors, one class for each cause."""

from __future__ import annotations

from boto3.exceptions import RetriesExceededError, S3UploadFailedError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    SSLError,
)

from infra.environment.certificates import STORE, refused_certificate
from infra.errors import InfraError, SettingsError, StoreCorrupt, StoreRefused, StoreUnavailable

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
# "BadDigest": the bytes that arrived are not those that were sent.
_BUSY = frozenset({"SlowDown", "RequestTimeout", "Throttling", "BadDigest"})
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


class OtherSizeError(BotoCoreError):
    """The size of a file in the store is not that of the file that was sent."""

    fmt = "expected {expected} bytes of the file that was sent, found {found}"


_TRANSIENT = (HTTPClientError, ConnectionError, IncompleteReadError, OtherSizeError)


class MissingObjectError(StoreCorrupt):
    """A required object is missing."""


class MissingBucketError(SettingsError):
    """The bucket does not exist."""


def code_of(error: ClientError) -> str:
    """Return S3's code for the error; empty when the answer has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def request_error(error: BaseException) -> BaseException | None:
    """Return the request's own error, which boto3's transfers wrap: only a ClientError's code names the cause."""
    if isinstance(error, S3UploadFailedError | RetriesExceededError):
        return error.__cause__ or error.__context__ or getattr(error, "last_exception", None)
    return error


def as_infra_error(error: Exception, key: str, where: str, endpoint: str = "") -> InfraError:
    """Return fedbench's error for that of a request for ``key``.

    where: bucket and endpoint, for messages. endpoint: its URL.
    """
    cause = request_error(error)
    if isinstance(cause, ClientError):
        code = code_of(cause)
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return MissingBucketError(f"s3.bucket: no {where}; create it, or name one that exists")
        if code in _REFUSED or status in (401, 403):
            return StoreRefused(
                f"s3.access_key, s3.secret_key: refused ({code}) for {where}; "
                "expected credentials that may read and write there"
            )
        if code in MISSING:
            return MissingObjectError(f"{key}: missing in {where}")
        if status < 500 and code not in _BUSY:
            return SettingsError(f"s3: {where} refused the request for {key!r}: {cause}")
    if isinstance(cause, SSLError) and (words := refused_certificate(cause, endpoint, STORE)) is not None:
        return SettingsError(f"s3: {words}")
    if isinstance(error, NoCredentialsError):
        return SettingsError(f"s3.access_key, s3.secret_key: no credentials for {where}")
    if isinstance(error, BotoCoreError) and not isinstance(error, _TRANSIENT):
        return SettingsError(f"s3: {where}: {error}")
    return StoreUnavailable(f"{where} does not answer: {error}; is s3.endpoint right, and the server up?")
