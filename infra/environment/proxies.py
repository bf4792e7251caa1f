"""Proxies of the environment: this machine's own servers are asked without one.

The clients of a run (Prefect's httpx and websockets, MLflow's requests, boto3, urllib) all read ``http_proxy``,
``https_proxy`` and ``no_proxy``, in either case. So one change of ``no_proxy`` holds for all of them, and for every
process that is started later.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, MutableMapping
from importlib.util import find_spec
from urllib.parse import urlsplit

# urllib and botocore do not know the last one in a URL's brackets, with which httpx would not start at all; our servers
# have the first.
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
NO_PROXY = ("no_proxy", "NO_PROXY")  # urllib and httpx prefer the first, some tools read the second alone
# botocore and urllib do not read the first.
PROXIES = ("all_proxy", "http_proxy", "https_proxy")


def bypass_proxies(environment: MutableMapping[str, str], hosts: Iterable[str] = ()) -> None:
    """Have loopback and ``hosts`` (names or addresses) asked without a proxy by all that has ``environment``.

    The user's own exceptions stay. To be called before a client is made.
    """
    if not urllib.request.getproxies_environment():
        # Of macOS, whose own proxies do not count any more once a variable is set.
        environment.update({f"{scheme}_proxy": url for scheme, url in urllib.request.getproxies().items()})
    text = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    exceptions = [entry for entry in (part.strip() for part in text.split(",")) if entry]
    if exceptions != ["*"]:  # everything; urllib knows it only by itself
        exceptions += [host for host in dict.fromkeys((*LOOPBACK_HOSTS, *hosts)) if host not in exceptions]
    environment.update(dict.fromkeys(NO_PROXY, ",".join(exceptions)))


def drop_unusable_proxies(environment: MutableMapping[str, str], names: Iterable[str] = PROXIES) -> None:
    """Remove proxies that Prefect's client cannot use: it refuses to be made with one, whatever ``no_proxy`` says.

    To be called where nothing that reads the variables ``names`` (in either case) is to go through such a proxy. Those
    for HTTP stay, for downloads.
    """
    for spelling in [spelling for name in names for spelling in (name, name.upper())]:
        url = environment.get(spelling)
        if url and not _usable(url):
            del environment[spelling]


def _usable(url: str) -> bool:
    """Whether httpx takes it."""
    try:
        scheme = urlsplit(url if "://" in url else f"http://{url}").scheme
    except ValueError:
        return False
    return scheme in ("http", "https") or (scheme in ("socks5", "socks5h") and find_spec("socksio") is not None)


def is_direct(url: str, hosts: Iterable[str] = ()) -> bool:
    """Whether the server at ``url`` is on loopback or at one of ``hosts``."""
    try:
        return urlsplit(url).hostname in (*LOOPBACK_HOSTS, *hosts)
    except ValueError:  # no URL: its client says so
        return False
