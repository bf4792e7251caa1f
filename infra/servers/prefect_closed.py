"""Prefect's server as fedbench starts it: ``python -m infra.servers.prefect_closed server start …``.

It has the gate (:mod:`infra.servers.prefect_gate`) on every database, and on SQLite transactions that are not refused
(:mod:`infra.servers.prefect_server_private`). It does not start without an auth string and origins of its own in the
environment: there is no server of ours that asks for no credentials.
"""

from __future__ import annotations

import os

from infra.servers.prefect_server_private import close_server, write_from_the_start

if __name__ == "__main__":
    auth = os.environ["PREFECT_SERVER_API_AUTH_STRING"]
    origins = frozenset(os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(","))

    from prefect.cli import app

    write_from_the_start()
    close_server(auth, origins)
    app()
