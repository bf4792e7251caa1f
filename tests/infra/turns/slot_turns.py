"""Turns for the tests of slots: functions of one argument, in a module that imports almost nothing.

Run as ``python slot_turns.py FOLDER``, it fills two slots, prints their process ids, and works until it is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path


def process(argument: object) -> int:
    return os.getpid()


def end_with(code: int) -> None:
    os._exit(code)


def die_by(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def fail(message: str) -> None:
    raise LookupError(message)


def variable(name: str) -> str | None:
    return os.environ.get(name)


def work(marker: str) -> None:
    """Write this process's id into ``marker``, and stay busy."""
    Path(marker).write_text(str(os.getpid()))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pass


def outlive_interrupt(argument: object) -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "done"


def meet(argument: tuple[str, int]) -> int:
    """Return when ``count`` turns run at the same time. Each writes a file into the folder."""
    folder, count = Path(argument[0]), argument[1]
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"alone in {folder}")
        time.sleep(0.01)
    return os.getpid()


async def main(folder: str) -> None:
    from infra.turns.local import LocalSlots

    slots = LocalSlots(2, [])
    print(*await asyncio.gather(*(slots.run(meet, (folder, 2)) for _ in range(2))), flush=True)
    await asyncio.gather(*(slots.run(work, os.path.join(folder, f"work{number}")) for number in range(2)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
