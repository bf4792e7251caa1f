"""``fedbench ui`` and ``serve``: pages and models over HTTP, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.models import Model, Round
from flows.cli.shared import Home, machine_settings, out, plain_errors


def ui(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...]",
            help="Federations, which MLflow's page compares, or one suite run. [the pages of all runs]",
        ),
    ] = None,
    home: Home = None,
    browser: Annotated[bool, typer.Option(help="Open the pages in a browser, logged in.")] = True,
    show_login: Annotated[
        bool, typer.Option("--show-login", help="Print the passwords of both pages, for another machine's browser.")
    ] = False,
) -> None:
    """Serve Prefect's and MLflow's pages of a federation or a suite run until Ctrl-C.

    Of several federations, MLflow's page draws their mAP by round. That of a suite run has its cells below it.
    """
    from flows.commands.pages import serve_pages

    with plain_errors():
        serve_pages(machine_settings(home), names or [], out, open_browser=browser, show_login=show_login)


def serve(
    model: Model,
    home: Home = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5001,
    number: Round = None,
    rows: Annotated[int, typer.Option("--max-images", min=1, help="Maximum number of images in a request.")] = 32,
    megapixels: Annotated[
        float, typer.Option("--max-megapixels", min=0.01, help="Maximum size of an image, in 10^6 pixels.")
    ] = 40,
    megabytes: Annotated[
        float, typer.Option("--max-megabytes", min=0.01, help="Maximum size of a request, in 10^6 bytes.")
    ] = 64,
) -> None:
    """Serve a model over HTTP until Ctrl-C, with the interface of MLflow's model server.

    The installed code serves the model: no code is read from the store or the registry, and weights are checked.
    Requests beyond a limit are refused with status 413, an image that is too large with 400.

    `fedbench serve synthetic5-e6b255e8` · `fedbench serve m.safetensors --port 8080`
    """
    from flows.commands.serving import Address, serve_model
    from tasks.models.answer_request import RequestLimits

    with plain_errors():
        serve_model(
            machine_settings(home),
            model,
            out,
            address=Address(host, port),
            limits=RequestLimits(rows=rows, pixels=round(megapixels * 1e6)),
            body_bytes=round(megabytes * 1e6),
            number=number,
        )
