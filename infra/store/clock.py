"""This machine's clock against a server's: how far they differ, and the words for it.

S3 refuses requests that are signed with a time more than 15 minutes from its own, often as a plain 403, and a TLS
certificate is refused before and after its time. Every HTTP answer says in its ``Date`` header what time its server
has, so the difference can be measured. It is measured only to explain a refusal; nothing else depends on it.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

TOLERATED_SECONDS = 300.0  # a smaller difference explains nothing: S3 takes 900 s
TIMEOUT_SECONDS = 5.0


def difference(date: str | None, now: float | None = None) -> float | None:
    """Seconds that this clock is ahead of the server's that wrote ``date`` (an HTTP date); None: it is none.

    now: this machine's time, in seconds since the epoch; None: that of this moment.
    """
    if date is None:
        return None
    try:
        told = parsedate_to_datetime(date)
    except (TypeError, ValueError):
        return None
    if told.tzinfo is None:  # as "-0000" is read
        told = told.replace(tzinfo=UTC)
    return (time.time() if now is None else now) - told.timestamp()


def server_date(url: str) -> str | None:
    """The ``Date`` header of the server at ``url``, whatever it answers; None: it has none, or does not answer.

    Certificates are not verified, for they are what a wrong clock makes unusable: the answer may explain an error and
    nothing more. No credentials are sent.
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
    """``this machine's clock is 2 h 0 min behind``; None: the difference explains nothing."""
    if seconds is None or abs(seconds) <= TOLERATED_SECONDS:
        return None
    minutes = round(abs(seconds) / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    length = f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
    return f"this machine's clock is {length} {'ahead of' if seconds > 0 else 'behind'}"


def clock_behind(error: BaseException, url: str | None) -> str | None:
    """Words for a clock that is behind ``error`` of TLS with the server at ``url``; None: it is not, or not known."""
    if url is None or not is_too_early_or_late(error):
        return None
    words = clock_words(difference(server_date(url)))
    return None if words is None else f"{words} that of {url}: set the clock of the machine that is wrong"


def is_too_early_or_late(error: BaseException) -> bool:
    """Whether TLS refused a certificate for its time; the texts are OpenSSL's."""
    return "certificate is not yet valid" in str(error) or "certificate has expired" in str(error)
