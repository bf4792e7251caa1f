"""The names of records are what Prefect allows, and each deployment has its own."""

from __future__ import annotations

from prefect.client.schemas.actions import VariableCreate

from flows.deployments.edits import Written
from flows.deployments.names import RECORDS
from flows.deployments.records import record_name
from flows.deployments.table import deployments


def test_prefect_accepts_the_names_and_the_records() -> None:
    names = [item.full_name for item in deployments()]
    same = ("federation/My yards", "federation/my-yards", "federation/my.yards", "a/b-c", "a-b/c")
    odd = (*same, "federation/" + "ä" * 300)
    found = [record_name(name) for name in (*names, *odd)]
    assert len(set(found)) == len(found)
    for name in found:
        assert name.startswith(RECORDS)
        assert VariableCreate(name=name, value=Written({"a": {"b": "c"}}, None).document("id")).name == name
    assert record_name("federation/street5").startswith("fedbench-deployed-federation-street5-")
