"""Reading the YAML files that specifications are written in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.errors import SpecError


def read_yaml(path: Path) -> Any:
    """The document of a YAML (or JSON) file; an empty one is an empty mapping.

    Raises:
        SpecError: the file is missing, or is no YAML.
    """
    import yaml  # here, so that the core loads without it

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: bytes, dates, huge numbers
        raise SpecError(f"{path}: expected YAML: {' '.join(str(error).split())}") from None
    return {} if document is None else document
