"""What each field of the original's files becomes: one function a field, which changes the state of a conversion.

Each function returns the line on the field that the user reads. The original's behaviour is that of its
``fl_server.py``, ``fl_client.py`` and ``model/model_wrapper.py``. The fields here belong to both detectors. Those of
one detector are in :mod:`tasks.original.fields_yolo` and :mod:`tasks.original.fields_faster_rcnn`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tasks.errors import SpecError
from tasks.original.network_file import NetworkFile
from tasks.original.task_files import OriginalTask, shown

NOT_CARRIED = "not carried over: "
STREET_SIZE = (704, 576)  # width and height of Street's images
MULTIPLE = 32  # of which both sides of every detector's input are multiples


@dataclass
class State:
    """The state of a conversion. ``document`` is the specification so far.

    Of YOLOv3, network and kind come from ``model_def``. Of Faster R-CNN, ``sides`` are the limits of an image's shorter
    and longer side in pixels.
    """

    task: OriginalTask
    document: dict[str, Any] = field(default_factory=dict)
    network: NetworkFile | None = None
    kind: str = "yolov3"
    sides: tuple[int, int] = (600, 1000)


# It takes the state, the field as messages name it ("file: field"), and its value, and returns what became of it.
Handler = Callable[[State, str, Any], str]


def whole(at: str, value: Any, least: int) -> int:
    """Return a whole number from ``least``.

    Raises:
        SpecError: ``value`` is anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SpecError(f"{at}: expected a whole number from {least}, found {shown(value)}")
    return value


def flag(at: str, value: Any) -> bool:
    """Return true or false.

    Raises:
        SpecError: ``value`` is anything else.
    """
    if not isinstance(value, bool):
        raise SpecError(f"{at}: expected true or false, found {shown(value)}")
    return value


def part(at: str, value: Any) -> float:
    """Return a number from 0 to 1.

    Raises:
        SpecError: ``value`` is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SpecError(f"{at}: expected a number from 0 to 1, found {shown(value)}")
    return float(value)


def text(at: str, value: Any) -> str:
    """Return text.

    Raises:
        SpecError: ``value`` is anything else.
    """
    if not isinstance(value, str):
        raise SpecError(f"{at}: expected text, found {shown(value)}")
    return value


def note(line: str) -> Handler:
    """Return a handler of a field that changes nothing. ``line`` says what it is."""
    return lambda state, at, value: line


def _min_workers(state: State, at: str, value: Any) -> str:
    state.document["participation"]["min_clients"] = whole(at, value, 1)
    return "participation.min_clients"


def _rounds(state: State, at: str, value: Any) -> str:
    rounds = whole(at, value, 0)
    state.document["max_rounds"] = rounds + 1
    return f"max_rounds: {rounds + 1}; the original counts from 0 and stops after round {rounds}: one round more"


def _tolerate(state: State, at: str, value: Any) -> str:
    tolerated = whole(at, value, -(10**9))
    if tolerated <= 0:
        return "patience: none; the original stops early only for numbers from 1"
    state.document |= {"patience": tolerated + 1, "patience_metric": "loss"}
    return (
        f"patience: {tolerated + 1}, patience_metric: loss. There: the test loss rose more than {tolerated} times in a "
        "row (its clients never send that loss, so it never stopped); here: as many rounds without a lower one"
    )


def _contacted(state: State, at: str, value: Any) -> str:
    state.document["participation"]["clients_per_round"] = whole(at, value, 1)
    return "participation.clients_per_round; a round goes on with more than half of them, where the original hung"


def _between(state: State, at: str, value: Any) -> str:
    whole(at, value, 1)
    return f"{NOT_CARRIED}every round is evaluated, as in the original, whose code reads this number and never uses it"


def local_epoch(state: State, at: str, value: Any) -> str:
    """Take the number of local epochs."""
    state.document["training"]["local_epochs"] = whole(at, value, 1)
    return "training.local_epochs; the optimiser starts afresh every round, where the original kept its state"


def _batch_size(state: State, at: str, value: Any) -> str:
    state.document["training"]["batch_size"] = whole(at, value, 1)
    return "training.batch_size; evaluation has its own, and never depends on it (BatchNorm in evaluation mode)"


def workers(state: State, at: str, value: Any) -> str:
    """Take the number of processes that load images."""
    state.document["training"]["loader_workers"] = min(whole(at, value, 0), 64)
    return "training.loader_workers; they never change the result"


def _device(state: State, at: str, value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise SpecError(f"{at}: expected cpu, cuda or a GPU's number, found {shown(value)}")
    device = "cpu" if value == "cpu" else "cuda"
    state.document["training"]["device"] = device
    return f"training.device: {device}"


def _load(state: State, at: str, value: Any) -> str:
    enforced = not flag(at, value)
    state.document["participation"]["check_load"] = enforced
    return f"participation.check_load: {str(enforced).lower()}, under the same max_load of 0.4"


_PATHS = "the data's split; each machine names its folder (FEDBENCH_STREET_DIR), and every device has its own images"
_LOGS = f"{NOT_CARRIED}logs are below the home folder, rounds in the store and in MLflow (fedbench show, export)"

# The fields that tasks of both detectors have.
SHARED: dict[str, Handler] = {
    "model_config": note("read; its fields are below"),
    "model_config_file": note("read; its fields are below"),
    "log_dir": note(_LOGS),
    "log_filename": note(_LOGS),
    "model_path": note(f"{NOT_CARRIED}global weights are in the store, one a round; see fedbench original weights"),
    "data_path": note(_PATHS),
    "data_config": note(_PATHS),
    "train": note(_PATHS),
    "test": note(_PATHS + "; one test set for all"),
    "valid": note(_PATHS + "; one test set for all"),
    "names": note("the data's own classes, in alphabetical order, which is the original's order for Street"),
    "MIN_NUM_WORKERS": _min_workers,
    "MAX_NUM_ROUNDS": _rounds,
    "NUM_TOLERATE": _tolerate,
    "NUM_CLIENTS_CONTACTED_PER_ROUND": _contacted,
    "ROUNDS_BETWEEN_VALIDATIONS": _between,
    "ignore_load": _load,
    "local_epoch": local_epoch,
    "batch_size": _batch_size,
    "n_cpu": workers,
    "device": _device,
    "gpu": _device,
}
