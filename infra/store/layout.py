"""The keys of a federation's objects in the bucket.

<prefix>/<federation>/spec.json
<prefix>/<federation>/rounds/0007/plan.json                      written before training
<prefix>/<federation>/rounds/0007/global.safetensors             result of round 7; 0000: initial model
<prefix>/<federation>/rounds/0007/server.safetensors             the server's state after round 7, if it keeps one
<prefix>/<federation>/rounds/0007/shared.safetensors             what clients read of it
<prefix>/<federation>/rounds/0007/state/<client>.safetensors     a client's state after round 7, its last counted one
<prefix>/<federation>/rounds/0007/updates/<client>.safetensors   and .json, the record, written after it
<prefix>/<federation>/rounds/0007/updates/_sum-<client>.safetensors   for several clients; <client>: the first
<prefix>/<federation>/rounds/0007/evaluations/<client>/<part>.safetensors   <client>: the first of the turn
<prefix>/<federation>/rounds/0007/detections.npz                 of all images that round 7's model was scored on
<prefix>/<federation>/rounds/0007/round.json                     the commit marker, written last
<prefix>/<federation>/fine-tuned/0007/<client>.safetensors       a client's fine-tuned model of round 7; and .json
<prefix>/<federation>/fine-tuned/0007/_fine-tuned.json           the record of them all, written last
<prefix>/<federation>/best.json
<prefix>/<federation>/sheet.png                                  detections of the best model
<prefix>/<federation>/superseded/0001/superseded.json            which rounds were put aside, to repeat them
<prefix>/<federation>/superseded/0001/0007/round.json and all else   those rounds, unchanged
<prefix>/<federation>/damaged/0001/0007/round.json and others    damaged objects that were replaced, unchanged
<prefix>/<federation>/lease/00000012-<nonce>.json                who holds the federation (infra/store/lease.py)
<prefix>/<federation>/turns/<pool>/<session>/…                   requests to residents and their answers (infra/turns)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Part of a pattern that matches the name of a federation, a suite's run or a suite, as tasks.spec.base allows it.
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


@dataclass(frozen=True)
class FederationLayout:
    """The keys of one federation. ``prefix`` may be empty; round numbers have four digits or more."""

    prefix: str
    federation: str

    @property
    def root(self) -> str:
        """Prefix of every key of the federation; ends with a slash."""
        prefix = self.prefix.strip("/")
        return f"{prefix}/{self.federation}/" if prefix else f"{self.federation}/"

    @property
    def store(self) -> str:
        """Key of ``store.json``, which holds the version of this layout for all federations under the prefix."""
        prefix = self.prefix.strip("/")
        return f"{prefix}/store.json" if prefix else "store.json"

    @property
    def damaged_store(self) -> str:
        """Key that a damaged ``store.json`` gets when it is replaced."""
        return f"{self.store.removesuffix('store.json')}_damaged/store.json"

    @property
    def spec(self) -> str:
        return f"{self.root}spec.json"

    @property
    def best(self) -> str:
        return f"{self.root}best.json"

    @property
    def sheet(self) -> str:
        return f"{self.root}sheet.png"

    @property
    def rounds(self) -> str:
        return f"{self.root}rounds/"

    @property
    def lease(self) -> str:
        """Prefix of the notes of the federation's holders; ends with a slash."""
        return f"{self.root}lease/"

    @property
    def turns(self) -> str:
        """Prefix of the requests to residents and their answers; ends with a slash."""
        return f"{self.root}turns/"

    def round(self, number: int) -> str:
        """Prefix of a round's keys; ends with a slash.

        Raises:
            ValueError: a negative number.
        """
        if number < 0:
            raise ValueError(f"round: expected 0 or more, found {number}")
        return f"{self.rounds}{number:04d}/"

    def plan(self, number: int) -> str:
        return f"{self.round(number)}plan.json"

    def global_weights(self, number: int) -> str:
        return f"{self.round(number)}global.safetensors"

    def server_state(self, number: int) -> str:
        return f"{self.round(number)}server.safetensors"

    def shared_state(self, number: int) -> str:
        return f"{self.round(number)}shared.safetensors"

    def client_states(self, number: int) -> str:
        return f"{self.round(number)}state/"

    def client_state(self, number: int, client: str) -> str:
        return f"{self.client_states(number)}{client}.safetensors"

    def is_state(self, key: str) -> bool:
        """Return whether ``key`` is that of a state: the server's, the shared one, or a client's, of any round."""
        pattern = re.escape(self.rounds) + r"[0-9]{4,}/(server|shared|state/[^/]+)\.safetensors"
        return re.fullmatch(pattern, key) is not None

    def round_of(self, key: str) -> int:
        """Return the number of the round in whose folder ``key`` is.

        Raises:
            ValueError: the key is in no round's folder.
        """
        match = re.match(re.escape(self.rounds) + r"([0-9]{4,})/", key)
        if match is None:
            raise ValueError(f"{key}: expected the key of an object of a round")
        return int(match[1])

    def marker(self, number: int) -> str:
        """Key of ``round.json``: the round is committed if it exists."""
        return f"{self.round(number)}round.json"

    def updates(self, number: int) -> str:
        return f"{self.round(number)}updates/"

    def update_weights(self, number: int, client: str) -> str:
        return f"{self.updates(number)}{client}.safetensors"

    def partial_sum(self, number: int, first_client: str) -> str:
        """Key of the partial sum that stands for several clients' weights, of which ``first_client`` is the first.

        No client's own weights have such a key, because client ids begin with a letter or digit.
        """
        return f"{self.updates(number)}_sum-{first_client}.safetensors"

    def update_record(self, number: int, client: str) -> str:
        return f"{self.updates(number)}{client}.json"

    def evaluations(self, number: int) -> str:
        return f"{self.round(number)}evaluations/"

    def evaluation_part(self, number: int, client: str, part: str) -> str:
        """Key of a part of an evaluation, in a folder of its silo's own: ``client`` is the first client of the turn."""
        return self.evaluation_tensors(number, f"{client}/{part}")

    def evaluation_tensors(self, number: int, part: str) -> str:
        return f"{self.evaluations(number)}{part}.safetensors"

    def evaluation_record(self, number: int, part: str) -> str:
        return f"{self.evaluations(number)}{part}.json"

    def detections(self, number: int) -> str:
        """Key of the detections and true objects of the images that the round's model was scored on."""
        return f"{self.round(number)}detections.npz"

    def fine_tuned(self, number: int) -> str:
        """Prefix of the models that clients made of round ``number``'s, the last one; ends with a slash."""
        return f"{self.root}fine-tuned/{number:04d}/"

    def fine_tuned_weights(self, number: int, client: str) -> str:
        return f"{self.fine_tuned(number)}{client}.safetensors"

    def fine_tuned_update(self, number: int, client: str) -> str:
        return f"{self.fine_tuned(number)}{client}.json"

    def fine_tuned_record(self, number: int) -> str:
        """Key of the record that says that fine-tuning is done. No client has this name: ids begin otherwise."""
        return f"{self.fine_tuned(number)}_fine-tuned.json"

    @property
    def superseded(self) -> str:
        """Prefix of rounds that were put aside; ends with a slash."""
        return f"{self.root}superseded/"

    @property
    def damaged(self) -> str:
        """Prefix of damaged objects that were replaced; ends with a slash."""
        return f"{self.root}damaged/"

    def superseded_record(self, folder: int) -> str:
        return f"{self.superseded}{folder:04d}/superseded.json"

    def put_aside(self, key: str, folder: int) -> str:
        """Key that the round's object ``key`` gets when its round is put aside.

        It has no folder ``rounds/``, because a silo's policy allows keys by what follows ``rounds/``.
        """
        return f"{self.superseded}{folder:04d}/{key.removeprefix(self.rounds)}"

    def superseded_folders(self, keys: Iterable[str]) -> list[int]:
        """Return the numbers of the folders below ``superseded/`` that have an object among ``keys``, ascending."""
        return self._folders(self.superseded, keys)

    def damaged_folders(self, keys: Iterable[str]) -> list[int]:
        """Return the numbers of the folders below ``damaged/`` that have an object among ``keys``, ascending."""
        return self._folders(self.damaged, keys)

    @staticmethod
    def _folders(prefix: str, keys: Iterable[str]) -> list[int]:
        pattern = re.compile(re.escape(prefix) + r"([0-9]{4,})/.+")
        return sorted({int(match[1]) for match in map(pattern.fullmatch, keys) if match})

    def kept_damaged(self, key: str, folder: int) -> str:
        """Key that the damaged object ``key`` gets when it is replaced. It has no folder ``rounds/`` either."""
        name = key.removeprefix(self.rounds) if key.startswith(self.rounds) else key.removeprefix(self.root)
        return f"{self.damaged}{folder:04d}/{name}"

    def begun_rounds(self, keys: Iterable[str]) -> list[int]:
        """Return the numbers of the rounds that have any object among ``keys``, ascending."""
        pattern = re.compile(re.escape(self.rounds) + r"([0-9]{4,})/.+")
        found = filter(None, map(pattern.fullmatch, keys))
        return sorted({int(match[1]) for match in found if match[0].startswith(self.round(int(match[1])))})

    def committed_rounds(self, keys: Iterable[str]) -> list[int]:
        """Return the numbers of the rounds whose marker is among ``keys``, ascending."""
        pattern = re.compile(re.escape(self.rounds) + r"([0-9]{4,})/round\.json")
        found = filter(None, map(pattern.fullmatch, keys))
        # Folders with another spelling of a number, as 00001, are not ours.
        return sorted(number for match in found if self.marker(number := int(match[1])) == match[0])


def first_missing(numbers: Iterable[int]) -> int | None:
    """Return the first round that is missing between 0 and the last of ``numbers`` (ascending); None if none is."""
    return next((expected for expected, number in enumerate(numbers) if number != expected), None)


def federations(prefix: str, keys: Iterable[str]) -> list[str]:
    """Return the names of the federations that have a ``spec.json`` among ``keys``, sorted.

    Keys with a name that no federation can have are ignored.
    """
    folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    pattern = re.compile(re.escape(folder) + rf"({NAME})/spec\.json")
    found = (pattern.fullmatch(key) for key in keys)
    return sorted(match[1] for match in found if match)
