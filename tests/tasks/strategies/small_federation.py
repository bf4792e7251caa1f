"""A federation in one process, by the real turns, sums and server steps, over detectors whose rounds take milliseconds.

A :class:`Quadratic` has the loss ``½ a (w - b)²``, so that a method's rounds have closed forms. A :class:`Small` has
every role of a tensor, dropout, and a learning-rate factor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from tasks.data.batches import Batch
from tasks.detectors.base import Detections, Detector, Targets
from tasks.detectors.roles import Roles, TensorRole, tensor_roles
from tasks.detectors.state import load_state, state_of, write_state
from tasks.spec.federation import FederationSpec
from tasks.spec.strategies import AnyStrategy
from tasks.spec.training import Sgd, TrainingSpec
from tasks.strategies.base import LocalOutcome, LocalTurn, Planned, ServerResult, ServerRound
from tasks.strategies.registry import build_strategy, strategy_class
from tasks.strategies.sums import Counted, Sums
from tasks.strategies.tensor_file import TensorFile
from tasks.training.optimizers import planned_rates

State = dict[str, Tensor]
PLAIN = TrainingSpec(optimizer=Sgd(momentum=0.0, weight_decay=0.0), clip_norm=None)


class OnlyTrained(Detector):
    """A detector that is never asked for detections."""

    width = height = 4
    num_classes = 1

    def predict(self, outputs: Any, **options: Any) -> list[Detections]:
        raise NotImplementedError


class Quadratic(OnlyTrained):
    """One weight ``w``. An image's loss is ``½ a (w - b)²``; its box holds ``a`` and ``b``.

    factor: of the learning rate.
    """

    def __init__(self, start: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([start]))
        self.factor = factor

    def learning_rate_factors(self) -> dict[float, list[nn.Parameter]]:
        return {self.factor: [self.w]}

    def forward(self, images: Tensor) -> Tensor:
        return self.w.expand(len(images))

    def loss(self, outputs: Tensor, targets: Targets) -> dict[str, Tensor]:
        a, b = torch.stack([box[0, :2] for box in targets.boxes]).unbind(1)
        return {"distance": (0.5 * a * (outputs - b).square()).mean()}


class Small(OnlyTrained):
    """Guesses an image's number of objects from its mean colour.

    ``frozen`` is not trained, ``head`` has half of the learning rate, and nothing uses ``idle``.
    """

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.frozen = nn.Linear(3, 4).requires_grad_(False)
            self.norm = nn.BatchNorm1d(4)
            nn.init.normal_(self.norm.bias)
            self.middle = nn.Linear(4, 4)
            self.head = nn.Linear(4, 1)
            self.idle = nn.Parameter(torch.randn(2, 2))
        self.dropout = nn.Dropout(dropout)

    def learning_rate_factors(self) -> dict[float, list[nn.Parameter]]:
        head = list(self.head.parameters())
        known = {id(parameter) for parameter in head}
        return {1.0: [parameter for parameter in self.parameters() if id(parameter) not in known], 0.5: head}

    def forward(self, images: Tensor) -> Tensor:
        colours = self.norm(self.frozen(images.float().mean(dim=(2, 3)) / 255))
        guess: Tensor = self.head(torch.tanh(self.middle(self.dropout(colours))))
        return guess[:, 0]

    def loss(self, outputs: Tensor, targets: Targets) -> dict[str, Tensor]:
        wanted = torch.tensor([float(len(box)) for box in targets.boxes])
        return {"count": (outputs - wanted).square().mean(), "size": 0.01 * outputs.abs().mean()}


def quadratic(a: float, b: float, steps: int) -> list[Batch]:
    """Return ``steps`` batches of one image with the loss ``½ a (w - b)²``."""
    images, box = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([[a, b, 0.0, 0.0]])
    return [Batch(images, [box], [torch.zeros(1).long()], [0])] * steps


def colours(sizes: Sequence[int], seed: int = 0) -> list[Batch]:
    """Return batches of ``sizes`` images of noise with up to two objects each."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        images = torch.randint(256, (size, 3, 4, 4), dtype=torch.uint8, generator=generator)
        counts = torch.randint(3, (size,), generator=generator).tolist()
        boxes = [torch.zeros(count, 4) for count in counts]
        batches.append(Batch(images, boxes, [torch.zeros(count).long() for count in counts], list(range(size))))
    return batches


# Three clients of unequal size, whose turns take different numbers of steps.
COLOURS = {"1": colours([4, 4], 1), "2": colours([4, 4, 4, 4, 2], 2), "3": colours([4, 3], 3)}


