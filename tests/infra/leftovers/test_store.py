"""Which objects of a federation may be removed, decided from literal listings."""

from __future__ import annotations

from datetime import timedelta

from infra.leftovers.store import (
    NEVER_COMMITTED,
    NO_RECORD,
    OLD_DETECTIONS,
    OLD_EVALUATION,
    OLD_GLOBAL,
    OLD_STATE,
    OLD_UPDATE,
    SERVER_TEMPORARY,
    SUPERSEDED,
    Retention,
    federation_leftovers,
    kept_rounds,
    removal_steps,
    upload_leftovers,
)
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectEntry
from infra.store.uploads import IncompleteUpload
from tests.infra.leftovers.ages import DAYS, HOURS, MINUTES, NOW

LAYOUT = FederationLayout("federations", "mine")
COMMITTED = ["spec.json", "best.json", "sheet.png"] + [
    f"rounds/{number:04d}/{file}" for number in range(5) for file in ("plan.json", "round.json", "global.safetensors")
]
UNFINISHED = [
    "rounds/0005/plan.json",
    "rounds/0005/updates/1.safetensors",
    "rounds/0005/updates/1.json",
    "rounds/0005/global.safetensors",
    "rounds/0005/evaluations/p.safetensors",
    "rounds/0005/evaluations/1/p.safetensors",
]


def listing(names: list[str], age: timedelta) -> list[ObjectEntry]:
    return [ObjectEntry(f"federations/mine/{name}", 10, NOW - age) for name in names]


def plan(
    entries: list[ObjectEntry], best: int = 1, retention: Retention | None = None, states: list[str] | None = None
) -> dict[str, str]:
    """Return the names below the federation's root that may be removed, each with its reason."""
    named = [f"{LAYOUT.root}{name}" for name in states or ()]
    found = federation_leftovers(LAYOUT, entries, {best}, retention or Retention(), NOW, named)
    assert all(leftover.federation == "mine" and leftover.bytes == 10 for leftover in found)
    return {leftover.key.removeprefix(LAYOUT.root): leftover.reason for leftover in found}


def test_the_best_and_the_last_two_globals_stay() -> None:
    old = {f"rounds/000{number}/global.safetensors": OLD_GLOBAL for number in (0, 2)}
    assert plan(listing(COMMITTED, 2 * MINUTES)) == old
    assert plan(listing(COMMITTED, 99 * DAYS)) == old
    assert plan(listing(COMMITTED, 2 * MINUTES), best=4) == old | {"rounds/0001/global.safetensors": OLD_GLOBAL}
    assert plan(listing(COMMITTED, 2 * MINUTES), retention=Retention(keep_globals=4)) == {
        "rounds/0000/global.safetensors": OLD_GLOBAL
    }
    assert len(plan(listing(COMMITTED, 2 * MINUTES), retention=Retention(keep_globals=0))) == 2  # two are always kept
    both = federation_leftovers(LAYOUT, listing(COMMITTED, DAYS), {0, 2}, Retention(), NOW)
    assert [leftover.key for leftover in both] == [LAYOUT.global_weights(1)]


def test_updates_of_a_committed_round_go_unless_they_are_kept() -> None:
    updates = ["rounds/0003/updates/1.safetensors", "rounds/0003/updates/1.json"]
    kept = [name for name in COMMITTED if "global" not in name]
    assert plan(listing(kept + updates, 2 * MINUTES)) == dict.fromkeys(updates, OLD_UPDATE)
    assert plan(listing(kept + updates, 99 * DAYS), retention=Retention(keep_updates=True)) == {}


def test_detections_stay_as_long_as_the_global_weights() -> None:
    found = [f"rounds/{number:04d}/detections.npz" for number in range(6)]
    kept = [name for name in COMMITTED if "global" not in name]
    old = dict.fromkeys([found[0], found[2]], OLD_DETECTIONS)
    assert plan(listing(kept + found, 2 * MINUTES)) == old  # round 5 was never committed
    assert plan(listing(kept + found, 8 * DAYS)) == old | {found[5]: NEVER_COMMITTED}


