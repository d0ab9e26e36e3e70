"""Coloured and rotated MNIST, on generated images in MNIST's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim import registry
from fedsim.data import idx
from fedsim.data.feature_shift import rotate
from fedsim.errors import FedsimError, ScenarioError

N_TRAIN, N_TEST = 6000, 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images whose brightness (21 d + 10) tells their digit."""
    where: Path = tmp_path_factory.mktemp("mnist")
    draw = np.random.default_rng(0)
    for split, n in (("train", N_TRAIN), ("t10k", N_TEST)):
        digits = draw.integers(0, 10, n, dtype=np.uint8)
        images = np.broadcast_to((21 * digits + 10)[:, None, None], (n, 28, 28)).copy()
        idx.write_idx(where / f"{split}-images-idx3-ubyte", images.astype(np.uint8))
        idx.write_idx(where / f"{split}-labels-idx1-ubyte", digits)
    return str(where)


def test_coloured_images_have_one_colour_and_their_digits_shape(folder: str) -> None:
    part = registry.make("dataset", "cmnist", folder=folder)
    data = part.load()
    assert data.info == part.info()
    assert data.train.inputs.shape == (5000, 2, 14, 14)
    assert data.test.inputs.shape == (1000, 2, 14, 14)
    lit = data.train.inputs.amax((2, 3)) > 0
    assert bool((lit.sum(1) == 1).all())
    assert data.train.targets.unique().tolist() == [0, 1]


def test_flips_are_those_of_the_paper(folder: str) -> None:
    """Each share within four standard errors: label noise 0.25 everywhere, colours 0.2, 0.1 and 0.9."""
    data = registry.make("dataset", "cmnist", folder=folder).load()
    domain = data.columns["domain"]
    assert np.bincount(domain).tolist() == [2500, 2500]
    parts = [(data.train.take(np.flatnonzero(domain == k)), flip) for k, flip in enumerate((0.2, 0.1))]
    for examples, flip in [*parts, (data.test, 0.9)]:
        n = len(examples)
        digits = ((examples.inputs.amax((1, 2, 3)) * 255 - 10) / 21).round()
        noise = float(((digits < 5).long() != examples.targets).double().mean())
        assert abs(noise - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
        colour = examples.inputs.amax((2, 3)).argmax(1)
        assert abs(float((colour != examples.targets).double().mean()) - flip) < 4 * (flip * (1 - flip) / n) ** 0.5


def test_test_domain_is_the_last_sixth(folder: str) -> None:
    data = registry.make("dataset", "cmnist", folder=folder).load()
    plain = registry.make("dataset", "mnist", folder=folder).load()
    torch.testing.assert_close(data.test.inputs.amax(1), plain.train.inputs[5000:, 0, ::2, ::2])


def test_client_is_domain(folder: str) -> None:
    data = registry.make("dataset", "cmnist", folder=folder, flips=[0.3, 0.2, 0.1]).load()
    shares = registry.make("partition", "natural", column="domain").assign(data, 3, 0)
    for client, share in enumerate(shares):
        assert set(data.columns["domain"][share]) == {client}


@pytest.mark.parametrize("name", ["cmnist", "rotated_mnist"])
def test_seed_decides(folder: str, name: str) -> None:
    prints = [registry.make("dataset", name, folder=folder, seed=seed).load().fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_rotated_domains_hold_each_image_once_and_leave_one_out(folder: str) -> None:
    part = registry.make("dataset", "rotated_mnist", folder=folder, left_out=30.0)
    data = part.load()
    assert data.info == part.info()
    assert len(data.train) == 5500
    assert len(data.test) == 1100
    assert sorted(set(data.columns["domain"])) == [0, 15, 45, 60, 75]
    plain = registry.make("dataset", "mnist", folder=folder).load()
    counts = torch.bincount(plain.train.targets) + torch.bincount(plain.test.targets)
    assert torch.equal(torch.bincount(data.train.targets) + torch.bincount(data.test.targets), counts)


def test_rotated_images_are_turned_by_their_angle(folder: str) -> None:
    part = registry.make("dataset", "rotated_mnist", folder=folder, angles=[0.0, 90.0], left_out=90.0, examples=50)
    data = part.load()
    assert data.info == part.info()
    assert len(data.train) == len(data.test) == 50
    shades = (21 * data.test.targets + 10)[:, None, None, None] / 255
    torch.testing.assert_close(data.test.inputs, rotate(shades.expand(-1, 1, 28, 28).float(), 90.0))
    torch.testing.assert_close(data.train.inputs.amax((1, 2, 3)), (21 * data.train.targets + 10) / 255)


def test_refuses(folder: str) -> None:
    with pytest.raises(ScenarioError, match="flips"):
        registry.make("dataset", "cmnist", flips=[1.2])
    with pytest.raises(FedsimError, match="left_out"):
        registry.make("dataset", "rotated_mnist", folder=folder, left_out=20.0).load()
    with pytest.raises(FedsimError, match="differ"):
        registry.make("dataset", "rotated_mnist", folder=folder, angles=[1.0, 1.0], left_out=1.0).load()
