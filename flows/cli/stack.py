"""``fedbench up``, ``down``, ``status`` and ``logs``: servers of one home that outlive the command."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.cli.shared import Home, err, home_option, machine_settings, out, plain_errors, print_command, shell_quoted
from flows.deployments.names import RESUMED_FLOWS
from infra.settings import Settings

if TYPE_CHECKING:
    from infra.stack.stack import Stack
    from infra.stack.status import ServiceStatus

EXIT_NOT_UP = 1

ServiceName = Annotated[
    str | None, typer.Argument(metavar="[SERVICE]", help="s3, prefect, mlflow, worker, coordinator, supervisor. [all]")
]


def up(
    prefect_database_url: Annotated[
        str | None, typer.Option(metavar="URL", help="postgresql+asyncpg://USER@HOST/DATABASE. [SQLite]")
    ] = None,
    mlflow_database_url: Annotated[
        str | None, typer.Option(metavar="URL", help="postgresql://USER@HOST/DATABASE. [SQLite]")
    ] = None,
    workers: Annotated[
        bool,
        typer.Option(
            "--workers/--servers-only", help="Also make deployments and start workers, or start the servers alone."
        ),
    ] = True,
    home: Home = None,
) -> None:
    """Start S3, Prefect, MLflow and workers, make the deployments, and leave all running until `fedbench down`.

    Federations can then be started from Prefect's page, and runs of this home use the servers. The stack's supervisor
    restarts a process that dies; its data are kept. The next `up` restarts one that hangs. If a URL has a password, set
    FEDBENCH_PREFECT_DATABASE_URL or FEDBENCH_MLFLOW_DATABASE_URL instead of the option.

    `fedbench up` · `source ~/.fedbench/stack.env` · `prefect flow-run ls` · `fedbench down`
    """
    from flows.coordinator.planted import hold_back_planted
    from infra.servers.database import refuse_password, shown
    from infra.servers.login_page import how_to_log_in, login_path, what_pages_ask
    from infra.stack.environment_file import environment_path

    with plain_errors():
        for url, setting in (
            (prefect_database_url, "prefect_database_url"),
            (mlflow_database_url, "mlflow_database_url"),
        ):
            if url is not None:
                refuse_password(url, f"--{setting.replace('_', '-')}")
                os.environ[f"FEDBENCH_{setting.upper()}"] = url
        settings = machine_settings(home)
        stack = _stack(settings)
        started = stack.up(_say, lambda prefect: hold_back_planted(settings, prefect, _say))
        if workers and (started or not stack.workers_up()):
            _deploy(settings)
            started |= stack.up_workers(_say)
        if not started:
            out.print("is up already; nothing was changed")
        out.print(_table(stack.status()))
        for name, uri in stack.databases().items():
            out.print(f"{name}'s database: {shown(uri)}", soft_wrap=True, highlight=False)
    out.print(f"pages: {how_to_log_in(login_path(settings.home, 'up'))}", soft_wrap=True, highlight=False)
    ui = f"fedbench ui{home_option(settings)}"
    out.print(what_pages_ask(f"{ui} --show-login"), soft_wrap=True, highlight=False, markup=False)
    print_command(out, "both at once, logged in: ", ui)
    print_command(out, "credentials: ", f"source {shell_quoted(environment_path(settings.home))}")
    if workers:
        out.print(deployments_line(settings), soft_wrap=True, highlight=False, markup=False)
    print_command(out, "end: ", f"fedbench down{home_option(settings)}")


def down(home: Home = None) -> None:
    """Stop what `up` started, and keep its data. A run in progress continues with servers of its own."""
    with plain_errors():
        settings = machine_settings(home)
        ended = _stack(settings).down(_say)
    if ended is None:
        out.print("is down already; nothing was running", highlight=False)
        return
    what = f"ended {', '.join(ended)}" if ended else "nothing was running any more"
    out.print(f"down: {what}; data are kept in {settings.home}", soft_wrap=True, highlight=False, markup=False)


def status(home: Home = None) -> None:
    """List what `up` has started and whether it answers, and the disk space of the home.

    Exit code 1 if something does not answer.
    """
    with plain_errors():
        settings = machine_settings(home)
        found = _stack(settings).status()
        out.print(_table(found))
        runs = {service.run for service in found if service.run is not None}
        for run in sorted(runs):
            names = ", ".join(service.name for service in found if service.run == run)
            out.print(
                f"{names}: process {run}, a run of this home, has started its own", soft_wrap=True, highlight=False
            )
        if any(service.state in ("crashed", "silent") for service in found):
            print_command(out, "bring back: ", f"fedbench up{home_option(settings)}")
        _print_disk(settings)
    if any(service.state != "up" for service in found):
        raise typer.Exit(EXIT_NOT_UP)


def logs(
    service: ServiceName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines to print of each log.")] = 50,
    home: Home = None,
) -> None:
    """Print the logs of what `up` has started.

    `fedbench logs prefect -f`
    """
    from infra.errors import SettingsError
    from infra.processes.logs import follow_logs, last_lines
    from infra.stack.services import SERVICES

    with plain_errors():
        if service is not None and service not in SERVICES:
            raise SettingsError(f"SERVICE: expected one of {', '.join(SERVICES)}, found {service}")
        settings = machine_settings(home)
        names = SERVICES if service is None else (service,)
        paths = {name: settings.home / "logs" / f"{name}.log" for name in names}

        def show(name: str, line: str) -> None:
            prefix = f"{name:11} | " if service is None else ""
            out.print(prefix + line, soft_wrap=True, highlight=False)

        if not follow and not any(path.exists() for path in paths.values()):
            out.print(f"no log yet below {settings.home / 'logs'}", soft_wrap=True, highlight=False)
            return
        offsets = {}
        for name, path in paths.items():
            past, offsets[name] = last_lines(path, lines)
            for line in past:
                show(name, line)
        if follow:
            try:
                follow_logs(paths, offsets, show)
            except KeyboardInterrupt:
                return


def deployments_line(settings: Settings) -> str:
    """Return how many deployments ``up`` makes, and the commands that list them and start one."""
    from flows.deployments.table import PoolNames, deployments

    count = len(deployments(PoolNames.of(settings.pools)))
    return (
        f"deployments: {count} (fedbench deploy --dry-run{home_option(settings)} lists them); "
        "with these credentials, start one: prefect deployment run federation/smoke"
    )


def _deploy(settings: Settings) -> None:
    """Make pools, deployments and automations on the stack's Prefect server, or bring them up to date."""
    from flows.deployments.apply import deploy_to
    from flows.deployments.table import PoolNames, deployments

    names = PoolNames.of(settings.pools)
    deploy_to(settings, names, deployments(names))


def _stack(settings: Settings) -> Stack:
    from infra.stack.stack import Stack

    return Stack(settings, RESUMED_FLOWS)


def _say(line: str) -> None:
    err.print(line, soft_wrap=True, highlight=False)


def _print_disk(settings: Settings) -> None:
    """Print what the parts of the home take on this machine's disk, and how each is freed."""
    import shutil

    from infra.leftovers.usage import disk_usage

    usages = disk_usage(settings.home)
    if not usages:
        return
    table = Table("disk", "", "freed by", box=None)
    table.columns[1].justify = "right"
    for usage in usages:
        table.add_row(usage.part, _size(usage.bytes), usage.freed or "–")
    out.print()
    out.print(table)
    total, free = sum(usage.bytes for usage in usages), shutil.disk_usage(settings.home).free
    out.print(f"{settings.home}: {_size(total)}, {_size(free)} free", soft_wrap=True, highlight=False)


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _table(found: list[ServiceStatus]) -> Table:
    table = Table("service", "state", "pid", "URL", "since", box=None)
    for service in found:
        since = "–" if service.since is None else service.since.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        pid = "–" if service.pid is None else str(service.pid)
        table.add_row(service.name, service.state, pid, service.url or "–", since)
    return table
