"""Carry out a fault: start a run, disturb it, and check that it ends with the undisturbed bits."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil

from .damage import all_lasting, drop_unsynced, flip_bit, synced_since, tear
from .draws import CLIENTS, Fault
from .judge import bits_of, damaged_globals, difference, faults_of_output
from .moments import Watch
from .places import Place, ended, filled, part_of
from .proxy import Plan

MOST_RESUMES = 3


@dataclass
class Result:
    """The outcome of a fault: ``itself``, ``resumed``, ``failed`` or ``not met``. ``did``: the fault's real effect."""

    outcome: str
    did: str
    reason: str = ""
    statuses: list[int | None] = field(default_factory=list)
    seconds: float = 0.0
    spoilt: bool = False  # the place must be created again


class NotMet(Exception):
    """The fault hit nothing: the run had ended, or its target did not exist."""


class FaultyRun:
    """A run of ``name`` at ``place`` with ``fault``. bits: the results of an undisturbed run."""

    def __init__(
        self, place: Place, fault: Fault, spec: Path, name: str, bits: Sequence[dict[str, Any]], output: Path
    ) -> None:
        self.place, self.fault, self.spec, self.name = place, fault, spec, name
        self.bits, self.output = bits, output
        self.pools = fault.place == "pools"
        self.watch = Watch(place.bucket, name, len(CLIENTS))
        self.rng = Random(f"{fault.number}/{fault}")
        self.killed = False  # the fault killed the coordinator
        self.down = False  # the fault killed all processes of the place
        self.spared: str | None = None
        self.statuses: list[int | None] = []

    def carry_out(self) -> Result:
        began = time.monotonic()
        result = self._carried_out()
        result.statuses, result.seconds = self.statuses, time.monotonic() - began
        return result

    def _carried_out(self) -> Result:
        shutil.rmtree(self.place.home / "cache" / "weights", ignore_errors=True)
        before = all_lasting(self.place.bucket)
        self.place.synced.unlink(missing_ok=True)
        process = self._start("run", self.spec, "--name", self.name)
        try:
            did = self._disturb(process, before)
        except NotMet as reason:
            ended(process)
            return Result("not met", str(reason), spoilt=True)
        finally:
            if process.poll() is None:
                ended(process)
        self.statuses.append(process.returncode)
        wrong = self._wrong(process.returncode, self.killed)
        if wrong:
            return Result("failed", did, f"run: {wrong}", spoilt=True)
        if process.returncode == 0:
            return self._judged("itself", did)
        for number in range(1, MOST_RESUMES + 1):
            if self.down and self.pools:
                self.place.up(self.output)
                self.down = False
            known = self.watch.committed() > 0
            command = ("resume", self.name) if known else ("run", self.spec, "--name", self.name)
            process = self._start(*command)
            ended(process)
            status = self._hung_or(process)
            self.statuses.append(status)
            wrong = self._wrong(status, killed=False)
            if wrong:
                return Result("failed", did, f"resume {number}: {wrong}", spoilt=True)
            if status == 0:
                return self._judged("resumed", did)
        return Result("failed", did, f"not at its end after {MOST_RESUMES} resumes", spoilt=True)

    def _start(self, *arguments: object) -> subprocess.Popen[bytes]:
        with self.output.open("a", encoding="utf-8") as file:
            file.write(f"--- fedbench {' '.join(map(str, arguments))}\n")
        self._from = self.output.stat().st_size
        proxied = self.fault.plan is not None
        return self.place.start(*arguments, output=self.output, pools=self.pools, proxied=proxied)

    def _hung_or(self, process: subprocess.Popen[bytes]) -> int | None:
        return None if process.returncode == -9 and not self.killed else process.returncode

    def _wrong(self, status: int | None, killed: bool) -> str | None:
        text = self.output.read_bytes()[self._from :].decode(errors="replace")
        return faults_of_output(text, None if status == -9 and not killed else status, killed=killed)

    def _judged(self, outcome: str, did: str) -> Result:
        wrong = difference(bits_of(self.place.bucket, self.name), self.bits)
        wrong = wrong or damaged_globals(self.place.bucket, self.name, self.spared)
        if wrong:
            return Result("failed", did, f"status 0, but {wrong}", spoilt=True)
        return Result(outcome, did, spoilt=self.down)

    # What happens.

    def _disturb(self, process: subprocess.Popen[bytes], before: Any) -> str:
        fault = self.fault
        if fault.plan is not None:
            assert self.place.proxy is not None
            with self.place.proxy.faulty(Plan(**fault.plan)) as plan:
                ended(process)
            if not plan.hits:
                raise NotMet("no such request came")
            return f"hit {len(plan.hits)}: {', '.join(plan.hits[:6])}"
        assert fault.moment is not None
        if not self.watch.wait(fault.moment, lambda: process.poll() is None):
            raise NotMet("the run had ended before")
        if fault.kind == "kill":
            return self._kill(process)
        if fault.kind in ("power", "unsynced"):
            return self._power_loss(process, before)
        if fault.kind == "full-disk":
            return self._fill(process)
        return self._damage(process)

    def _kill(self, process: subprocess.Popen[bytes]) -> str:
        victim = self.fault.victim
        deadline = time.monotonic() + 2.0  # a slot may not have been forked yet
        while True:
            found = []
            for one in self.place.processes():
                with contextlib.suppress(psutil.Error):
                    if part_of(one, process.pid) == victim:
                        found.append(one)
            if found or time.monotonic() > deadline or process.poll() is not None:
                break
            time.sleep(0.02)
        if not found:
            raise NotMet(f"no {victim} was there")
        one = self.rng.choice(sorted(found, key=lambda process: process.pid))
        try:
            one.kill()
        except psutil.NoSuchProcess:
            raise NotMet(f"the {victim} had just ended") from None
        self.killed = victim == "coordinator"
        ended(process)
        return f"killed {victim} {one.pid}"

    def _power_loss(self, process: subprocess.Popen[bytes], before: Any) -> str:
        killed = self.place.kill_all()
        process.wait()
        if not killed or process.returncode != -9:
            raise NotMet("the run had just ended")
        self.killed = self.down = True
        if self.fault.kind == "power":
            return f"killed all {killed} processes"
        dropped = drop_unsynced(self.place.bucket, synced_since(self.place.synced, before))
        mine = [path for path in dropped if f"/{self.name}/" in path]
        if not mine:
            raise NotMet("all was synced")
        return f"killed all {killed} processes, dropped {len(dropped)}: {', '.join(dropped)[:400]}"

    def _fill(self, process: subprocess.Popen[bytes]) -> str:
        with filled(self.place.home, self.fault.spare) as written:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.fault.hold)
            full = "until it stopped" if process.poll() is not None else f"for {self.fault.hold:.0f} s"
        ended(process)
        return f"filled with {written} bytes {full}"

    def _damage(self, process: subprocess.Popen[bytes]) -> str:
        fault = self.fault
        if fault.stops:
            process.kill()
            process.wait()
            self.killed = True
        path = self._found()
        if fault.kind == "torn":
            did = f"{path} cut to {tear(path)} bytes"
        else:
            did = f"{path}: a bit of byte {flip_bit(path, self.rng)} flipped"
        self.spared = str(path)
        ended(process)
        return did

    def _found(self) -> Path:
        """Return the file to damage."""
        for what in self.fault.objects:
            paths = [path for path in self._paths(what) if path.is_file() and path.stat().st_size > 1]
            if paths:
                return self.rng.choice(paths)
        raise NotMet("there is no such file yet")

    def _paths(self, what: str) -> list[Path]:
        if self.fault.kind == "flipped-cache":
            return sorted((self.place.home / "cache" / what).rglob("*.*"))
        inside = {
            "plan": "plan.json",
            "round": "round.json",
            "global": "global.safetensors",
            "update": "updates/*.safetensors",
            "record": "updates/*.json",
        }
        if what not in inside:
            return [self.watch.folder / f"{what}.json"]
        for folder in sorted(self.watch.folder.glob("rounds/*"), reverse=True):
            if found := sorted(folder.glob(inside[what])):
                return found
        return []
