"""When the cells of a suite run, and the estimate of the time left."""

from __future__ import annotations

import asyncio

import pytest

from flows.suite.schedule import Estimate, duration, run_all, slots_of
from tasks.spec.participation import Participation
from tasks.spec.presets import preset
from tasks.spec.suite import Cell, Experiment, SuiteSpec, cells_of

SPEC = preset("smoke").model_copy(update={"max_rounds": 10})
CELLS = cells_of(
    SuiteSpec(name="test", experiments=(Experiment(name="a", spec=SPEC, seeds=(1, 2), local_only=True, local_seeds=1),))
)
WEIGHTS = {cell.name: slots_of(cell, 2) for cell in CELLS}


def test_a_federation_takes_all_slots_and_a_reference_takes_one() -> None:
    assert {cell.role: WEIGHTS[cell.name] for cell in CELLS} == {"federated": 2, "centralised": 1, "local-only": 1}
    few = SPEC.model_copy(update={"participation": Participation(clients_per_round=3)})
    packed = SPEC.model_copy(update={"participation": Participation(shards=2)})
    for spec, slots in ((SPEC, 5), (few, 3), (packed, 2)):
        assert slots_of(Cell(experiment="a", role="federated", seed=1, spec=spec), 16) == slots


def test_cells_share_the_slots_and_all_are_run() -> None:
    most, used, order = 0, 0, []

    async def run(cell: Cell) -> None:
        nonlocal most, used
        order.append(cell.name)
        used += WEIGHTS[cell.name]
        most = max(most, used)
        await asyncio.sleep(0.001)
        used -= WEIGHTS[cell.name]

    asyncio.run(run_all(CELLS, WEIGHTS, 2, run))
    assert sorted(order) == sorted(cell.name for cell in CELLS)
    assert order[0] == CELLS[0].name
    assert (most, used) == (2, 0)


def test_an_error_in_a_cell_ends_the_others() -> None:
    ended = []

    async def run(cell: Cell) -> None:
        try:
            await asyncio.sleep(0.001 if cell.seed == 1 and cell.role == "centralised" else 60)
        except asyncio.CancelledError:
            ended.append(cell.name)
            raise
        raise ValueError(cell.name)

    references = [cell for cell in CELLS if cell.role != "federated"]
    with pytest.raises(ValueError, match=r"a\.s1-central"):
        asyncio.run(run_all(references, WEIGHTS, 2, run))
    assert ended == ["a.s1-local-1"]


def test_the_time_left_is_estimated_from_similar_cells() -> None:
    now = 0.0
    estimate = Estimate(WEIGHTS, 2, clock=lambda: now)
    by_name = {cell.name: cell for cell in CELLS}
    first, second = by_name["a.s1"], by_name["a.s2"]
    assert estimate.left(CELLS) is None
    estimate.began(first, 2)
    now = 30.0
    assert estimate.left([]) is None  # the cell has committed no round since its start
    estimate.stands_at(first, 5)
    assert estimate.left([]) == pytest.approx(5 * 10)  # 10 s a round, on both slots
    assert estimate.left([second]) == pytest.approx(15 * 10)
    estimate.ended(first, 120.0)
    assert estimate.left([second]) == pytest.approx(120)
    # Each takes one slot, so both run together, each with ten rounds of 12 s.
    centralised = [by_name["a.s1-central"], by_name["a.s2-central"]]
    assert estimate.left(centralised) == pytest.approx(120)
    estimate.ended(centralised[0], 300.0)
    assert estimate.left([centralised[1]]) == pytest.approx(300)  # the other slot does not help


def test_the_time_left_falls_within_a_round() -> None:
    now = 0.0
    estimate = Estimate(WEIGHTS, 2, clock=lambda: now)
    cell = next(cell for cell in CELLS if cell.name == "a.s1")
    estimate.began(cell, 0)
    now = 10.0
    estimate.stands_at(cell, 1)
    now = 14.0
    estimate.stands_at(cell, 1)
    assert estimate.left([]) == pytest.approx(9 * 10 - 4)
    now = 45.0  # a late round counts as about to end
    assert estimate.left([]) == pytest.approx(8 * 10)


def test_durations_are_formatted() -> None:
    assert [duration(seconds) for seconds in (8.4, 240, 4799)] == ["8 s", "4 min", "80 min"]
    assert duration(5400) == "1 h 30 min"
