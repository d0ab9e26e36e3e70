"""What every optimizer part must do: row independence on (k, d), repeatability, the same on all paths.

from fedsim.testing.optimizers import check_optimizer
check_optimizer(MyOptimizer(lr=0.1))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import registry, rng
from fedsim.client.app import FederatedClient
from fedsim.testing.attacks import global_states, strange_generators
from fedsim.testing.federation import SHAPE, deltas, initial, mlp, workload

Make = Callable[[], Any]


def steps(part: Any, start: Tensor, gradients: Tensor, scale: float = 1.0, clients: Sequence[int] = (0,)) -> Tensor:
    """What is uploaded from ``start`` after one step for each of the gradients (steps, *start.shape)."""
    parameter = nn.Parameter(start.clone())
    optimizer = part.build([parameter], scale)
    if hasattr(optimizer, "use_streams"):
        optimizer.use_streams([rng.torch_stream(0, "conformance", client=client) for client in clients])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return optimizer.upload(parameter) if hasattr(optimizer, "upload") else parameter.detach()


def check_rows_are_independent(part: Any) -> None:
    """A row of a (k, d) tensor moves as it would alone, bit for bit, whatever the other rows hold."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 13, generator=generator)
    gradients = torch.randn(7, 5, 13, generator=generator)
    together = steps(part, start, gradients, clients=range(5))
    for row in range(5):
        alone = steps(part, start[row : row + 1], gradients[:, row : row + 1], clients=[row])
        assert torch.equal(together[row : row + 1], alone), f"row {row} of a (k, d) tensor depends on the others"
        as_vector = steps(part, start[row], gradients[:, row], clients=[row])
        assert torch.equal(together[row], as_vector), f"row {row} of a (k, d) tensor moves otherwise than a vector"


def check_repeats(part: Any) -> None:
    """Two optimizers of one part, given the same gradients, make the same steps; and steps are made at all."""
    generator = torch.Generator().manual_seed(1)
    start, gradients = torch.randn(11, generator=generator), torch.randn(5, 11, generator=generator)
    first = steps(part, start, gradients)
    assert torch.equal(first, steps(part, start, gradients)), "the same gradients gave other steps"
    assert torch.isfinite(first).all(), "a step is not finite"
    assert not torch.equal(first, start), "no step was made"


def check_paths_agree(part: Any) -> None:
    """Clients of unequal size train to the same deltas on the stacked, the vmap and the reference path (float64).

    An optimizer that combines the gradients of several objectives is given two; one that evaluates the objectives of
    many clients itself has no stacked path.
    """
    paths = ("reference", "vmap") if hasattr(part, "build_rows") else ("reference", "stacked", "vmap")
    results, task = [], _two_objectives() if getattr(part, "combines_objectives", False) else {}
    for path in paths:
        load = workload((10, 7, 3, 12, 5), optimizer=part, path=path, precision="float64", **task)
        results.append(deltas(FederatedClient(load), initial(load), range(5)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-7, atol=1e-9)


def train_plainly(part: Any) -> Tensor:
    """(2, d) deltas of two clients with twelve examples each, one at a time."""
    task = _two_objectives() if getattr(part, "combines_objectives", False) else {}
    load = workload((12, 12), optimizer=part, path="reference", **task)
    return deltas(FederatedClient(load), initial(load), range(2))


def _two_objectives() -> dict[str, Any]:
    loss = registry.make("loss", "with_reconstruction")
    loss.set_up(SHAPE)
    return {"loss": loss, "model": lambda: loss.head(mlp())}


def check_leaves_global_randomness(part: Any) -> None:
    """No step draws from, or seeds, a generator that others use."""
    start, gradients = torch.ones(11), torch.ones(3, 11)
    with strange_generators():
        before = global_states()
        steps(part, start, gradients)
        after = global_states()
    assert torch.equal(before[0], after[0]), "a step used torch's global generator"
    assert before[1:] == after[1:], "a step used NumPy's or Python's global generator"


def can_be_built(make: Make) -> None:
    """It has ``row_wise`` and ``build``, which gives an optimizer of torch.optim's interface."""
    part = make()
    rows = getattr(part, "row_wise", None)
    assert rows is not None, "the class does not say whether it is row_wise"
    assert isinstance(rows, bool), f"the class says row_wise = {rows!r}"
    assert callable(getattr(part, "build", None)), "the class has no build"
    try:
        inspect.signature(part.build).bind([], 1.0)
    except TypeError as error:
        raise AssertionError(f"build{inspect.signature(part.build)} does not take (parameters, scale)") from error
    built = part.build([nn.Parameter(torch.ones(3))], 1.0)
    assert callable(getattr(built, "step", None)), f"build gave a {type(built).__name__}, an optimizer is needed"
    needed = [
        each.name
        for each in inspect.signature(built.step).parameters.values()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    assert not needed, f"step needs {', '.join(needed)}; it is called as step()"


def heeds_the_schedule(make: Make) -> None:
    """``scale``, by which a schedule of the learning rate acts, changes the steps of a part that has ``lr``."""
    part = make()
    if not hasattr(part, "lr"):
        return
    generator = torch.Generator().manual_seed(2)
    start, gradients = torch.randn(11, generator=generator), torch.randn(5, 11, generator=generator)
    whole, half = (steps(part, start, gradients, scale) for scale in (1.0, 0.5))
    assert not torch.equal(whole, half), "build(parameters, 0.5) gave the steps of build(parameters, 1.0)"


def repeats(make: Make) -> None:
    """The same gradients give the same steps."""
    check_repeats(make())


def leaves_global_randomness(make: Make) -> None:
    """No step draws from, or seeds, a generator that others use."""
    check_leaves_global_randomness(make())


def rows_are_independent(make: Make) -> None:
    """The rows of a (k, d) tensor move as they would alone, if the class is ``row_wise``."""
    part = make()
    if part.row_wise:
        check_rows_are_independent(part)


def paths_agree(make: Make) -> None:
    """Clients train to the same deltas on all paths, if the class is ``row_wise`` or has ``build_rows``."""
    part = make()
    if part.row_wise or hasattr(part, "build_rows"):
        check_paths_agree(part)


CHECKS: tuple[Callable[[Make], None], ...] = (
    can_be_built,
    repeats,
    heeds_the_schedule,
    leaves_global_randomness,
    rows_are_independent,
    paths_agree,
)


def check_optimizer(part: Any) -> None:
    """All of the above; one that is not ``row_wise`` need not treat rows alone, nor go every path."""
    for check in CHECKS:
        check(lambda: part)
