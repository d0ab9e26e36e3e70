"""GNS as an optimizer: the iterations of ``minimize``, in a plain loop and on a client."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

import fedsim
from fedsim import registry
from fedsim.client.app import FederatedClient
from fedsim.client.job import make_job
from fedsim.errors import FedsimError, ScenarioError
from fedsim.optim import gns, gns_problems
from fedsim.optim.gns_step import GNS
from fedsim.scenario import Scenario
from fedsim.testing.federation import deltas, initial, mlp, workload


def path(problem, steps, **options):
    """Values before each step, the γ after it, and where it ends."""
    x = nn.Parameter(problem.x0.clone())
    optimizer = GNS([x], **options)
    values = [float(optimizer.step(lambda: problem.function(x))) for _ in range(steps)]
    return values, float(optimizer.state[x]["gamma"]), x.detach()


@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_steps_are_the_iterations_of_minimize(curvature):
    problem = gns_problems.rosenbrock()
    wanted = gns.minimize(problem.value_and_gradient, problem.curvatures[curvature], problem.x0, max_iterations=20)
    values, gamma, x = path(problem, 20, curvature=curvature, accuracy=1e-12)
    assert values == pytest.approx(wanted.values[:20], rel=1e-8)
    assert gamma == wanted.gammas[20]
    torch.testing.assert_close(x, wanted.x, rtol=1e-8, atol=1e-10)


def test_rejected_trials_leave_the_hessian_where_the_step_began():
    """Rosenbrock's fourth step tries 8, 4 and 2: products after a trial elsewhere must be those of the start."""
    trace = gns.minimize(*(lambda p: (p.value_and_gradient, p.curvatures["exact"], p.x0))(gns_problems.rosenbrock()))
    assert trace.gammas[3:6] == [8, 2, 0.5]
    assert path(gns_problems.rosenbrock(), 5, accuracy=1e-12)[1] == 0.5


def test_a_network_in_a_plain_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs, labels = torch.randn(40, 6), torch.arange(40) % 3
    optimizer = fedsim.optim.GNS(model.parameters())
    losses = [float(optimizer.step(lambda: nn.functional.cross_entropy(model(inputs), labels))) for _ in range(40)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.2 < 1 < losses[0]


def test_gamma_goes_through_a_state_dict():
    torch.manual_seed(1)
    models = [nn.Linear(4, 3).double()]
    inputs, labels = torch.randn(30, 4).double(), torch.arange(30) % 3
    optimizers = [GNS(models[0].parameters())]

    def step(i):
        optimizers[i].step(lambda: nn.functional.cross_entropy(models[i](inputs), labels))

    for _ in range(3):
        step(0)
    models.append(copy.deepcopy(models[0]))
    optimizers.append(GNS(models[1].parameters(), gamma=0.01))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for _ in range(2):
        step(0)
        step(1)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_a_closure_it_is_a_normalised_gradient_step():
    x, y = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    x.grad = torch.tensor([3.0, 4.0])
    assert GNS([x, y], gamma=0.5).step() is None
    torch.testing.assert_close(x.detach(), torch.tensor([-0.3, -0.4]))
    assert y.item() == 0


def test_frozen_and_unused_parameters_stay():
    x, frozen, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False), torch.ones(1)
    unused = nn.Parameter(unused)
    GNS([x, frozen, unused]).step(lambda: (x * frozen).square().sum())
    assert (x < 1).all()
    assert torch.equal(frozen, torch.ones(2))
    assert torch.equal(unused, torch.ones(1))


