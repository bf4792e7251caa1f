"""The description on the page of an MLflow run. A person can edit it there, and then it stays."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NOTE = "mlflow.note.content"
_OURS = "fedbench.note_sha256"  # digest of the description that was written last
_LENGTH = 8000  # MLflow's limit of a tag's value


def write_note(client: MlflowClient, run_id: str, text: str) -> None:
    """Set the run's description to ``text`` (Markdown). A description that a person has written or changed stays."""
    from mlflow.entities import RunTag

    text = text[:_LENGTH]
    tags = client.get_run(run_id).data.tags
    there = tags.get(_NOTE)
    if there == text or (there is not None and _digest(there) != tags.get(_OURS)):
        return
    client.log_batch(run_id, tags=[RunTag(_NOTE, text), RunTag(_OURS, _digest(text))])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
