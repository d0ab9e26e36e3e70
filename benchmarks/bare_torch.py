"""The limit: the same training steps with no federation at all: ``python bare_torch.py mlp|cnn ROUNDS COST [best]``.

A plain PyTorch loop in each of as many processes as there are cores; a round ends when every process has trained its
share of the 20 clients. No messages, no aggregation, no strategy. ``best`` takes channels_last and fedsim's malloc
setting; without it the loop is as people write it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.managers import ListProxy
from multiprocessing.synchronize import Barrier


def worker(rank: int, world: int, barrier: Barrier, ends: ListProxy[float]) -> None:
    kind, rounds, cost, best = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), "best" in sys.argv
    if best:
        from fedsim import runtime

        runtime.set_up()
    import torch
    import workload

    torch.set_num_threads(1)
    layout = torch.channels_last if best else torch.contiguous_format
    images, labels = workload.load()
    images = images.contiguous(memory_format=layout)
    net = workload.model(kind).to(memory_format=layout)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    for _ in range(rounds + 1):
        barrier.wait()
        if rank == 0:
            ends.append(time.perf_counter())
        for client in range(rank, workload.COHORT, world):
            net.load_state_dict(start)
            workload.train(net, images, labels, client, cost)


if __name__ == "__main__":
    import workload

    world = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    barrier, ends = context.Barrier(world), context.Manager().list()
    processes = [context.Process(target=worker, args=(rank, world, barrier, ends)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    workload.report(list(ends))
