"""Proxy variables of the environment: requests to this machine's own servers use no proxy.

The clients of a run (Prefect's httpx and websockets, MLflow's requests, boto3, urllib) all read ``http_proxy``,
``https_proxy`` and ``no_proxy``, in either case. So one change of ``no_proxy`` holds for all of them, and for every
process that is started later.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, MutableMapping
from importlib.util import find_spec
from urllib.parse import urlsplit

# urllib and botocore do not match ``::1`` with the ``[::1]`` of a URL. An entry with brackets would keep httpx from
# starting. Our servers use the first host.
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
NO_PROXY = ("no_proxy", "NO_PROXY")  # urllib and httpx prefer the first, some tools read only the second
# botocore and urllib do not read the first.
PROXIES = ("all_proxy", "http_proxy", "https_proxy")


def bypass_proxies(environment: MutableMapping[str, str], hosts: Iterable[str] = ()) -> None:
    """Set ``environment`` so that requests to loopback and ``hosts`` (names or addresses) use no proxy.

    The user's own exceptions stay. Call this before a client is made.
    """
    if not urllib.request.getproxies_environment():
        # Copy the proxies of macOS's own settings: once a variable is set, those do not count any more.
        environment.update({f"{scheme}_proxy": url for scheme, url in urllib.request.getproxies().items()})
    text = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    exceptions = [entry for entry in (part.strip() for part in text.split(",")) if entry]
    if exceptions != ["*"]:  # every host; urllib accepts it only alone
        exceptions += [host for host in dict.fromkeys((*LOOPBACK_HOSTS, *hosts)) if host not in exceptions]
    environment.update(dict.fromkeys(NO_PROXY, ",".join(exceptions)))


def drop_unusable_proxies(environment: MutableMapping[str, str], names: Iterable[str] = PROXIES) -> None:
    """Remove proxies with which Prefect's client cannot be made, whatever ``no_proxy`` contains.

    Call this only if no client that reads the variables ``names`` (in either case) needs such a proxy. HTTP proxies
    stay, for downloads.
    """
    for spelling in [spelling for name in names for spelling in (name, name.upper())]:
        url = environment.get(spelling)
        if url and not _usable(url):
            del environment[spelling]


def _usable(url: str) -> bool:
    """Whether httpx can use the proxy at ``url``."""
    try:
        scheme = urlsplit(url if "://" in url else f"http://{url}").scheme
    except ValueError:
        return False
    return scheme in ("http", "https") or (scheme in ("socks5", "socks5h") and find_spec("socksio") is not None)


def is_direct(url: str, hosts: Iterable[str] = ()) -> bool:
    """Whether the server at ``url`` is on loopback or at one of ``hosts``."""
    try:
        return urlsplit(url).hostname in (*LOOPBACK_HOSTS, *hosts)
    except ValueError:  # no valid URL: the client that uses it reports that
        return False
