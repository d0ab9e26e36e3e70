"""Optimizers in the middle of training: copied, pickled, reloaded from a ``state_dict``, with frozen parameters."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from fedsim.errors import FedsimError
from fedsim.optim import GNS, DiffGrad, Langevin, RadiusControl, SamGS

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
    with pytest.raises(FedsimError, match="SamGS: closure: given one that calls backward"):
        SamGS(model.parameters()).step(lambda: [usual(), usual()])
    with pytest.raises(FedsimError, match="SamGS: losses: given one without a graph"):
        SamGS(model.parameters()).step(lambda: [each.detach() for each in losses(model)])
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


def test_parameters_that_joined_later_make_one_step_each():
    """Where one parameter is a step behind another, each makes its own next step, once."""
    together = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    alone = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [DiffGrad(together, lr=0.1), *(DiffGrad([each], lr=0.1) for each in alone)]
    for number in range(5):
        gradients = [torch.full((3,), 1.0 + number), torch.full((3,), -2.0 * number) if number else None]
        for parameters in (together, alone):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
    assert all(map(torch.equal, together, alone))
    assert [int(optimizers[0].state[each]["step"]) for each in together] == [5, 4]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("kind", "option"), [(DiffGrad, "lr"), (DiffGrad, "weight_decay"), (SamGS, "lr"), (SamGS, "eps")]
)
def test_rates_that_are_not_finite_are_refused(kind, option, value):
    with pytest.raises(FedsimError, match=f"{kind.__name__}: {option}: given {value}"):
        kind(network().parameters(), **{option: value})


def test_copies_of_langevin_dynamics_keep_their_streams():
    x = nn.Parameter(torch.zeros(5))
    optimizer = Langevin([x], lr=0.1, temperature=0.5)
    optimizer.use_streams([torch.Generator().manual_seed(3)])
    pairs = [(x, optimizer)]
    for _ in range(3):
        for parameter, each in pairs:
            parameter.grad = torch.ones(5)
            each.step()
        pairs = [*pairs[:1], copy.deepcopy(pairs[0]), pickle.loads(pickle.dumps(pairs[0]))]
    for parameter, each in pairs:
        parameter.grad = torch.ones(5)
        each.step()
    assert all(torch.equal(x, parameter) for parameter, _ in pairs)


def test_a_mean_over_many_iterates_does_not_stand_still_in_16_bits():
    x = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = Langevin([x], lr=1.0, temperature=0.0)
    for number in range(4000):
        x.grad = torch.full_like(x, -1.0 if number % 2 == 0 else 1.0)  # 1, 0, 1, 0, …
        optimizer.step()
        if number % 1000 == 0:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.upload(x).dtype == torch.bfloat16
    assert float(optimizer.upload(x)) == pytest.approx(0.5, abs=0.01)


def test_sam_gs_moves_each_group_at_its_rate_along_one_direction():
    whole, parted = network(torch.float64), network(torch.float64)
    before = [each.detach().clone() for each in whole.parameters()]
    last = list(parted.parameters())[-1]
    groups = [{"params": list(parted.parameters())[:-1], "lr": 0.2}, {"params": [last], "lr": 0.0}]
    one, two = SamGS(whole.parameters(), lr=0.1), SamGS(groups)
    one.step(lambda: losses(whole))
    two.step(lambda: losses(parted))
    for start, a, b in list(zip(before, whole.parameters(), parted.parameters(), strict=True))[:-1]:
        torch.testing.assert_close(b - start, 2 * (a - start))
    assert torch.equal(last, before[-1])
    with pytest.raises(FedsimError, match="after the first step"):
        two.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(FedsimError, match=r"gamma: given 0\.5 for a group; accepted: 0\.1"):
        SamGS([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))], "gamma": 0.5}])


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
