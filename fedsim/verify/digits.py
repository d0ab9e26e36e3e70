"""The digits of scikit-learn, divided by a seed: what several papers' claims are measured on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Split = tuple[Tensor, Tensor, Tensor, Tensor]


def split(seed: int, test: int = 360, stratified: bool = False) -> Split:
    """Training inputs (n, 64) in [0, 1] and labels (n,), test inputs and labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    inputs, labels = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    if stratified:
        rows, held = train_test_split(np.arange(len(y)), test_size=0.3, random_state=seed, stratify=y)
    else:
        order = np.random.default_rng(seed).permutation(len(y))
        held, rows = order[:test], order[test:]
    return inputs[rows], labels[rows], inputs[held], labels[held]
