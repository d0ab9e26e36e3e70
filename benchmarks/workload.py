"""The work that every system under measurement does: FedAvg on Fashion-MNIST.

100 clients hold 288 images each, 20 of them train for one local epoch a round: 9 batches of 32, SGD, learning rate
0.05. ``cost`` makes the same round heavier: with cost 10 the federation is 20 clients of 2,880 images, all of which
train. Every system takes the same number of steps, on as many images, with the same models.

This file imports no fedsim: it also runs where only Flower is installed.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import statistics
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

COHORT = 20
BATCH = 32
LEARNING_RATE = 0.05
WARM_UP = 2
"""Rounds at the start that are not counted."""


def images_per_client(cost: int) -> int:
    """Images that one client trains on: 288 (cost 1) to 2,880 (cost 10)."""
    return 288 * cost


def clients(cost: int) -> int:
    """Clients in the federation; together they never need more than the 60,000 images."""
    return 100 if cost == 1 else COHORT


def folders() -> list[Path]:
    """Where Fashion-MNIST may lie: Debian's package, then where `make data` puts it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim"
    return [
        Path("/usr/share/datasets/fashion-mnist"),
        Path(os.environ.get("FEDSIM_DATA") or cache) / "fashion_mnist",
    ]


def load() -> tuple[Tensor, Tensor]:
    """Fashion-MNIST's training set: images (60000, 1, 28, 28) in [0, 1], labels (60000,)."""
    folder = next((each for each in folders() if (each / "train-images-idx3-ubyte.gz").is_file()), None)
    if folder is None:
        raise SystemExit("Fashion-MNIST is not here; `make data` brings it")
    pixels = np.frombuffer(gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    images = torch.tensor(pixels.reshape(-1, 1, 28, 28).copy()).float() / 255
    return images, torch.tensor(labels.copy()).long()


def model(kind: str) -> nn.Module:
    """``mlp`` (50,890 parameters) or ``cnn`` (46,730)."""
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(
        nn.Conv2d(1, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def train(net: nn.Module, images: Tensor, labels: Tensor, client: int, cost: int) -> None:
    """One client's round: an epoch over its images, in their order."""
    first, count = client * images_per_client(cost), images_per_client(cost)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    loss = nn.CrossEntropyLoss()
    for start in range(first, first + count, BATCH):
        optimizer.zero_grad()
        loss(net(images[start : start + BATCH]), labels[start : start + BATCH]).backward()
        optimizer.step()


def report(ends: list[float], **more: float) -> None:
    """Print what run.py reads: the median of the rounds between these moments, without the first ones."""
    rounds = [after - before for before, after in itertools.pairwise(ends)][WARM_UP:]
    print(json.dumps({"seconds": statistics.median(rounds), "rounds": len(rounds), **more}))
