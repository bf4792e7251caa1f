"""Check the variables that name the certificates which clients trust."""

from __future__ import annotations

import ssl
from collections.abc import MutableMapping
from pathlib import Path

from infra.errors import SettingsError
from tasks.documents.regular_file import require_regular

# Prefect's client reads the first, MLflow's the next two, and the store's the last.
FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")


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
        fault = _fault(Path(path), folders=name != "SSL_CERT_FILE") if path else None
        if fault is None:
            continue
        if over_tls:
            raise SettingsError(f"{name}: expected a file of certificates (PEM), found {fault}: {path}")
        del environment[name]


def _fault(path: Path, *, folders: bool) -> str | None:
    """Return why ``path`` has no usable certificates; None: it has.

    folders: whether the client also accepts a folder of hashed names. Prefect's does not.
    """
    if path.is_dir():
        return None if folders else "a folder"
    try:
        require_regular(path)
        ssl.create_default_context(cafile=path)
    except FileNotFoundError:
        return "no such file"
    except ssl.SSLError:
        return "a file without certificates"
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    return None
