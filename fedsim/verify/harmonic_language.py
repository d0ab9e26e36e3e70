"""A small character-level Transformer on Python's own standard library: a client is a package."""

from __future__ import annotations

import hashlib
import math
import platform
import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.losses import HarmonicHead
from fedsim.verify.claim import Expected, Measured, claim

PACKAGES = (
    "asyncio", "concurrent", "email", "html", "http", "importlib", "json", "logging", "multiprocessing", "urllib",
)  # fmt: skip
HEADS = {"cross_entropy": "", "cosine": "cosine", "euclidean": "euclidean"}
CONTEXT, WIDTH, ROUNDS, LOCAL, BATCH = 64, 64, 30, 5, 16
VOCABULARY = 97
"""Printable ASCII, the line's end, and one for all else."""


def library() -> tuple[dict[str, Tensor], str]:
    """Each package's sources as codes, at most 200,000 of them, and the sha256 of all."""
    root, digest = Path(sysconfig.get_paths()["stdlib"]), hashlib.sha256()
    found = {}
    for name in PACKAGES:
        files = sorted((root / name).rglob("*.py"))
        raw = b"".join(file.read_bytes() for file in files if "test" not in file.parts)[:200_000]
        digest.update(name.encode() + raw)
        codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64)
        plain = np.where((codes >= 32) & (codes < 127), codes - 32, 95)
        found[name] = torch.from_numpy(np.where(codes == 10, 96, plain))
    return found, digest.hexdigest()


class Block(nn.Module):
    """Attention to what came before, then a wide layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 4, WIDTH // 4)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.attend(self.first(x)).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(x.shape))
        found: Tensor = x + self.wide(self.second(x))
        return found


class Language(nn.Module):
    """Codes (n, t) → logits (n, t, VOCABULARY)."""

    def __init__(self, distance: str) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(Block(), Block(), nn.LayerNorm(WIDTH))
        self.head: nn.Module = nn.Linear(WIDTH, VOCABULARY)
        if distance:
            self.head = HarmonicHead(WIDTH, VOCABULARY, distance=distance)  # type: ignore[arg-type]

    def forward(self, codes: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embed(codes) + self.place[: codes.shape[1]]))
        return logits


def _loss(model: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
    window = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())


def federated(distance: str, seed: int, rounds: int = ROUNDS) -> tuple[float, float, float, list[float]]:
    """(perplexity on the packages' ends, spread of gradient norms, variance of 8 components, loss over rounds)."""
    texts, _ = library()
    train = {name: text[: 9 * len(text) // 10] for name, text in texts.items()}
    held = {name: text[9 * len(text) // 10 :] for name, text in texts.items()}
    torch.manual_seed(seed)
    model, draw = Language(distance), np.random.default_rng(seed)
    shares = {name: len(text) / sum(map(len, train.values())) for name, text in train.items()}
    norms, curve = [], []
    for number in range(rounds):
        start = {key: value.clone() for key, value in model.state_dict().items()}
        mean = {key: torch.zeros_like(value) for key, value in start.items()}
        losses = []
        for name, text in train.items():
            model.load_state_dict(start)
            adam = torch.optim.Adam(model.parameters(), lr=3e-3)
            for _ in range(LOCAL):
                adam.zero_grad()
                loss = _loss(model, text, torch.from_numpy(draw.integers(0, len(text) - CONTEXT - 1, BATCH)))
                loss.backward()  # type: ignore[no-untyped-call]
                if number >= rounds // 2:
                    gradients = [each.grad for each in model.parameters() if each.grad is not None]
                    norms.append(math.sqrt(sum(float(each.square().sum()) for each in gradients)))
                adam.step()
                losses.append(float(loss.detach()))
            for key, value in model.state_dict().items():
                mean[key] += shares[name] * value
        model.load_state_dict(mean)
        curve.append(float(np.mean(losses)))
    model.eval()
    with torch.no_grad():
        ends = [_loss(model, text, torch.arange(0, len(text) - CONTEXT - 1, CONTEXT)) for text in held.values()]
        table = model.embed.weight - model.embed.weight.mean(0)
        variances = torch.linalg.svdvals(table).square()
    explained = float(variances[:8].sum() / variances.sum())
    return math.exp(float(torch.stack(ends).mean())), float(np.std(norms) / np.mean(norms)), explained, curve


@claim(
    {
        f"{name}_{what}": Expected(f"{name.replace('_', '-')} head: {text}", "–")
        for name in HEADS
        for what, text in (
            ("perplexity", "perplexity per character on the packages' last tenths"),
            ("spread", "standard deviation over mean of the gradients' norms, second half of training"),
            ("explained", "share of the embedding's variance in its first 8 components"),
        )
    }
    | {
        "learned": Expected("largest perplexity of the three heads (97 would be chance)", "–", None, 20.0),
        "cosine_gain": Expected("perplexity by cross-entropy over that of the cosine head", "–"),
    },
    source="language, ours: two layers of width 64, FedAvg over ten packages in a loop of the claim's own, 30 rounds "
    "of 5 local steps of Adam 3e-3",
    quick=False,
    paper="harmonic",
)
def language(seed: int) -> Measured:
    """Cosine and Euclidean harmonic heads against cross-entropy."""
    values: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    for name, distance in HEADS.items():
        perplexity, spread, explained, series[f"language {name}"] = federated(distance, seed)
        values |= {f"{name}_perplexity": perplexity, f"{name}_spread": spread, f"{name}_explained": explained}
    values["learned"] = max(values[f"{name}_perplexity"] for name in HEADS)
    values["cosine_gain"] = values["cross_entropy_perplexity"] / values["cosine_perplexity"]
    text = f"Python {platform.python_version()}, {', '.join(PACKAGES)}; sha256 {library()[1]}"
    return Measured(values, series, {"text": text})
