"""An empty federation in Flower's simulation, for :mod:`bench_empty_round`. It needs an environment with ``flwr``.

    python flower_app.py SHAPES.json CLIENTS ROUNDS CORES

SHAPES.json lists the shape and type of each array of the model. Training adds the client's own constant to one array
and returns all arrays; evaluation returns at once. The strategy is FedAvg with every client in both. It prints a line
of JSON with the time of each round's end, round 0 first.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    arrays = message.content["arrays"].to_numpy_ndarrays()
    arrays[0] = arrays[0] + np.float32(1e-3 * (1 + int(context.node_config["partition-id"])))
    metrics = MetricRecord({"num-examples": 2, "loss": 0.0})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    message.content["arrays"].to_numpy_ndarrays()
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 2, "loss": 0.0})}), reply_to=message)


def main() -> None:
    shapes = json.loads(Path(sys.argv[1]).read_text())
    clients, rounds, cores = map(int, sys.argv[2:5])
    ends: list[float] = []
    server_app = ServerApp()

    @server_app.main()
    def run(grid: Grid, context: Context) -> None:
        generator = np.random.default_rng(1)
        # Random values, because a store or transport that compresses would gain from zeros.
        arrays = [
            generator.standard_normal(shape, dtype=np.float32) if kind == "float32" else np.zeros(shape, kind)
            for shape, kind in shapes
        ]

        def round_ended(number: int, arrays: ArrayRecord) -> None:
            ends.append(time.time())

        strategy = FedAvg(min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients)
        strategy.start(grid=grid, initial_arrays=ArrayRecord(arrays), num_rounds=rounds, evaluate_fn=round_ended)

    run_simulation(
        server_app,
        client_app,
        num_supernodes=clients,
        backend_config={
            "init_args": {"num_cpus": cores, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    print(json.dumps({"ends": ends}))


if __name__ == "__main__":
    main()
