"""Maps that are learned together against the fit of a client at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim import registry
from fedsim.errors import FedsimError
from fedsim.losses import monge_maps
from fedsim.losses.monge_map import fit_monge_map
from fedsim.losses.monge_maps import Learner, entropic_plans, fit_monge_maps
from fedsim.losses.sinkhorn import cost_matrix, default_epsilon, entropic_cost

SIZES = (30, 9, 17, 30)
"""Examples of clients: more than a batch, and fewer."""
TWO_SIZES = ((16, 0.0), (21, 1.0), (16, 3.0), (21, 4.0))
"""Points of problems, and how far apart their samples are."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learners(
    dtype: torch.dtype = torch.float64, sizes: tuple[int, ...] = SIZES, *, residual: bool = True
) -> list[Learner]:
    part = registry.make("adapter", "monge_gap", hidden=[7, 5], residual=residual)
    found, target = [], normal(36, 3, seed=99).to(dtype)
    for i, size in enumerate(sizes):
        torch.manual_seed(i)
        source = ((0.7 + 0.1 * i) * normal(size, 3, seed=i) + 0.2 * i).to(dtype)
        found.append(Learner(part.first(source), source, target, torch.Generator().manual_seed(i)))
    return found


def alone(learner: Learner, **options: Any) -> None:
    size = min(options.pop("batch_size"), len(learner.source), len(learner.target))
    fit_monge_map(
        learner.model, learner.source, learner.target, batch_size=size, generator=learner.generator, **options
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cost": "cosine", "gap_weight": 0.0},
        {"method": "entropic", "gap_weight": 2.0, "epsilon": 0.5},
        {"method": "entropic", "cost": "manhattan", "epsilon": 0.5},
    ],
)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_each_map_is_the_one_of_a_fit_alone(
    options: dict[str, Any], dtype: torch.dtype, tolerance: float, residual: bool
) -> None:
    options = {"steps": 2, "batch_size": 25, "lr": 0.02, **options}
    together, wanted = learners(dtype, residual=residual), learners(dtype, residual=residual)
    fit_monge_maps(together, **options)
    for found, each in zip(together, wanted, strict=True):
        alone(each, **options)
        assert torch.equal(found.generator.get_state(), each.generator.get_state())
        for name, value in each.model.state_dict().items():
            torch.testing.assert_close(found.model.state_dict()[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("method", ["exact", "entropic"])
def test_fifty_steps_end_at_the_map_of_a_fit_alone(method: str, residual: bool) -> None:
    """Rounding that grows from step to step stays rounding, and momentum is each map's own."""
    options: dict[str, Any] = {"steps": 50, "batch_size": 25, "lr": 0.02, "method": method}
    together, wanted = learners(residual=residual), learners(residual=residual)
    fit_monge_maps(together, **options)
    for found, each in zip(together, wanted, strict=True):
        start = torch.cat([value.detach().flatten() for value in each.model.parameters()])
        alone(each, **options)
        end = torch.cat([value.detach().flatten() for value in each.model.parameters()])
        assert (end - start).abs().max() > 0.1
        for name, value in each.model.state_dict().items():
            torch.testing.assert_close(found.model.state_dict()[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_map_has_the_same_bits_whoever_learns_beside_it(dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"steps": 2, "batch_size": 25, "method": "entropic"}
    together, pairs = learners(dtype), learners(dtype)
    fit_monge_maps(together, **options)
    for start in range(0, len(pairs), 2):
        fit_monge_maps(pairs[start : start + 2], **options)
    for found, each in zip(together, pairs, strict=True):
        for name, value in each.model.state_dict().items():
            assert torch.equal(found.model.state_dict()[name], value)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-9])
def test_plans_are_the_gradients_of_the_entropic_cost(tolerance: float) -> None:
    """Sizes that fill no line of memory, and problems that end at different times."""
    problems = [cost_matrix(normal(n, 2, seed=n), normal(n, 2, seed=n + 50) + shift) for n, shift in TWO_SIZES]
    epsilons = [4 * default_epsilon(each) for each in problems]
    plans = entropic_plans(problems, epsilons, tolerance=tolerance)
    for costs, epsilon, plan in zip(problems, epsilons, plans, strict=True):
        costs.requires_grad_()
        (wanted,) = torch.autograd.grad(entropic_cost(costs, epsilon, tolerance=tolerance), costs)
        torch.testing.assert_close(plan, wanted, rtol=0, atol=1e-12)


def test_scalings_that_run_over_are_made_up_for_in_the_log_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [cost_matrix(normal(11, 2, seed=i), normal(11, 2, seed=i + 50)) for i in range(3)]
    wanted = entropic_plans(problems, [0.5] * 3, tolerance=1e-12)
    scale, calls = monge_maps._scale, []

    def over(kernel: Tensor, times: int) -> tuple[Tensor, Tensor]:
        calls.append(times)
        u, v = scale(kernel, times)
        if len(calls) < 3:
            u[1, 2], v[1] = torch.inf, 0.0
        return u, v

    monkeypatch.setattr(monge_maps, "_scale", over)
    for plan, each in zip(entropic_plans(problems, [0.5] * 3, tolerance=1e-12), wanted, strict=True):
        torch.testing.assert_close(plan, each, rtol=0, atol=1e-12)


def test_marginals_that_are_not_met_are_told() -> None:
    problems = [cost_matrix(normal(12, 2, seed=i), 5 + normal(12, 2, seed=i + 9)) for i in range(2)]
    with pytest.raises(FedsimError, match=r"Sinkhorn: marginals off by .* after 42 iterations; accepted: 0\.01"):
        entropic_plans(problems, [1.0, 1e-3], max_iterations=30)
