"""What ``import fedbench`` offers to notebooks and scripts: run a federation, read its records, open its models.

These names and their parameters stay. All else in fedbench's packages may change between versions.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cli.shared import log_kept
from flows.commands.arguments import choose_spec
from flows.commands.open_model import open_model
from flows.commands.opened_model import OpenedModel
from flows.commands.run_name import find_run
from flows.stored.runs import opened_store
from flows.stored.runs import read_run as read_stored
from infra.settings import Settings, load_settings
from infra.stack.own_environment import use_own_environment
from tasks.errors import FedbenchError
from tasks.spec.federation import FederationSpec, parse_spec
from tasks.spec.records import EvaluationRecord, RoundRecord

if TYPE_CHECKING:
    import pandas

UNNAMED = "notebook"  # base of the default name, where neither a preset nor a file gives one


@dataclass(frozen=True)
class Run:
    """A federation in the store. ``status`` is running, finished or stopped. ``records`` start with round 0."""

    name: str
    spec: FederationSpec
    records: tuple[RoundRecord, ...]
    status: str

    @property
    def best_round(self) -> int | None:
        """The best round so far; None before the first."""
        return self.records[-1].decision.best_round if self.records else None

    def rounds(self) -> pandas.DataFrame:
        """Return a frame with a row for each round: figures from 0 to 1, losses, seconds, bytes and clients.

        Index: round. Figures are those that `fedbench show` prints.
        """
        return _frame([_of_round(record) for record in self.records], ["round"])

    def evaluations(self) -> pandas.DataFrame:
        """Return a frame with a row for each evaluation: of the shared model on a test set, or of a client's own model.

        Index: round and clients. The columns ``AP class`` are VOC 2010's at IoU 0.5.
        """
        rows = [
            {"round": record.round, **_of_evaluation(item), "own model": item in record.personal}
            for record in self.records
            for item in (*record.evaluations, *record.personal)
        ]
        return _frame(rows, ["round", "clients"])


def read_run(name: str, *, home: str | Path | None = None) -> Run:
    """Return the federation ``name`` with the records of its committed rounds. It may still run.

    home: folder of all that fedbench keeps on this machine; by default as for the commands.

    Raises:
        SpecError: there is no federation of this name, or a record is damaged.
        InfraError: the store cannot be reached.
    """
    with _settings(home) as settings, opened_store(settings) as objects:
        found = read_stored(objects, settings, name)
    return Run(found.name, found.spec, tuple(found.records), found.status)


def load_model(model: str | Path, *, round: int | None = None, home: str | Path | None = None) -> OpenedModel:
    """Return a model with its ``detector`` (in evaluation mode, on the CPU) and ``card``.

    model: a run's name, ``RUN@CLIENT`` for a client's own model, a model file (``*.safetensors``), or
        ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS`` of MLflow's registry.
    round: of a run; by default its best one.

    Raises:
        SpecError: there is no such model; the message says what was tried.
        DataError: the file cannot be used.
        InfraError: the store or MLflow cannot be reached.
    """
    with _settings(home) as settings:
        return open_model(str(model), settings, round)


def run(
    spec: str | Path | Mapping[str, Any] | FederationSpec,
    *,
    name: str | None = None,
    home: str | Path | None = None,
    quiet: bool = False,
) -> Run:
    """Run a federation to its end and return it. The same call goes on with one that was interrupted.

    It runs in a process of its own, as by `fedbench run`, because a notebook has an event loop already. An interrupt
    stops it; no committed round is lost.

    spec: a preset's name, a YAML or JSON file, the fields as a mapping, or a specification.
    name: the federation's name; by default as for `fedbench run`, and for fields ``notebook`` and a digest.
    quiet: print only the result.

    Raises:
        SpecError: the specification has a mistake; the message names the field.
        FedbenchError: the federation cannot start or go on; the message is that of the command.
    """
    base, chosen = _chosen(spec)
    if name is None:
        name, chosen = _named(base, chosen, home, quiet)
    with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
        file = Path(folder) / f"{base}.json"
        file.write_text(json.dumps(chosen.model_dump(mode="json")), encoding="utf-8")
        words = ["run", str(file), "--name", name, *(["--home", str(home)] if home is not None else [])]
        _command([*words, *(["--quiet"] if quiet else [])])
    return read_run(name, home=home)


def _chosen(spec: str | Path | Mapping[str, Any] | FederationSpec) -> tuple[str, FederationSpec]:
    if isinstance(spec, FederationSpec):
        return UNNAMED, spec
    if isinstance(spec, Mapping):
        return UNNAMED, parse_spec(dict(spec), source="spec")
    return choose_spec(str(spec), {})


def _named(base: str, spec: FederationSpec, home: str | Path | None, quiet: bool) -> tuple[str, FederationSpec]:
    """Return name and specification of the federation that `fedbench run` without a name means."""
    with _settings(home) as settings, log_kept():  # the command logs and prints the data's faults
        found = find_run(settings, base, spec, lambda line: None)
    if found.note and not quiet:
        print(found.note)
    return found.name, found.spec


def _command(words: list[str]) -> None:
    """Run a ``fedbench`` command, and print its output line by line.

    Raises:
        FedbenchError: it failed; the message is its own.
    """
    command = [sys.executable, "-m", "fedbench", *words]
    errors: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(("error: ", "failed: ")):
                    errors.append(line.partition(": ")[2].rstrip("\n"))
                else:
                    print(line, end="", flush=True)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # a notebook's interrupt reaches this process alone
            process.wait()
            raise
    if process.returncode:
        raise FedbenchError("; ".join(errors) or f"fedbench {words[0]} ended with exit code {process.returncode}")


@contextlib.contextmanager
def _settings(home: str | Path | None) -> Iterator[Settings]:
    """Yield this machine's settings, with the environment of a command. Afterwards the environment is as before."""
    before = dict(os.environ)
    try:
        if home is not None:
            os.environ["FEDBENCH_HOME"] = str(Path(home).expanduser().absolute())
        settings = load_settings()
        use_own_environment(settings)
        yield settings
    finally:
        os.environ.clear()
        os.environ.update(before)


def _of_round(record: RoundRecord) -> dict[str, Any]:
    figures = record.shown.model_dump(mode="json", exclude={"per_class", "per_class_coco", "per_class_recall"})
    return {
        "round": record.round,
        **{name: value for name, value in figures.items() if not isinstance(value, dict)},
        "on": record.shown_on,
        "clients": len(record.updates),
        "dropped": len({failure.client for failure in record.dropped}),
        "seconds": sum(record.seconds.values()),
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "committed": record.committed,
    }


def _of_evaluation(item: EvaluationRecord) -> dict[str, Any]:
    figures = ("test_size", "loss", "map50_voc10", "map50_voc07", "map50_coco", "map_coco", "recall")
    return {
        "clients": ", ".join(item.clients),
        "on": item.on,
        **{name: getattr(item, name) for name in figures},
        **{f"AP {name}": value for name, value in item.per_class.items()},
    }


def _frame(rows: list[dict[str, Any]], index: list[str]) -> pandas.DataFrame:
    import pandas

    frame = pandas.DataFrame(rows)
    return frame.set_index(index) if rows else frame
