"""fedsim's side: ``python ours.py mlp|cnn ROUNDS COST [ray]``, or ``python ours.py population ROUNDS CLIENTS``.

A round as a user gets it: strategy, messages, fedavg, records and checkpoint written. Only the evaluation on the test
set is left out, on all sides (rounds 0 and the last have one; they are not counted).
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from typing import Any

import fedsim


def federation(kind: str, cost: int, engine: str) -> dict[str, Any]:
    """The workload's scenario."""
    import workload

    return {
        "data": {
            "dataset": "fashion_mnist",
            "partition": {"name": "iid", "examples": workload.images_per_client(cost)},
            "clients": workload.clients(cost),
        },
        "model": {"name": kind},
        "client": {
            "per_round": workload.COHORT,
            "batch_size": workload.BATCH,
            "optimizer": {"name": "sgd", "lr": workload.LEARNING_RATE},
        },
        "engine": {"name": engine, "workers": fedsim.runtime.cores()},
    }


def population(clients: int) -> dict[str, Any]:
    """200 clients a round out of so many; a client's round is small, so that what the population costs shows."""
    return {
        "data": {
            "dataset": "synthetic_classification",
            "partition": {"name": "iid", "examples": 32},
            "clients": clients,
        },
        "model": {"name": "mlp"},
        "client": {"per_round": 200},
    }


def main() -> None:
    what, rounds, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    tables = population(number) if what == "population" else federation(what, number, (*sys.argv[4:], "local")[0])
    scenario = fedsim.Scenario(rounds=rounds + 1, evaluate={"every": rounds + 1}, **tables)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        fedsim.run(scenario, out=f"{folder}/run", progress=lambda record: ends.append(time.perf_counter()))
    import workload

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    # The last round evaluates: its end does not count.
    workload.report(ends[: rounds + 1], peak_mib=peak)


if __name__ == "__main__":
    main()
