"""A module is called at other parameters, and keeps its own."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import grad, vmap

from fedsim.functional import functional_call


def twice() -> nn.Module:
    """A layer that stands twice, whose torch call leaves the given tensors in its place."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.BatchNorm1d(3, affine=False).eval())


def test_a_layer_that_stands_twice_has_its_own_parameters_afterwards() -> None:
    module, x = twice(), torch.randn(5, 3)
    before = dict(module.named_parameters()) | dict(module.named_buffers())
    other = {name: value.detach() + 1 for name, value in module.named_parameters()}
    there = functional_call(module, other, (x,))
    assert all(value is before[name] for name, value in module.named_parameters())
    assert all(value is before[name] for name, value in module.named_buffers())
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(other[name])
    torch.testing.assert_close(there, module(x))


def test_the_same_under_vmap_and_grad() -> None:
    module, x = twice(), torch.randn(5, 3)
    point = {name: value.detach() for name, value in module.named_parameters()}
    rows = vmap(grad(lambda given, one: functional_call(module, given, (one[None],)).sum()), (None, 0))(point, x)
    assert all(isinstance(value, nn.Parameter) for value in module.parameters())
    module(x).sum().backward()
    for name, value in module.named_parameters():
        torch.testing.assert_close(rows[name].sum(0), value.grad)


def test_a_module_that_raises_keeps_them_as_well() -> None:
    module = twice()
    other = {name: value.detach() + 1 for name, value in module.named_parameters()}
    before = list(module.parameters())
    try:
        functional_call(module, other, (torch.randn(5, 4),))
    except RuntimeError:
        assert all(a is b for a, b in zip(before, module.parameters(), strict=True))
    else:
        raise AssertionError("four inputs fit three")
