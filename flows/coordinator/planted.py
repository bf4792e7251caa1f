"""What others planted in this home's Prefect database is held back before a run or a worker uses it."""

from __future__ import annotations

from collections.abc import Callable

from infra.errors import ServiceFailed
from infra.orchestrator.plain_api import PrefectJson
from infra.servers.credentials import basic_auth
from infra.servers.exposed import Own, hold_back, is_guarded, note_guarded, report
from infra.servers.prefect_server import PrefectService
from infra.settings import Settings


def hold_back_planted(settings: Settings, service: PrefectService | None, say: Callable[[str], None]) -> None:
    """Look through the database of ``service``, which answers, unless only servers with credentials have opened it.

    Does nothing for a server that the settings name (None). ``say`` gets the lines of what was found, and one of a
    damaged database that was set aside.

    Raises:
        ServiceFailed: it could not be looked through.
    """
    if service is not None and service.set_aside is not None:
        say(service.set_aside)
    if service is None or is_guarded(service.home, service.database_url):
        return
    api = PrefectJson(service.address, basic_auth(service.auth))
    try:
        findings, path = hold_back(api, own(settings), service.home / "prefect")
    except OSError as error:
        raise ServiceFailed(
            f"prefect: its database could not be looked through for what others left: {error}"
        ) from None
    if path is not None:
        for line in report(findings, path):
            say(line)
    note_guarded(service.home, service.database_url)


def own(settings: Settings) -> Own:
    """What ``fedbench deploy`` makes with these settings."""
    # Late: they import Prefect, whose settings the environment has by now.
    from flows.deployments.table import SCHEDULE, PoolNames, deployments, pools
    from infra.orchestrator.automations import NAME, REGRESSIONS
    from infra.worker.work_pools import default_template

    names = PoolNames.of(settings.pools)
    table = deployments(names)
    return Own(
        deployments={item.full_name: item.entrypoint for item in table},
        job_variables=table[0].job_variables,
        schedule=SCHEDULE,
        pools={pool.name: default_template(pool.type) for pool in pools(names)},
        automations={NAME: frozenset({"change-flow-run-state"}), REGRESSIONS: frozenset({"send-notification"})},
    )
