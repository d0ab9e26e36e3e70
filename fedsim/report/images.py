"""Example images as PNG data URIs, in their own pixels; the page enlarges them without smoothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 8


@dataclass(frozen=True)
class Pair:
    """One test image, clean and triggered."""

    clean: str
    triggered: str
    label: str
    target: str


def pairs(samples: Mapping[str, NDArray[Any]], names: list[str]) -> list[Pair]:
    """The first examples of a run's ``samples.npz``; nothing where the inputs are no images.

    Args:
        samples: ``clean`` and ``triggered`` (m, C, H, W), ``labels`` (m,), ``target`` ().
        names: label → its name.
    """
    clean, triggered = samples.get("clean"), samples.get("triggered")
    if clean is None or triggered is None or clean.ndim != 4 or clean.shape != triggered.shape or not clean.size:
        return []
    both = np.stack([clean[:MOST], triggered[:MOST]]).astype(np.float64)
    both = np.nan_to_num(both)
    if clean.dtype != np.uint8:
        both = both * 255 if both.min() >= 0 and 0.25 < both.max() <= 1 else _stretched(both)
    pixels = both.round().clip(0, 255).astype(np.uint8)
    labels = samples.get("labels")
    target = samples.get("target")
    target_name = "" if target is None else _name(names, int(np.asarray(target).reshape(-1)[0]))
    return [
        Pair(
            png(pixels[0, i]),
            png(pixels[1, i]),
            "" if labels is None else _name(names, int(labels[i])),
            target_name,
        )
        for i in range(pixels.shape[1])
    ]


def in_unit_range(images: NDArray[Any]) -> list[str]:
    """(m, C, H, W) images with pixels in [0, 1] as data URIs."""
    pixels = (np.nan_to_num(images.astype(np.float64)) * 255).round().clip(0, 255).astype(np.uint8)
    return [png(each) for each in pixels]


def png(image: NDArray[np.uint8]) -> str:
    """A (C, H, W) image as a data URI; one channel is grey, three or more are red, green, blue."""
    from PIL import Image

    channels = image[:3].transpose(1, 2, 0) if len(image) >= 3 else image[0]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(channels)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _stretched(values: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = values.min(), values.max()
    return (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)


def _name(names: list[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)