def test_states_of_rounds_with_kept_weights_stay_wherever_they_are() -> None:
    """Client 5 was last counted in round 0, client 3 in round 2; only round 4 names their states."""
    named = [
        "rounds/0000/state/5.safetensors", "rounds/0002/state/3.safetensors", "rounds/0004/server.safetensors",
        "rounds/0004/shared.safetensors", "rounds/0004/state/4.safetensors",
    ]  # fmt: skip
    old = [
        "rounds/0001/state/5.safetensors", "rounds/0002/server.safetensors", "rounds/0002/shared.safetensors",
        "rounds/0004/state/3.safetensors",
    ]  # fmt: skip
    kept = [name for name in COMMITTED if "global" not in name]
    for age in (2 * MINUTES, 99 * DAYS):
        assert plan(listing(kept + named + old, age), states=named) == dict.fromkeys(old, OLD_STATE)
        assert plan(listing(kept + old, age), retention=Retention(keep_updates=True)) == dict.fromkeys(old, OLD_STATE)
    assert kept_rounds(range(5), {1, 9}, Retention()) == {1, 3, 4}
    assert kept_rounds(range(5), {4}, Retention(keep_globals=3)) == {2, 3, 4}


def test_states_of_an_unfinished_round_go_with_its_updates() -> None:
    kept = listing([name for name in COMMITTED if "global" not in name], 99 * DAYS)
    states = [
        "rounds/0005/server.safetensors", "rounds/0005/shared.safetensors", "rounds/0005/state/1.safetensors",
    ]  # fmt: skip
    assert plan(kept + listing(states, 6 * DAYS)) == {}
    assert plan(kept + listing(states, 8 * DAYS)) == dict.fromkeys(states, NEVER_COMMITTED)
    strange = ["rounds/0003/state/deep/1.safetensors", "rounds/0003/state/1.json"]
    assert plan(kept + listing(strange, 8 * DAYS)) == dict.fromkeys(strange, NO_RECORD)


def test_evaluations_of_a_committed_round_go_after_an_hour() -> None:
    kept, parts = (
        listing([name for name in COMMITTED if "global" not in name], DAYS),
        ["rounds/0004/evaluations/p.safetensors", "rounds/0004/evaluations/1/p.safetensors"],
    )
    assert plan(kept + listing(parts, 59 * MINUTES)) == {}
    assert plan(kept + listing(parts, 61 * MINUTES)) == dict.fromkeys(parts, OLD_EVALUATION)


def test_an_unfinished_round_goes_after_a_long_time_without_writes() -> None:
    kept = listing([name for name in COMMITTED if "global" not in name], 99 * DAYS)
    unfinished = dict.fromkeys(UNFINISHED[1:], NEVER_COMMITTED)  # all but its plan
    assert plan(kept + listing(UNFINISHED, 8 * DAYS)) == unfinished
    assert plan(kept + listing(UNFINISHED, 6 * DAYS)) == {}
    assert plan(kept + listing(UNFINISHED, 6 * DAYS), retention=Retention(older_than=5 * DAYS)) == unfinished
    # One young object shows that a process is still working on the round.
    young = listing(["rounds/0005/updates/2.json"], 2 * HOURS)
    assert plan(kept + listing(UNFINISHED, 8 * DAYS) + young) == {}
    # The shortest limit is an hour.
    assert plan(kept + listing(UNFINISHED, 59 * MINUTES), retention=Retention(older_than=timedelta(0))) == {}
    assert plan(kept + listing(UNFINISHED, 61 * MINUTES), retention=Retention(older_than=timedelta(0))) == unfinished


def test_a_federation_without_a_committed_round_loses_only_its_orphans() -> None:
    names = ["spec.json", "rounds/0000/global.safetensors", "rounds/0000/evaluations/p.safetensors"]
    assert plan(listing(names, 8 * DAYS)) == dict.fromkeys(names[1:], NEVER_COMMITTED)
    assert plan(listing(names, DAYS)) == {}
    assert plan([]) == {}


def test_objects_that_no_record_names_go_after_a_long_time_without_writes() -> None:
    strange = [
        "note.txt",
        "rounds/0003/x.safetensors",
        "rounds/00003/global.safetensors",
        "rounds/0003/updates/deep/1.json",
        "rounds/latest/global.safetensors",
    ]
    guarded = ["rounds/x/round.json", "copy/spec.json", "old/best.json"]
    kept = [name for name in COMMITTED if "global" not in name]
    assert plan(listing(kept + strange + guarded, 8 * DAYS)) == dict.fromkeys(strange, NO_RECORD)
    assert plan(listing(kept + strange + guarded, 6 * DAYS)) == {}


