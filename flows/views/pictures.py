"""The plots of a finished federation, and a sheet of its detections, as PNG files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from flows.stored.detections import read_analysis
from flows.views.files import PLOTTED
from flows.views.registration import best_record
from infra.views import Views
from tasks.errors import FedbenchError
from tasks.figures.plots import class_by_device_plot, client_losses_plot, rounds_plot
from tasks.hand_out import hand_out
from tasks.handles import Handles
from tasks.report.detections import analysis_plots
from tasks.report.drawn import image_bytes
from tasks.spec.federation import FederationSpec
from tasks.spec.label_space import by_label_space
from tasks.spec.records import RoundRecord
from tasks.spec.turns import AnyRequest, SheetRequest, TurnReply

SHEET_IMAGES = 9
SHEET = "sheet.png"


async def pictures(name: str, spec: FederationSpec, handles: Handles, views: Views) -> dict[str, bytes]:
    """Return the files of the federation ``name``, by file name. The plot of rounds comes first.

    A file that cannot be made is noted in ``views``, and left out.
    """
    files = _plots(spec, handles.history, views)
    with views.showing(SHEET):
        sheet = await _sheet(name, spec, handles)
        if sheet is not None:
            files[SHEET] = sheet
    with views.showing("the plots of the best model's detections"):
        files |= await asyncio.to_thread(_analysis, name, handles)
    return files


def _plots(spec: FederationSpec, history: Sequence[RoundRecord], views: Views) -> dict[str, bytes]:
    boxes = {info.client: info.class_counts for info in history[-1].clients}
    counts = by_label_space(spec.data.label_space, boxes)
    plots: dict[str, Callable[[], Figure]] = {
        PLOTTED: lambda: rounds_plot(history),
        "class-by-device.png": lambda: class_by_device_plot(counts),
    }
    if len(history) > 1:
        plots["client-losses.png"] = lambda: client_losses_plot(history)
    files = {}
    for file, plot in plots.items():
        with views.showing(file):
            files[file] = image_bytes(plot(), "png")
    return files


def _analysis(name: str, handles: Handles) -> dict[str, bytes]:
    """Return plots of the best model's detections; none if the store does not have these."""
    best = best_record(handles.history)
    analysis = read_analysis(handles.objects, handles.layout, best)
    if analysis is None:
        return {}
    plots = analysis_plots(analysis, f"{name}, round {best.round}")
    return {f"{plot}.png": image_bytes(draw(), "png") for plot, draw in plots.items()}


async def _sheet(name: str, spec: FederationSpec, handles: Handles) -> bytes | None:
    """Return a sheet of detections of the best model; None if no client has test images.

    Without a complete shared model it is the own model of the client whose images are drawn.

    Raises:
        FedbenchError: every client failed.
    """
    best = best_record(handles.history)
    tested = [info.client for info in best.clients if info.test_size]
    if not tested:
        return None
    # Imported here, because a finished run is printed without torch.
    from tasks.draw_sheet import read_sheet

    sheets: list[bytes] = []

    async def accept(asked: AnyRequest, reply: TurnReply) -> None:
        assert isinstance(asked, SheetRequest)
        sheets.append(await asyncio.to_thread(read_sheet, handles, asked, reply))

    reasons = []
    for client, *_ in handles.slots.split(tested):  # if one silo fails, the next draws the sheet
        request = SheetRequest(
            federation=name,
            spec=spec,
            clients=(client,),
            model=best.model,
            personal=not spec.strategy.shared_model,
            own=None if spec.strategy.shared_model else best.states.get(client),
            images=SHEET_IMAGES,
        )
        deadline = spec.participation.evaluation_deadline
        for reply in await hand_out(handles, request, deadline=deadline, accept=accept):
            reasons += [f"client {failure.client}: {failure.reason}" for failure in reply.failures]
        if sheets:
            return sheets[0]
    raise FedbenchError("; ".join(reasons))
