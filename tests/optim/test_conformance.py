"""Every registered optimizer through the conformance suite, and the refused ones failing it."""

from __future__ import annotations

import pytest
import torch

from fedsim import registry
from fedsim.testing import optimizers

MORE = {
    "sgd": [{"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}],
    "adam": [{"amsgrad": True, "weight_decay": 0.1}],
    "rmsprop": [{"momentum": 0.5, "centered": True}],
    "adagrad": [{"lr_decay": 0.1, "initial_accumulator_value": 0.1}],
    "nadam": [{"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "asgd": [{"t0": 3.0}],
}
CASES = [(name, options) for name in registry.names("optimizer") for options in [{}, *MORE.get(name, [])]]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_conforms(name, options):
    optimizers.check_optimizer(registry.make("optimizer", name, **options))


@pytest.mark.parametrize("torch_class", [torch.optim.Muon, torch.optim.Adafactor])
def test_the_suite_finds_optimizers_that_mix_rows(torch_class):
    class Mixing:
        row_wise = True

        def build(self, parameters, scale=1.0):
            return torch_class(parameters, lr=0.1 * scale)

    with pytest.raises((AssertionError, ValueError)):
        optimizers.check_rows_are_independent(Mixing())
