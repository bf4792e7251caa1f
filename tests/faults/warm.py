"""What all faults start from: a warm home, and the results of an undisturbed run at each place."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.code_version import installed_code

from .draws import SPEC
from .judge import bits_of, difference
from .places import Place, can_mount
from .proxy import Plan

ROOT = Path(__file__).resolve().parents[2]
# Paths to leave out of a warm home: the next run must create them itself, or they belong to the original home.
NOT_KEPT = ("logs", "runs", "locks", "cache/weights", "s3/fedbench/federations")


class Warm:
    """A home with migrated databases, the specification, and the results of undisturbed runs, all below ``folder``.

    They are made again after a change of the sources. scratch: folder for temporary homes.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch
        folder.mkdir(parents=True, exist_ok=True)
        self.template, self.spec = folder / "warm", folder / "spec.yaml"
        self.bits: Sequence[dict[str, Any]] = []
        self.mounts = can_mount(folder)
        self._sources = _digest_of_sources()
        self._one_at_a_time = threading.Lock()

    def prepare(self) -> None:
        """Make the home and run the undisturbed run, unless they are up to date.

        Raises:
            RuntimeError: the undisturbed run failed.
        """
        self.spec.write_text(yaml.safe_dump(SPEC), encoding="utf-8")
        known = self._known("undisturbed")
        if known is not None and self.template.is_dir():
            self.bits = known["bits"]
            return
        place, output = Place(self.scratch / "warm"), self.folder / "warm.txt"
        output.unlink(missing_ok=True)
        try:
            place.create(None)
            _succeed(place.run("run", self.spec, "--name", "undisturbed", output=output), output)
            bits = bits_of(place.bucket, "undisturbed")
            place.kill_all()
            for name in NOT_KEPT:
                shutil.rmtree(place.home / name, ignore_errors=True)
            shutil.rmtree(self.template, ignore_errors=True)
            shutil.copytree(place.home, self.template, symlinks=True)
        finally:
            place.remove()
        self._note("undisturbed", bits=bits)
        self.bits = json.loads(json.dumps(bits))

    def requests(self, where: str, place: Place) -> Sequence[tuple[str, str]]:
        """Return the method and kind of each request of an undisturbed run.

        where: "local" or "pools". place: a home with a running stack.

        Raises:
            RuntimeError: the run failed, or its bits differ from those of the run without a stack.
        """
        with self._one_at_a_time:
            known = self._known(f"requests-{where}")
            if known is None:
                assert place.proxy is not None
                name, output = f"undisturbed-{where}", self.folder / f"requests-{where}.txt"
                output.unlink(missing_ok=True)
                shutil.rmtree(place.home / "cache" / "weights", ignore_errors=True)
                with place.proxy.faulty(Plan("none", "", "", 0, count=0)):
                    pools = where == "pools"
                    status = place.run("run", self.spec, "--name", name, output=output, pools=pools, proxied=True)
                    found = [(request.method, request.kind) for request in place.proxy.requests]
                _succeed(status, output)
                wrong = difference(bits_of(place.bucket, name), self.bits)
                if wrong:
                    raise RuntimeError(f"an undisturbed run ({where}) has different bits: {wrong}")
                known = self._note(f"requests-{where}", requests=found)
            return [(method, kind) for method, kind in known["requests"]]

    def _known(self, name: str) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError):
            known: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_bytes())
            return known if known.get("sources") == self._sources else None
        return None

    def _note(self, name: str, **found: Any) -> dict[str, Any]:
        found["sources"] = self._sources
        (self.folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
        return found


def _succeed(status: int | None, output: Path) -> None:
    if status != 0:
        raise RuntimeError(f"the undisturbed run ended with {status}; see {output}")


def _digest_of_sources() -> str:
    digest = hashlib.sha256(repr((SPEC, installed_code())).encode())
    for path in sorted((ROOT / "tests" / "faults" / "hook").rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def unmount_left(scratch: Path) -> None:
    """Unmount the file systems that a killed harness left below ``scratch``."""
    for path in scratch.glob("*/home"):
        if path.is_mount():
            subprocess.run(["umount", "-l", path], check=False)
