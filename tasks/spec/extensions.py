"""Methods and detectors of other installed packages, found through entry points.

A package names the class of a specification for each kind that it brings; in its ``pyproject.toml``:

    [project.entry-points."fedbench.strategies"]
    fedavg-clipped = "fedbench_clipped.spec:ClippedFedAvgSpec"

The entry point's name is the kind. The class's ``implementation`` names the class that trains and aggregates, or the
network (``"fedbench_clipped.method:ClippedFedAvg"``), which is imported when it is needed. The module of the
specification is imported with every specification, so it should import quickly; and it may not import
:mod:`tasks.spec.federation`, which imports it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Union

from pydantic import BaseModel, Field, TypeAdapter

from tasks.documents.by_type import tags
from tasks.errors import SpecError

STRATEGIES, DETECTORS = "fedbench.strategies", "fedbench.detectors"
GROUPS = (STRATEGIES, DETECTORS)
# The group that brings further kinds of a specification's field.
GROUP_OF = {"strategy": STRATEGIES, "detector": DETECTORS}
_KIND = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class Package:
    """An installed package that brings kinds. module: its top-level module."""

    name: str
    version: str
    module: str

    def sources(self) -> list[tuple[str, Path]]:
        """Return the files of the top-level module, each with its name in the package, in order; it isn't imported."""
        found = util.find_spec(self.module)
        if found is None:
            return []
        folders = [Path(folder) for folder in found.submodule_search_locations or ()]
        if not folders:
            return [(self.module, Path(found.origin))] if found.origin else []
        return sorted((path.relative_to(root).as_posix(), path) for root in folders for path in root.rglob("*.py"))


@dataclass(frozen=True)
class Extensions:
    """The specifications that other packages bring for one group, in order of their kinds.

    faults: why a package's specification was left out, one text for each.
    """

    specs: tuple[type[BaseModel], ...]
    faults: tuple[str, ...]


def load(group: str, base: type[BaseModel], built_in: Sequence[type[BaseModel]]) -> Extensions:
    """Import the specifications that installed packages bring for ``group``. A faulty one is left out.

    base: the class that they must have as a base. built_in: fedbench's own specifications, whose kinds are taken.
    """
    specs: list[type[BaseModel]] = []
    faults: list[str] = []
    taken = {str(tags(spec)["kind"]): "fedbench" for spec in built_in}
    for entry in _entry_points(group):
        where = f"{_named(entry)}: entry point {entry.name} = {entry.value} of {group}"
        if entry.name in taken:
            faults.append(f"{where}: expected another name, because {taken[entry.name]} has this kind already")
            continue
        try:
            specs.append(_checked(entry.load(), entry.name, base, built_in[0]))
        except _Faulty as error:
            faults.append(f"{where}: {error}")
        except Exception as error:  # whatever a package's module does wrong, the other kinds must go on working
            faults.append(
                f"{where}: expected a class with the base {base.__module__}.{base.__name__}; it cannot be imported: "
                f"{type(error).__name__}: {error}"
            )
        else:
            taken[entry.name] = _named(entry)
    _FAULTS[group] = tuple(faults)
    return Extensions(tuple(specs), tuple(faults))


def faults(group: str | None = None) -> tuple[str, ...]:
    """Return why specifications of other packages were left out, of ``group`` or of all groups that were loaded."""
    return tuple(text for name in GROUPS if group in (None, name) for text in _FAULTS.get(name, ()))


def hint(field: str) -> str:
    """Return what to add to the error on an unknown kind in ``field``: why it may be missing. Empty for most fields."""
    group = GROUP_OF.get(field)
    if group is None:
        return ""
    left_out = "".join(f"; {text}" for text in faults(group))
    return f"; a kind of another package needs that package installed here (entry point group {group}){left_out}"


def implementation(path: str, base: type, *, field: str) -> type[Any]:
    """Return the class that a specification's ``implementation`` names.

    Raises:
        SpecError: it cannot be imported, or ``base`` is no base of it. The message names ``field`` and the class.
    """
    expected = f"{field}: expected {path} to be a class with the base {base.__module__}.{base.__name__}"
    try:
        found = resolve_name(path)
    except Exception as error:  # the package's own code
        raise SpecError(f"{expected}; it cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise SpecError(f"{expected}, found {found!r}")
    return found


@functools.cache
def installed() -> dict[str, metadata.EntryPoints]:
    """Return the entry points of each of our groups. Finding them reads a file of every installed package, so once."""
    everything: Any = metadata.entry_points()  # its type depends on the version of Python
    return {group: everything.select(group=group) for group in GROUPS}


@functools.cache
def packages() -> tuple[Package, ...]:
    """Return the installed packages that bring kinds, in order of their names. None is imported."""
    found = {
        Package(entry.dist.name, entry.dist.version, entry.module.split(".")[0])
        for group in GROUPS
        for entry in _entry_points(group)
        if entry.dist is not None
    }
    return tuple(sorted(found, key=lambda package: (package.name, package.version, package.module)))


_FAULTS: dict[str, tuple[str, ...]] = {}


class _Faulty(Exception):
    """The text says what was expected of a specification, and what was found."""


def _entry_points(group: str) -> Iterator[metadata.EntryPoint]:
    """Yield the entry points of ``group`` in an order that is the same in every process."""
    yield from sorted(installed()[group], key=lambda entry: (entry.name, _named(entry), entry.value))


def _named(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "a package"


def _checked(found: Any, kind: str, base: type[BaseModel], default: type[BaseModel]) -> type[BaseModel]:
    """Return ``found`` if it is a specification of ``kind`` that can stand in a union beside ``default``.

    Raises:
        _Faulty: it is not.
    """
    if not (isinstance(found, type) and issubclass(found, base)):
        raise _Faulty(f"expected a class with the base {base.__module__}.{base.__name__}, found {found!r}")
    if not _KIND.fullmatch(kind):
        raise _Faulty("expected a name of at most 64 small letters, digits and hyphens")
    if tags(found).get("kind") != kind:
        raise _Faulty(f'expected the field kind: Literal["{kind}"] = "{kind}", as the entry point is named')
    if not getattr(found, "implementation", ""):
        raise _Faulty('expected implementation, a class variable such as "package.module:Class", found none')
    union: Any = Annotated[Union[default, found], Field(discriminator="kind")]  # noqa: UP007 - not for type checkers
    TypeAdapter(union)  # raises if pydantic cannot tell the two apart
    return found
