"""A silo's site: it has only the images of its own devices, and looks again for devices that were missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import Settings
from infra.settings_groups import S3Settings
from tasks.client_wake_up import client_wake_up
from tasks.data.export.voc import write_voc
from tasks.draw_sheet import draw_sheet
from tasks.errors import DataError
from tasks.site import Site
from tasks.spec.data import SyntheticStreet, VocFolders
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.federation import FederationSpec
from tasks.spec.participation import Participation
from tasks.spec.plans import WeightRef
from tasks.spec.turns import SheetRequest, WakeUpRequest
from tests.tasks.drawn_data import drawn_data

DRAWN = SyntheticStreet(train_images=40, test_images=5, width=64, height=64)


def test_a_missing_device_is_named_with_its_folder_and_found_later(tmp_path: Path) -> None:
    drawn = drawn_data(DRAWN, tmp_path / "cache")
    folder, away = tmp_path / "cameras", {device: tmp_path / device for device in ("1", "2", "4")}
    write_voc(drawn, folder)
    for device, elsewhere in away.items():
        (folder / device).rename(elsewhere)
    settings = Settings(home=tmp_path, s3=S3Settings(endpoint="http://127.0.0.1:1"), data_roots={"cameras": folder})
    spec = FederationSpec(
        data=VocFolders(name="cameras", classes=drawn.classes),
        detector=YoloV3TinySpec(width=64, height=64),
        participation=Participation(clients=("1", "2", "3", "4", "5"), check_load=True),
    )
    site = Site(settings)
    request = WakeUpRequest(federation="silos", spec=spec, clients=("3", "4", "5"))
    reply = client_wake_up(site, request)
    assert [info.client for info in reply.ready] == ["3", "5"]
    # Each client has the whole test set, as without silos.
    assert {info.test_size for info in reply.ready} == {5}
    assert tuple(reply.ready[0].class_counts) == drawn.classes
    (failure,) = reply.failures
    where = f"{folder} on {site.host}: data set cameras has no device 4"
    assert (failure.client, failure.reason) == ("4", f"{where}; it has 3, 5")
    with pytest.raises(DataError, match="has no device 4; it has 3, 5"):
        site.data_of(spec.data, "4")
    model = WeightRef(key="no", sha256="0" * 64, bytes=1)
    sheet = draw_sheet(site, SheetRequest(federation="silos", spec=spec, clients=("4",), model=model, images=1))
    assert [(failure.client, failure.reason) for failure in sheet.failures] == [("4", f"{where}; it has 3, 5")]
    away["4"].rename(folder / "4")
    again = client_wake_up(site, request)
    assert ([info.client for info in again.ready], again.failures) == (["3", "4", "5"], ())
