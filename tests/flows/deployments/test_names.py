"""The names of flows in flows.deployments.names, which may not import Prefect, are the real ones."""

from __future__ import annotations

import pytest
from prefect import Flow

from flows import clean_up, federation, resident, round
from flows.deployments.names import FLOWS, RESIDENT_FLOW, RESUMED_FLOWS, resident_deployment
from flows.deployments.table import deployments
from flows.suite import flow


def test_the_names_of_all_flows_are_listed() -> None:
    modules = (clean_up, federation, resident, round, flow)
    found = {item.name for module in modules for item in vars(module).values() if isinstance(item, Flow)}
    assert found == set(FLOWS)
    assert set(RESUMED_FLOWS) < found


@pytest.mark.parametrize("item", deployments(), ids=lambda item: item.full_name)
def test_deployments_use_only_listed_flows(item) -> None:  # type: ignore[no-untyped-def]
    name = item.full_name.partition("/")[0]
    assert name in FLOWS
    if name == RESIDENT_FLOW:
        assert item.full_name == resident_deployment(item.pool)
