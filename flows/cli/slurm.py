"""``fedbench slurm``: workers as jobs of a Slurm cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.cli.shared import (
    Home,
    home_option,
    machine_settings,
    out,
    plain_errors,
    print_command,
    print_note,
    say,
    shell_quoted,
)

if TYPE_CHECKING:
    from infra.settings import Settings
    from infra.slurm.commands import Job

EXIT_NONE = 1

slurm_app = typer.Typer(name="slurm", help="Take turns in jobs of a Slurm cluster.", no_args_is_help=True)


@slurm_app.command("up")
def slurm_up(
    partition: Annotated[str, typer.Option("--partition", "-p", metavar="NAME", help="Partition of the jobs.")],
    time: Annotated[str, typer.Option(metavar="H:MM:SS", help="Each job's time.")],
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Jobs, each with one worker.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, max=64, help="GPUs of each job. 0: turns on its CPUs.")] = 1,
    cpus: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPUs of each job. [the partition's default]")
    ] = None,
    pool: Annotated[str | None, typer.Option(metavar="NAME", help="Work pool. [pools.turns, or gpu]")] = None,
    lead: Annotated[
        str, typer.Option(metavar="H:MM:SS", help="How long before a job's end its turns are handed back.")
    ] = "0:05:00",
    idle: Annotated[str, typer.Option(metavar="H:MM:SS", help="A job without a turn for so long ends.")] = "0:10:00",
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", metavar="OPTION", help="Another option of sbatch, as --account=vision. Repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, and only print the batch script.")] = False,
    home: Home = None,
) -> None:
    """Submit worker jobs that take turns in the slots of their allocation.

    A job hands its turns back before its time ends, and is queued again as long as turns come. It ends after --idle
    without a turn. The servers of `fedbench up` must be up at an address that the nodes reach (ports.host). This
    home, Python and the data must be at the same paths on all nodes.

    `fedbench slurm up --partition gpu --gpus 1 --workers 4 --time 8:00:00` ·
    `fedbench slurm up -p cpu --gpus 0 --cpus 8 --time 1:00:00 --dry-run`
    """
    with plain_errors():
        from flows.deployments.names import resident_deployment
        from infra.settings_groups import DEFAULT_TURN_POOL
        from infra.slurm.durations import read_duration
        from infra.slurm.jobs import check_pool, prepared_script, submit_jobs
        from infra.slurm.script import WorkerJobs, log_path
        from tasks.spec.base import check_name

        seconds = read_duration(time, "--time")
        settings = machine_settings(home)
        name = pool or settings.pools.turns or DEFAULT_TURN_POOL
        check_name(name, source="--pool")
        jobs = WorkerJobs(
            partition=partition,
            pool=name,
            workers=workers,
            gpus=gpus,
            cpus=cpus,
            seconds=seconds,
            lead=read_duration(lead, "--lead"),
            idle=read_duration(idle, "--idle"),
            options=tuple(sbatch or ()),
        )
        script, servers = prepared_script(settings, jobs)
        check_pool(settings, name, resident_deployment(name))
        if dry_run:
            typer.echo(script, nl=False)
            return
        job = submit_jobs(settings, script, servers)
    out.print(f"job {job}: {workers} worker{'s' if workers > 1 else ''} of pool {name}", highlight=False)
    out.print(f"logs: {shell_quoted(log_path(settings.home, f'{job}_*'))}", soft_wrap=True, highlight=False)
    _print_use(settings, name)


@slurm_app.command("status")
def slurm_status(home: Home = None) -> None:
    """List the worker jobs of this home, those that ended minutes ago included.

    Exit code 1 if none waits or runs.
    """
    with plain_errors():
        from infra.slurm.jobs import home_jobs
        from infra.slurm.script import log_path

        settings = machine_settings(home, reads_only=True)
        jobs = home_jobs(settings)
        if jobs:
            out.print(_table(jobs))
            out.print(f"logs: {shell_quoted(log_path(settings.home, 'JOB'))}", soft_wrap=True, highlight=False)
        if not any(job.is_open for job in jobs):
            out.print("no worker job waits or runs; submit some: fedbench slurm up", highlight=False)
            raise typer.Exit(EXIT_NONE)


@slurm_app.command("down")
def slurm_down(home: Home = None) -> None:
    """Cancel the worker jobs of this home, and remove their environment file. Turns at work are handed back."""
    with plain_errors():
        from infra.slurm.jobs import end_jobs

        settings = machine_settings(home)
        say("cancelling the worker jobs …")
        ended, left = end_jobs(settings)
    if left:
        out.print(f"{len(left)} jobs have not ended yet: {', '.join(job.id for job in left)}", highlight=False)
    elif ended:
        out.print(f"{len(ended)} job{'s' if len(ended) > 1 else ''} cancelled", highlight=False)
    else:
        out.print("no worker job was waiting or running", highlight=False)


def _print_use(settings: Settings, pool: str) -> None:
    before = "" if settings.pools.turns == pool else f"FEDBENCH_POOLS__TURNS={pool} "
    print_command(out, "turns go there from: ", f"{before}fedbench run …")
    print_note("Deployments send their turns to the pool in pools.turns, or gpu.")
    option = home_option(settings)
    print_command(out, "look: ", f"fedbench slurm status{option}")
    print_command(out, "end: ", f"fedbench slurm down{option}")


def _table(jobs: list[Job]) -> Table:
    table = Table("job", "state", "partition", "pool", "node", "time", "limit", "reason", box=None)
    for job in jobs:
        reason = "" if job.reason == "None" else job.reason
        table.add_row(job.id, job.state, job.partition, job.pool, job.node or "–", job.elapsed, job.limit, reason)
    return table
