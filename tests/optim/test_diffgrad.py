"""diffGrad against its paper's formula, its paper's bug, and pytorch-optimizer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fedsim import registry
from fedsim.errors import FedsimError
from fedsim.optim.diffgrad import DiffGrad, friction


def valley(x):
    """F1: a local minimum at -.3 with value 0, the other at .2 with value .05."""
    return torch.where(x <= 0, (x + 0.3) ** 2, (x - 0.2) ** 2 + 0.05).sum()


def descend(optimizer_of, steps, start=-1.0, loss=valley):
    """Iterates x_1, …, x_steps with the gradient's tensor updated in place, as the paper's experiments did."""
    x = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    x.grad = torch.zeros_like(x)
    optimizer, found = optimizer_of([x]), []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        loss(x).backward()
        optimizer.step()
        found.append(float(x.detach()))
    return found


def by_hand(x, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, by_reference=False):
    """The formula in plain Python; with ``by_reference`` g_prev is the gradient's own tensor."""
    m = v = 0.0
    kept = 0.0
    for t, g in enumerate(gradients, start=1):
        g = g + weight_decay * x
        xi = 1 / (1 + math.exp(-abs((g if by_reference and t > 1 else kept) - g)))
        m, v, kept = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g, g
        x -= lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * xi * m / (math.sqrt(v) + eps)
    return x


def test_the_papers_first_function():
    found = descend(lambda p: DiffGrad(p, lr=0.1, betas=(0.95, 0.999)), 2)
    assert found == pytest.approx([-0.919782, -0.865961], abs=5e-7)


def test_a_gradient_kept_by_reference_gives_the_aliased_iterates():
    found = descend(lambda p: DiffGrad(p, lr=0.1, betas=(0.95, 0.999), aliased=True), 2)
    assert found == pytest.approx([-0.919782, -0.869950], abs=5e-7)


def test_gradients_updated_in_place_do_not_alias():
    """The trap: with a reference for a copy, ξ would be ½ from the second step on."""
    optimizers = []

    def build(parameters):
        optimizers.append(DiffGrad(parameters, lr=0.1, log_friction=True))
        return optimizers[0]

    descend(build, 2)
    assert optimizers[0].mean_friction() > 0.51


def test_aliased_is_adam_at_half_the_rate_after_the_first_step():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(30, generator=generator, dtype=torch.float64)
    ends = {}
    for name, build in {
        "aliased": lambda p: DiffGrad(p, lr=0.01, aliased=True),
        "adam": lambda p: torch.optim.Adam(p, lr=0.005, eps=1e-30),
    }.items():
        x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer, path = build([x]), []
        for g in gradients:
            x.grad = g[None].clone()
            optimizer.step()
            path.append(float(x.detach()))
        ends[name] = path[-1] - path[0]
    assert ends["aliased"] == pytest.approx(ends["adam"], rel=1e-6)


def test_adam_ends_in_the_local_minimum_and_diffgrad_does_not():
    adam = descend(lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.95, 0.999)), 300)
    ours = descend(lambda p: DiffGrad(p, lr=0.1, betas=(0.95, 0.999)), 300)
    assert adam[-1] == pytest.approx(0.2001, abs=5e-4)
    assert ours[-1] == pytest.approx(-0.3, abs=1e-2)


@pytest.mark.parametrize("g", [-3.0, -0.2, 0.4, 7.0])
def test_the_first_step(g):
    found = descend(lambda p: DiffGrad(p, lr=0.1), 1, start=0.0, loss=lambda x: (g * x).sum())
    assert found[0] == pytest.approx(-0.1 / (1 + math.exp(-abs(g))) * math.copysign(1, g), rel=1e-5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("aliased", [True, False])
def test_the_formula(fused, aliased):
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}
    gradients = torch.randn(25, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = nn.Parameter(torch.ones(6, dtype=torch.float64))
    optimizer = DiffGrad([x], **options, fused=fused, aliased=aliased)
    for g in gradients:
        x.grad = g.clone()
        optimizer.step()
    wanted = [by_hand(1.0, gradients[:, i].tolist(), **options, by_reference=aliased) for i in range(6)]
    assert x.tolist() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_equals_pytorch_optimizer_over_100_steps(weight_decay):
    """On given gradients, so large that the 1e-15 which it adds below the root does not count."""
    theirs = pytest.importorskip("pytorch_optimizer").DiffGrad
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(200, generator=generator, dtype=torch.float64)
    gradients = 100 * torch.randn(100, 200, generator=generator, dtype=torch.float64)
    ends = []
    for build, more in ((DiffGrad, {}), (theirs, {"weight_decouple": False})):
        x = nn.Parameter(start.clone())
        optimizer = build([x], lr=0.01, weight_decay=weight_decay, **more)
        for g in gradients:
            x.grad = g.clone()
            optimizer.step()
        ends.append(x.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-13, atol=1e-14)


def test_friction_lies_between_a_half_and_one():
    g = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(friction(torch.zeros(1000), g), g.abs().sigmoid())
    assert torch.equal(friction(g, g), torch.full((1000,), 0.5))


def test_the_bits_of_a_number_do_not_depend_on_where_it_stands():
    """torch's sigmoid treats the last few numbers of a tensor otherwise than the rest; ours may not."""
    g = torch.randn(257, generator=torch.Generator().manual_seed(4))
    whole = friction(torch.zeros(257), g)
    for stop in range(190, 257):
        assert torch.equal(friction(torch.zeros(stop), g[:stop]), whole[:stop])


def test_mean_friction_of_a_network_is_about_a_half():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    optimizer = DiffGrad(model.parameters(), log_friction=True)
    assert math.isnan(optimizer.mean_friction())
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(50, 20)), torch.randint(5, (50,))).backward()
        optimizer.step()
    assert 0.5 < optimizer.mean_friction() < 0.51


