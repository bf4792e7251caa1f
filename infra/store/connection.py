"""The connection to an S3-compatible store: its boto3 client, its credentials, and the repetition of requests.

Every request can be repeated without harm. While the store is unreachable, a request is repeated with backoff and
jitter for ``outage_seconds``, which is longer than an embedded server takes to start again.
"""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import botocore.loaders
import botocore.session
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import S3ValidationError

from infra.environment.proxies import is_direct
from infra.errors import SettingsError, StoreUnavailable
from infra.settings_groups import S3Settings
from infra.store.causes import cause_of
from infra.store.s3_errors import as_infra_error, request_error

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Result = TypeVar("Result")


class StoreConnection:
    """A connection to one bucket. It can be pickled, and makes its client in each process at the first request.

    store: resolved settings, with an endpoint. Without keys, the AWS default chain gives the credentials.
    outage_seconds: how long requests to an unreachable store are repeated before :class:`StoreUnavailable` is raised.
    """

    def __init__(self, store: S3Settings, outage_seconds: float = 30.0) -> None:
        if store.endpoint is None:
            raise SettingsError("s3.endpoint: expected the URL of an S3 API, found none")
        self.settings = store
        self.outage_seconds = outage_seconds
        self._client: S3Client | None = None
        self._client_process = 0
        self._connected: StoreConnection | None = None  # its client is used: making one takes a while

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_client_process": 0}

    @property
    def bucket(self) -> str:
        return self.settings.bucket

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
            # A signature over the body needs a sha256 of every byte, which adds nothing on loopback.
            s3={"addressing_style": "path", **({"payload_signing_enabled": False} if loopback else {})},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            proxies={} if loopback else None,  # {}: ignore the proxies of the environment
        )
        own = None if keys.access_key is None else _session_without_profiles()
        return boto3.session.Session(botocore_session=own).client(
            "s3",
            endpoint_url=keys.endpoint,
            config=config,
            aws_access_key_id=keys.access_key.get_secret_value() if keys.access_key else None,
            aws_secret_access_key=keys.secret_key.get_secret_value() if keys.secret_key else None,
        )

    def _call(self, key: str, operation: Callable[[S3Client], Result], size: int = 0) -> Result:
        """Run ``operation``, and repeat it while the store is unreachable.

        key: names the object in messages. size: bytes that the operation writes to the store.

        Raises:
            InfraError: the class depends on the cause (:mod:`infra.store.causes`, :mod:`infra.store.s3_errors`).
        """
        deadline = time.monotonic() + self.outage_seconds
        attempt = 0
        while True:
            try:
                return operation(self._s3())
            except (BotoCoreError, ClientError, Boto3Error, ResponseParserError, S3ValidationError) as error:
                mapped = cause_of(request_error(error), self.settings, size) or as_infra_error(
                    error, key, self._where, self.settings.endpoint or ""
                )
                # Full jitter around a doubling delay, so that many slots do not return at one moment.
                delay = min(0.2 * 2**attempt, 4.0) * random.uniform(0.5, 1.5)
                if not isinstance(mapped, StoreUnavailable) or time.monotonic() + delay > deadline:
                    raise mapped from error
            time.sleep(delay)
            attempt += 1


def _session_without_profiles() -> botocore.session.Session:
    """Return a session that reads neither AWS's files nor its variables.

    Settings with keys need no profile, which might not exist, or might set options that the store does not support.
    Only AWS_CA_BUNDLE is read, for stores over TLS.
    """
    variables = {
        name: (None, None, default, conversion)
        for name, (_, _, default, conversion) in botocore.session.Session.SESSION_VARIABLES.items()
    }
    files = dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))
    session = botocore.session.Session({**variables, **files, "ca_bundle": (None, "AWS_CA_BUNDLE", None, None)})
    session.register_component("data_loader", _descriptions())
    return session


@functools.cache
def _descriptions() -> botocore.loaders.Loader:
    """Return the reader of botocore's descriptions of S3 and its endpoints, which keeps what it has read.

    With a reader of its own, each client would parse a megabyte of JSON again, a tenth of a second of a core.
    """
    return botocore.loaders.create_loader()
