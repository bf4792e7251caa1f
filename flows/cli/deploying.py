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
            "--schedule",
            metavar="NAME=CRON",
            help="When to run a deployment, as federation/NAME=CRON; NAME=off: no longer. Repeatable.",
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
    reset: Annotated[
        bool,
        typer.Option("--reset", help="Replace what was changed on Prefect's page: fields, job variables, schedules."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be made.")] = False,
    home: Home = None,
) -> None:
    """Make work pools and deployments on a Prefect server, or bring them up to date.

    The server is that of FEDBENCH_PREFECT_API_URL, of `fedbench up`, or of PREFECT_API_URL. What was changed on
    Prefect's page stays, and is listed: parameters, job variables, schedules, tags and the like. --reset replaces it.
    Templates of pools stay in any case.

    A suite whose result is worse than the accepted one fails. --notify sends its message through the named block.
    Make the block on Prefect's page (Blocks) or by `prefect block create`. A later --notify can name another block.

    --schedule also takes deployments that are on the server and whose file is not given.

    A file becomes the deployment federation/NAME-OF-THE-FILE or suite/NAME-OF-THE-SUITE, which keeps a copy of the
    file's content. After you change the file, deploy it again.

    `fedbench deploy` · `fedbench deploy suite.yaml --schedule "suite/yards=0 1 * * 6"` ·
    `fedbench deploy --schedule "federation/street5-laptop=0 3 * * *" --timezone Europe/Berlin`
    """
    with plain_errors():
        _deploy(files or [], schedules or [], timezone, silo_pools or [], notify, reset, dry_run, home)


def _deploy(
    files: list[Path],
    schedules: list[str],
    timezone: str,
    silo_pools: list[str],
    notify: str | None,
    reset: bool,
    dry_run: bool,
    home: Home,
) -> None:
    from flows.deployments.schedules import read_schedules
    from flows.deployments.table import PoolNames, deployments, with_files
    from tasks.spec.base import check_name

    settings = machine_settings(home, deploys=True)
    for name in silo_pools:
        check_name(name, source="--silo-pool")
    names = PoolNames.of(settings.pools, silo_pools)
    table = with_files(deployments(names), files, names.coordinators)
    asked = read_schedules(schedules, timezone)

    from flows.deployments.apply import deploy_to

    address, done = deploy_to(settings, names, table, asked, notify=notify, reset=reset, dry_run=dry_run)
    out.print(f"Prefect at {address}", soft_wrap=True, highlight=False)
    width = max(len(item.name) for item in done)
    for item in done:
        line = f"{item.kind:10} {item.name:{width}}  {_WORDS[dry_run][item.done]}  {item.url or ''}".rstrip()
        out.print(line, soft_wrap=True, highlight=False)
        if item.note:
            out.print(f"{'':10} {item.note}", soft_wrap=True, highlight=False)
        for line in item.kept:
            out.print(f"{'':10} kept {line}", soft_wrap=True, highlight=False, markup=False)
        for line in item.replaced:
            verb = "would replace" if dry_run else "replaced"
            out.print(f"{'':10} {verb} {line}", soft_wrap=True, highlight=False, markup=False)
    if any(item.kept for item in done):
        out.print("kept is what was changed on Prefect's page; fedbench deploy --reset replaces it", highlight=False)
