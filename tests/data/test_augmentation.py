"""Augmentation: pixels move and none is made up."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedsim import registry


def batch(n: int = 40) -> torch.Tensor:
    return torch.rand(n, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_flip_mirrors_some_and_leaves_the_others():
    images = batch()
    out = registry.make("augmentation", "flip").apply(images, generator())
    kinds = ["same" if torch.equal(a, b) else "mirrored" for a, b in zip(out, images, strict=True)]
    assert 8 < kinds.count("mirrored") < 32
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(out, images, strict=True))
    assert torch.equal(
        registry.make("augmentation", "flip", probability=1.0).apply(images, generator()), images.flip(-1)
    )
    assert torch.equal(registry.make("augmentation", "flip", probability=0.0).apply(images, generator()), images)


def test_crop_is_a_shift_by_at_most_the_padding():
    images = batch()
    before = images.clone()
    out = registry.make("augmentation", "crop", pad=2).apply(images, generator())
    assert out.shape == images.shape
    assert torch.equal(images, before)
    padded = torch.nn.functional.pad(images, [2] * 4)
    places = []
    for i in range(len(images)):
        windows = {(r, c): padded[i, :, r : r + 6, c : c + 5] for r in range(5) for c in range(5)}
        places += [place for place, window in windows.items() if torch.equal(window, out[i])]
    assert len(places) == len(images)
    assert len(set(places)) > 10


@pytest.mark.parametrize("name", ["flip", "crop"])
def test_the_generator_decides(name):
    part = registry.make("augmentation", name)
    first, again, other = (part.apply(batch(), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["flip", "crop"])
def test_only_images_can_be_augmented(name):
    def scenario(dataset: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(dataset=SimpleNamespace(name=dataset, options={})))

    part = registry.make("augmentation", name)
    (fault,) = part.check(scenario("synthetic_classification"))
    assert (fault.key, fault.given) == ("name", name)
    assert not list(part.check(scenario("digits")))
