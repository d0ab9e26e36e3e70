"""Building a model: seeded, whatever its maker, without touching torch's own stream; warm starts that fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedsim.data.examples import DataInfo
from fedsim.errors import FedsimError
from fedsim.models.build import build_model
from fedsim.models.standardize import standardized

INFO = DataInfo((1, 8, 8), 10)


def part(name: str, init: str | None = None, **options: object) -> SimpleNamespace:
    return SimpleNamespace(name=name, options=options, init=init)


def vector(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_the_seed_decides_the_weights_and_torch_s_stream_goes_on():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (vector(build_model(part("mlp"), INFO, seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_precision_float64_keeps_the_float32_draw():
    single, double = (build_model(part("mlp"), INFO, 0, precision) for precision in ("float32", "float64"))
    assert vector(double).dtype == torch.float64
    assert torch.equal(vector(single).double(), vector(double))
    assert vector(build_model(part("mlp"), INFO, 0, "bfloat16")).dtype == torch.float32


PLUGIN = """
from torch import nn

def with_info(info, *, width: int = 3):
    return nn.Sequential(nn.Flatten(), nn.Linear(info.shape[-1] * 8, width), nn.Linear(width, info.num_classes))

def without(hidden=4):
    return nn.Linear(hidden, 2)

def wrong():
    return 3

def greedy(info, depth, breadth):
    return nn.Linear(depth, breadth)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 6)
"""


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "my_model.py"
    file.write_text(PLUGIN)
    return file


def test_functions_of_the_user_s_with_and_without_info(plugin):
    assert build_model(part(f"{plugin}:with_info", width=7), INFO, 0)[1].weight.shape == (7, 64)
    first, again = (vector(build_model(part(f"{plugin}:without"), INFO, 0)) for _ in range(2))
    assert torch.equal(first, again)
    assert build_model(part(f"{plugin}:Net"), INFO, 0).head.weight.shape == (6, 5)


def test_functions_that_do_not_make_a_model_are_named(plugin):
    with pytest.raises(FedsimError, match=r"wrong': returns int; accepted: a torch\.nn\.Module"):
        build_model(part(f"{plugin}:wrong"), INFO, 0)
    with pytest.raises(FedsimError, match="asks for positional arguments info, depth, breadth; accepted: at most one"):
        build_model(part(f"{plugin}:greedy"), INFO, 0)


def test_a_warm_start_sets_every_parameter(tmp_path):
    source = build_model(part("resnet18", norm="batch"), INFO, 1)
    source.norm.running_mean.fill_(0.25)
    save_file(source.state_dict(), tmp_path / "warm.safetensors")
    model = build_model(part("resnet18", str(tmp_path / "warm.safetensors"), norm="batch"), INFO, 0)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_warm_start_needs_no_buffers(tmp_path):
    source = build_model(part("resnet18", norm="batch"), INFO, 1)
    save_file({name: p.detach() for name, p in source.named_parameters()}, tmp_path / "warm.safetensors")
    model = build_model(part("resnet18", str(tmp_path / "warm.safetensors"), norm="batch"), INFO, 0)
    assert torch.equal(vector(model), vector(source))


def test_a_warm_start_that_does_not_fit_says_all_that_differs(tmp_path):
    file = tmp_path / "warm.safetensors"
    save_file({"1.weight": torch.zeros(9, 64), "1.biass": torch.zeros(64), "3.weight": torch.zeros(10, 64)}, file)
    with pytest.raises(FedsimError) as caught:
        build_model(part("mlp", str(file)), INFO, 0)
    for piece in (
        "'1.bias' is not in it",
        "'3.bias' is not in it",
        "'1.biass' is not in the model (did you mean '1.bias'?)",
        "'1.weight' is (9, 64), in the model (64, 64)",
    ):
        assert piece in str(caught.value)
    with pytest.raises(FedsimError, match=r"accepted: a \.safetensors file of parameters"):
        build_model(part("mlp", str(tmp_path / "none.safetensors")), INFO, 0)


def test_standardized_keeps_a_layer_that_stands_twice() -> None:
    bent = nn.Tanh()
    plain = nn.Sequential(nn.Linear(3, 4), bent, nn.Linear(4, 4), bent, nn.Linear(4, 2))
    inputs = torch.rand(5, 3)
    assert torch.equal(standardized(plain, 0.0, 1.0)(inputs), plain(inputs))
