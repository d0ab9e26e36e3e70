"""Server rules of the papers against their formulas, written out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord, RecordDict
from scipy.optimize import minimize
from torch import nn
from torch.func import functional_call

from fedsim.client.app import FederatedClient
from fedsim.client.node import Node
from fedsim.errors import ScenarioError, UpdatesError
from fedsim.flower import Flat, as_record, as_tensors, flatten
from fedsim.losses import HarmonicHead
from fedsim.optim.diffgrad import DiffGrad
from fedsim.optim.robust_gradients import LastThree
from fedsim.optim.sam_gs import State, surgery
from fedsim.optim.softmax_radius import softmax_radius
from fedsim.registry import make
from fedsim.scenario import Scenario
from fedsim.testing import defenses
from fedsim.testing.federation import initial, mlp, workload
from fedsim.updates import Aggregate, Layout, Updates
from strategies.defense import TRAIN, Reply, Round


def rows_of(values: Any, clients: list[int] | None = None) -> Updates:
    values = torch.as_tensor(values, dtype=torch.float64)
    clients = list(range(len(values))) if clients is None else clients
    return Updates(values, torch.ones(len(values)), clients, torch.zeros(values.shape[1], dtype=torch.float64))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_diffgrad_on_the_server_is_the_optimizer_on_the_negative_update():
    updates, start = normal(20, 7), normal(7, seed=1)
    parameter = nn.Parameter(start.clone())
    optimizer = DiffGrad([parameter], lr=0.05, betas=(0.8, 0.95), eps=1e-3)
    part, state, ours = make("server_optimizer", "diffgrad", lr=0.05, beta_1=0.8, beta_2=0.95, eps=1e-3), {}, start
    for number, update in enumerate(updates, start=1):
        parameter.grad = -update
        optimizer.step()
        ours = part.step(ours, update, state, number)
    torch.testing.assert_close(ours, parameter.detach(), rtol=1e-10, atol=1e-12)


def test_pcgrad_projects_what_conflicts():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    found = make("defense", "pcgrad").aggregate(rows_of(torch.stack([a, b]))).update
    first, second = a - (a @ b) / (b @ b) * b, b - (b @ a) / (a @ a) * a
    torch.testing.assert_close(found, ((first + second) / 2).double())


def test_pcgrad_is_the_mean_where_nothing_conflicts_and_is_drawn_by_the_round():
    rows = normal(4, 6).abs()
    torch.testing.assert_close(make("defense", "pcgrad").aggregate(rows_of(rows)).update, rows.mean(0))
    mixed = normal(6, 4)
    found = [make("defense", "pcgrad").aggregate(rows_of(mixed), Round(round=r)).update for r in (1, 1, 2, 3, 4)]
    assert torch.equal(found[0], found[1])
    assert any(not torch.allclose(found[0], other) for other in found[2:])


def test_pcgrad_is_the_papers_loop():
    rows, ctx = normal(5, 4, seed=3), Round(seed=2, round=7)
    draw, result = ctx.stream("order"), []
    for i in range(5):
        mine = rows[i].clone()
        for j in draw.permutation(5):
            if j != i and mine @ rows[j] < 0:
                mine -= (mine @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        result.append(mine)
    found = make("defense", "pcgrad").aggregate(rows_of(rows), ctx).update
    torch.testing.assert_close(found, torch.stack(result).mean(0))


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_solves_its_problem(c):
    """max_d min_k ⟨g_k, d⟩ in the ball around the mean, by scipy in the primal."""
    rows = normal(3, 4, seed=5).numpy()
    mean = rows.mean(0)
    start = np.array([*mean, (rows @ mean).min()])
    primal = minimize(
        lambda z: -z[-1],
        start,
        constraints=[
            {"type": "ineq", "fun": lambda z: rows @ z[:-1] - z[-1]},
            {"type": "ineq", "fun": lambda z: c**2 * (mean @ mean) - ((z[:-1] - mean) ** 2).sum()},
        ],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    found = make("defense", "cagrad", c=c, rescale=False).aggregate(rows_of(rows)).update.numpy()
    np.testing.assert_allclose(found, primal.x[:-1], atol=1e-4)
    scaled = make("defense", "cagrad", c=c).aggregate(rows_of(rows)).update.numpy()
    np.testing.assert_allclose(scaled * (1 + c**2), found, rtol=1e-12)


def test_cagrad_without_a_radius_is_the_mean():
    rows = normal(5, 3)
    torch.testing.assert_close(make("defense", "cagrad", c=0.0).aggregate(rows_of(rows)).update, rows.mean(0))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"pairs": "all"}, {"rescale": True}])
def test_sam_gs_on_the_server_is_the_optimizers_over_clients_that_come_and_go(gamma, options):
    part, state = make("defense", "sam_gs", gamma=gamma, **options), {}
    memory = State.fresh(4, 6, torch.float64)
    for number, clients in enumerate(([0, 2], [1, 2, 3], [0, 1, 3]), start=1):
        gradients = normal(len(clients), 6, seed=number)
        ctx = Round(round=number, part="sam_gs", state=state)
        found = part.aggregate(rows_of(-gradients, clients), ctx).update
        wanted = surgery(gradients, memory, tasks=clients, gamma=gamma, **options).gradient
        torch.testing.assert_close(-found * len(clients), wanted)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("rows", [torch.tensor([[0.0, 0.0], [3.0, -4.0], [0.3, 0.4]]), torch.zeros(3, 2)])
def test_sam_gs_minds_no_client_that_did_not_move(gamma, rows):
    found = make("defense", "sam_gs", gamma=gamma).aggregate(rows_of(rows)).update
    wanted = surgery(-rows.double(), State.fresh(3, 2, torch.float64), gamma=gamma).gradient
    assert wanted.isfinite().all()
    torch.testing.assert_close(-3 * found, wanted)


def test_rm3_over_rounds_is_the_optimizers_over_mini_batches():
    gradients = normal(8, 5)
    parameter = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer, total, state = LastThree([parameter], lr=1.0, rule="rm3"), torch.zeros(5, dtype=torch.float64), {}
    for number, gradient in enumerate(gradients, start=1):
        parameter.grad = gradient.clone()
        optimizer.step()
        ctx = Round(round=number, part="rm3", state=state)
        total = total + make("defense", "rm3").aggregate(rows_of(-gradient[None]), ctx).update
    torch.testing.assert_close(total, parameter.detach())


def test_the_radius_of_an_update_is_that_of_the_paper():
    rows = defenses.updates(dtype=torch.float64)
    part = make("defense", "softmax_radius", keep=10)
    ctx = defenses.context(part, {})
    found = part.radii(rows, ctx)
    inputs = ctx.root.inputs.double()
    wanted = [softmax_radius(defenses.predict, rows.reference, row, inputs) for row in rows.values]
    torch.testing.assert_close(found, torch.stack(wanted))
    result = part.aggregate(rows, ctx)
    kept = set((result.weights > 0).nonzero().flatten().tolist())
    assert kept == set(np.argsort(found.numpy())[:10].tolist())
    assert all(i not in kept for i in range(3)), "the three rows that are six times as long have the largest r"
    assert math.isclose(float(part.radii(rows.replace(values=2 * rows.values), ctx)[0]), 2 * float(found[0]))


@pytest.mark.parametrize(("quantile", "radius"), [(1.0, 20.0), (0.5, 3.0), (0.0, 1.0)])
def test_the_cap_follows_the_largest_of_the_clients_spreads_or_their_quantile(quantile, radius):
    part = make("defense", "softmax_cap", quantile=quantile, temperature=2.0)
    layout, update = Layout.of(nn.Linear(2, 1)), torch.tensor([1.0, -2.0, 3.0])
    ctx = Round(round=1, part="softmax_cap", layout=layout, parameters=torch.ones(3), server_step=lambda row: 5 * row)
    exchange = part.exchanges(ctx)
    assert next(exchange) is TRAIN
    ctx.aggregate = Aggregate(update, torch.ones(3))
    request = exchange.send(None)
    torch.testing.assert_close(flatten(request.records["step"], layout, torch.float32), 5 * update)
    spreads = [2 * math.pi * each for each in (1.0, 20.0, 3.0)]
    replies = [Reply(i, RecordDict({"spread": MetricRecord({"spread": each})})) for i, each in enumerate(spreads)]
    with pytest.raises(StopIteration):
        exchange.send(replies)
    assert ctx.measures["radius"] == pytest.approx(radius)
    torch.testing.assert_close(part.finish(1 + 5 * update, ctx), 1 + 5 * update / radius)


def test_a_clients_spread_is_the_largest_over_all_its_examples(monkeypatch):
    monkeypatch.setattr("strategies.softmax_cap.BLOCK", 4)
    load = workload((11,), precision="float64")
    start, step = initial(load), normal(load.layout.d, seed=7)
    node = Node(FederatedClient(load), 0, 1, start, RecordDict())
    told = make("defense", "softmax_cap").spread(node, RecordDict({"step": Flat(step, load.layout)}))
    module = mlp().double().eval()

    def logits(vector, inputs):
        return functional_call(module, load.layout.views(vector), (inputs,))

    wanted = math.pi * softmax_radius(logits, start, step, node.examples().inputs)
    assert len(node.examples()) == 11
    assert told["spread"]["spread"] == pytest.approx(float(wanted))


def test_sam_gs_leaves_a_client_alone_as_it_is():
    state: dict[str, Any] = {}
    rows = rows_of([[3.0, -4.0]], [7])
    found = make("defense", "sam_gs").aggregate(rows, Round(round=1, part="sam_gs", state=state)).update
    assert torch.equal(found, rows.values[0])
    assert not state


def test_prototypes_are_averaged_by_the_examples_of_their_class() -> None:
    """By hand: two clients, three classes; one class is on client 9 alone, one nowhere."""
    layout = Layout.of(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3)))
    part = make("defense", "prototype_average")
    part.fit(3)
    ctx = Round(round=1, part="prototype_average", layout=layout)
    exchange = part.exchanges(ctx)
    request = next(exchange)
    told = {4: [6, 0, 0], 9: [2, 5, 0]}
    replies = [
        Reply(k, RecordDict({"class_counts": as_record({"class_counts": torch.tensor(c)})})) for k, c in told.items()
    ]
    assert (request.handler, exchange.send(replies)) == ("query.class_counts", TRAIN)
    rows = Updates(normal(2, layout.d), torch.tensor([6.0, 7.0]), [4, 9], torch.zeros(layout.d), layout=layout)
    found = part.aggregate(rows, ctx)
    one, two = rows.values
    mean = (6 * one + 7 * two) / 13
    head = torch.stack([(6 * one[4:10].view(3, 2)[0] + 2 * two[4:10].view(3, 2)[0]) / 8, two[4:10].view(3, 2)[1]])
    torch.testing.assert_close(found.update[:4], mean[:4])
    torch.testing.assert_close(found.update[4:8], head.flatten())
    torch.testing.assert_close(found.update[10:12], torch.stack([(6 * one[10] + 2 * two[10]) / 8, two[11]]))
    assert not found.update[8:10].any()
    assert not found.update[12]
    torch.testing.assert_close(found.weights, torch.tensor([6.0, 7.0]).double() / 13)
    dropped = part.aggregate(rows.replace(num_examples=torch.tensor([6.0, 0.0])), ctx).update
    torch.testing.assert_close(dropped[4:6], one[4:6])
    assert not dropped[6:8].any()
    with pytest.raises(UpdatesError, match="one a class"):
        part.aggregate(rows.replace(layout=Layout.of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))), ctx)


def averaged(counts: dict[int, list[int]], values: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """(3, 2) head rows of the average, and the body before them is (4,)."""
    layout = Layout.of(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3, bias=False)))
    ctx = Round(round=1, part="prototype_average", layout=layout)
    ctx.state["class_counts"] = {str(k): torch.tensor(each).double() for k, each in counts.items()}
    rows = Updates(values, torch.tensor(weights), sorted(counts), torch.zeros(layout.d), layout=layout)
    return make("defense", "prototype_average").aggregate(rows, ctx).update[4:].view(3, 2)


def test_a_clients_say_in_the_prototypes_is_that_of_its_row() -> None:
    values = torch.ones(2, 10, dtype=torch.float64)
    values[1] = 100.0
    trusted = averaged({0: [5, 5, 0], 1: [0, 5, 5]}, values, [10.0, 1e-9])
    torch.testing.assert_close(trusted[:2], torch.ones(2, 2).double(), rtol=1e-7, atol=0)
    honest, lie = [5, 5, 0], [0, 2**62, 2**62]
    found = averaged({0: honest, 1: lie}, values, [10.0, 10.0])
    torch.testing.assert_close(found[1], torch.full((2,), 50.5).double())
    torch.testing.assert_close(found[0], torch.ones(2).double())


def test_the_prototypes_are_averaged_not_the_matrix_of_their_distance() -> None:
    """Of a Mahalanobis head, which has as many columns as classes, too."""
    for width in (3, 5):
        module = nn.Sequential(nn.Linear(2, width), HarmonicHead(width, 3, distance="mahalanobis"))
        layout = Layout.of(module)
        names = {name: slice(start, stop) for name, start, stop, _ in layout.slices}
        values = normal(2, layout.d)
        rows = Updates(values, torch.tensor([4.0, 6.0]), [0, 1], torch.zeros(layout.d), layout=layout)
        ctx = Round(round=1, part="prototype_average", layout=layout)
        ctx.state["class_counts"] = {"0": torch.tensor([4.0, 0, 0]), "1": torch.tensor([0, 6.0, 0])}
        found, plain = (make("defense", name).aggregate(rows, ctx).update for name in ("prototype_average", "fedavg"))
        assert torch.equal(found[names["1.factor"]], plain[names["1.factor"]])
        head = torch.stack([values[0, names["1.weight"]].view(3, -1)[0], values[1, names["1.weight"]].view(3, -1)[1]])
        torch.testing.assert_close(found[names["1.weight"]].view(3, -1)[:2], head)


@pytest.mark.parametrize("mixer", ["bucketing", "nnm"])
def test_prototypes_are_not_averaged_by_the_counts_of_one_in_a_mixture(mixer: str) -> None:
    with pytest.raises(ScenarioError, match="what each one sent or told"):
        Scenario(server={"defenses": [mixer, "prototype_average"]})


def test_a_client_that_tells_no_numbers_has_no_say_in_the_prototypes() -> None:
    exchange = make("defense", "prototype_average").exchanges(ctx := Round(round=1, part="prototype_average"))
    next(exchange)
    told = torch.tensor([torch.nan, torch.inf, -3.0])
    exchange.send([Reply(0, RecordDict({"class_counts": as_record({"class_counts": told})}))])
    assert ctx.state["class_counts"]["0"].tolist() == [0.0, 0.0, 0.0]


def test_class_counts_are_a_clients_own() -> None:
    load = workload((11,))
    node = Node(FederatedClient(load), 0, 1, initial(load), RecordDict())
    told = as_tensors(make("defense", "prototype_average").count(node, RecordDict())["class_counts"])["class_counts"]
    assert told.tolist() == torch.bincount(node.examples().targets, minlength=load.num_classes).tolist()
