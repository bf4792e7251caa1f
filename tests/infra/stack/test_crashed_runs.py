"""Which crashed runs are resumed: those that crashed long enough ago, even when a clock is wrong."""

from __future__ import annotations

from infra.stack.crashed_runs import SETTLED_SECONDS, Sightings
from tests.infra.stack.clock import Clock

HOUR = 3600.0


def test_a_crash_with_a_clock_ahead_counts_from_its_first_sighting() -> None:
    clock = Clock()
    sightings = Sightings(clock)
    assert sightings.look({"crash": -2 * HOUR}) == set()
    clock.now += SETTLED_SECONDS
    assert sightings.look({"crash": -2 * HOUR + SETTLED_SECONDS}) == {"crash"}


def test_a_crash_with_a_clock_behind_counts_if_it_is_new_since_the_last_look() -> None:
    clock = Clock()
    sightings = Sightings(clock)
    assert sightings.look({"old": 2 * HOUR}) == set()
    clock.now += SETTLED_SECONDS
    assert sightings.look({"old": 2 * HOUR, "new": 2 * HOUR}) == {"new"}
    clock.now += SETTLED_SECONDS
    assert sightings.look({"old": 2 * HOUR}) == set()


def test_setting_the_clock_between_two_looks_changes_nothing() -> None:
    clock = Clock()
    sightings = Sightings(clock)
    sightings.look({})
    sightings.look({"crash": 5.0})
    clock.now += 10.0
    assert sightings.look({"crash": -HOUR}) == set()  # set back
    clock.now += SETTLED_SECONDS
    assert sightings.look({"crash": 24 * HOUR}) == {"crash"}  # set ahead


def test_with_right_clocks_the_age_of_a_crash_decides() -> None:
    ages = {"young": SETTLED_SECONDS - 1, "settled": SETTLED_SECONDS, "late": HOUR, "forgotten": HOUR + 1}
    assert Sightings(Clock()).look(ages) == {"settled", "late"}
