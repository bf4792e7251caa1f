"""Find a Prefect server that runs already, and raise its errors as ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from infra.environment.certificates import PREFECT, refused_certificate
from infra.errors import PrefectUnavailable, SettingsError
from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices

_NAMED = (PREFECT_API_URL, PREFECT_API_AUTH_STRING)


@contextlib.contextmanager
def prefect_api(settings: Settings) -> Iterator[str]:
    """Point this context's Prefect clients at a server. Yield the address of its API.

    It is the server of the settings, else of the home's stack (``fedbench up``), else of Prefect's own settings
    (``PREFECT_API_URL`` or a profile).

    Raises:
        SettingsError: none of them names a server, or its certificate is refused.
        PrefectUnavailable: the server does not answer, or refuses; the message says which.
    """
    named: dict[Any, str] = {}
    services = EmbeddedServices(settings)
    # Not those of the argument: in a shell that sourced stack.env they name the home's own stack, without credentials.
    if services.settings.prefect_api_url is not None:
        named = {PREFECT_API_URL: services.settings.prefect_api_url}
    elif services.uses_stack:
        services.ensure()
        environment = services.prefect_environment()
        named = {setting: environment[setting.name] for setting in _NAMED if setting.name in environment}
    with temporary_settings(named):
        address = PREFECT_API_URL.value()
        if not address:
            raise SettingsError(
                "prefect_api_url: expected the address of a Prefect server that keeps running, found none; set "
                "FEDBENCH_PREFECT_API_URL or PREFECT_API_URL, or start one: fedbench up"
            )
        try:
            yield address
        except PrefectHTTPStatusError as error:
            raise PrefectUnavailable(f"Prefect at {address}: {_refusal(error.response)}") from error
        except (httpx.TransportError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "API" not in str(error):
                raise
            if (words := refused_certificate(error, address, PREFECT)) is not None:
                raise SettingsError(f"Prefect: {words}") from error
            raise PrefectUnavailable(f"Prefect at {address}: does not answer ({error})") from error


def _refusal(response: httpx.Response) -> str:
    if response.status_code == 401:
        return "refuses: expected the server's credentials in PREFECT_API_AUTH_STRING"
    try:
        detail = response.json().get("detail", response.text)
    except ValueError:
        detail = response.text
    return f"refuses with status {response.status_code}: {detail}"
