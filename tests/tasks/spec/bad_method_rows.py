"""Rows of the table of bad methods (``test_bad_methods.py``): each gives one way in which a user names a method."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.exceptions import ParameterTypeError

from flows.federation import federation
from tasks.errors import SpecError
from tasks.spec.federation import load_spec
from tasks.spec.suite import load_suite
from tests.flows.command import fedbench

# Returns the text of the refusal. The folder is the row's own.
Refuse = Callable[[Path], str]
Row = tuple[Refuse, tuple[str, ...]]


def by_file(strategy: Any, *says: str, **others: Any) -> Row:
    """Return a row that reads a YAML file with ``strategy``. others: its other fields."""

    def refuse(folder: Path) -> str:
        path = folder / "my.yaml"
        path.write_text(yaml.safe_dump({"strategy": strategy, **others}))
        with pytest.raises(SpecError) as refused:
            load_spec(path)
        return str(refused.value)

    return refuse, ("my.yaml: ", *says)


def by_options(*assignments: str, says: tuple[str, ...], preset: str = "street5_laptop") -> Row:
    """Return a row that calls ``fedbench run PRESET -s …``. The command ends with code 2 and starts nothing."""

    def refuse(folder: Path) -> str:
        home = folder / "home"
        options = [word for assignment in assignments for word in ("-s", assignment)]
        result = fedbench("run", preset, "--home", home, *options)
        assert result.exit_code == 2, result.output
        assert not home.exists()
        return result.output

    return refuse, says


def by_suite(fields: dict[str, Any], *says: str) -> Row:
    """Return a row that reads a suite whose experiment ``a`` sets ``fields`` of ``street5_laptop``."""

    def refuse(folder: Path) -> str:
        path = folder / "suite.yaml"
        experiment = {"name": "a", "spec": "street5_laptop", "set": fields}
        path.write_text(yaml.safe_dump({"name": "mine", "experiments": [experiment]}))
        with pytest.raises(SpecError) as refused:
            load_suite(path)
        return str(refused.value)

    return refuse, ("suite.yaml: experiments.a: ", *says)


def by_form(spec: dict[str, Any], *says: str) -> Row:
    """Return a row that starts the flow with ``spec``, as Prefect's form does."""

    def refuse(folder: Path) -> str:
        logging.disable()
        try:
            with pytest.raises(ParameterTypeError) as refused:
                federation.validate_parameters({"name": "mine", "spec": spec})
        finally:
            logging.disable(logging.NOTSET)
        return str(refused.value)

    return refuse, says
