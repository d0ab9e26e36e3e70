"""The epoch of dp_sgd_epoch.py by Opacus with ghost clipping: ``python opacus_epoch.py EPOCHS``.

Opacus' own Poisson sampler, whose batches are cut out of tensors: its data loader, which collates single examples,
would cost more. This file imports no fedsim: it runs where only Opacus is installed.
"""

from __future__ import annotations

import sys
import time
import warnings

import torch
import workload as work
from opacus import PrivacyEngine
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EXAMPLES, BATCH = 6_000, 256
CLIP, NOISE, LEARNING_RATE = 1.0, 1.0, 0.1


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = (each[:EXAMPLES] for each in work.load())
    net = work.model("mlp")
    model, optimizer, criterion, _ = PrivacyEngine().make_private(
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=LEARNING_RATE),
        criterion=nn.CrossEntropyLoss(),
        data_loader=DataLoader(TensorDataset(images, labels), batch_size=BATCH),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        grad_sample_mode="ghost",
    )
    model.train()
    sampler = UniformWithReplacementSampler(num_samples=EXAMPLES, sample_rate=BATCH / EXAMPLES)
    ends = [time.perf_counter()]
    for _ in range(int(sys.argv[1]) + work.WARM_UP):
        for batch in sampler:
            chosen = torch.tensor(batch)
            optimizer.zero_grad()
            loss = criterion(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
        ends.append(time.perf_counter())
    with torch.no_grad():
        correct = float((model(images).argmax(1) == labels).double().mean())
    work.report(ends, accuracy=correct)


if __name__ == "__main__":
    main()
