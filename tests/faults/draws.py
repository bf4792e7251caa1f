"""Faults, drawn by seed: what happens, when, and whether the run's turns are in local slots or in a work pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from .moments import PHASES, Moment
from .proxy import Plan

ROUNDS = 3
CLIENTS = ("3", "4", "5")
SPEC: dict[str, Any] = {
    "max_rounds": ROUNDS,
    "data": {"kind": "synthetic-street", "train_images": 40, "test_images": 10, "width": 96, "height": 80},
    "detector": {"kind": "yolov3-tiny", "width": 64, "height": 64},
    "training": {"batch_size": 4},
    "evaluation": {"batch_size": 4},
    "participation": {"clients": list(CLIENTS), "turn_retries": 20},
}

PLACES = ("local", "pools")
# Each kind with its relative frequency.
KINDS = {
    "kill": 5,
    "power": 2,
    "unsynced": 3,
    "503": 2,
    "reset": 2,
    "lost-answer": 2,
    "short-answer": 2,
    "short-upload": 1,
    "cut-upload": 1,
    "flipped-answer": 2,
    "flipped-object": 3,
    "flipped-cache": 2,
    "torn": 3,
    "full-disk": 3,
}
# Kinds that a proxy makes. It makes full disks too, if no file system can be mounted.
PROXIED = ("503", "reset", "lost-answer", "short-answer", "short-upload", "cut-upload", "flipped-answer")
VICTIMS = {
    "local": ("coordinator", "slot", "store", "prefect"),
    "pools": ("coordinator", "slot", "worker", "store", "prefect", "mlflow", "supervisor"),
}
# Kinds of stored objects that are flipped or torn. Of each kind, the newest round's object is hit.
OBJECTS = ("plan", "round", "global", "update", "record", "best", "lease", "spec")
CACHES = ("weights", "data")


@dataclass(frozen=True)
class Fault:
    """A fault. ``victim``, ``objects``, ``plan`` and ``hold`` are set only if its kind needs them.

    objects: kinds of objects, or caches, in the order in which they are searched for. The first that exists is hit.
    stops: the coordinator is killed first, so that the resumed run finds the damage.
    plan: fields of the proxy's :class:`Plan`. hold: seconds for which the disk stays full; spare: bytes left on it.
    """

    number: int
    kind: str
    place: str
    moment: Moment | None = None
    victim: str | None = None
    objects: tuple[str, ...] = ()
    stops: bool = False
    plan: Mapping[str, Any] | None = None
    hold: float = 0.0
    spare: int = 0

    def __str__(self) -> str:
        parts = [self.kind, self.place]
        if self.victim:
            parts.append(f"victim {self.victim}")
        if self.moment:
            parts.append(str(self.moment))
        if self.objects:
            parts.append("of " + "/".join(self.objects[:2]) + (", run killed" if self.stops else ", run goes on"))
        if self.plan:
            plan = self.plan
            span = f"for {plan['seconds']:.0f} s" if plan["seconds"] else f"{plan['count']} times"
            parts.append(f"{plan['method']} {plan['kind']}, number {plan['nth'] + 1}, {span}")
        if self.kind == "full-disk":
            parts.append(f"{self.spare} bytes left, for {self.hold:.0f} s")
        return ", ".join(parts)

    def document(self) -> dict[str, Any]:
        return asdict(self)


def draw(seed: int, number: int, attempt: int, requests: Sequence[tuple[str, str]] = ()) -> Fault:
    """Return fault ``number`` of ``seed``. A fault that hit nothing is drawn again with the next ``attempt``.

    The kind and place of a fault are the same in all attempts; see :func:`kind_and_place`.

    requests: method and kind of each request of an undisturbed run at this place. Empty for a fault that hits none.
    """
    kind, place = kind_and_place(seed, number)
    rng = Random(f"{seed}/{number}/{attempt}")
    if requests:
        return Fault(number, kind, place, plan=_plan(kind, rng, requests))
    moment = _moment(rng)
    if kind == "kill":
        return Fault(number, kind, place, moment, victim=_victim(seed, number, place))
    if kind == "flipped-cache":
        return Fault(number, kind, place, moment, objects=tuple(rng.sample(CACHES, 2)), stops=rng.random() < 0.5)
    if kind in ("flipped-object", "torn"):
        stops = kind == "torn" or rng.random() < 0.5
        # A run that is not killed has the records in memory, so it cannot notice a damaged one and ends well.
        names = [name for name in rng.sample(OBJECTS, len(OBJECTS)) if stops or name != "round"]
        return Fault(number, kind, place, moment, objects=tuple(names), stops=stops)
    if kind == "full-disk":
        spare, hold = rng.choice((0, 0, 4096, 2**17)), rng.uniform(3.0, 20.0)
        return Fault(number, kind, place, moment, spare=spare, hold=hold)
    return Fault(number, kind, place, moment)


def hits_requests(kind: str, *, mounts: bool) -> bool:
    """Return whether a proxy makes faults of this kind. mounts: a file system can be mounted, and so filled."""
    return kind in PROXIED or (kind == "full-disk" and not mounts)


def needs_own_home(kind: str, place: str, *, mounts: bool) -> bool:
    """Return whether such a fault needs a run with its own services. Others hit a run that uses a stack."""
    own = kind in ("kill", "power", "unsynced", "full-disk")
    return place == "local" and own and not hits_requests(kind, mounts=mounts)


def kind_and_place(seed: int, number: int) -> tuple[str, str]:
    """Return the kind and place of fault ``number``, dealt from a deck of all. It is reshuffled after its last card."""
    deck = [(kind, place) for kind, count in KINDS.items() for _ in range(count) for place in PLACES]
    rng = Random(f"{seed}/deck/{number // len(deck)}")
    rng.shuffle(deck)
    return deck[number % len(deck)]


def _victim(seed: int, number: int, place: str) -> str:
    """Return the victim of a kill. Each victim comes once before any comes again."""
    before = sum(kind_and_place(seed, other) == ("kill", place) for other in range(number))
    victims = list(VICTIMS[place])
    Random(f"{seed}/{place}/victims/{before // len(victims)}").shuffle(victims)
    return victims[before % len(victims)]


def _moment(rng: Random) -> Moment:
    if rng.random() < 0.1:
        return Moment(0, "start", rng.uniform(0.0, 12.0))
    number = rng.randint(0, ROUNDS)
    phases = PHASES if number else tuple(phase for phase in PHASES if phase[:2] not in ("pl", "up"))
    return Moment(number, rng.choice(phases), rng.choice((0.0, rng.uniform(0.0, 0.2))))


def _plan(kind: str, rng: Random, requests: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Draw which requests are hit. All pairs of method and kind are equally likely."""
    usable = [request for request in requests if _can_be_hit(kind, *request)]
    method, what = rng.choice(sorted(set(usable)))
    nth = rng.randrange(sum(request == (method, what) for request in usable))
    plan = Plan(
        "no-space" if kind == "full-disk" else kind,
        method,
        what,
        nth,
        count=rng.choice((1, 1, 2, 3, 6)),
        place=rng.random(),
    )
    if kind == "full-disk":
        plan.seconds = rng.uniform(3.0, 20.0)
    elif kind in ("503", "reset", "lost-answer") and rng.random() < 0.3:
        plan.seconds = rng.choice((2.0, 8.0, 40.0))
    return {name: value for name, value in asdict(plan).items() if name not in ("seen", "hits", "until")}


def _can_be_hit(kind: str, method: str, what: str) -> bool:
    if kind in ("short-upload", "cut-upload", "full-disk"):
        return method == "PUT" and what != "bucket"
    if kind == "flipped-answer":
        return method in ("GET", "LIST")
    return True
