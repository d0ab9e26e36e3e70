"""Optimizers in the middle of training: copied, pickled, reloaded from a ``state_dict``, with frozen parameters."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from fedsim.errors import FedsimError
from fedsim.optim import GNS, DiffGrad, RadiusControl, SamGS

INPUTS, LABELS = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def losses(model: nn.Module) -> list[torch.Tensor]:
    logits = model(INPUTS.to(next(model.parameters())))
    return [nn.functional.cross_entropy(logits, LABELS), 3 * logits.square().mean()]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, SamGS):
        optimizer.step(lambda: losses(model))
    elif isinstance(optimizer, GNS):
        optimizer.step(lambda: sum(losses(model)))
    else:
        optimizer.zero_grad()
        sum(losses(model)).backward()
        optimizer.step(**({"inputs": INPUTS} if isinstance(optimizer, RadiusControl) else {}))


KINDS = {
    "diffgrad": lambda model: DiffGrad(model.parameters(), lr=0.01, log_friction=True),
    "sam_gs": lambda model: SamGS(model.parameters(), lr=0.05),
    "gns": lambda model: GNS(model.parameters(), gamma=0.1),
    "radius_control": lambda model: RadiusControl(torch.optim.Adam(model.parameters(), lr=3.0), model),
}


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("name", KINDS)
def test_a_copy_goes_on_as_the_optimizer_itself(name, how):
    model = network()
    optimizer = KINDS[name](model)
    for _ in range(3):
        step(model, optimizer)
    other, copied = how((model, optimizer))
    for _ in range(3):
        step(model, optimizer)
        step(other, copied)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize("name", KINDS)
def test_reloaded_before_every_step_it_takes_the_same_bits(name):
    ends = []
    for reloads in (False, True):
        model = network()
        optimizer = KINDS[name](model)
        for _ in range(60):
            step(model, optimizer)
            if reloads:
                buffer = io.BytesIO()
                torch.save(optimizer.state_dict(), buffer)
                buffer.seek(0)
                optimizer = KINDS[name](model)
                optimizer.load_state_dict(torch.load(buffer))
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.equal(*ends)


def test_sam_gs_counts_beyond_what_half_precision_counts():
    x = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = SamGS([x], lr=1e-4)
    optimizer.step(lambda: [x.square().sum(), x.sum()])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(299):
        optimizer.step(lambda: [x.square().sum(), x.sum()])
    assert int(optimizer.state[x]["steps"]) == 300
    assert optimizer.state[x]["counts"].tolist() == [300, 300]


def test_frozen_parameters_stay():
    model = network()
    model[0].weight.requires_grad_(False)
    before = [each.detach().clone() for each in model.parameters()]
    optimizer = SamGS(model.parameters(), lr=0.05)
    step(model, optimizer)
    model[0].bias.requires_grad_(False)
    step(model, optimizer)
    same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert same == [True, False, False, False]


@pytest.mark.parametrize(
    "options",
    [{"lr": -1.0}, {"betas": (1.0, 0.99)}, {"betas": (0.9, 1.0)}, {"gamma": -1.0}, {"eps": 0.0}, {"pairs": "paper"}],
)
def test_sam_gs_refuses_options_out_of_range(options):
    with pytest.raises(FedsimError, match=f"SamGS: {next(iter(options))}: given"):
        SamGS(network().parameters(), **options)


def test_closures_and_losses_that_do_not_fit_are_named():
    model = network()

    def usual() -> torch.Tensor:
        loss = sum(losses(model))
        loss.backward()
        return loss

    with pytest.raises(FedsimError, match="calls backward"):
        GNS(model.parameters()).step(usual)
    with pytest.raises(FedsimError, match="without a graph"):
        GNS(model.parameters()).step(lambda: sum(losses(model)).detach())
    for given in (lambda: sum(losses(model)), list):
        with pytest.raises(FedsimError, match="one for each task"):
            SamGS(model.parameters()).step(given)


def test_the_mean_friction_is_of_the_last_step_alone():
    model = network()
    optimizer = DiffGrad(model.parameters(), log_friction=True)
    step(model, optimizer)
    optimizer.zero_grad()
    model[2].bias.grad = torch.zeros(3)
    previous = optimizer.state[model[2].bias]["previous_grad"].clone()
    optimizer.step()
    assert optimizer.mean_friction() == pytest.approx(float(previous.abs().sigmoid().mean()), rel=1e-6)


def test_a_state_from_before_an_option_existed_is_taken():
    model = network()
    optimizer = DiffGrad(model.parameters())
    step(model, optimizer)
    old = optimizer.state_dict()
    for group in old["param_groups"]:
        del group["log_friction"], group["fused"]
    fresh = DiffGrad(model.parameters())
    fresh.load_state_dict(old)
    step(model, fresh)
