"""Load what an argument names: a preset, a YAML file, or a folder of data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra.settings import Settings
from tasks.errors import SpecError
from tasks.spec.clients import Iid
from tasks.spec.data import DataSpec
from tasks.spec.federation import FederationSpec, load_spec, with_fields
from tasks.spec.names import data_name, name_of_file
from tasks.spec.presets import PRESETS, own_data, preset
from tasks.spec.suite import SuiteSpec, load_suite
from tasks.spec.suite_presets import SUITES, suite_preset

# The keys of tasks.data.recognise.FORMS.
Form = Literal["street", "coco", "voc", "yolo", "bdd100k", "visdrone", "kitti"]
DATA_ROOTS = "FEDBENCH_DATA_ROOTS"


@dataclass(frozen=True)
class ChosenData:
    """A data set, and its folder if one was given; otherwise the settings have the folder.

    ``divided``: nothing in the folder names devices, so fedbench divides its images.
    """

    spec: DataSpec
    folder: Path | None = None
    divided: bool = False

    def roots(self, settings: Settings) -> Callable[[str], Path | None]:
        """Return a function that gives a data set's folder on this machine by its name."""
        return settings.data_root if self.folder is None else lambda name: self.folder


@dataclass(frozen=True)
class ChosenFederation:
    """A federation, the base of its default name, and the folder of its data if the argument was that folder.

    ``divided``: nothing in the folder names devices, so fedbench divides its images.
    """

    base: str
    spec: FederationSpec
    folder: Path | None = None
    divided: bool = False

    def settings(self, settings: Settings) -> Settings:
        """Return ``settings`` with the folder under the data set's name, and put it into this process's environment.

        The processes of slots, and later commands with the variable, find it there.

        Raises:
            SpecError: the settings have another folder under that name.
        """
        name: str | None = getattr(self.spec.data, "name", None)
        if self.folder is None or name is None:
            return settings
        folder, known = self.folder.absolute(), settings.data_root(name)
        if known is not None and known.resolve() != folder.resolve():
            raise SpecError(
                f"data.name: {name}: the settings have the folder {known} under this name, expected {folder}; choose "
                "another name, as in -s data.name=other"
            )
        roots = settings.data_roots | {name: folder}
        os.environ[DATA_ROOTS] = json.dumps({each: str(path) for each, path in roots.items()})
        return settings.model_copy(update={"data_roots": roots})


def choose_spec(what: str, fields: dict[str, Any]) -> tuple[str, FederationSpec]:
    """Return the base of the default name, and the specification of a preset or file with ``fields`` set."""
    path = Path(what)
    from_file = _is_file(what, PRESETS)
    spec = load_spec(path, fields_follow=bool(fields)) if from_file else preset(what)
    base = name_of_file(path) if from_file else what
    return base, with_fields(spec, fields, source=what) if fields else spec


def choose_federation(what: str, fields: dict[str, Any]) -> ChosenFederation:
    """Return the federation of a preset, a file or a folder of data, with ``fields`` set.

    A folder's form is recognised. Its data are learned with the detector and training of
    :func:`tasks.spec.presets.own_data`.

    Raises:
        SpecError: there is no such preset, file or folder, the folder has no known form, or a field is wrong.
    """
    folder = Path(what)
    if what in PRESETS or not folder.is_dir():
        return ChosenFederation(*choose_spec(what, fields))
    from tasks.data.recognise import recognise

    data = recognise(folder, data_name(folder))
    spec = with_fields(own_data(data), fields, source=what)
    base = name_of_file(Path(f"{folder.resolve().name}.yaml"))
    return ChosenFederation(base, spec, folder, _is_divided(data, spec.data))


def choose_suite(what: str) -> SuiteSpec:
    """Return the suite of a preset or file.

    Raises:
        SpecError: there is no such preset or file, or a field is wrong.
    """
    return load_suite(Path(what)) if _is_file(what, SUITES) else suite_preset(what)


def default_name(base: str, spec: FederationSpec) -> str:
    """Return the default name of a federation: ``street5-ed9332d5``, or ``street5-0a1b2c3d-centralised``.

    It has the digest that `fedbench list` prints if the digests of data and weights are filled in
    (:func:`flows.commands.run_name.find_run`).
    """
    return f"{base}-{spec.digest[:8]}{name_end(spec)}"


def name_end(spec: FederationSpec) -> str:
    """Return what follows the digest in a default name."""
    return "-centralised" if spec.data.pooled else ""


def choose_data(what: str, form: Form | None = None, fields: dict[str, Any] | None = None) -> ChosenData:
    """Return the data of a specification, or of a folder in ``form`` (None: found by its files), with ``fields`` set.

    The data of a folder have its name, unless ``fields`` give another.

    Raises:
        SpecError: there is no such preset, file or folder, or a field is wrong.
    """
    below = {f"data.{name}": value for name, value in (fields or {}).items()}
    root = Path(what)
    if not root.is_dir():
        if form is not None:
            raise SpecError(f"--form {form}: expected a folder, found {what}")
        return ChosenData(choose_spec(what, below)[1].data)
    from tasks.data.recognise import recognise

    try:
        data = recognise(root, data_name(root), form)
    except SpecError as error:
        raise SpecError(f"{error}; or set --form") from None
    spec = with_fields(FederationSpec(data=data), below, source=what).data
    return ChosenData(spec, root, _is_divided(data, spec))


def _is_divided(recognised: DataSpec, spec: DataSpec) -> bool:
    """Return whether ``spec`` divides images as recognition chose, because it found no devices."""
    return getattr(recognised, "clients", None) == getattr(spec, "clients", None) == Iid()


def _is_file(what: str, presets: Container[str]) -> bool:
    path = Path(what)
    return path.suffix in {".yaml", ".yml", ".json"} or (path.exists() and what not in presets)
