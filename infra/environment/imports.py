"""Keep Python processes from importing modules of their working folder.

multiprocessing starts its helpers (the fork server, the resource tracker) with ``python -c``, which looks for modules
in the working folder first. In a folder that others can write to, such as ``/tmp``, their modules would run as this
user.
"""

from __future__ import annotations

from collections.abc import MutableMapping

SAFE_PATH = "PYTHONSAFEPATH"
_OURS = "fedbench"  # any text switches it on


def keep_folder_out_of_imports(environment: MutableMapping[str, str]) -> None:
    """Set ``environment`` so that its Python processes import nothing from their working folder."""
    if not environment.get(SAFE_PATH):
        environment[SAFE_PATH] = _OURS


def allow_folder_in_imports(environment: MutableMapping[str, str]) -> None:
    """Undo :func:`keep_folder_out_of_imports`, for workers: their flows may import modules from their own folder."""
    if environment.get(SAFE_PATH) == _OURS:
        del environment[SAFE_PATH]
