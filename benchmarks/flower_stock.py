"""What a user gets from Flower as it comes: ``python flower_stock.py mlp|cnn ROUNDS COST``.

The workload on Flower's own simulation (Ray, one CPU a client) with its FedAvg. Needs flwr[simulation] and torch.
"""

from __future__ import annotations

import os
import sys
import time

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import torch
import workload
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

KIND, ROUNDS, COST = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
_data: list[tuple[torch.Tensor, torch.Tensor]] = []
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    if not _data:
        _data.append(workload.load())
    net = workload.model(KIND)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    workload.train(net, *_data[0], int(context.node_config["partition-id"]), COST)
    metrics = MetricRecord({"num-examples": workload.images_per_client(COST)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    ends: list[float] = []
    strategy = FedAvg(fraction_train=workload.COHORT / workload.clients(COST), fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(workload.model(KIND).state_dict()),
        num_rounds=ROUNDS,
        evaluate_fn=lambda server_round, arrays: ends.append(time.perf_counter()),
    )
    workload.report(ends)


if __name__ == "__main__":
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0}}
    run_simulation(
        server_app=server_app, client_app=client_app, num_supernodes=workload.clients(COST), backend_config=resources
    )
