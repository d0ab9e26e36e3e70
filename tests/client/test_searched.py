"""Gradient-normalized smoothness on many clients at once is what it is on each alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.attack import Attack
from fedsim import registry
from fedsim.client.app import FederatedClient
from fedsim.errors import FedsimError
from fedsim.optim.gns_rows import RowsGNS
from fedsim.optim.gns_step import GNS
from fedsim.testing.federation import CLASSES, deltas, initial, kept_rounds, messages, mlp, replies, workload

SIZES = (10, 7, 0, 1, 12, 8, 3, 16)
part = registry.make


def gns(**options: Any) -> dict[str, Any]:
    return {"optimizer": part("optimizer", "gns", **options), "precision": "float64"}


def with_head(name: str, **options: Any) -> dict[str, Any]:
    loss = part("loss", name, **options)
    return {"loss": loss, "model": lambda: loss.head(mlp())}


def smooth() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, CLASSES))


def logistic() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))


class Warmer(nn.Linear):
    """Another function in training."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(1)) * (3.0 if self.training else 1.0)


CASES: dict[str, dict[str, Any]] = {
    "exact": {},
    "exact, solved to rounding, small": gns(accuracy=1e-9, gamma=0.01),
    "zero": gns(curvature="zero", gamma=0.1),
    "trials that fail": gns(curvature="zero", gamma=1e4),
    "logistic": {"model": logistic},
    "smooth": {"model": smooth},
    "another function in training": {"model": lambda: Warmer(12, CLASSES)},
    "masked": with_head("cross_entropy", mask_absent=True),
    "squared error": with_head("squared_error"),
    "harmonic": with_head("harmonic"),
    "proximal": {"proximal": 0.5},
    "stragglers": {"straggler": 0.7, "epochs": 4},
    "steps": {"epochs": None, "steps": 5},
}


class Anchor(Attack):
    """Minimises a share of the task's loss, and stays near a point of the client's own."""

    def objective(self, loss: Tensor, parameters: Tensor, step: Any) -> Tensor:
        apart = parameters - step.reference - 0.01 * torch.tensor([[each.client] for each in step.clients])
        return 0.3 * loss + 0.5 * apart.square().sum(1)


def load_of(path: str, **options: Any) -> Any:
    return workload(SIZES, options.pop("model", mlp), path=path, **{**gns(), **options})


def trained(path: str, attacks: Any = (), malicious: Any = (), **options: Any) -> Tensor:
    load = load_of(path, **options)
    app = FederatedClient(load, attacks)
    assert app.path.name == path
    return deltas(app, initial(load), range(len(SIZES)), malicious=malicious)


@pytest.mark.parametrize("case", CASES)
def test_paths_agree_on_clients_of_unequal_size(case: str, caplog: pytest.LogCaptureFixture) -> None:
    reference = trained("reference", **CASES[case])
    assert reference.abs().max() > 1e-3
    torch.testing.assert_close(trained("vmap", **CASES[case]), reference, rtol=1e-6, atol=1e-6)
    assert "one by one" not in caplog.text


