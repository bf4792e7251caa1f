"""Prefect's server as fedbench starts it: ``python -m infra.servers.prefect_closed server start …``.

The gate (:mod:`infra.servers.prefect_gate`) stands in front of it, and on SQLite its transactions are not refused
(:mod:`infra.servers.prefect_server_private`). Without an auth string and its origins in the environment it does not
start, so that every server of ours asks for credentials.
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
