"""The command: draw faults, carry them out, store and print the results."""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from . import __doc__ as usage
from .draws import Fault, draw, hits_requests, kind_and_place, needs_own_home
from .places import Place
from .results import append_result, markdown_table, read_results
from .runs import FaultyRun, Result
from .warm import ROOT, Warm, unmount_left

MOST_ATTEMPTS = 8  # draws of a fault until one hits something


class Job:
    """A thread's work: carry out one fault after the other, in a home without a stack or in one with a stack."""

    def __init__(self, number: int, warm: Warm, folder: Path, scratch: Path) -> None:
        self.warm, self.folder = warm, folder
        self.own, self.stack = Place(scratch / f"own-{number}"), Place(scratch / f"stack-{number}")
        self.stack_is_up = False
        self.stopping = False

    def do(self, seed: int, number: int) -> tuple[Fault, Result] | None:
        """Carry out fault ``number``; draw it again while it hits nothing. Return None if it was interrupted."""
        for attempt in range(MOST_ATTEMPTS):
            name = f"fault-{number}-{attempt}"
            output = self.folder / "outputs" / f"{name}.txt"
            output.parent.mkdir(parents=True, exist_ok=True)
            output.unlink(missing_ok=True)
            kind, where = kind_and_place(seed, number)
            mounts = self.warm.mounts
            place = self._place(needs_own_home(kind, where, mounts=mounts), output)
            requests = self.warm.requests(where, place) if hits_requests(kind, mounts=mounts) else ()
            fault = draw(seed, number, attempt, requests)
            try:
                run = FaultyRun(place, fault, self.warm.spec, name, self.warm.bits, output)
                result = run.carry_out()
            except Exception:
                result = Result("failed", "", f"the harness itself: {traceback.format_exc()}", spoilt=True)
            if self.stopping:
                return None
            if result.outcome == "failed":
                self._keep(place, name)
            if result.spoilt or place is self.own:
                if place is self.stack:
                    self.stack_is_up = False
                place.remove()
            if result.outcome != "not met":
                break
        return fault, result

    def close(self) -> None:
        for place in (self.own, self.stack):
            place.remove()

    def interrupt(self) -> None:
        """Kill the processes of both homes, so that the current fault ends."""
        self.stopping = True
        for place in (self.own, self.stack):
            place.kill_all()

    def _place(self, own: bool, output: Path) -> Place:
        if own:
            self.own.create(self.warm.template)
            return self.own
        if not self.stack_is_up:
            self.stack.create(self.warm.template)
            self.stack.up(output)
            self.stack_is_up = True
        return self.stack

    def _keep(self, place: Place, name: str) -> None:
        """Keep the logs and the run's objects of a failed fault."""
        kept = self.folder / "failures" / name
        shutil.rmtree(kept, ignore_errors=True)
        federation = place.bucket / "federations" / name
        for path in (place.home / "logs", place.home / "runs" / name, federation):
            if path.is_dir():
                shutil.copytree(path, kept / path.name, dirs_exist_ok=True)


def report(seed: int, fault: Fault, result: Result) -> str:
    """Return a line for a fault. If it failed, the line has all that is needed to repeat it."""
    line = f"{fault.number:4d}  {result.outcome:8} {result.seconds:5.0f} s  {fault}"
    if result.outcome == "failed":
        line += f"\n      {result.did}\n      statuses {result.statuses}: {result.reason}"
        line += f"\n      again: python -m tests.faults --seed {seed} --only {fault.number}"
    return line


def carry_out(options: argparse.Namespace, folder: Path, scratch: Path) -> bool:
    """Carry out all remaining faults on ``options.jobs`` threads. Return whether none failed."""
    results = folder / "results.jsonl"
    done = {} if options.only else read_results(results, options.seed)
    numbers = options.only or [number for number in range(options.faults) if number not in done]
    print(f"{len(numbers)} faults to do; results in {results}", flush=True)
    unmount_left(scratch)
    prepared = Warm(folder, scratch)
    prepared.prepare()
    print(f"undisturbed: {len(prepared.bits)} rounds", flush=True)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in numbers:
        waiting.put(number)
    failed = threading.Event()
    jobs = [Job(number, prepared, folder, scratch) for number in range(options.jobs)]
    writing = threading.Lock()
    until = time.monotonic() + 60 * options.minutes

    def work(job: Job) -> None:
        try:
            while not job.stopping and time.monotonic() < until:
                found = job.do(options.seed, waiting.get_nowait())
                if found is None:
                    return
                fault, result = found
                with writing:
                    print(report(options.seed, fault, result), flush=True)
                    line = {"seed": options.seed, "text": str(fault), **fault.document(), **vars(result)}
                    append_result(results, line)
                if result.outcome == "failed":
                    failed.set()
        except queue.Empty:
            return
        finally:
            job.close()

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        print("stopped; run the same command to continue", flush=True)
        for job in jobs:
            job.interrupt()
        for thread in threads:
            thread.join()
        raise
    return not failed.is_set()


def main() -> None:
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, metavar="N", help="how many faults [100]")
    parser.add_argument("--seed", type=int, default=1, help="seed that draws them [1]")
    parser.add_argument(
        "--only", type=int, action="append", metavar="K", help="repeat only fault K; may be given several times"
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time [2]")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no further fault after this time [60]")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".faults", help="folder for results and outputs [.faults]"
    )
    parser.add_argument("--table", action="store_true", help="only print the results so far as a table")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.table:
        counted = read_results(folder / "results.jsonl", options.seed).values()
        print(markdown_table(line for line in counted if line["outcome"] != "not met"))
        return
    scratch = Path(tempfile.gettempdir()) / f"fedbench-faults-{os.getuid()}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        good = carry_out(options, folder, scratch)
    except KeyboardInterrupt:
        sys.exit(130)
    found = read_results(folder / "results.jsonl", options.seed).values()
    print(markdown_table(line for line in found if line["outcome"] != "not met"))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