def test_paths_agree_in_float32() -> None:
    options = {"precision": "float32", "model": logistic, "epochs": 1}
    torch.testing.assert_close(trained("vmap", **options), trained("reference", **options), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_paths_agree_under_attack(proximal: float, caplog: pytest.LogCaptureFixture) -> None:
    options = {"proximal": proximal}
    attacks, malicious = [part("attack", "badnets", size=1, ratio=0.5), Anchor()], [4, 7, 1]
    reference, honest = trained("reference", attacks, malicious, **options), trained("reference", **options)
    assert (reference != honest).any(1).nonzero().flatten().tolist() == sorted(malicious)
    torch.testing.assert_close(trained("vmap", attacks, malicious, **options), reference, rtol=1e-6, atol=1e-6)
    assert "one by one" not in caplog.text


def test_a_client_is_the_same_in_any_company() -> None:
    """Clients that are done advance nothing of the others, and nothing of theirs goes on."""
    load = load_of("vmap")
    vector, app = initial(load), FederatedClient(load)
    together = deltas(app, vector, range(len(SIZES)))
    for client in range(len(SIZES)):
        torch.testing.assert_close(deltas(app, vector, [client])[0], together[client], rtol=1e-6, atol=1e-8)


def test_clients_with_gammas_of_their_own_train_together(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """γ stays over rounds, each client's own; a client that comes later begins with γ_0 in the same tensor."""
    together: list[int] = []
    step = RowsGNS.step

    def counted(self: RowsGNS, problem: Any, x: Tensor) -> Tensor:
        together.append(len(self.gammas))
        return step(self, problem, x)

    monkeypatch.setattr(RowsGNS, "step", counted)

    def rounds(path: str, state: str) -> tuple[list[Tensor], dict[int, float]]:
        load = load_of(path, optimizer_state=state, model=logistic)
        found, kept = kept_rounds(load, ((0, 1, 3, 4, 5), (0, 4), (0, 1, 3, 4, 7)))
        records = {client: each.get("client.optimizer") for client, each in kept.items()}
        return found, {client: float(each["0.gamma"].numpy()) for client, each in records.items() if each}

    (ours, gammas), (reference, wanted), (fresh, _) = (
        rounds(*each) for each in (("vmap", "persist"), ("reference", "persist"), ("vmap", "reset"))
    )
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert gammas == wanted
    assert set(together) == {5, 2}
    assert len(set(gammas.values())) > 1
    assert torch.equal(ours[0], fresh[0])
    assert not torch.allclose(ours[1], fresh[1], rtol=1e-3)
    assert "one by one" not in caplog.text


def test_a_client_without_a_finite_loss_fails_alone() -> None:
    def answers(path: str) -> list[Any]:
        load = load_of(path)
        load.train.inputs[load.rows(4)] = float("nan")
        return replies(FederatedClient(load), initial(load), range(len(SIZES)))

    for ours, wanted in zip(answers("vmap"), answers("reference"), strict=True):
        assert ours.has_error() == wanted.has_error()
        if ours.has_error():
            assert ours.error.reason == wanted.error.reason
            assert "accepted: finite" in ours.error.reason
        else:
            one, other = (each.content["arrays"].vector for each in (ours, wanted))
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
            assert ours.content["metrics"]["loss"] == pytest.approx(wanted.content["metrics"]["loss"], rel=1e-9)


def test_a_chunk_counts_what_a_search_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    load = load_of("vmap")
    app, (sent, contexts) = FederatedClient(load), messages(load, initial(load), range(len(SIZES)))
    assert max(len(each) for each in app.plan(sent, contexts)) == 4
    monkeypatch.setattr("fedsim.client.app.CHUNK_BYTES", 2 * 16 * 8 * load.layout.d)
    assert max(len(each) for each in app.plan(sent, contexts)) == 2


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(inputs.flatten(1) if inputs.sum() > 0 else -inputs.flatten(1))
        return found


def test_what_vmap_does_not_take_goes_by_reference(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fedsim"):
        assert FederatedClient(load_of("auto")).path.name == "vmap"
    assert "products with the Hessian" in caplog.text
    assert FederatedClient(load_of("auto", model=Branching)).path.name == "reference"
    with pytest.raises(FedsimError, match="given 'stacked'; accepted: 'vmap' or 'reference'"):
        FederatedClient(load_of("stacked"))


class Rows:
    """Functions with saddles, one for each row: what is asked of them is counted."""

    def __init__(self, weights: Tensor) -> None:
        self.weights, self.asked = weights, torch.zeros(len(weights), dtype=torch.long)

    def function(self, row: int) -> Callable[[Tensor], Tensor]:
        a, b, c = self.weights[row]
        return lambda x: (a * x**4 - b * x**2).sum() + c * (x[0] * x[1] - x[2]) ** 2

    def evaluate(self, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        self.asked[rows] += 1
        found = [torch.func.grad_and_value(self.function(int(row)))(each) for row, each in zip(rows, x, strict=True)]
        return torch.stack([value for _, value in found]), torch.stack([gradient for gradient, _ in found])

    def products(self, rows: Tensor, x: Tensor) -> Callable[[Tensor], Tensor]:
        pairs = list(zip(rows, x, strict=True))
        matrices = torch.stack([torch.func.hessian(self.function(int(row)))(each) for row, each in pairs])
        return lambda v: torch.einsum("rij,rj->ri", matrices, v)


def test_a_row_none_of_whose_trials_is_accepted_stays_as_it_was() -> None:
    start = torch.ones(2, 3, dtype=torch.float64)

    class Walled(Rows):
        def evaluate(self, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            f, g = super().evaluate(rows, x)
            return torch.where((rows == 1) & (x != start[rows]).any(1), torch.nan, f), g

    ours = RowsGNS(torch.full((2,), 3.0, dtype=torch.float64), "exact", 1e-8, 1e-3)
    problem = Walled(torch.ones(2, 3, dtype=torch.float64))
    moved = ours.step(problem, start)
    assert not torch.equal(moved[0], start[0])
    assert torch.equal(moved[1], start[1])
    assert ours.gammas[1] == 3.0
    assert problem.asked[1] > 30 > problem.asked[0]


@pytest.mark.parametrize("curvature", ["exact", "zero"])
def test_each_row_makes_the_steps_of_the_optimizer(curvature: Any) -> None:
    """Saddles, trials that fail, rows at rest, rows that leave."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(7, 3, generator=generator, dtype=torch.float64) + 0.1
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    x[2] = 0.0
    problem = Rows(weights)
    ours = RowsGNS(torch.full((7,), 3.0, dtype=torch.float64), curvature, 1e-8, 1e-3)
    points = [nn.Parameter(each.clone()) for each in x]
    alone = [GNS([each], gamma=3.0, curvature=curvature) for each in points]
    evaluations = torch.zeros(7, dtype=torch.long)
    for active in (7, 7, 6, 4, 4, 4, 1):
        x[:active] = ours.step(problem, x[:active])
        for row in range(active):

            def closure(row: int = row) -> Tensor:
                evaluations[row] += 1
                return problem.function(row)(points[row])

            alone[row].step(closure)
            torch.testing.assert_close(x[row], points[row].detach(), rtol=1e-9, atol=1e-10)
            assert float(ours.gammas[row]) == float(alone[row].state[points[row]]["gamma"])
    if curvature == "zero":
        assert torch.equal(problem.asked, evaluations), "a row that waits is asked for nothing"
    assert len(set(ours.gammas.tolist())) > 2
    assert torch.equal(x[2], torch.zeros(3, dtype=torch.float64))
    assert ours.gammas[2] == 3.0
