"""Python processes that import nothing from the folder in which they are started.

``python -c``, by which multiprocessing starts its helpers (the fork server, the resource tracker), looks for modules in
the working folder first. In a folder that others can write to, such as ``/tmp``, theirs would run as this user.
"""

from __future__ import annotations

from collections.abc import MutableMapping

SAFE_PATH = "PYTHONSAFEPATH"
_OURS = "fedbench"  # any text switches it on


def keep_folder_out_of_imports(environment: MutableMapping[str, str]) -> None:
    """Have Python processes with ``environment`` import nothing from their working folder."""
    if not environment.get(SAFE_PATH):
        environment[SAFE_PATH] = _OURS


def as_the_user_has_it(environment: MutableMapping[str, str]) -> None:
    """Undo :func:`keep_folder_out_of_imports`: for workers, whose flows may import what is beside them."""
    if environment.get(SAFE_PATH) == _OURS:
        del environment[SAFE_PATH]