def test_weights_of_rounds_put_aside_go_one_after_the_other_and_their_records_stay() -> None:
    kept = listing([name for name in COMMITTED if "global" not in name], 2 * MINUTES)
    aside = ["superseded/0001/0005/global.safetensors", "superseded/0001/0005/updates/1.safetensors"]
    records = [
        "superseded/0001/superseded.json", "superseded/0001/0005/round.json", "superseded/0001/0005/plan.json",
        "superseded/0001/0005/updates/1.json",
    ]  # fmt: skip
    assert plan(kept + listing(aside + records, 6 * DAYS)) == {}
    assert plan(kept + listing(aside + records, 8 * DAYS)) == dict.fromkeys(aside, SUPERSEDED)
    assert plan(kept + listing(aside[:1], 8 * DAYS) + listing(aside[1:], 6 * DAYS)) == {aside[0]: SUPERSEDED}
    keys = [f"{LAYOUT.root}{name}" for name in COMMITTED + aside + records]
    assert {key for key in keys if "superseded" in key} <= set(removal_steps(LAYOUT, keys)[0])


def test_the_servers_temporary_files_go_after_an_hour() -> None:
    kept = listing([name for name in COMMITTED if "global" not in name], 2 * MINUTES)
    names = ["rounds/0005/updates/.rclone_temp_put_1", ".rclone_temp_put_2"]
    assert plan(kept + listing(names, 59 * MINUTES)) == {}
    assert plan(kept + listing(names, 61 * MINUTES)) == dict.fromkeys(names, SERVER_TEMPORARY)


def test_a_federation_whose_marker_is_missing_is_left_alone() -> None:
    damaged = [name for name in COMMITTED if name != "rounds/0002/round.json"]
    assert plan(listing(damaged + UNFINISHED, 99 * DAYS)) == {}


def test_other_federations_and_objects_outside_of_the_prefix_are_ignored() -> None:
    others = ["federations/mine-too/note.txt", "federations/store.json", "mlflow/1/x", "federations-old/mine/note.txt"]
    entries = [ObjectEntry(key, 10, NOW - 99 * DAYS) for key in others]
    assert federation_leftovers(LAYOUT, entries + listing(COMMITTED[:3], 99 * DAYS), set(), Retention(), NOW) == []
    assert federation_leftovers(LAYOUT, entries, set(), Retention(), NOW) == []


def test_incomplete_uploads_go_after_an_hour() -> None:
    key = LAYOUT.global_weights(5)
    uploads = [
        IncompleteUpload(key, "old", 7, NOW - 61 * MINUTES),
        IncompleteUpload(key, "young", 7, NOW - 59 * MINUTES),
        IncompleteUpload("mlflow/1/x", "other", 7, NOW - 99 * DAYS),
    ]
    (found,) = upload_leftovers(LAYOUT, uploads, NOW)
    assert (found.key, found.upload_id, found.bytes, found.kind) == (key, "old", 7, "upload")


def test_a_removal_cut_short_leaves_a_whole_federation() -> None:
    keys = [f"{LAYOUT.root}{name}" for name in COMMITTED + UNFINISHED]
    steps = removal_steps(LAYOUT, [*keys, "federations/other/spec.json"])
    assert sorted(key for step in steps for key in step) == sorted(keys)
    assert [step[0] for step in steps[1:]] == [*(LAYOUT.marker(number) for number in (4, 3, 2, 1, 0)), LAYOUT.spec]
    assert all(len(step) == 1 for step in steps[1:])


def test_the_lease_of_the_process_that_cleans_up_does_not_count_as_young() -> None:
    old = listing(COMMITTED + UNFINISHED, 8 * DAYS)
    note = ObjectEntry(f"{LAYOUT.lease}00000002-ab.json", 10, NOW)
    assert plan([*old, note]) == plan(old)
    assert NEVER_COMMITTED in plan(old).values()
    assert removal_steps(LAYOUT, [entry.key for entry in [*old, note]]) == removal_steps(
        LAYOUT, [entry.key for entry in old]
    )
