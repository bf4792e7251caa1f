"""The clean-up flow: removes what nobody needs any more. By default it only lists what it would remove."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from prefect.logging import get_run_logger
from pydantic import Field

from flows.stored.leftovers import DAYS, CleanUp, clean, describe
from flows.stored.toys import ToyCleanUp, clean_toys
from infra.environment.certificates import trust
from infra.orchestrator.stored_results import refuse_stored_results
from infra.settings import load_settings
from tasks.plain_text import plain
from tasks.spec.base import FederationName

refuse_stored_results()  # in every process that can run this flow, before its engine starts


@flow(name="clean-up", flow_run_name="clean-up", persist_result=False)
async def clean_up(
    apply: bool = False,
    older_than_days: Annotated[float, Field(ge=0)] = DAYS,
    runs: list[FederationName] | None = None,
    run_folders: bool = False,
    toys: bool = False,
) -> CleanUp | ToyCleanUp:
    """Remove what nobody needs any more from the store and this machine, and publish a table of it.

    What cannot be removed is logged and listed in the table, and the rest is removed all the same.

    Args:
        apply: Remove what is found. Otherwise only list it.
        older_than_days: Objects of an unfinished round are removed after so many days without a new object.
        runs: Federations to clean up. Left out: all of them, and what dead processes have left on the worker's
            machine.
        run_folders: Also remove the run folders on the worker's machine whose federation is not in the store.
        toys: Remove whole federations that were only tried out instead: those of synthetic images that are no cell of
            a suite run, have had no new object for older_than_days, and that nobody runs.

    Raises:
        FedbenchError: the store has a newer version, or lacks one of ``runs``.
        InfraError: the store cannot be reached.
    """
    settings, logger = load_settings(), get_run_logger()
    trust(os.environ, settings.ca_file)
    result: CleanUp | ToyCleanUp
    if toys:
        result = await asyncio.to_thread(
            clean_toys, settings, apply=apply, older_than_days=older_than_days, names=runs or (), say=logger.info
        )
        what = result.describe()
    else:
        result = await asyncio.to_thread(
            clean, settings, apply=apply, older_than_days=older_than_days, names=runs or (), run_folders=run_folders
        )
        what = describe(result.leftovers)
        for note in result.notes:
            logger.info("%s", plain(note))
    for key, reason in result.failed.items():
        logger.warning("not removed: %s: %s", plain(key), plain(reason))
    await acreate_table_artifact(
        key="clean-up",
        table=result.rows(),
        description=f"{'Removed' if apply else 'Would be removed'}: {what}.",
    )
    return result
