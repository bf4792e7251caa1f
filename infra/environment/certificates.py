"""Certificates of the servers: what the clients trust, and what to do when one of them refuses a certificate.

Prefect's client, MLflow's and the store's each have a variable of their own for the file of authorities that they
trust. The setting ``ca_file`` sets all three.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import ssl
import urllib.request
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

from infra.errors import SettingsError
from tasks.documents.regular_file import require_regular

PREFECT, MLFLOW, STORE = "PREFECT_API_SSL_CERT_FILE", "MLFLOW_TRACKING_SERVER_CERT_PATH", "AWS_CA_BUNDLE"
# The last three are read by several clients: Prefect's reads the first of them, MLflow's and the store's the second.
FILES = (PREFECT, MLFLOW, STORE, "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# Prefect's client accepts no folder of hashed names; those of MLflow and the store do.
_NO_FOLDER = (PREFECT, "SSL_CERT_FILE")
_REFUSED = re.compile(r"certificate verify failed: (.+?)(?: \(_ssl\.c|$)")
_UNKNOWN_AUTHORITY = ("issuer", "self-signed", "self signed")
TIMEOUT_SECONDS = 5.0


def trust(environment: MutableMapping[str, str], ca_file: Path | None) -> None:
    """Hand ``ca_file`` to the clients of Prefect, MLflow and the store. It wins over their variables.

    Raises:
        SettingsError: it has no usable certificates.
    """
    if ca_file is None:
        return
    path = ca_file.expanduser().absolute()
    fault = _fault(path, folders=False)
    if fault is not None:
        raise SettingsError(f"ca_file: expected a file of certificates (PEM), found {fault}: {path}")
    environment.update(dict.fromkeys((PREFECT, MLFLOW, STORE), str(path)))


def use_certificates(environment: MutableMapping[str, str], *, over_tls: bool) -> None:
    """Check that each variable names usable certificates. If no server uses TLS, remove those that do not.

    Otherwise Prefect could not be imported, even if all servers are on loopback, where nothing is encrypted.

    over_tls: whether any server is reached over TLS.

    Raises:
        SettingsError: a server is reached over TLS, and a variable names no usable certificates. The message names the
            variable, the path and the fault.
    """
    for name in FILES:
        path = environment.get(name)
        fault = _fault(Path(path), folders=name not in _NO_FOLDER) if path else None
        if fault is None:
            continue
        if over_tls:
            raise SettingsError(f"{name}: expected a file of certificates (PEM), found {fault}: {path}")
        del environment[name]


def refused_certificate(error: BaseException | None, url: str, variable: str) -> str | None:
    """Return text about the certificate of ``url`` if a client's ``error`` is that it refused it; None: it is not.

    variable: the client's own variable for the authorities that it trusts.
    """
    for cause in _chain(error):
        if (found := _REFUSED.search(str(cause))) is not None:
            reason = found[1].strip().rstrip(".")
            where = f"the certificate of {_without_path(url)} is refused: {reason}"
            if not any(word in reason for word in _UNKNOWN_AUTHORITY):
                return f"{where}; expected a valid certificate that names the host of this URL"
            trusted = os.environ.get(variable) or "none, so the public authorities"
            return (
                f"{where}; ca_file (FEDBENCH_CA_FILE, or {variable} for this server alone): expected the file of the "
                f"authority that signed it (PEM), found {trusted}"
            )
    return None


def require_trusted(url: str | None, variable: str, environment: Mapping[str, str]) -> None:
    """Connect to the server at ``url``, if it is one over TLS, and check its certificate as its client will.

    A server that does not answer, or is reached through a proxy, is left to its client.

    variable: the client's own variable for the authorities that it trusts.

    Raises:
        SettingsError: the certificate is refused. The message names the server, the reason and the setting.
    """
    parts = urlsplit(url or "")
    if parts.scheme != "https" or parts.hostname is None:
        return
    if "https" in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname):
        return
    import certifi  # the public authorities that all three clients trust by default

    path = environment.get(variable) or certifi.where()
    folder = os.path.isdir(path)
    context = ssl.create_default_context(cafile=None if folder else path, capath=path if folder else None)
    with contextlib.suppress(OSError):
        try:
            with (
                socket.create_connection((parts.hostname, parts.port or 443), TIMEOUT_SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=parts.hostname),
            ):
                return
        except ssl.SSLCertVerificationError as error:
            words = refused_certificate(error, url or "", variable)
            if words is not None:
                raise SettingsError(words) from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _without_path(url: str) -> str:
    """Return scheme, host and port of ``url``, without the credentials that it may have."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _fault(path: Path, *, folders: bool) -> str | None:
    """Return why ``path`` has no usable certificates; None: it has.

    folders: whether the client also accepts a folder of hashed names.
    """
    if path.is_dir():
        return None if folders else "a folder"
    try:
        require_regular(path)
        return None if _has_certificates(path, path.stat().st_ctime_ns) else "a file without certificates"
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"


@functools.cache
def _has_certificates(path: Path, changed: int) -> bool:
    """Return whether the file has certificates. Several variables often name one file, which is read once.

    changed: the time of the file's last change, so that it is read again after one.
    """
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        return False
    return True
