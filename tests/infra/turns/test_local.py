"""Slots with real processes: dead, late and cancelled turns, and slots that end with their coordinator."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from infra.errors import DeadlineExceeded, SlotLost
from infra.turns.local import LocalSlots
from tests.infra.turns import slot_turns
from tests.waiting import came_true, gone


def with_slots(count: int, use: Callable[[LocalSlots], Awaitable[None]], **environment: str) -> None:
    async def run() -> None:
        slots = LocalSlots(count, [], environment)
        try:
            await use(slots)
        finally:
            await slots.close()

    asyncio.run(run())


def test_a_slot_stays_warm_and_gets_its_environment() -> None:
    async def use(slots: LocalSlots) -> None:
        first = await slots.run(slot_turns.process, None)
        assert first != os.getpid()
        assert await slots.run(slot_turns.process, None) == first
        assert await slots.run(slot_turns.variable, "FEDBENCH_TEST_SECRET") == "for slots only"
        assert "FEDBENCH_TEST_SECRET" not in os.environ
        # An error of the turn itself is raised here, and the slot's process lives on.
        with pytest.raises(LookupError, match="client 3"):
            await slots.run(slot_turns.fail, "client 3")
        assert await slots.run(slot_turns.process, None) == first
        # Ctrl-C in a terminal reaches slots too, which ignore it: the coordinator decides what to do.
        assert await slots.run(slot_turns.outlive_interrupt, None) == "done"
        await slots.close()
        await came_true(lambda: gone(first))

    with_slots(1, use, FEDBENCH_TEST_SECRET="for slots only")


def test_two_slots_work_at_once_and_a_third_turn_waits(tmp_path: Path) -> None:
    async def use(slots: LocalSlots) -> None:
        assert slots.count == 2
        third = tmp_path / "third"
        third.mkdir()
        (tmp_path / "pair").mkdir()
        pair = [asyncio.create_task(slots.run(slot_turns.meet, (str(tmp_path / "pair"), 2))) for _ in range(2)]
        await asyncio.sleep(0)
        later = asyncio.create_task(slots.run(slot_turns.meet, (str(third), 1)))
        first, second = await asyncio.gather(*pair)
        assert first != second
        assert await later in (first, second)

    with_slots(2, use)


@pytest.mark.parametrize(
    ("turn", "argument"),
    [
        (slot_turns.end_with, 3),
        (slot_turns.end_with, 0),
        (slot_turns.die_by, signal.SIGKILL),
        (slot_turns.die_by, signal.SIGTERM),
    ],
    ids=["exit", "exit 0", "SIGKILL", "SIGTERM"],
)
def test_a_dead_turn_is_lost_and_the_slot_is_rebuilt(turn: Callable[[int], None], argument: int) -> None:
    async def use(slots: LocalSlots) -> None:
        before = await slots.run(slot_turns.process, None)
        with pytest.raises(SlotLost, match="slot 1: its process ended in the middle of a turn"):
            await slots.run(turn, argument)
        assert await slots.run(slot_turns.process, None) != before

    with_slots(1, use)


def test_a_lost_turn_runs_again_on_another_slot() -> None:
    async def use(slots: LocalSlots) -> None:
        with pytest.raises(SlotLost, match="slot 1"):
            await slots.run(slot_turns.end_with, 1)
        with pytest.raises(SlotLost, match="slot 2"):
            await slots.run(slot_turns.end_with, 1)
        with pytest.raises(SlotLost, match="slot 1"):
            await slots.run(slot_turns.end_with, 1)

    with_slots(2, use)


def test_a_slot_killed_while_idle_is_lost_once() -> None:
    async def use(slots: LocalSlots) -> None:
        pid = await slots.run(slot_turns.process, None)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SlotLost, match="slot 1: its process ended"):
            await slots.run(slot_turns.process, None)
        assert await slots.run(slot_turns.process, None) != pid

    with_slots(1, use)


def test_the_process_of_a_late_turn_is_ended(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    async def use(slots: LocalSlots) -> None:
        await slots.run(slot_turns.process, None)
        with pytest.raises(DeadlineExceeded, match="over its deadline of 1 s"):
            await slots.run(slot_turns.work, str(marker), deadline=1.0)
        pid = int(marker.read_text())
        await came_true(lambda: gone(pid))
        assert await slots.run(slot_turns.process, None, deadline=60) != pid

    with_slots(1, use)


def test_a_cancelled_turn_ends_at_once_and_frees_its_slot(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    async def use(slots: LocalSlots) -> None:
        task = asyncio.create_task(slots.run(slot_turns.work, str(marker)))
        await came_true(lambda: marker.exists() and marker.read_text() != "")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pid = int(marker.read_text())
        await came_true(lambda: gone(pid))
        assert await slots.run(slot_turns.process, None) != pid

    with_slots(1, use)


def test_slots_end_when_their_coordinator_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, slot_turns.__file__, str(tmp_path)]
    host = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    try:
        assert host.stdout is not None
        slots = [int(pid) for pid in host.stdout.readline().split()]
        assert len(set(slots)) == 2
        markers = [tmp_path / f"work{number}" for number in range(2)]
        asyncio.run(came_true(lambda: all(marker.exists() for marker in markers)))
        family = {child.pid for child in psutil.Process(host.pid).children(recursive=True)}
        assert set(slots) <= family  # the fork server and the resource tracker are in it too
    finally:
        host.kill()
        host.wait()
    asyncio.run(came_true(lambda: all(gone(pid) for pid in family)))


def test_slots_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    script, folder, ran = tmp_path / "start.py", tmp_path / "folder", tmp_path / "ran"
    folder.mkdir()
    planted = f"import os\nopen({str(ran)!r}, 'a').write('ran')\nos._exit(3)\n"
    for name in ("multiprocessing", "signal", "infra"):
        (folder / f"{name}.py").write_text(planted)
    script.write_text(
        "from infra.turns.local import start_fork_server\n"
        "if __name__ == '__main__':\n"
        "    context = start_fork_server([])\n"
        "    lock = context.Lock()\n"  # starts the resource tracker
        "    process = context.Process(target=print)\n"
        "    process.start()\n"
        "    process.join(30)\n"
        "    assert process.exitcode == 0, process.exitcode\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, script], cwd=folder, env=environment, check=True, timeout=60)
    assert not ran.exists()
