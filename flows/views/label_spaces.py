"""Describe partly labelled clients (``data.label_space``) in two lines, however many clients there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tasks.spec.federation import FederationSpec

# Detectors that give each class a score of its own, so that unlabelled_score does not apply to them. Importing their
# classes to ask takes seconds.
OWN_SCORES = ("fcos-lite0",)
_MOST_COUNTS = 4  # numbers of classes that are listed one by one


def label_space_lines(spec: FederationSpec, classes: Sequence[str] | None = None) -> list[str]:
    """Return how many clients label how many of the classes, and the rule for the others; nothing if all label all.

    classes: of the data set; None: those that ``spec`` names, which may be none.
    """
    space, clients = spec.data.label_space or {}, _clients(spec)
    classes = spec.data.own_classes if classes is None else classes
    numbers = [
        len(set(named))
        for client, named in space.items()
        if (clients is None or client in clients) and (classes is None or not set(classes) <= set(named))
    ]
    if not numbers:
        return []
    everyone = "" if clients is None else f" of {len(clients)}"
    last = len(numbers) if clients is None else len(clients)
    some = "some classes" if classes is None else f"some of the {len(classes)} classes"
    others = "" if clients is not None and len(numbers) == len(clients) else "; other clients label all"
    return [
        f"partly labelled: {len(numbers)}{everyone} client{_s(last)} {_verb(len(numbers))} {some} "
        f"({_by_number(numbers)}){others}",
        f"unlabelled classes: {_rule(spec)}",
    ]


def _clients(spec: FederationSpec) -> frozenset[str] | None:
    """Return the devices whose images are trained on; None if only the data name them."""
    data = spec.data
    chosen = data.pooled_devices or data.own_devices if data.pooled else spec.clients
    return None if chosen is None else frozenset(chosen)


def _by_number(numbers: Sequence[int]) -> str:
    """Return how many clients label how many classes, as ``2 label 1 class, 1 labels 3 classes``."""
    counts = sorted(Counter(numbers).items())
    if len(counts) > _MOST_COUNTS:
        return f"{counts[0][0]} to {counts[-1][0]} classes each"
    return ", ".join(
        f"{clients} {_verb(clients)} {number} class{'' if number == 1 else 'es'}" for number, clients in counts
    )


def _rule(spec: FederationSpec) -> str:
    kind = spec.detector.kind
    masked = f"the class loss of {kind} leaves them out"
    if kind in OWN_SCORES:
        return masked
    score = f"a score above {spec.data.unlabelled_score:g} (data.unlabelled_score)"
    return f"{masked}, and nothing is learned as background where the round's global model finds one with {score}"


def _verb(clients: int) -> str:
    return "labels" if clients == 1 else "label"


def _s(number: int) -> str:
    return "" if number == 1 else "s"