@dataclass
class Federation:
    """The clients' batches and, after each round, the states that the method keeps.

    left_out: clients of the federation that have no batches, and so never take part.
    change: called with the outcome of each client's turn, before the server reads it.
    """

    strategy: AnyStrategy
    detector: Detector
    batches: Mapping[str, Sequence[Batch]]
    training: TrainingSpec = PLAIN
    lr: float = 0.05
    warmup_steps: int = 0
    left_out: int = 0
    change: Callable[[str, LocalOutcome], None] = lambda client, outcome: None
    rounds: int = 0
    model: State = field(init=False)
    server: State = field(default_factory=dict)
    shared: State = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    outcomes: dict[str, LocalOutcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = copied(state_of(self.detector))
        # The specification refuses mixed precision on a CPU, which works there too.
        checked = FederationSpec(strategy=self.strategy, training=self.training.model_copy(update={"amp": False}))
        self.method = strategy_class(checked)(self.strategy, self.training)

    def weight(self, client: str) -> float:
        """Return what the client's update counts by: its images, its objects, or 1."""
        boxes = [box for batch in self.batches[client] for box in batch.boxes]
        match self.strategy.weighting:
            case "uniform":
                return 1
            case "objects":
                return sum(len(box) for box in boxes)
            case _:
                return len(boxes)

    def turn(self, client: str, folder: Path) -> LocalTurn:
        load_state(self.detector, written(self.model, folder / "global"))
        return LocalTurn(
            client,
            self.detector,
            self.training,
            lambda: self.batches[client],
            seed=100 * self.rounds + int(client),
            learning_rate=self.lr,
            warmup_steps=self.warmup_steps if self.rounds == 1 else 0,
            model=TensorFile(folder / "global"),
            shared=mapped(self.shared, folder / "shared"),
            own=mapped(self.states.get(client, {}), folder / f"state-{client}"),
        )

    def round(
        self, *cohort: str, shards: Sequence[Sequence[str]] | None = None, dropped: Sequence[str] = ()
    ) -> ServerResult:
        """Run a round of ``cohort``, by default of all clients.

        shards: turns that send partial sums. dropped: clients that train, and whose updates do not count.
        """
        self.rounds += 1
        with tempfile.TemporaryDirectory() as name:
            folder, turns = Path(name), [[client] for client in cohort or self.batches]
            states: dict[str, State] = {}
            sums = Sums(self.method)
            for clients in turns if shards is None else shards:
                partial = Sums(self.method)
                counted = []
                for client in clients:
                    outcome = self.method.train(self.turn(client, folder))
                    self.change(client, outcome)
                    self.outcomes[client] = outcome
                    if client in dropped:
                        continue
                    update = written(outcome.state, folder / client)
                    counted.append(Counted(client, self.weight(client), outcome.figures))
                    self.method.check_figures(counted[-1], self.planned(client, folder, update, shards is None))
                    if outcome.own is not None:
                        states[client] = copied(outcome.own)
                    if shards is not None:
                        partial.accumulate_state(outcome.state, counted[-1])
                    else:
                        sums.accumulate(update, counted)
                if shards is not None:
                    sums.accumulate(written(partial.partial_sum(), folder / "sum"), counted, partial_sum=True)
            result = self.method.new_model(sums, self.server_round(folder))
        self.states |= states
        self.model, self.server, self.shared = result.model, result.server or {}, result.shared or {}
        return result

    def planned(self, client: str, folder: Path, update: Path, own: bool) -> Planned:
        return Planned(
            self.lr,
            planned_rates(
                len(self.batches[client]),
                self.training.accumulate,
                self.lr,
                self.warmup_steps if self.rounds == 1 else 0,
            ),
            start=TensorFile(folder / "global"),
            roles_of=lambda: tensor_roles(self.detector),
            update=TensorFile(update) if own else None,
        )

    def server_round(self, folder: Path) -> ServerRound:
        return ServerRound(
            start=TensorFile(written(self.model, folder / "start")),
            clients=len(self.batches) + self.left_out,
            roles_of=lambda: tensor_roles(self.detector),
            server=mapped(self.server, folder / "server"),
            shared=mapped(self.shared, folder / "server-shared"),
        )

    @property
    def w(self) -> float:
        """Return the weight of a quadratic."""
        return float(self.model["w"])


def serve(
    strategy: AnyStrategy,
    start: State,
    updates: Sequence[State],
    *,
    weights: Sequence[float] | None = None,
    figures: Sequence[Mapping[str, float]] | None = None,
    last: ServerResult | None = None,
    clients: int | None = None,
    roles: Roles | None = None,
    training: TrainingSpec = PLAIN,
) -> ServerResult:
    """Return the server's step from ``start`` with these updates.

    last: the result of the round before. roles: by default, all tensors are parameters.
    """
    method = build_strategy(FederationSpec(strategy=strategy, training=training))
    sums = Sums(method)
    for number, update in enumerate(updates):
        weight = 1.0 if weights is None else weights[number]
        sums.accumulate_state(update, Counted(str(number), weight, {} if figures is None else figures[number]))
    return method.new_model(
        sums,
        ServerRound(
            start=start,
            clients=len(updates) if clients is None else clients,
            roles_of=lambda: roles or {name: TensorRole("parameter", 1.0) for name in start},
            server=(last.server if last else None) or {},
            shared=(last.shared if last else None) or {},
        ),
    )


def copied(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def written(state: Mapping[str, Tensor], path: Path) -> Path:
    write_state(state, path)
    return path


def mapped(state: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """Return the state as the store gives it: a file of tensors, or nothing."""
    return TensorFile(written(state, path)) if state else {}


def bits(state: Mapping[str, Tensor]) -> bytes:
    """Return the safetensors bytes of a state: equal bytes are equal bits."""
    return save({name: state[name].contiguous() for name in sorted(state)})


def small_rounds(strategy: AnyStrategy, rounds: int = 3, **options: Any) -> Federation:
    """Return the federation of three clients over :class:`Small` after some rounds of all clients."""
    federation = Federation(strategy, Small(), COLOURS, **options)
    for _ in range(rounds):
        federation.round()
    return federation


def same_bits(first: AnyStrategy, second: AnyStrategy, rounds: int = 3, **options: Any) -> bool:
    """Return whether two methods give the same models in each of some rounds over :class:`Small`."""
    left, right = (Federation(strategy, Small(), COLOURS, **options) for strategy in (first, second))
    return all(bits(left.round().model) == bits(right.round().model) for _ in range(rounds))
