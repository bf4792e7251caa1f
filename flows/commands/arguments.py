"""Load what an argument names: a preset, a YAML file, or a folder of data."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra.settings import Settings
from tasks.errors import SpecError
from tasks.spec.data import Coco, DataSpec, FederatedStreet, VocFolders
from tasks.spec.federation import FederationSpec, load_spec, with_fields
from tasks.spec.names import name_of_file
from tasks.spec.presets import PRESETS, preset
from tasks.spec.suite import SuiteSpec, load_suite
from tasks.spec.suite_presets import SUITES, suite_preset

Form = Literal["street", "coco", "voc"]
CHOSEN = "chosen"  # the name of a data set that is given by its folder


@dataclass(frozen=True)
class ChosenData:
    """A data set, and its folder if one was given; otherwise the settings have the folder."""

    spec: DataSpec
    folder: Path | None = None

    def roots(self, settings: Settings) -> Callable[[str], Path | None]:
        """Return a function that gives a data set's folder on this machine by its name."""
        return settings.data_root if self.folder is None else lambda name: self.folder


def choose_spec(what: str, fields: dict[str, Any]) -> tuple[str, FederationSpec]:
    """Return the base of the default name, and the specification of a preset or file with ``fields`` set."""
    path = Path(what)
    from_file = _is_file(what, PRESETS)
    spec = load_spec(path, fields_follow=bool(fields)) if from_file else preset(what)
    base = name_of_file(path) if from_file else what
    return base, with_fields(spec, fields, source=what) if fields else spec


def choose_suite(what: str) -> SuiteSpec:
    """Return the suite of a preset or file.

    Raises:
        SpecError: there is no such preset or file, or a field is wrong.
    """
    return load_suite(Path(what)) if _is_file(what, SUITES) else suite_preset(what)


def default_name(base: str, spec: FederationSpec) -> str:
    """Return the default name of a federation: ``street5-ed9332d5``, or ``street5-0a1b2c3d-centralised``."""
    return f"{base}-{spec.digest[:8]}{'-centralised' if spec.data.pooled else ''}"


def choose_data(what: str, form: Form | None = None, fields: dict[str, Any] | None = None) -> ChosenData:
    """Return the data of a specification, or of a folder in ``form`` (None: found by its files), with ``fields`` set.

    Raises:
        SpecError: there is no such preset, file or folder, or a field is wrong.
    """
    below = {f"data.{name}": value for name, value in (fields or {}).items()}
    root = Path(what)
    if not root.is_dir():
        if form is not None:
            raise SpecError(f"--form {form}: expected a folder, found {what}")
        return ChosenData(choose_spec(what, below)[1].data)
    kinds: dict[Form, DataSpec] = {
        "street": FederatedStreet(name=CHOSEN),
        "coco": Coco(name=CHOSEN),
        "voc": VocFolders(name=CHOSEN),
    }
    data = kinds[form or _form_of(root)]
    return ChosenData(with_fields(FederationSpec(data=data), below, source=what).data, root)


def _is_file(what: str, presets: Container[str]) -> bool:
    path = Path(what)
    return path.suffix in {".yaml", ".yml", ".json"} or (path.exists() and what not in presets)


def _form_of(root: Path) -> Form:
    """Return the form of the data in the folder ``root``, found by the names of its files.

    Raises:
        SpecError: the folder has none of the forms.
    """
    if (root / "train_label.json").exists():
        return "street"
    if (root / "train.json").exists() or (root / "annotations").is_dir():
        return "coco"
    if any((folder / "Annotations").is_dir() for folder in (root, *root.iterdir())):
        return "voc"
    raise SpecError(
        f"{root}: expected train_label.json (street), train.json or annotations/ (coco) or Annotations/ in it or in "
        "a folder for each device (voc); or set --form"
    )
