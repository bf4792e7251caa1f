"""Hold back what others planted in this home's Prefect database, before a run or a worker uses it."""

from __future__ import annotations

from collections.abc import Callable

from infra.errors import ServiceFailed
from infra.orchestrator.plain_api import PrefectJson
from infra.servers.credentials import basic_auth
from infra.servers.exposed import Own, hold_back, is_guarded, note_guarded, report
from infra.servers.prefect_server import PrefectService
from infra.settings import Settings


def hold_back_planted(settings: Settings, service: PrefectService | None, say: Callable[[str], None]) -> None:
    """Search the database of the running ``service``, unless only servers with credentials have opened it so far.

    service: None, and then nothing is done, if the settings name a server. say: called with a line for each finding,
    and for a damaged database that was set aside.

    Raises:
        ServiceFailed: the database could not be searched.
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
            f"prefect: its database could not be searched for what other users left in it: {error}"
        ) from None
    if path is not None:
        for line in report(findings, path):
            say(line)
    note_guarded(service.home, service.database_url)


def own(settings: Settings) -> Own:
    """Return what ``fedbench deploy`` creates with these settings."""
    # Late: these import Prefect, which reads the environment that is set by now.
    from flows.deployments.names import RECORDS
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
        records=RECORDS,
    )
