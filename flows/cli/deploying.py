"""``fedbench deploy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import Home, machine_settings, out, plain_errors

_WORDS = {
    False: {"made": "made", "changed": "brought up to date", "there": "there already"},
    True: {"made": "would be made", "changed": "would be brought up to date", "there": "there already"},
}


def deploy(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="YAML files of federations and suites, deployed beside the built-in ones."),
    ] = None,
    schedules: Annotated[
        list[str] | None,
        typer.Option(
            "--schedule", metavar="NAME=CRON", help="When to run a deployment; NAME=off: no longer. Repeatable."
        ),
    ] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of --schedule.")] = "UTC",
    silo_pools: Annotated[
        list[str] | None,
        typer.Option(
            "--silo-pool", metavar="NAME", help="Work pool of a silo, for the worker beside its data. Repeatable."
        ),
    ] = None,
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCK", help="Notification block that reports failed suites, such as slack-webhook/team."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be made.")] = False,
    home: Home = None,
) -> None:
    """Make work pools and deployments on a Prefect server, or bring them up to date.

    The server is that of FEDBENCH_PREFECT_API_URL, of `fedbench up`, or of PREFECT_API_URL. Your changes there stay:
    templates of pools, job variables, schedules.

    A suite whose result is worse than the accepted one fails. --notify sends its message through the named block.
    Make the block on Prefect's page (Blocks) or by `prefect block create`. A later --notify can name another block.

    A file becomes the deployment federation/NAME-OF-THE-FILE or suite/NAME-OF-THE-SUITE, which keeps a copy of the
    file's content. After you change the file, deploy it again.

    `fedbench deploy` · `fedbench deploy suite.yaml --schedule "suite/yards=0 1 * * 6"` ·
    `fedbench deploy --schedule "street5-laptop=0 3 * * *" --timezone Europe/Berlin`
    """
    with plain_errors():
        _deploy(files or [], schedules or [], timezone, silo_pools or [], notify, dry_run, home)


def _deploy(
    files: list[Path],
    schedules: list[str],
    timezone: str,
    silo_pools: list[str],
    notify: str | None,
    dry_run: bool,
    home: Home,
) -> None:
    from flows.deployments.table import PoolNames, deployments, with_files, with_schedules
    from tasks.spec.base import check_name

    settings = machine_settings(home, deploys=True)
    for name in silo_pools:
        check_name(name, source="--silo-pool")
    names = PoolNames.of(settings.pools, silo_pools)
    table = with_files(deployments(names), files, names.coordinators)
    asked = with_schedules(table, schedules, timezone)

    from flows.deployments.apply import deploy_to

    address, done = deploy_to(settings, names, table, asked, notify=notify, dry_run=dry_run)
    out.print(f"Prefect at {address}", soft_wrap=True, highlight=False)
    width = max(len(item.name) for item in done)
    for item in done:
        line = f"{item.kind:10} {item.name:{width}}  {_WORDS[dry_run][item.done]}  {item.url or ''}".rstrip()
        out.print(line, soft_wrap=True, highlight=False)
        if item.note:
            out.print(f"{'':10} {item.note}", soft_wrap=True, highlight=False)
