"""A client's epoch of DP-SGD, as a federation trains it: ``python dp_sgd_epoch.py EPOCHS``.

The MLP on 6,000 images of Fashion-MNIST, 24 Poisson batches of 256 on average, each example's gradient clipped, noise
on each step's sum; on one thread.
"""

from __future__ import annotations

import sys
import time

import fedsim  # noqa: F401  (sets the process up before torch is imported)

EXAMPLES, BATCH = 6_000, 256
CLIP, NOISE, LEARNING_RATE = 1.0, 1.0, 0.1


def main() -> None:
    import numpy as np
    import torch
    import workload as work

    from fedsim.client import reference
    from fedsim.client.hooks import HONEST
    from fedsim.client.job import make_job
    from fedsim.client.replica import Replica
    from fedsim.client.workload import Workload
    from fedsim.data.examples import Examples, Shares
    from fedsim.registry import make
    from fedsim.updates import Layout

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = (each[:EXAMPLES] for each in work.load())
    net = work.model("mlp")
    optimizer = make("optimizer", "dp_sgd", lr=LEARNING_RATE, clip=CLIP)
    optimizer.noise_multiplier = NOISE
    load = Workload(
        train=Examples(images, labels),
        shares=Shares.of([np.arange(EXAMPLES)]),
        model=lambda: work.model("mlp"),
        layout=Layout.of(net),
        num_classes=10,
        optimizer=optimizer,
        seed=0,
        batch_size=BATCH,
        secrecy="server",
    )
    replica, hooks = Replica(load), HONEST
    vector = load.layout.flatten(dict(net.named_parameters()))
    ends = [time.perf_counter()]
    for round in range(1, int(sys.argv[1]) + work.WARM_UP + 1):
        job = make_job(load, 0, round, None, ())
        delta, _ = reference.train(replica, job, vector, hooks, 1.0, 0.0)
        vector = vector + delta
        ends.append(time.perf_counter())
    with torch.no_grad():
        load.layout.load(net, vector)
        correct = float((net(images).argmax(1) == labels).double().mean())
    work.report(ends, accuracy=correct)


if __name__ == "__main__":
    main()
