"""Models: structure, sizes and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsim import registry
from fedsim.data.examples import DataInfo
from fedsim.errors import FedsimError, ScenarioError
from fedsim.scenario import Scenario

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
        ("mlp", {"hidden": []}, DIGITS, 650),
        ("lenet", {}, GREY, 61_706),
        ("lenet", {}, COLOUR, 62_006),
        ("vgg9", {}, COLOUR, 9_225_610),
        ("resnet18", {}, COLOUR, 11_173_962),
        ("resnet18", {"norm": "batch"}, COLOUR, 11_173_962),
    ],
)
def test_parameter_counts(name, options, info, count):
    model = registry.make("model", name, **options)(info)
    assert parameters(model) == count
    assert model(torch.zeros(2, *info.shape)).shape == (2, 10)
    says = getattr(registry.get("model", name), "has_buffers", None)
    assert (says is not None and says(options)) == bool(list(model.buffers()))


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


def test_vgg9_is_the_paper_s():
    """Channels 3, 64, 128, 256, 256, 512 and three times more 512; pooled to 1 × 1; one linear layer."""
    model = registry.make("model", "vgg9")(COLOUR)
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim == 4]
    assert [shape[:2] for shape in shapes] == [
        (64, 3), (128, 64), (256, 128), (256, 256), (512, 256), (512, 512), (512, 512), (512, 512),
    ]  # fmt: skip
    assert model[-1].weight.shape == (10, 512)
    with pytest.raises(FedsimError, match=r"'vgg9'.*32 × 32"):
        registry.make("model", "vgg9")(GREY)


def test_resnet18_normalises_as_asked():
    group, batch = (registry.make("model", "resnet18", norm=norm)(COLOUR) for norm in ("group", "batch"))
    assert not list(group.buffers())
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in batch.modules()) == 20
    assert sum(isinstance(layer, nn.GroupNorm) for layer in group.modules()) == 20
    with pytest.raises(FedsimError, match="groups: given 7; accepted: a divisor of 64"):
        registry.make("model", "resnet18", groups=7)(COLOUR)


def test_resnet18_takes_small_images():
    assert registry.make("model", "resnet18")(DIGITS)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_glorot_weights_fill_their_interval_and_biases_are_zero():
    torch.manual_seed(0)
    for layer in registry.make("model", "mlp", hidden=[300], weights="glorot")(GREY):
        if isinstance(layer, torch.nn.Linear):
            bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert 0.99 * bound < float(layer.weight.detach().abs().max()) <= bound
            assert not layer.bias.any()


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "elu", "silu", "softplus"])
def test_mlp_activations(activation):
    model = registry.make("model", "mlp", activation=activation)(DIGITS)
    assert type(model[2]).__name__.lower() == activation


@pytest.mark.parametrize("name", ["cnn", "lenet", "vgg9"])
def test_a_model_that_the_images_are_too_small_for_is_a_fault_of_the_scenario(name: str):
    with pytest.raises(
        ScenarioError, match=rf"model\.name: given '{name}'; accepted: a model for inputs of .*\(1, 8, 8\)"
    ):
        Scenario(model={"name": name}, data={"dataset": "digits"})
    Scenario(model={"name": "resnet18"}, data={"dataset": "digits"})
