"""Read the YAML files of specifications."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.documents.errors import DocumentError
from tasks.documents.regular_file import read_regular_text
from tasks.documents.yaml_text import read_document
from tasks.errors import SpecError


def read_yaml(path: Path) -> Any:
    """Return the document in a YAML (or JSON) file; an empty mapping for an empty file.

    Plain scalars of YAML are :class:`~tasks.documents.plain.Plain`; :func:`tasks.spec.base.parse` turns them into
    values.

    Raises:
        SpecError: the file is missing, is no YAML, or has a key twice.
    """
    try:
        document = read_document(read_regular_text(path), str(path))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: expected YAML: {error}") from None
    except DocumentError as error:
        raise SpecError(error.of(path)) from None
    return {} if document is None else document
