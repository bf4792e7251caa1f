"""``fedbench silo-policy``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flows.cli.shared import Home, machine_settings, plain_errors
from infra.errors import SettingsError


def silo_policy(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="The silo's work pool.")],
    clients: Annotated[
        list[str] | None,
        typer.Option("--client", metavar="ID", help="A device of the silo; repeatable. [those of pools.silos]"),
    ] = None,
    federation: Annotated[str | None, typer.Option(help="The only federation that it may take part in. [all]")] = None,
    home: Home = None,
) -> None:
    """Print the IAM policy of a silo's credentials: the keys that its worker reads and writes, and no others.

    Bucket, prefix and the pool's devices are those of the settings (s3, pools.silos).

    `fedbench silo-policy silo-b > policy.json` · `fedbench silo-policy silo-b --client 3 --client 4`
    """
    from infra.turns.silo_policy import silo_policy as policy_of
    from tasks.spec.base import check_name

    with plain_errors():
        settings = machine_settings(home)
        check_name(pool, source="POOL")
        own = clients or [client for client, of in settings.pools.silos.items() if of == pool]
        if not own:
            raise SettingsError(
                f"pools.silos: expected devices whose pool is {pool}, or --client, found none "
                f"(pools: {', '.join(dict.fromkeys(settings.pools.silos.values())) or 'none'})"
            )
        for client in own:
            check_name(client, source="--client" if clients else "pools.silos")
        if federation is not None:
            check_name(federation, source="--federation")
        names = {} if federation is None else {"federation": federation}
        document = policy_of(settings.s3.bucket, settings.s3.prefix, pool, own, **names)
    typer.echo(json.dumps(document, indent=2))
