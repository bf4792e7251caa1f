"""Keep what ``fedbench deploy`` wrote last in variables of the Prefect server, one for each deployment.

A variable, because the API has no other field that a person does not edit: labels can be set only by making the
deployment anew, which empties its parameters. A record has hashes of the values, so that it is short.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from flows.deployments.edits import Written
from flows.deployments.names import RECORDS

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

_ANSWER = 200  # objects in one answer of Prefect's API
_MOST_CHARACTERS = 180  # of the deployment's name in the variable's, which has up to 255


def record_name(full_name: str) -> str:
    """Return the name of the variable for a deployment: Prefect allows a-z, 0-9, hyphens and underscores."""
    readable = re.sub(r"[^a-z0-9_]+", "-", full_name.lower())[:_MOST_CHARACTERS]
    return f"{RECORDS}{readable}-{hashlib.sha256(full_name.encode()).hexdigest()[:8]}"


class Records:
    """The records on a server."""

    def __init__(self, client: PrefectClient, documents: Mapping[str, object]) -> None:
        self._client = client
        self._documents = dict(documents)

    @classmethod
    async def read(cls, client: PrefectClient) -> Records:
        """Return all records of the server."""
        documents: dict[str, object] = {}
        for start in range(0, 100 * _ANSWER, _ANSWER):
            query = {"variables": {"name": {"like_": RECORDS}}, "limit": _ANSWER, "offset": start, "sort": "NAME_ASC"}
            found: list[dict[str, Any]] = (await client.request("POST", "/variables/filter", json=query)).json()
            documents |= {item["name"]: item["value"] for item in found if item["name"].startswith(RECORDS)}
            if len(found) < _ANSWER:
                break
        return cls(client, documents)

    def written(self, full_name: str, deployment: UUID) -> Written | None:
        """Return what was written last into the deployment; None if that is not known."""
        return Written.of_document(self._documents.get(record_name(full_name)), str(deployment))

    async def write(self, full_name: str, deployment: UUID, written: Written) -> None:
        """Record what was written, unless the record has it."""
        name, document = record_name(full_name), written.document(str(deployment))
        before = self._documents.get(name)
        if before == document:
            return
        if name in self._documents:
            await self._client.update_variable(VariableUpdate(name=name, value=document))
        else:
            await self._client.create_variable(VariableCreate(name=name, value=document, tags=["fedbench"]))
        self._documents[name] = document

    async def remove_stale(self) -> None:
        """Remove the records of deployments that the server no longer has."""
        ids = {name: _deployment_of(document) for name, document in self._documents.items()}
        wanted = sorted({item for item in ids.values() if item is not None}, key=str)
        there: set[UUID] = set()
        for start in range(0, len(wanted), _ANSWER):
            some = DeploymentFilter(id=DeploymentFilterId(any_=wanted[start : start + _ANSWER]))
            there |= {item.id for item in await self._client.read_deployments(deployment_filter=some)}
        for name, deployment in ids.items():
            if deployment not in there:
                await self._client.delete_variable_by_name(name)
                del self._documents[name]


def _deployment_of(document: object) -> UUID | None:
    try:
        return UUID(document["deployment"]) if isinstance(document, Mapping) else None
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
