"""``fedbench ui`` and ``serve``: pages and models over HTTP, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.shared import Home, RunName, out, place_settings, plain_errors


def ui(
    name: RunName,
    home: Home = None,
    browser: Annotated[bool, typer.Option(help="Open the pages in a browser.")] = True,
) -> None:
    """Serve Prefect's and MLflow's pages of a federation until Ctrl-C."""
    from flows.pages import serve_pages

    with plain_errors():
        serve_pages(place_settings(home), name, out, open_browser=browser)


def serve(
    name: RunName,
    home: Home = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5001,
) -> None:
    """Serve a federation's best model over HTTP until Ctrl-C."""
    from flows.serving import serve_model

    with plain_errors():
        raise typer.Exit(serve_model(place_settings(home), name, out, host=host, port=port))
