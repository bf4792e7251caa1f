"""Find causes that a store's error does not name: a full disk under our own server, or a wrong clock."""

from __future__ import annotations

from botocore.exceptions import ClientError, SSLError

from infra.errors import ClockWrong, DiskFull, InfraError
from infra.files.disk import without_room
from infra.settings_groups import S3Settings
from infra.store.clock import clock_words, difference, is_too_early_or_late, server_date

_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
SET_IT = "set the clock of the machine that is wrong, best by NTP, and run the same command again"


def cause_of(error: BaseException | None, store: S3Settings, size: int) -> InfraError | None:
    """Return the error to raise in place of ``error``, from a request to ``store``; None if ``error`` names its cause.

    size: bytes that the request should have written. When its disk is full, our own server answers only 500.
    """
    where = f"bucket {store.bucket} at {store.endpoint}"
    if isinstance(error, ClientError):
        metadata = error.response.get("ResponseMetadata", {})
        status, code = metadata.get("HTTPStatusCode", 0), error.response.get("Error", {}).get("Code", "")
        if status >= 500 and (folder := store.own_folder()) is not None:
            found = without_room([(folder, folder.parent)], size)
            return None if found is None else DiskFull(str(found))
        if status in (400, 403) or code in _SKEWED:
            # The answer to a HEAD has no code, and neither have the answers of some stores.
            words = clock_words(difference(metadata.get("HTTPHeaders", {}).get("date")))
            if words is not None:
                return ClockWrong(f"{words} that of {where}, which refused the request ({code}): {SET_IT}")
            if code in _SKEWED:
                return ClockWrong(f"{where} refused the request because of its time ({code}): {SET_IT}")
    if isinstance(error, SSLError) and is_too_early_or_late(error):
        words = clock_words(difference(server_date(store.endpoint or "")))
        if words is not None:
            return ClockWrong(f"{words} that of {where}, whose certificate is not valid at that time: {SET_IT}")
        return ClockWrong(f"{where}: {error}")
    return None
