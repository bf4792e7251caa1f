"""Compare this machine's clock with a server's, and describe the difference.

S3 refuses requests that are signed with a time more than 15 minutes from its own, often as a plain 403, and a TLS
certificate is refused before and after its period. Every HTTP answer has its server's time in the ``Date`` header, so
the difference can be measured. It is measured only to explain a refusal; nothing else depends on it.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

TOLERATED_SECONDS = 300.0  # a smaller difference explains nothing: S3 accepts 900 s
TIMEOUT_SECONDS = 5.0


def difference(date: str | None, now: float | None = None) -> float | None:
    """Return the seconds that this clock is ahead of ``date``, an HTTP date of a server; None if it is not a date.

    now: this machine's time, in seconds since the epoch; None: the present time.
    """
    if date is None:
        return None
    try:
        server_time = parsedate_to_datetime(date)
    except (TypeError, ValueError):
        return None
    if server_time.tzinfo is None:  # the zone was "-0000"
        server_time = server_time.replace(tzinfo=UTC)
    return (time.time() if now is None else now) - server_time.timestamp()


def server_date(url: str) -> str | None:
    """Return the ``Date`` header of the server at ``url``; None if it does not answer, or its answer has none.

    Certificates are not verified, because a wrong clock makes them invalid. So use the answer only to explain an error.
    No credentials are sent.
    """
    parts = urlsplit(url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request("HEAD", "/")
            return connection.getresponse().getheader("Date")
        except (OSError, http.client.HTTPException):
            return None


def clock_words(seconds: float | None) -> str | None:
    """Return text as ``this machine's clock is 2 h 0 min behind``; None if the difference explains nothing."""
    if seconds is None or abs(seconds) <= TOLERATED_SECONDS:
        return None
    minutes = round(abs(seconds) / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    length = f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
    return f"this machine's clock is {length} {'ahead of' if seconds > 0 else 'behind'}"


def clock_behind(error: BaseException, url: str | None) -> str | None:
    """Return text about a wrong clock if it explains the TLS ``error`` of the server at ``url``, else None."""
    if url is None or not is_too_early_or_late(error):
        return None
    words = clock_words(difference(server_date(url)))
    return None if words is None else f"{words} that of {url}: set the clock of the machine that is wrong"


def is_too_early_or_late(error: BaseException) -> bool:
    """Return whether TLS refused a certificate because of its period. The texts are OpenSSL's."""
    return "certificate is not yet valid" in str(error) or "certificate has expired" in str(error)