def test_a_search_that_finds_nothing_ends_where_it_was():
    x = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = GNS([x], curvature="zero")
    calls = []

    def closure():
        calls.append(float(x.detach()))
        return x.sum() if len(calls) == 1 else x.sum() * 0 + 100

    optimizer.step(closure)
    assert len(calls) == 1 + 40
    assert x.item() == 2.0
    assert float(optimizer.state[x]["gamma"]) == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 0.0},
        {"gamma": math.inf},
        {"tolerance": -1.0},
        {"tolerance": math.nan},
        {"tolerance": math.inf},
        {"accuracy": 1.0},
        {"curvature": "gauss_newton"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(FedsimError, match=next(iter(options))):
        GNS([nn.Parameter(torch.zeros(1))], **options)


def test_gamma_outlives_the_freezing_of_a_parameter():
    x, y = (nn.Parameter(torch.full((2,), 3.0)) for _ in range(2))
    optimizer = GNS([x, y])
    for freezes in (False, False, True):
        x.requires_grad_(not freezes)
        optimizer.step(lambda: (x.square() + y.square()).sum())
    assert [float(each["gamma"]) for each in optimizer.state.values()] == [8.0]


def test_nothing_to_compare_is_refused():
    with pytest.raises(FedsimError, match=r"gamma: given 2\.0 for a group; accepted: .*one step for all"):
        GNS([nn.Parameter(torch.zeros(1))]).add_param_group({"params": [nn.Parameter(torch.zeros(1))], "gamma": 2.0})
    with pytest.raises(FedsimError, match="no parameter"):
        GNS([nn.Parameter(torch.zeros(1), requires_grad=False)]).step()
    x = nn.Parameter(torch.tensor([float("nan")]))
    with pytest.raises(FedsimError, match="finite"):
        GNS([x]).step(lambda: x.sum())


def on_a_client(**more):
    load = workload((14,), precision="float64", optimizer=registry.make("optimizer", "gns"), **more)
    app = FederatedClient(load)
    assert app.path.name == "vmap"
    return load, deltas(app, initial(load), [0])[0]


@pytest.mark.parametrize("proximal", [0.0, 5.0])
def test_a_client_solves_each_batch_as_a_plain_loop_does(proximal):
    load, ours = on_a_client(proximal=proximal)
    module, vector = mlp().double(), initial(load)
    load.layout.load(module, vector)
    module.eval()
    start = [each.detach().clone() for each in module.parameters()]
    optimizer, job, position = GNS(module.parameters()), make_job(load, 0, 3, None, ()), 0
    for size in job.sizes:
        batch = load.train.take(job.order[position : position + size])
        position += size

        def closure(batch=batch):
            pairs = zip(module.parameters(), start, strict=True)
            pull = sum((each - before).square().sum() for each, before in pairs)
            return nn.functional.cross_entropy(module(batch.inputs.double()), batch.targets) + proximal / 2 * pull

        optimizer.step(closure)
    theirs = load.layout.flatten(dict(module.named_parameters()), torch.float64) - vector
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    assert ours.norm() > 0.01


def test_a_malicious_client_minimises_its_own_objective():
    from attacks.attack import Attack, Compromised

    class Anchored(Attack):
        def objective(self, loss, parameters, step):
            return 0.0 * loss + (parameters - step.reference - 1.0).square().sum(1)

    from attacks.held import Held
    from fedsim.client.hooks import Hooks
    from fedsim.client.reference import train
    from fedsim.client.replica import Replica

    load, _ = on_a_client()
    job = dataclasses.replace(make_job(load, 0, 1, None, ()), compromised=Compromised(0, 0, 1, 1, 0, 4))
    delta, _ = train(Replica(load), job, initial(load), Hooks(Held([Anchored()])), 1.0, 0.0)
    assert (delta - 1.0).abs().max() < 0.5, "H = 2 I: every step goes towards the point one above the start"


def test_statistics_that_no_evaluation_moves_are_refused():
    def normed():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))

    with pytest.raises(ScenarioError, match="buffers"):
        FederatedClient(workload((14,), normed, optimizer=registry.make("optimizer", "gns")))


def test_a_model_that_says_it_has_buffers_is_refused_before_it_is_built():
    for optimizer, norm in (("gns", "group"), ("sgd", "batch")):
        Scenario(client={"optimizer": optimizer}, model={"name": "resnet18", "norm": norm})
    with pytest.raises(ScenarioError, match="without buffers with client") as refused:
        Scenario(client={"optimizer": "gns"}, model={"name": "resnet18", "norm": "batch"})
    assert [fault.key for fault in refused.value.faults] == ["model"]


def test_groups_are_parts_of_one_step():
    def moved(split):
        x, y = (nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in (-2.0, 2.0))
        optimizer = GNS([{"params": [x]}, {"params": [y]}] if split else [x, y])
        for _ in range(5):
            optimizer.step(lambda: ((1 - x) ** 2 + 100 * (y - x**2) ** 2).sum())
        return [x.item(), y.item()], optimizer.state_dict()

    (one, _), (two, state) = moved(False), moved(True)
    assert one == two
    assert len(state["param_groups"]) == 2
