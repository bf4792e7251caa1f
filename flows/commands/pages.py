"""The Prefect and MLflow pages of federations, served from this machine's state."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence

from rich.console import Console

from flows.commands.browser import open_pages
from flows.coordinator.planted import hold_back_planted
from infra.files.private import private_process
from infra.orchestrator.page_links import flow_run_page, runs_page
from infra.servers.login_page import MLFLOW_FRONT, credentials_lines, how_to_log_in, what_pages_ask, write_openers
from infra.servers.mlflow_server import MlflowService
from infra.settings import Settings
from infra.stack.embedded import EmbeddedServices
from infra.store.objects import ObjectStore
from tasks.spec.federation import MAP_NAMES


def serve_pages(
    settings: Settings, names: Sequence[str], console: Console, *, open_browser: bool, show_login: bool = False
) -> None:
    """Start the servers that are not running, print the two addresses, and serve until Ctrl-C.

    With several federations, MLflow's page compares them by round, and Prefect's is that of the first. A suite run has
    pages of its own. Without names, the pages are those of all runs. show_login: print the passwords.

    Raises:
        SpecError: there is no federation or suite run of one of the names, or a suite run is not alone.
        ServiceFailed: a server did not come up.
    """
    private_process(settings.home)
    with EmbeddedServices(settings) as services:
        objects = ObjectStore(services.s3_endpoint())
        objects.ensure_bucket()
        of_suite = is_suite_run(objects, settings, names)
        os.environ.update(services.prefect_environment())
        hold_back_planted(settings, services.prefect, lambda line: console.print(line, soft_wrap=True, markup=False))
        mlflow = None
        tracking = services.mlflow_tracking_uri
        if tracking.startswith("http"):
            base = tracking
        else:
            console.print("starting MLflow's server …")
            mlflow = MlflowService(settings.home, services.s3_endpoint(), tracking)
            mlflow.ensure()
            base = mlflow.address
        try:
            pages = {
                "Prefect": prefect_page(services, names[0]) if names else runs_page(services.prefect_api_url),
                "MLflow": suite_page(settings, tracking, names[0], base)
                if of_suite
                else mlflow_page(settings, tracking, names, base),
            }
            for title, page in pages.items():
                console.print(f"{title:8}{page}", soft_wrap=True)
            own_mlflow = mlflow is not None or services.mlflow is not None  # ours, or the stack's
            login = services.login_page("ui", pages["Prefect"], pages["MLflow"] if own_mlflow else None)
            if login is not None:
                by_hand = credentials_lines(services.keys) if show_login else [what_pages_ask("--show-login")]
                for line in (how_to_log_in(login), *by_hand):
                    console.print(line, soft_wrap=True, highlight=False, markup=False)
            ours = {"Prefect": services.prefect is not None, "MLflow": own_mlflow}
            if open_browser and not _open(services, pages, ours):
                console.print(no_browser(pages), soft_wrap=True, highlight=False, markup=False)
            console.print("Ctrl-C ends it.")
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("stopped")
        finally:
            if mlflow is not None:
                mlflow.stop()


def is_suite_run(objects: ObjectStore, settings: Settings, names: Sequence[str]) -> bool:
    """Return whether ``names`` is one suite run; False: they are federations, which are read.

    Raises:
        SpecError: there is no federation or suite run of one of the names, or a suite run is not alone.
    """
    from flows.stored.names import listed
    from flows.stored.runs import read_run
    from infra.store.layout import federations
    from infra.store.suite_layout import suite_runs
    from tasks.errors import SpecError

    prefix = settings.s3.prefix
    there = objects.list(prefix)
    runs, suites = federations(prefix, there), suite_runs(prefix, there)
    for name in names:
        if name in suites and name not in runs:
            if len(names) > 1:
                raise SpecError(f"{name}: expected federations to compare, or one suite run alone, found a suite run")
            return True
        if name not in runs:
            known = [*runs, *suites]
            raise SpecError(
                f"{name}: no such federation or suite run in the store; expected one of: {listed(known, name)}"
            )
        read_run(objects, settings, name)
    return False


def _open(services: EmbeddedServices, pages: Mapping[str, str], ours: Mapping[str, bool]) -> bool:
    """Open the pages in the browser, those of our own servers logged in. Return whether there is a browser."""
    opened = [page for title, page in pages.items() if not ours[title]]
    if any(ours.values()):
        prefect, mlflow = (pages[title] if ours[title] else None for title in ("Prefect", "MLflow"))
        files = write_openers(services.settings.home, services.keys, prefect, mlflow)
        opened += [file.as_uri() for file in files]
    return open_pages(opened)  # other users see these in `ps`: addresses, or files that they cannot read


def no_browser(pages: Mapping[str, str]) -> str:
    """Return the line for a machine without a browser. ``pages``: addresses by title."""
    return f"no browser on this machine; open in one: {' · '.join(pages.values())}"


def prefect_page(services: EmbeddedServices, name: str) -> str:
    """Return the URL of the newest flow run of a federation or suite; of the list of all runs if it has none."""
    from infra.orchestrator.flow_runs import newest_run

    api = services.prefect_api_url
    run = asyncio.run(newest_run(name))
    return runs_page(api) if run is None else flow_run_page(api, run.id)


def suite_page(settings: Settings, tracking: str, name: str, base: str) -> str:
    """Return the URL of the MLflow run of a suite run, which has its cells below it; else MLflow's front page."""
    from infra.tracking.suite import find_suite_page

    return find_suite_page(tracking, settings.mlflow_experiment, name, base) or base.rstrip("/") + MLFLOW_FRONT


def mlflow_page(settings: Settings, tracking: str, names: Sequence[str], base: str) -> str:
    """Return the URL of the federation's MLflow run, or of the page that compares several; else MLflow's front page."""
    from infra.tracking.federation import find_page

    if not names:
        return base.rstrip("/") + MLFLOW_FRONT
    if len(names) > 1:
        from flows.commands.tracked import comparison_page

        page = comparison_page(settings, names, MAP_NAMES[0], base=base, tracking=tracking)
        if page is not None:
            return page
    return find_page(tracking, settings.mlflow_experiment, names[0], base) or base.rstrip("/") + MLFLOW_FRONT
