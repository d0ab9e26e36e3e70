"""Tunes DIFF2 and DP-GD on ``papers/diff2`` and its like: every point of the paper's grid, side by side.

The model is Linear(d, 10)–softplus–Linear(10, 1) with the squared error (:class:`Perceptron`), or Linear(d, K) with the
cross-entropy (:class:`Softmax`). All 840 points (C₁, C₂, T/R, η) of the grid
train as one stacked computation for each seed, in parts where it would hold more than ``NUMBERS``, each point with its
own radii and rate and the noise of its calibration, clipped by norms that follow from activations and signals. With
``--most n`` a first pass reads n examples of each client, with the noise that all of them would get, and
``--finalists`` points of each method then read all. Tuning reads the data and costs privacy that no ε counts: seeds of
the tuning are no seeds of the claim.

A point is worth the mean of its squared gradient norms over the second half of the rounds, on the seed where it does
worst: a rate at the edge of stability, whose last rounds are small by luck, is not chosen.

``python -m fedsim.verify.diff2_grid papers/diff2 --seeds 100 101 --most 20 --finalists 16`` is how ``papers/diff2`` was
tuned. It prints the best points of each method with their values on each seed; ``--out FILE.json`` writes all points of
both passes, ranked, for a rerun to be compared with.

Murata & Suzuki, ICML 2023, arXiv 2302.03884, §5.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from fedsim import rng
from fedsim.federation import build
from fedsim.privacy import diff2_noise
from fedsim.record import write_json
from fedsim.scenario import Scenario

RADII = (1.0, 3.0, 10.0, 30.0, 100.0)
RATIOS = (0.003, 0.01, 0.03, 0.1)
RATES = tuple(0.5**i for i in range(8))
NUMBERS = 1 << 23  # units of points and examples that one stacked computation holds
LAST = 0.5  # share of the rounds, at the end, that a point is judged by


@dataclass(frozen=True)
class Point:
    """A point of the grid; ``ratio`` 0 is DP-GD, which has no C₂."""

    c1: float
    c2: float
    ratio: float
    lr: float

    @property
    def method(self) -> str:
        return "diff2" if self.ratio else "dp_gd"


def grid(
    radii: Sequence[float] = RADII, ratios: Sequence[float] = RATIOS, rates: Sequence[float] = RATES
) -> list[Point]:
    """All points of both methods."""
    private = [Point(c1, 0.0, 0.0, lr) for c1, lr in itertools.product(radii, rates)]
    return private + [Point(*values) for values in itertools.product(radii, radii, ratios, rates)]


class Stacked(ABC):
    """Points that train side by side.

    Args:
        points: g of them.
        scenario: the data, the model's start, rounds and privacy.
        most: examples of each client that are read; None: all. The noise is that of all.
    """

    def __init__(self, points: Sequence[Point], scenario: Scenario, most: int | None = None) -> None:
        federation = build(scenario)
        shares, train = federation.shares, federation.dataset.train
        read = [np.asarray(share[:most], dtype=np.int64) for share in shares]
        order = torch.from_numpy(np.concatenate(read))
        inputs = train.inputs[order].flatten(1)
        self.x = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)  # (N, d + 1)
        self.y = train.targets[order]
        sizes, counts = np.asarray(shares.sizes), np.array([len(share) for share in read])
        self.share = torch.from_numpy(np.repeat(1 / (len(counts) * counts), counts)).float()
        self.reach = self.x.square().sum(1)
        layers = [layer for layer in federation.module.modules() if isinstance(layer, torch.nn.Linear)]
        self.points, self.rounds, self.seed = list(points), scenario.rounds, scenario.seed
        self.at = self.start(layers).detach().repeat(len(points), 1)
        self.c1 = torch.tensor([p.c1 for p in points])
        self.c2 = torch.tensor([p.c2 for p in points])
        self.lr = torch.tensor([p.lr for p in points])
        self.interval = [max(1, math.floor(p.ratio * self.rounds + 1e-9)) if p.ratio else 1 for p in points]
        privacy = scenario.privacy
        sigma = {
            t: diff2_noise(
                float(privacy.epsilon or math.inf),
                privacy.delta,
                self.rounds,
                t,
                len(sizes),
                int(sizes.min()),
                calibration=privacy.calibration,
            )
            for t in set(self.interval)
        }
        self.sigma1 = torch.tensor([sigma[t][0] for t in self.interval])
        self.sigma2 = torch.tensor([sigma[t][1] for t in self.interval])
        self.v = torch.zeros_like(self.at)  # (g, parameters)
        self.before: tuple[Tensor, tuple[Tensor, ...]] | None = None

    @abstractmethod
    def start(self, layers: Sequence[torch.nn.Linear]) -> Tensor:
        """(parameters,) of the model's start."""

    @abstractmethod
    def signals(self) -> tuple[Tensor, ...]:
        """What the examples' gradients at ``at`` are made of."""

    @abstractmethod
    def sums(self, signals: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        """(g, parameters) sums of the examples' gradients, by weights (g, N)."""

    @abstractmethod
    def norms(self, signals: tuple[Tensor, ...]) -> Tensor:
        """(g, N) norms of the examples' gradients."""

    @abstractmethod
    def distances(self, now: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> Tensor:
        """(g, N) norms of the differences of the examples' gradients."""

    def play(self) -> Tensor:
        """(g,) squared gradient norms, the mean over the second half of the rounds; inf where a point has diverged."""
        steps = rng.stream(self.seed, "verify.diff2.grid")
        last = max(1, round(LAST * self.rounds))
        total = torch.zeros(len(self.points), dtype=torch.float64)
        for number in range(self.rounds):
            now = self.signals()
            if number > self.rounds - last:
                total += self._squared_norms(now)
            restart = torch.tensor([number % t == 0 for t in self.interval])
            self.v = self._estimate(now, restart, steps)
            self.before = self.at, now
            moved = self.at - self.lr[:, None] * self.v
            self.at = torch.where(moved.abs() < 1e6, moved, torch.zeros(()))
        total += self._squared_norms(self.signals())
        return (total / last).nan_to_num(nan=math.inf)

    def _squared_norms(self, now: tuple[Tensor, ...]) -> Tensor:
        return self.sums(now, self.share.expand(len(self.points), -1)).double().square().sum(1)

    def _estimate(self, now: tuple[Tensor, ...], restart: Tensor, steps: np.random.Generator) -> Tensor:
        noise = torch.from_numpy(steps.standard_normal(self.v.shape[1])).float()
        fresh = self.sums(now, self.share * (self.c1[:, None] / self.norms(now)).clamp(max=1))
        fresh = fresh + (self.c1 * self.sigma1)[:, None] * noise
        if self.before is None or bool(restart.all()):
            return fresh
        where, before = self.before
        radius = self.c2 * (self.at - where).norm(dim=1)
        weights = self.share * (radius[:, None] / self.distances(now, before).clamp(min=1e-15)).clamp(max=1)
        moved = self.sums(now, weights) - self.sums(before, weights)
        difference = self.v + moved + (radius * self.sigma2)[:, None] * noise
        return torch.where(restart[:, None], fresh, difference)


class Perceptron(Stacked):
    """Linear(d, h)–softplus–Linear(h, 1), squared error. Signals: hidden units and a one (g, h + 1, N), hidden signals
    (g, h, N) and output signals (g, N)."""

    def start(self, layers: Sequence[torch.nn.Linear]) -> Tensor:
        first, last = layers
        self.hidden = first.out_features
        return torch.cat([torch.cat([first.weight, first.bias[:, None]], 1).flatten(), last.weight[0], last.bias])

    def signals(self) -> tuple[Tensor, ...]:
        size = self.hidden * self.x.shape[1]
        w, u = self.at[:, :size].reshape(-1, self.hidden, self.x.shape[1]), self.at[:, size:]
        a = w @ self.x.T
        h = torch.cat([softplus(a), torch.ones(len(a), 1, a.shape[2])], 1)
        out = 2 * (torch.einsum("gh,ghn->gn", u, h) - self.y)
        return h, torch.sigmoid(a) * u[:, :-1, None] * out[:, None], out

    def sums(self, signals: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        hidden, signal, out = signals
        first = (signal * weights[:, None]) @ self.x
        return torch.cat([first.flatten(1), torch.einsum("gn,ghn->gh", out * weights, hidden)], 1)

    def norms(self, signals: tuple[Tensor, ...]) -> Tensor:
        h, s, out = signals
        return (s.square().sum(1) * self.reach + out.square() * h.square().sum(1)).sqrt()

    def distances(self, now: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> Tensor:
        (h, s, out), (h0, s0, out0) = now, before
        ds, dh, dout = s - s0, h - h0, out - out0
        cross = 2 * dout * out * (h0 * dh).sum(1)
        squares = ds.square().sum(1) * self.reach
        squares = squares + dout.square() * h0.square().sum(1) + out.square() * dh.square().sum(1) + cross
        return squares.clamp(min=0).sqrt()


class Softmax(Stacked):
    """Linear(d, K), cross-entropy. Signals: probabilities less the label's one, (g, K, N)."""

    def start(self, layers: Sequence[torch.nn.Linear]) -> Tensor:
        (layer,) = layers
        self.label = one_hot(self.y, layer.out_features).T.float()
        return torch.cat([layer.weight, layer.bias[:, None]], 1).flatten()

    def signals(self) -> tuple[Tensor, ...]:
        w = self.at.reshape(len(self.points), -1, self.x.shape[1])
        return (torch.softmax(w @ self.x.T, 1) - self.label,)

    def sums(self, signals: tuple[Tensor, ...], weights: Tensor) -> Tensor:
        return ((signals[0] * weights[:, None]) @ self.x).flatten(1)

    def norms(self, signals: tuple[Tensor, ...]) -> Tensor:
        norms: Tensor = signals[0].norm(dim=1) * self.reach.sqrt()
        return norms

    def distances(self, now: tuple[Tensor, ...], before: tuple[Tensor, ...]) -> Tensor:
        return self.norms((now[0] - before[0],))


def stacked(points: Sequence[Point], scenario: Scenario, most: int | None = None) -> Stacked:
    """The points on the scenario's model."""
    kind = Softmax if scenario.model.name == "logistic" else Perceptron
    return kind(points, scenario, most)


def tune(
    points: Sequence[Point], scenario: Scenario, seeds: Sequence[int], most: int | None = None
) -> dict[Point, list[float]]:
    """Squared gradient norms of every point, one a seed."""
    found: dict[Point, list[float]] = {point: [] for point in points}
    for seed in seeds:
        seeded = scenario.changed(seed=seed)
        one = stacked(points[:1], seeded, most)
        chunk = max(1, NUMBERS // one.signals()[0].numel())
        for start in range(0, len(points), chunk):
            some = list(points[start : start + chunk])
            for point, value in zip(some, stacked(some, seeded, most).play().tolist(), strict=True):
                found[point].append(value)
    return found


def ranked(found: dict[Point, list[float]], method: str) -> list[Point]:
    """The method's points by their worst seed, the best first."""
    return sorted((point for point in found if point.method == method), key=lambda point: max(found[point]))


def written(found: dict[Point, list[float]]) -> dict[str, list[dict[str, object]]]:
    """Every point of each method with its values, the best first, for a JSON file."""
    return {
        method: [asdict(point) | {"squared_norms": found[point]} for point in ranked(found, method)]
        for method in ("dp_gd", "diff2")
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", default="papers/diff2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--most", type=int, default=None, help="examples of each client that a first pass reads")
    parser.add_argument("--finalists", type=int, default=20, help="points of each method that then read all")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.json", help="write all points, ranked, here")
    chosen = parser.parse_args(arguments)
    from fedsim.scenario import read

    tables = {key: value for key, value in read(chosen.scenario).items() if key != "matrix"}
    scenario = Scenario(**tables)
    if chosen.rounds is not None:
        scenario = scenario.changed(rounds=chosen.rounds)
    points, passes = grid(), {}
    if chosen.most is not None:
        rough = tune(points, scenario, chosen.seeds, chosen.most)
        passes[f"{chosen.most} examples of each client"] = written(rough)
        points = [point for method in ("dp_gd", "diff2") for point in ranked(rough, method)[: chosen.finalists]]
    found = tune(points, scenario, chosen.seeds)
    passes["all examples"] = written(found)
    if chosen.out is not None:
        tuned = {"scenario": chosen.scenario, "seeds": chosen.seeds, "rounds": scenario.rounds}
        write_json(chosen.out, tuned | {"passes": passes})
    for method in ("dp_gd", "diff2"):
        for point in ranked(found, method)[:3]:
            print(json.dumps({"method": method, **asdict(point), "squared_norms": found[point]}))


if __name__ == "__main__":
    main()
