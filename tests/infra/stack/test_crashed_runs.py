"""Which crashes are old enough to go on from, whatever the clocks say."""

from __future__ import annotations

from infra.stack.crashed_runs import SETTLED_SECONDS, Sightings
from tests.infra.stack.clock import Clock

HOUR = 3600.0


def test_a_crash_whose_clock_is_ahead_counts_from_when_it_was_seen() -> None:
    clock = Clock()
    sightings = Sightings(clock)
    assert sightings.look({"crash": -2 * HOUR}) == set()
    clock.now += SETTLED_SECONDS
    assert sightings.look({"crash": -2 * HOUR + SETTLED_SECONDS}) == {"crash"}


def test_a_crash_whose_clock_is_behind_is_not_forgotten_if_it_happened_meanwhile() -> None:
    clock = Clock()
    sightings = Sightings(clock)
    assert sightings.look({"old": 2 * HOUR}) == set()
    clock.now += SETTLED_SECONDS
    assert sightings.look({"old": 2 * HOUR, "new": 2 * HOUR}) == {"new"}
    clock.now += SETTLED_SECONDS
    assert sightings.look({"old": 2 * HOUR}) == set()


def test_a_clock_that_is_set_between_two_looks_changes_nothing() -> None:
    clock = Clock()
    sightings = Sightings(clock)
    sightings.look({})
    sightings.look({"crash": 5.0})
    clock.now += 10.0
    assert sightings.look({"crash": -HOUR}) == set()  # set back
    clock.now += SETTLED_SECONDS
    assert sightings.look({"crash": 24 * HOUR}) == {"crash"}  # set ahead


def test_crashes_by_right_clocks() -> None:
    ages = {"young": SETTLED_SECONDS - 1, "settled": SETTLED_SECONDS, "late": HOUR, "forgotten": HOUR + 1}
    assert Sightings(Clock()).look(ages) == {"settled", "late"}
