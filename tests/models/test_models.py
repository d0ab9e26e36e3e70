"""Models: structure, sizes and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsim import registry
from fedsim.data.examples import DataInfo
from fedsim.errors import FedsimError

GREY = DataInfo((1, 28, 28), 10)
DIGITS = DataInfo((1, 8, 8), 10)
COLOUR = DataInfo((3, 32, 32), 10)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "info", "count"),
    [
        ("mlp", {}, GREY, 50_890),
        ("cnn", {}, GREY, 46_730),
        ("logistic", {}, GREY, 7850),
        ("mlp", {"hidden": [200, 200]}, GREY, 199_210),
    ],
)
def test_parameter_counts(name, options, info, count):
    model = registry.make("model", name, **options)(info)
    assert parameters(model) == count
    assert model(torch.zeros(2, *info.shape)).shape == (2, 10)


def test_mlp_is_the_benchmarks():
    layers = [type(layer).__name__ for layer in registry.make("model", "mlp")(GREY)]
    assert layers == ["Flatten", "Linear", "ReLU", "Linear"]


def test_cnn_is_the_benchmarks_bit_for_bit():
    torch.manual_seed(0)
    ours = registry.make("model", "cnn")(GREY)
    torch.manual_seed(0)
    theirs = nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_cnn_adapts_to_other_images_and_refuses_small_ones():
    assert registry.make("model", "cnn")(COLOUR)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(FedsimError, match=r"'cnn': given inputs of shape \(1, 8, 8\); accepted: images .* 16 × 16"):
        registry.make("model", "cnn")(DIGITS)


def test_a_regression_has_one_output():
    assert registry.make("model", "mlp", hidden=[5])(DataInfo((8,), 0))(torch.zeros(4, 8)).shape == (4, 1)
