"""Six small classifiers of digits, (n, 64) → (n, 10)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

NAMES = ("linear", "mlp", "deep_tanh", "mlp_ln", "cnn_bn", "transformer")


class Transformer(nn.Module):
    """A digit's rows as eight tokens, one layer, a head; torch's own fused layer has no forward derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(0.02 * torch.randn(8, 32))
        self.attend, self.project = nn.Linear(32, 96), nn.Linear(32, 32)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
        self.wide = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.view(-1, 8, 8)) + self.place
        q, k, v = (part.view(-1, 8, 4, 8).transpose(1, 2) for part in self.attend(self.first(tokens)).chunk(3, dim=-1))
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ v
        tokens = tokens + self.project(mixed.transpose(1, 2).reshape(-1, 8, 32))
        logits: Tensor = self.head((tokens + self.wide(self.second(tokens))).mean(1))
        return logits


def architecture(name: str) -> nn.Module:
    """A fresh network, drawn from torch's global generator."""
    if name == "transformer":
        return Transformer()
    if name == "linear":
        return nn.Linear(64, 10)
    if name == "mlp":
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    if name == "deep_tanh":
        hidden = [layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.Tanh())]
        return nn.Sequential(*hidden, nn.Linear(64, 10))
    if name == "mlp_ln":
        return nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, 10))
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
        nn.Linear(1024, 10),
    )  # fmt: skip
