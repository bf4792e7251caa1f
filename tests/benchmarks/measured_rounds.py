"""A process that takes turns and aggregates updates on request, for :mod:`tests.benchmarks.bench_methods`.

    python tests/benchmarks/measured_rounds.py DETECTOR CLIENTS IMAGES FIELDS < requests

It prints ``ready`` after two whole rounds, when every state of the method exists. Then each line of its input, ``turn``
or ``aggregate``, is answered by a line of JSON. It uses only what older commits have too, so that it also runs with the
sources of one of them (``PYTHONPATH``).
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tasks.aggregate import aggregate
from tasks.client_update import client_update
from tasks.handles import set_handles
from tasks.site import Site
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.plans import RoundPlan, UpdateRecord, WeightRef
from tasks.spec.turns import TurnReply, UpdateRequest
from tests.benchmarks.measured_detectors import CLASSES, experiment, measured_site
from tests.records import round_plan
from tests.tasks.phase_handles import make_handles

WARM_ROUNDS = 2
LR = 1e-3


class Rounds:
    """A federation whose rounds are taken by calls: each turn in this process, and no evaluation."""

    def __init__(self, site: Site, spec: FederationSpec, model: WeightRef, folder: Path) -> None:
        self.site, self.spec = site, spec
        self.handles, _ = make_handles(site.objects, folder, "bench", slots=1)
        self.handles.layout = site.layout("bench")
        info: Any = SimpleNamespace(class_counts=dict.fromkeys(map(str, range(CLASSES)), 1))
        self.handles.ready = [info] * len(spec.clients or ())
        self.number = 1
        self.first = model
        self.current: dict[str, Any] = {"model": model}  # and the method's states, where it keeps any
        self.states: dict[str, WeightRef] = {}
        self.updates: list[UpdateRecord] = []

    def plan(self) -> RoundPlan:
        cohort = tuple(self.spec.clients or ())
        fields = dict(self.current)
        if self.spec.strategy.kind != "fedavg":  # older commits know no figures and no states
            from tasks.strategies.registry import strategy_class

            method = strategy_class(self.spec)
            states = self.states
            if method.begins_with_model:
                states = dict.fromkeys(cohort, self.first) | states
            fields |= {"figures": method.figures, "states": states if method.client_state else None}
        return round_plan(
            *cohort,
            federation="bench",
            round=self.number,
            spec_digest=self.spec.digest,
            seeds={client: 100 + int(client) for client in cohort},
            learning_rate=LR,
            **fields,
        )

    def turn(self, client: str) -> TurnReply:
        plan = self.plan()
        states: dict[str, Any] = {}
        if getattr(plan, "states", None) is not None:
            states["states"] = {name: ref for name, ref in (plan.states or {}).items() if name == client}
        if getattr(plan, "shared", None) is not None:
            states["shared"] = plan.shared
        request = UpdateRequest(
            federation="bench",
            spec=self.spec,
            clients=(client,),
            round=self.number,
            spec_digest=self.spec.digest,
            model=plan.model,
            seeds={client: plan.seeds[client]},
            learning_rate=LR,
            **states,
        )
        reply = client_update(self.site, request)
        assert not reply.failures, reply.failures
        return reply

    def train_all(self) -> None:
        self.updates = [self.turn(client).updates[0] for client in self.spec.clients or ()]

    def aggregate(self) -> Any:
        async def run() -> Any:
            set_handles(self.handles)
            return await aggregate.fn(self.spec, self.plan(), self.updates, (), "bench")

        found = asyncio.run(run())
        assert len(found.counted) == len(self.updates), found.dropped
        assert found.model is not None
        return found

    def finish(self) -> None:
        """Aggregate, and go on to the next round."""
        new = self.aggregate()
        names = ("model", "server", "shared")
        self.current = {name: ref for name in names if (ref := getattr(new, name, None)) is not None}
        self.states |= {update.client: ref for update in self.updates if (ref := getattr(update, "state", None))}
        self.number += 1


def measured(call: Callable[[], Any]) -> dict[str, float]:
    """Return seconds of ``call``, and the peak of this process's resident memory, in bytes, before and during it."""
    gc.collect()
    _forget_peak()
    before = _peak()
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return {
        "wall": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
        "before": before,
        "peak": _peak(),
    }


def _forget_peak() -> None:
    """Make Linux count the peak of the resident memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024.0 * int(line.split()[1])
    raise AssertionError("no VmHWM in /proc/self/status")


def main() -> None:
    detector, clients, images, fields = sys.argv[1:]
    names = [str(number) for number in range(1, int(clients) + 1)]
    spec = experiment(detector, images=int(images))
    spec = with_fields(spec, {"participation.clients": names, **json.loads(fields)}, source="benchmark")
    with tempfile.TemporaryDirectory() as folder, measured_site(Path(folder), spec) as (site, model):
        rounds = Rounds(site, spec, model, Path(folder) / "coordinator")
        for _ in range(WARM_ROUNDS):
            rounds.train_all()
            rounds.finish()
        rounds.train_all()
        rounds.aggregate()  # the updates are in the coordinator's cache from now on
        sent, fetched = rounds.updates[0], getattr(rounds.plan(), "fetched_bytes", lambda client: model.bytes)
        sizes = {"model": model.bytes, "up": sent.bytes_up, "down": fetched(sent.client)}
        print(json.dumps({"ready": sizes}), flush=True)
        calls = {"turn": lambda: rounds.turn(sent.client), "aggregate": rounds.aggregate}
        for line in sys.stdin:
            print(json.dumps(measured(calls[line.strip()])), flush=True)


if __name__ == "__main__":
    main()
