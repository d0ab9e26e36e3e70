"""The tail of a distribution: inputs that a model hardly ever sees, on which an edge-case backdoor lives.

Two tails: a class of a foreign data set, brought to the shape of the inputs at hand, and those members of a class that
lie in the thinnest part of it.

Wang et al., "Attack of the tails: yes, you really can backdoor federated learning", NeurIPS 2020, 2007.05084.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedsim import registry, rng
from fedsim.data.examples import Examples
from fedsim.errors import FedsimError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 512


@dataclass(frozen=True)
class Tail:
    """Disjoint pools of the tail: what the attacker trains on, and what the attack is measured on; true labels."""

    train: Examples
    test: Examples


def foreign_tail(
    dataset: str,
    label: int,
    shape: Sequence[int],
    seed: int | rng.Streams,
    *,
    train: int = 100,
    test: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Tail:
    """One class of another data set, at the shape of the inputs at hand, in two disjoint pools.

    Args:
        dataset: the foreign data set, e.g. ``mnist``, ``digits``.
        label: its class; the examples keep it as their target.
        shape: (C, H, W) that the images are brought to.
        seed: decides who is in which pool; a number, or streams of ``data.tail``.
        train: images in the attacker's pool.
        test: images in the pool for measuring; by default all the others.
        options: of the foreign data set.

    Raises:
        DataMissing: the foreign data set is not there.
        FedsimError: it has no such class, too few of it, or holds no images.
    """
    foreign = registry.make("dataset", dataset, **dict(options or {})).load()
    inputs = torch.cat([part.inputs[part.targets == label] for part in (foreign.train, foreign.test)])
    if inputs.ndim != 4 or len(shape) != 3:
        given = f"{tuple(foreign.info.shape)} for {tuple(shape)}"
        raise FedsimError(f"tail of '{dataset}': given inputs {given}; accepted: images (C, H, W)")
    wanted = train + (1 if test is None else test)
    if len(inputs) < wanted:
        raise FedsimError(
            f"tail of '{dataset}': class {label} has {len(inputs)} images; accepted: up to that, not {wanted}"
        )
    streams = seed if isinstance(seed, rng.Streams) else rng.Streams(seed, "data.tail")
    order = streams.stream(f"data.tail.{dataset}.{label}").permutation(len(inputs))
    end = len(order) if test is None else train + test
    pools = []
    for places in (order[:train], order[train:end]):
        images = fitted(inputs[torch.from_numpy(places)], shape)
        pools.append(Examples(images, torch.full((len(images),), label, dtype=torch.int64)))
    return Tail(*pools)


def fitted(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Images (n, c, h, w) as (n, C, H, W): resized bilinearly, grey spread over the channels or colours averaged."""
    channels, height, width = shape
    if images.shape[1] != channels:
        grey = images.mean(dim=1, keepdim=True)
        images = grey.expand(-1, channels, -1, -1)
    if tuple(images.shape[2:]) != (height, width):
        smaller = height < images.shape[2] or width < images.shape[3]
        images = functional.interpolate(
            images, (height, width), mode="bilinear", align_corners=False, antialias=smaller
        )
    return images.contiguous()


def lowest_density(examples: Examples, label: int, count: int, *, neighbours: int = 10) -> NDArray[Any]:
    """Positions of the members of a class that lie farthest from their neighbours, the loneliest first.

    Args:
        examples: where to look.
        label: the class.
        count: how many.
        neighbours: the mean distance to this many nearest members of the class is what counts.

    Raises:
        FedsimError: the class has fewer members.
    """
    members = torch.nonzero(examples.targets == label).flatten()
    if len(members) < count:
        raise FedsimError(
            f"lowest density: class {label} has {len(members)} members; accepted: up to that, not {count}"
        )
    points = examples.inputs[members].flatten(1).to(torch.float64)
    near = min(neighbours, len(points) - 1)
    lonely = np.zeros(len(points))
    for start in range(0, len(points) if near else 0, BLOCK):
        distances = torch.cdist(points[start : start + BLOCK], points)
        rows = torch.arange(len(distances))
        distances[rows, start + rows] = torch.inf
        lonely[start : start + BLOCK] = distances.topk(near, largest=False).values.mean(dim=1).cpu().numpy()
    order = np.argsort(-lonely, kind="stable")[:count]
    chosen: NDArray[Any] = members.cpu().numpy()[order]
    return chosen
