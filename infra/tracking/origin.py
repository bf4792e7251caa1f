"""Where an MLflow run comes from: its user, its command or deployment, and the commit of the sources."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Literal

_SOURCES = Path(__file__).resolve().parents[2]

SourceType = Literal["LOCAL", "JOB"]


def origin_tags(source: str, kind: SourceType) -> dict[str, str]:
    """Return MLflow's own tags of a new run, for the columns User, Source and Version of its page.

    source: the command, or the deployment's name. kind: JOB for a deployment. The tag of the commit is left out unless
    the sources are a git checkout.
    """
    from mlflow.utils.git_utils import get_git_commit

    # Without this check a package in a virtual environment inside another project's checkout would get its commit.
    commit = get_git_commit(str(_SOURCES)) if (_SOURCES / ".git").exists() else None
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": source,
        "mlflow.source.type": kind,
        "mlflow.source.git.commit": commit,
    }
    return {name: value for name, value in tags.items() if value is not None}


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container whose user has no name
        return None
