"""Tails: disjoint pools of a foreign class, and the loneliest members of a class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from fedsim import registry
from fedsim.data.examples import Examples
from fedsim.data.tail import fitted, foreign_tail, lowest_density
from fedsim.errors import FedsimError


def test_foreign_pools_are_disjoint_of_one_class_and_of_the_shape():
    tail = foreign_tail("digits", 7, (1, 28, 28), 0, train=60, test=80)
    assert tail.train.inputs.shape == (60, 1, 28, 28)
    assert tail.test.inputs.shape == (80, 1, 28, 28)
    assert set(tail.train.targets.tolist()) == set(tail.test.targets.tolist()) == {7}
    both = torch.cat([tail.train.inputs, tail.test.inputs]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 140
    assert both.min() >= 0
    assert both.max() <= 1


def test_all_the_others_are_for_the_test_by_default():
    data = registry.make("dataset", "digits").load()
    sevens = int((torch.cat([data.train.targets, data.test.targets]) == 7).sum())
    assert len(foreign_tail("digits", 7, (1, 8, 8), 0, train=100).test) == sevens - 100


def test_at_its_own_shape_an_image_stays_as_it_is():
    data = registry.make("dataset", "digits").load()
    known = {tuple(x.flatten().tolist()) for x in torch.cat([data.train.inputs, data.test.inputs])}
    tail = foreign_tail("digits", 3, (1, 8, 8), 0)
    assert all(tuple(x.flatten().tolist()) in known for x in tail.train.inputs)


def test_the_seed_decides_the_pools():
    first, again, other = (foreign_tail("digits", 1, (1, 8, 8), seed).train.inputs for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_are_brought_to_the_channels_and_size():
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    colour = fitted(grey, (3, 8, 8))
    assert torch.equal(colour[:, 0], grey[:, 0])
    assert torch.equal(colour[:, 2], grey[:, 0])
    flat = fitted(torch.full((1, 3, 32, 32), 0.4), (1, 8, 8))
    torch.testing.assert_close(flat, torch.full((1, 1, 8, 8), 0.4))


def test_what_is_too_much_is_said():
    with pytest.raises(FedsimError, match="class 7 has 179 images; accepted: up to that, not 1100"):
        foreign_tail("digits", 7, (1, 8, 8), 0, train=100, test=1000)
    with pytest.raises(FedsimError, match=r"accepted: images \(C, H, W\)"):
        foreign_tail("digits", 7, (64,), 0)


@pytest.mark.parametrize("neighbours", [1, 10])
def test_lowest_density_is_scikit_learn_s_order(neighbours):
    data = registry.make("dataset", "digits").load()
    ours = lowest_density(data.train, 4, 20, neighbours=neighbours)
    members = np.flatnonzero(data.train.targets.numpy() == 4)
    points = data.train.inputs.flatten(1).numpy()[members].astype(np.float64)
    distances, _ = NearestNeighbors(n_neighbors=neighbours + 1).fit(points).kneighbors(points)
    expected = members[np.argsort(-distances[:, 1:].mean(axis=1), kind="stable")[:20]]
    np.testing.assert_array_equal(ours, expected)


def test_lowest_density_finds_the_outlier():
    inputs = torch.tensor([[0.0], [0.1], [0.2], [5.0], [9.0]])
    examples = Examples(inputs, torch.tensor([0, 0, 0, 0, 1]))
    assert lowest_density(examples, 0, 1).tolist() == [3]
    assert lowest_density(examples, 1, 1).tolist() == [4]
    with pytest.raises(FedsimError, match="class 0 has 4 members"):
        lowest_density(examples, 0, 5)
