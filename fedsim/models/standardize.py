"""Inputs brought to mean 0 and sd 1 inside the model, so that data, triggers and reports keep pixels in [0, 1]."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class Standardize(nn.Module):
    """(x − mean) / sd, elementwise; no parameters.

    Args:
        mean: mean of the inputs, e.g. 0.286 for Fashion-MNIST.
        sd: standard deviation of the inputs, e.g. 0.353 for Fashion-MNIST.
    """

    def __init__(self, mean: float, sd: float) -> None:
        super().__init__()
        self.mean, self.sd = mean, sd

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.sd


def standardized(model: nn.Module, mean: float, sd: float) -> nn.Module:
    """The model with :class:`Standardize` in front (behind a leading Flatten); a Sequential keeps its names."""
    if type(model) is not nn.Sequential:
        return nn.Sequential(OrderedDict(standardize=Standardize(mean, sd), model=model))
    layers = [(name, part) for name, part in model._modules.items() if part is not None]  # one may stand there twice
    behind = 1 if layers and isinstance(layers[0][1], nn.Flatten) else 0
    layers.insert(behind, ("standardize", Standardize(mean, sd)))
    return nn.Sequential(OrderedDict(layers))
