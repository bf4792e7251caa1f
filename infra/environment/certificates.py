"""The variables by which clients find the certificates that they trust: files that are not there are of no use."""

from __future__ import annotations

import ssl
from collections.abc import MutableMapping
from pathlib import Path

from infra.errors import SettingsError

# Of Prefect's client, of MLflow's, and of the store's.
FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")


def use_certificates(environment: MutableMapping[str, str], *, over_tls: bool) -> None:
    """Hold that each variable names certificates; without a server over TLS, remove one that does not.

    With such a variable Prefect cannot even be imported, though nothing is encrypted on loopback.

    over_tls: whether a server is asked over TLS.

    Raises:
        SettingsError: a server is asked over TLS, and a variable names what cannot be used; says which, and why.
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
    """folders: whether the client takes one of hashed names too; Prefect's does not."""
    if path.is_dir():
        return None if folders else "a folder"
    try:
        ssl.create_default_context(cafile=path)
    except FileNotFoundError:
        return "none there"
    except ssl.SSLError:
        return "a file without any"
    except OSError as error:
        return f"one that cannot be read ({error.strerror})"
    return None