def test_rows_that_do_not_move_advance_nothing():
    """Bias correction is per row: each goes as it would alone, by the number of its own steps."""
    generator = torch.Generator().manual_seed(6)
    start, gradients = torch.randn(4, 70, generator=generator), torch.randn(12, 4, 70, generator=generator)
    moves = torch.rand(12, 4, generator=generator) < 0.5
    together = nn.Parameter(start.clone())
    optimizer = DiffGrad([together], lr=0.1, fused=False)
    for g, rows in zip(gradients, moves, strict=True):
        together.grad = g.clone()
        optimizer.step(rows=rows)
    assert optimizer.state[together]["step"].tolist() == moves.sum(0).tolist()
    for i in range(4):
        alone = nn.Parameter(start[i].clone())
        single = DiffGrad([alone], lr=0.1, fused=False)
        for g in gradients[moves[:, i], i]:
            alone.grad = g.clone()
            single.step()
        assert torch.equal(together[i], alone)


def test_state_goes_through_a_state_dict():
    torch.manual_seed(7)
    models = [nn.Linear(9, 4)]
    optimizers = [DiffGrad(models[0].parameters(), lr=0.05)]

    def step(position, seed):
        generator = torch.Generator().manual_seed(seed)
        for each in models[position].parameters():
            each.grad = torch.randn(each.shape, generator=generator)
        optimizers[position].step()

    for seed in range(5):
        step(0, seed)
    models.append(copy.deepcopy(models[0]))
    optimizers.append(DiffGrad(models[1].parameters(), lr=1.0))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for seed in range(5, 9):
        step(0, seed)
        step(1, seed)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_groups_have_options_of_their_own_and_parameters_without_gradient_stay():
    a, b, c = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    optimizer = DiffGrad([{"params": [a]}, {"params": [b, c], "lr": 0.5}], lr=0.1)
    a.grad, b.grad = torch.full((3,), 50.0), torch.full((3,), 50.0)
    optimizer.step()
    torch.testing.assert_close(a.detach(), torch.full((3,), -0.1))
    torch.testing.assert_close(b.detach(), torch.full((3,), -0.5))
    assert torch.equal(c.detach(), torch.zeros(3))
    assert c not in optimizer.state


def test_a_closure_is_called_with_gradients_and_its_loss_given_back():
    x = nn.Parameter(torch.tensor([2.0]))
    optimizer = DiffGrad([x], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert x.item() < 2.0


@pytest.mark.parametrize("fused", [True, False])
def test_a_view_with_gaps_moves_and_nothing_around_it(fused):
    around = torch.zeros(8, 8)
    view = nn.Parameter(around[:, 1:5])
    view.grad = torch.ones(8, 4)
    DiffGrad([view], lr=0.1, fused=fused).step()
    assert (around[:, 1:5] < 0).all()
    assert not around[:, 0].any()
    assert not around[:, 5:].any()


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": 0.0}, {"weight_decay": -0.1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(FedsimError, match=next(iter(options))):
        DiffGrad([nn.Parameter(torch.zeros(1))], **options)


def test_sparse_gradients_are_refused():
    x = nn.Parameter(torch.zeros(3))
    x.grad = torch.ones(3).to_sparse()
    with pytest.raises(FedsimError, match="sparse"):
        DiffGrad([x]).step()


def test_the_part_builds_it():
    built = registry.make("optimizer", "diffgrad", lr=0.5, aliased=True).build([nn.Parameter(torch.zeros(2))], 0.1)
    assert isinstance(built, DiffGrad)
    assert built.param_groups[0]["lr"] == pytest.approx(0.05)
    assert built.param_groups[0]["aliased"]
