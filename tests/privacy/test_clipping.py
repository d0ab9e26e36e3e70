"""Clipped sums against the plain loop of autograd over examples; each example's contribution against C."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import FedsimError
from fedsim.models.standardize import standardized
from fedsim.privacy.clipping import (
    GradientSum,
    clip_rows,
    clipped_difference_sum,
    clipped_gradient_sum,
    ghost_layers,
)
from fedsim.privacy.mixed import signals_and_rows, tapped
from fedsim.updates import Layout

FLOATS = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.reshape(targets.shape) - targets).square()


class Written(nn.Module):
    """A perceptron as people write it, with a sum of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.second = nn.Linear(8, 8, bias=False)
        self.third = nn.Linear(8, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.first(x.view(x.size(0), -1))))
        return self.third(functional.silu(self.second(x)) + x)


class Twice(nn.Module):
    """The same layer applied two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x.flatten(1))))))


class Scaled(nn.Module):
    """A parameter beside the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) * self.scale


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x.flatten(1))))))


class Centred(nn.Module):
    """Takes the batch's mean off: examples meet."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Softplus(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 5))


def logistic() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))


def in_place() -> nn.Module:
    return standardized(nn.Sequential(nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 5)), 0.3, 0.4)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 3, 2), nn.ReLU(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(18, 5)
    )


def tokens() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 5))


def one_activation() -> nn.Module:
    """One activation behind both layers."""
    bent = nn.Softplus()
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), bent, nn.Linear(9, 7), bent, nn.Linear(7, 5))


def listed_twice() -> nn.Module:
    """One layer in two places of a list."""
    layer, bent = nn.Linear(12, 12), nn.Tanh()
    return nn.Sequential(nn.Flatten(), layer, bent, layer, bent, nn.Linear(12, 5))


GHOST = [mlp, logistic, in_place, Written, one_activation]
ROWS = [cnn, tokens, Twice, Scaled, Tied, listed_twice]


def task(build: Callable[[], nn.Module], dtype: torch.dtype, n: int = 23) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    return build().to(dtype), torch.randn(n, 12, dtype=dtype), torch.randint(5, (n,))


def vector(module: nn.Module) -> Tensor:
    return Layout.of(module).flatten(dict(module.named_parameters()), next(module.parameters()).dtype)


def moved(x: Tensor, step: float) -> Tensor:
    direction = torch.randn(len(x), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x + (step / direction.norm() * direction).to(x.dtype)


def gradients(
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    at: Tensor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Tensor:
    """(n, d), one example at a time."""
    module = module.eval()
    if at is not None:
        Layout.of(module).load(module, at)
    rows = []
    for i in range(len(inputs)):
        value = loss(module(inputs[i : i + 1]), targets[i : i + 1]).sum()
        rows.append(torch.cat([each.flatten() for each in torch.autograd.grad(value, list(module.parameters()))]))
    return torch.stack(rows)


def clipped(rows: Tensor, clip: float) -> Tensor:
    rows = rows.double()
    return sum((row * min(1.0, clip / max(float(row.norm()), 1e-300)) for row in rows), torch.zeros(rows.shape[1]))


def middle(rows: Tensor) -> float:
    """A clip that lies halfway between two norms, so that no rounding decides who is clipped."""
    half = len(rows) // 2
    return float(rows.double().norm(dim=1).sort().values[half : half + 2].mean())


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((found.double() - expected).norm()) <= tolerance * float(expected.norm())


def contributions(call: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """(n,) norms of what each example adds."""
    return torch.stack([call(inputs[i : i + 1], targets[i : i + 1]).double().norm() for i in range(len(inputs))])


@pytest.mark.parametrize("build", GHOST)
def test_norms_suffice_for_linear_layers_called_once(build: Callable[[], nn.Module]) -> None:
    module, inputs, _ = task(build, torch.float32)
    weights = [name for name, value in module.named_parameters() if value.ndim == 2]
    assert sorted(ghost_layers(module.eval(), inputs) or ()) == sorted(weights)


@pytest.mark.parametrize("build", ROWS)
def test_norms_do_not_suffice_for_others(build: Callable[[], nn.Module]) -> None:
    module, inputs, _ = task(build, torch.float32)
    assert ghost_layers(module.eval(), inputs) is None


@pytest.mark.parametrize(
    "layers",
    [
        [Centred(), nn.Linear(12, 5)],
        [nn.Flatten(0), nn.Unflatten(0, (2, 12)), nn.Linear(12, 5)],
        [nn.Linear(12, 5), nn.Softmax(0)],
        [nn.Linear(12, 5), nn.PReLU()],
        [nn.utils.parametrizations.weight_norm(nn.Linear(12, 5))],
    ],
)
def test_norms_do_not_suffice_where_examples_meet(layers: Sequence[nn.Module]) -> None:
    assert ghost_layers(nn.Sequential(*layers).eval(), torch.randn(2, 12)) is None


class Penalised(nn.Module):
    """Its outputs also depend on the weight by another way than the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head, self.scale = nn.Linear(12, 8), nn.Linear(8, 5), nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu_(self.layer(x.flatten(1)))
        return self.head(hidden) * self.scale + torch.stack([self.layer.weight]).square().mean()


class Overwriting(nn.Module):
    """Writes over what comes out of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer, self.head = nn.LayerNorm(12), nn.Linear(12, 12), nn.Linear(12, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.flatten(1))
        return self.head(torch.tanh_(self.layer(x).mul_(2.0)) + x)


class Tempered(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.temperature = nn.Linear(12, 5), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) * self.temperature


@torch.jit.script
def squares_of_rows(weight: Tensor) -> Tensor:
    return weight.square().sum(1)


class Hidden(nn.Module):
    """Its outputs depend on the head's weight by what no function call shows."""

    way = "grad"
    normed = True

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(12, 8), nn.Linear(8, 5)
        self.norm = nn.LayerNorm(8) if self.normed else nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.head.weight
        if self.way == "grad":
            more = torch.func.grad(lambda w: (w**3).sum())(weight).sum(1)
        elif self.way == "vjp":
            more = torch.func.vjp(lambda w: w**3, weight)[0].sum(1)
        else:
            more = squares_of_rows(weight)
        return self.head(self.norm(self.layer(x.flatten(1)))) + more


def hidden(way: str, normed: bool) -> type[Hidden]:
    return type(f"Hidden_{way}_{normed}", (Hidden,), {"way": way, "normed": normed})


HIDDEN = [hidden(way, normed) for way in ("grad", "vjp", "script") for normed in (True, False)]


class Deepening(nn.Module):
    """Calls a layer as often as a parameter's value says."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer, self.head = nn.LayerNorm(12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.depth = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.flatten(1))
        for _ in range(1 + int(float(self.depth) > 1.01)):
            x = torch.tanh(self.layer(x))
        return self.head(x) * self.depth


class OverTokens(nn.Module):
    """A layer called on two dimensions at once by vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([x.flatten(1), x.flatten(1).square()], 1)
        return self.head(self.norm(torch.vmap(self.layer, in_dims=1, out_dims=1)(both).sum(1)))


def convolutions() -> nn.Module:
    """No linear layer at all."""
    return nn.Sequential(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3), nn.Tanh(), nn.Conv1d(4, 5, 10), nn.Flatten())


def forward_in_its_place() -> nn.Module:
    """A chain whose layer was given another forward."""
    layer = nn.Linear(12, 5)
    layer.forward = lambda x: 2 * functional.linear(x, layer.weight, layer.bias)  # type: ignore[method-assign]
    return nn.Sequential(nn.Flatten(), layer)


def chain_in_its_place() -> nn.Module:
    chain = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5))
    chain.forward = lambda x: chain[2](torch.sigmoid(chain[0](x)))  # type: ignore[method-assign]
    return chain


HEAD = {"head.weight": "head.bias"}
BESIDE: list[tuple[Callable[[], nn.Module], dict[str, str | None]]] = [
    (cnn, {"5.weight": "5.bias"}),
    (tokens, {"4.weight": "4.bias"}),
    (Twice, {"head.weight": "head.bias"}),
    (Scaled, {"layer.weight": "layer.bias"}),
    (Tied, {"head.weight": "head.bias"}),
    (Penalised, {"head.weight": "head.bias"}),
    (Overwriting, {"layer.weight": "layer.bias", "head.weight": None}),
    (Tempered, {"layer.weight": "layer.bias"}),
    *[(each, {"layer.weight": "layer.bias"}) for each in HIDDEN],
    (convolutions, {}),
]
ODD: list[Callable[[], nn.Module]] = [
    Penalised, Overwriting, Tempered, *HIDDEN, Deepening, OverTokens, convolutions, forward_in_its_place,
    chain_in_its_place,
]  # fmt: skip


@pytest.mark.parametrize(("build", "taps"), BESIDE)
def test_signals_suffice_for_linear_layers_beside_others(
    build: Callable[[], nn.Module], taps: dict[str, str | None]
) -> None:
    module, inputs, _ = task(build, torch.float32)
    assert tapped(module.eval(), dict(module.named_parameters()), inputs[:1]) == taps


@pytest.mark.parametrize("build", HIDDEN)
def test_norms_do_not_suffice_where_a_weight_is_used_unseen(build: Callable[[], nn.Module]) -> None:
    module, inputs, _ = task(build, torch.float32)
    assert ghost_layers(module.eval(), inputs) is None


def test_rows_are_formed_where_a_layer_is_called_otherwise_at_the_second_point() -> None:
    module, inputs, targets = task(Deepening, torch.float64)
    before = vector(module)
    now = before + 0.02
    rows = gradients(module, inputs, targets, now) - gradients(module, inputs, targets, before)
    clip = middle(rows)
    found = clipped_difference_sum(module, now, before, cross_entropy, inputs, targets, clip)
    close(found.total, clipped(rows, clip), 1e-10)
    Layout.of(module).load(module, before)
    batches = GradientSum(module.eval(), cross_entropy, clip)
    batches(inputs, targets)
    close(batches(inputs, targets), clipped(gradients(module, inputs, targets), clip), 1e-10)
    with torch.no_grad():
        for value in module.parameters():
            value += 0.02
    close(batches(inputs, targets), clipped(gradients(module, inputs, targets), clip), 1e-10)


def test_a_wide_linear_layer_behind_a_convolution_is_never_formed() -> None:
    hidden = nn.Linear(1352, 4096)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), hidden, nn.ReLU(), nn.Linear(4096, 10))
    inputs, targets, layout = torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64), Layout.of(module)
    point = dict(module.named_parameters())
    found = signals_and_rows(module, cross_entropy, layout, point, inputs, targets)
    assert found is not None
    at, size = found
    layers, rest = at({name: value.detach() for name, value in point.items()}, inputs, targets)
    assert size == 256
    assert ([layer.weight for layer in layers], sorted(rest)) == (["2.weight", "4.weight"], ["0.bias", "0.weight"])
    hidden.requires_grad_(False)
    assert list(tapped(module, point, inputs[:1])) == ["4.weight"]
    hidden.weight.requires_grad_(True)
    assert list(tapped(module, point, inputs[:1])) == ["4.weight"], "the bias is still frozen"


@pytest.mark.parametrize("way", ["norms", "both", "rows"])
def test_a_model_that_writes_over_its_inputs_is_refused(way: str) -> None:
    first = nn.LeakyReLU(0.1, inplace=True)
    beside = {"norms": nn.Tanh(), "both": nn.LayerNorm(8), "rows": nn.Unflatten(1, (1, 8))}[way]
    module = nn.Sequential(first, nn.Linear(12, 8), beside, nn.Flatten(), nn.Linear(8, 5)).eval()
    inputs, targets = torch.randn(7, 12), torch.zeros(7, dtype=torch.int64)
    now = vector(module)
    calls = [
        lambda: clipped_gradient_sum(module, cross_entropy, inputs, targets, 1.0),
        lambda: clipped_difference_sum(module, now + 1, now, cross_entropy, inputs, targets, 1.0),
        lambda: GradientSum(module, cross_entropy, 1.0)(inputs, targets),
    ]
    for call in calls:
        with pytest.raises(FedsimError, match="writes over its inputs"):
            call()


@pytest.mark.parametrize("beside", [nn.Tanh(), nn.LayerNorm(8)])
def test_hooks_on_gradients_are_refused(beside: nn.Module) -> None:
    layer = nn.Linear(12, 8)
    layer.weight.register_hook(lambda gradient: gradient * 0.5)
    module = nn.Sequential(layer, beside, nn.Linear(8, 5))
    with pytest.raises(FedsimError, match=r"a hook on the gradient of '0\.weight'"):
        clipped_gradient_sum(module, cross_entropy, torch.randn(3, 12), torch.zeros(3, dtype=torch.int64), 1.0)


def test_a_hook_of_all_modules_is_seen() -> None:
    module, inputs, targets = task(mlp, torch.float64)

    def louder(layer: nn.Module, given: object, outputs: Tensor) -> Tensor | None:
        return outputs * 1.5 if type(layer) is nn.Linear else None

    handle = torch.nn.modules.module.register_module_forward_hook(louder)
    try:
        rows = gradients(module, inputs, targets)
        found = clipped_gradient_sum(module, cross_entropy, inputs, targets, middle(rows)).total
        close(found, clipped(rows, middle(rows)), 1e-10)
    finally:
        handle.remove()


def test_a_model_that_vmap_does_not_take_is_told_so() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(12, 6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x))

    with pytest.raises(FedsimError, match=r"vmap does not form .*; accepted: layers that it takes"):
        clipped_gradient_sum(Recurrent(), cross_entropy, torch.randn(3, 12), torch.zeros(3, dtype=torch.int64), 1.0)


def test_dropout_that_drops_is_not_taken_for_none() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(12, 5))
    assert ghost_layers(module.train(), torch.randn(2, 12)) is None
    assert ghost_layers(module.eval(), torch.randn(2, 12)) is not None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("build", GHOST + ROWS + ODD)
def test_gradient_sum_is_the_loop_over_examples(
    build: Callable[[], nn.Module], chunk: int | None, dtype: torch.dtype
) -> None:
    module, inputs, targets = task(build, dtype)
    rows = gradients(module, inputs, targets)
    clip = middle(rows)
    found = clipped_gradient_sum(module.train(), cross_entropy, inputs, targets, clip, chunk=chunk)
    close(found.total, clipped(rows, clip), TOLERANCE[dtype])
    assert found.total.dtype == dtype
    assert (found.count, found.nonfinite, found.clipped) == (23, 0, 11 / 23)
    torch.testing.assert_close(found.norms, rows.double().norm(dim=1), rtol=TOLERANCE[dtype], atol=0)
    assert module.training


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("build", GHOST + ROWS + ODD)
def test_difference_sum_is_the_loop_over_examples(
    build: Callable[[], nn.Module], chunk: int | None, dtype: torch.dtype
) -> None:
    module, inputs, targets = task(build, dtype)
    before, now = vector(module), moved(vector(module), 3.0)
    rows = gradients(module, inputs, targets, now) - gradients(module, inputs, targets, before)
    clip = middle(rows)
    with torch.no_grad():
        for value in module.parameters():
            value.fill_(torch.nan)
    found = clipped_difference_sum(module, now, before, cross_entropy, inputs, targets, clip, chunk=chunk)
    close(found.total, clipped(rows, clip), TOLERANCE[dtype])
    assert (found.count, found.nonfinite, found.clipped) == (23, 0, 11 / 23)


@pytest.mark.parametrize("build", [mlp, cnn])
def test_without_a_clip_it_is_the_gradient_of_the_sum(build: Callable[[], nn.Module]) -> None:
    module, inputs, targets = task(build, torch.float64)
    found = clipped_gradient_sum(module, cross_entropy, inputs, targets, float("inf"))
    whole = torch.autograd.grad(cross_entropy(module(inputs), targets).sum(), list(module.parameters()))
    close(found.total, torch.cat([each.flatten() for each in whole]), 1e-12)
    assert found.clipped == 0.0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("step", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("build", [mlp, Written, cnn])
def test_no_example_adds_more_than_the_clip(build: Callable[[], nn.Module], step: float, dtype: torch.dtype) -> None:
    module, inputs, targets = task(build, dtype)
    before, now = vector(module), moved(vector(module), step)
    norms = clipped_difference_sum(module, now, before, cross_entropy, inputs, targets, 1.0).norms
    clip = float(norms[norms > 0].median() / 2)

    def call(x: Tensor, y: Tensor) -> Tensor:
        return clipped_difference_sum(module, now, before, cross_entropy, x, y, clip).total

    added = contributions(call, inputs, targets)
    assert float(added.max()) <= clip * (1 + 1e-6)
    assert float(added.max()) >= clip * (1 - 1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("build", [mlp, Written, cnn])
def test_no_example_adds_more_than_the_clip_to_gradients(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    module, inputs, targets = task(build, dtype)
    clip = float(gradients(module, inputs, targets).norm(dim=1).median() / 2)
    batches = GradientSum(module.eval(), cross_entropy, clip)

    def call(x: Tensor, y: Tensor) -> Tensor:
        return clipped_gradient_sum(module, cross_entropy, x, y, clip).total

    for added in (contributions(call, inputs, targets), contributions(batches, inputs, targets)):
        assert clip * (1 - 1e-6) <= float(added.max()) <= clip * (1 + 1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("build", [mlp, cnn])
def test_an_example_adds_no_more_in_a_batch_than_alone(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    module, inputs, targets = task(build, dtype)
    before, now = vector(module), moved(vector(module), 1.0)
    clip = float(clipped_difference_sum(module, now, before, cross_entropy, inputs, targets, 1.0).norms.min() / 2)
    batches = GradientSum(module.eval(), cross_entropy, clip)

    def gradient(x: Tensor, y: Tensor) -> Tensor:
        return clipped_gradient_sum(module, cross_entropy, x, y, clip).total

    def difference(x: Tensor, y: Tensor) -> Tensor:
        return clipped_difference_sum(module, now, before, cross_entropy, x, y, clip).total

    for call in (gradient, batches, difference):
        whole = call(inputs, targets).double()
        rounding = 2 * torch.finfo(dtype).eps * float(whole.norm())  # of the two sums, each once
        for i in range(len(inputs)):
            rest = torch.arange(len(inputs)) != i
            added = float((whole - call(inputs[rest], targets[rest]).double()).norm())
            assert added <= clip * (1 + 1e-6) + rounding
            assert added >= clip * (1 - 1e-6) - rounding, "every example is clipped here"


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("build", [mlp, cnn])
def test_small_steps_lose_nothing_in_double(build: Callable[[], nn.Module], step: float) -> None:
    module, inputs, targets = task(build, torch.float64)
    before, now = vector(module), moved(vector(module), step)
    rows = gradients(module, inputs, targets, now) - gradients(module, inputs, targets, before)
    clip = middle(rows)
    found = clipped_difference_sum(module, now, before, cross_entropy, inputs, targets, clip)
    close(found.total, clipped(rows, clip), 1e-14 / step + 1e-13)


def wide(*first: nn.Module) -> nn.Module:
    return nn.Sequential(*first, nn.Linear(784, 64), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(("step", "bound"), [(1.0, 1e-6), (1e-2, 3e-4), (1e-4, 3e-2)])
def test_small_steps_lose_in_single_what_the_loop_loses(step: float, bound: float) -> None:
    """What is lost is lost in the gradients, two near numbers of float32: neither path adds to it."""
    torch.manual_seed(3)
    module, inputs, targets = wide(), torch.rand(24, 784), torch.randint(10, (24,))
    before, now = vector(module), moved(vector(module), step)
    single = gradients(module, inputs, targets, now) - gradients(module, inputs, targets, before)
    module, x = module.double(), inputs.double()
    double = gradients(module, x, targets, now.double()) - gradients(module, x, targets, before.double())
    clip = middle(double)
    exact = clipped(double, clip)
    loop = float((clipped(single, clip) - exact).norm())
    assert loop <= bound * float(exact.norm())
    for by_norms, net in ((True, wide()), (False, wide(nn.Unflatten(1, (1, 784))))):
        assert (ghost_layers(net.eval(), inputs) is not None) == by_norms
        found = clipped_difference_sum(net, now, before, cross_entropy, inputs, targets, clip).total
        close(found, exact, bound)
        assert float((found.double() - exact).norm()) <= 1.5 * loop


def two_layers(dtype: torch.dtype, first: float, second: float) -> tuple[nn.Module, Tensor]:
    """x · first · second, linear, on one number: the second layer's input is first · x."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).to(dtype)
    return module, torch.tensor([first, second], dtype=dtype)


def quotient(outputs: Tensor, targets: Tensor) -> Tensor:
    """targets · log(output): the signal is targets/output, so that signal times input does not depend on the point."""
    return targets * outputs.flatten().log()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("away", [0.0, 1e-7, 1e-5, 1e-3, 1e-1])
def test_terms_that_cancel(dtype: torch.dtype, away: float) -> None:
    # By the second weight v the gradient is t/v, by the first t/u: the input u·x of the second layer drops out.
    # Moving u alone, |Δb||a'| and |b||Δa| of the second layer are large and their difference is nothing; ``away``
    # moves v a little. The first layer's own difference is made small by a huge u.
    module, before = two_layers(dtype, 1e6, 2.0)
    now = before * torch.tensor([4.0, 1.0 + away], dtype=dtype)
    inputs = torch.tensor([[0.7], [1.3], [2.9]], dtype=dtype)
    targets = torch.tensor([3.0, 11.0, 0.1], dtype=dtype)
    wide = [each.double() for each in (now, before)]
    exact = targets.double()[:, None] * (1 / wide[0] - 1 / wide[1])
    clip = float(exact.norm(dim=1).median()) / 2
    found = clipped_difference_sum(module, now, before, quotient, inputs, targets, clip)
    # Signals and inputs themselves are rounded: what they are off by is a share of the terms, t/v.
    rounding = 8 * torch.finfo(dtype).eps * float(targets.max()) / 2
    torch.testing.assert_close(found.norms, exact.norm(dim=1), rtol=1e-6, atol=rounding)

    def call(x: Tensor, y: Tensor) -> Tensor:
        return clipped_difference_sum(module, now, before, quotient, x, y, clip).total

    assert float(contributions(call, inputs, targets).max()) <= clip * (1 + 1e-6)
    if away >= 1e-3:
        close(found.total, clipped(exact, clip), 1e-6 + 10 * torch.finfo(dtype).eps / away)


def test_terms_that_cancel_in_wide_layers_keep_the_clip() -> None:
    # logits = W2 · W1 x with W1 scaled up and W2 down by one factor: the function stays, and with it the signal at
    # the logits times the hidden layer grows, while the first layer's gradients shrink.
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10))
    inputs, targets = torch.randn(40, 30), torch.rand(40) + 0.5

    def loss(outputs: Tensor, weights: Tensor) -> Tensor:
        return weights * outputs.square().sum(1).log()

    start = vector(module)
    for factor in (1.0 + 1e-6, 1.001, 1.5, 30.0):
        scale = torch.ones_like(start)
        scale[: 30 * 20 + 20] = factor
        now = start * scale
        norms = clipped_difference_sum(module, now, start, loss, inputs, targets, 1.0).norms
        clip = float(norms.min() / 2)

        def call(x: Tensor, y: Tensor, now: Tensor = now, clip: float = clip) -> Tensor:
            return clipped_difference_sum(module, now, start, loss, x, y, clip).total

        assert float(contributions(call, inputs, targets).max()) <= clip * (1 + 1e-6)


@pytest.mark.parametrize("build", [mlp, cnn])
def test_order_of_the_examples_does_not_matter(build: Callable[[], nn.Module]) -> None:
    module, inputs, targets = task(build, torch.float64)
    before, now = vector(module), moved(vector(module), 0.1)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1))
    one = clipped_difference_sum(module, now, before, cross_entropy, inputs, targets, 0.05)
    other = clipped_difference_sum(module, now, before, cross_entropy, inputs[order], targets[order], 0.05)
    close(other.total, one.total, 1e-13)
    torch.testing.assert_close(other.norms, one.norms[order], rtol=1e-13, atol=0)


@pytest.mark.parametrize("build", [mlp, cnn])
def test_the_same_call_gives_the_same_bits(build: Callable[[], nn.Module]) -> None:
    module, inputs, targets = task(build, torch.float32)
    before, now = vector(module), moved(vector(module), 0.1)
    one, other = (
        clipped_difference_sum(module, now, before, cross_entropy, inputs, targets, 0.05).total for _ in range(2)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("build", [mlp, logistic, cnn])
def test_examples_that_are_not_finite_add_zero(build: Callable[[], nn.Module], bad: float, dtype: torch.dtype) -> None:
    module, inputs, targets = task(build, dtype)
    inputs[4, 2] = inputs[17, 0] = bad
    rest = torch.tensor([i for i in range(23) if i not in (4, 17)])
    before, now = vector(module), moved(vector(module), 0.5)
    for clip in (0.05, float("inf")):
        found = clipped_difference_sum(module, now, before, cross_entropy, inputs, targets, clip)
        alone = clipped_difference_sum(module, now, before, cross_entropy, inputs[rest], targets[rest], clip)
        assert (found.count, found.nonfinite) == (23, 2)
        close(found.total, alone.total.double(), 1e-6 if dtype == torch.float32 else 1e-13)
        found = clipped_gradient_sum(module, cross_entropy, inputs, targets, clip)
        alone = clipped_gradient_sum(module, cross_entropy, inputs[rest], targets[rest], clip)
        assert found.nonfinite == 2
        close(found.total, alone.total.double(), 1e-6 if dtype == torch.float32 else 1e-13)


def test_one_point_that_is_not_finite_is_enough_to_be_ignored() -> None:
    module, inputs, targets = task(mlp, torch.float32)
    now = vector(module)
    found = clipped_difference_sum(module, now, now * torch.inf, cross_entropy, inputs, targets, 1.0)
    assert found.nonfinite == 23
    assert not found.total.any()


@pytest.mark.parametrize("build", [logistic, cnn])
@pytest.mark.parametrize("clip", [0.0, 1e-12, 1.0, float("inf")])
def test_zero_gradients_add_zero(build: Callable[[], nn.Module], clip: float) -> None:
    module, inputs, targets = task(build, torch.float32)
    now = vector(module)
    found = clipped_difference_sum(module, now, now, cross_entropy, inputs, targets, clip)
    assert not found.total.any()
    assert (found.nonfinite, found.clipped) == (0, 0.0)

    def nothing(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.0 * outputs.sum(1)

    found = clipped_gradient_sum(module, nothing, inputs, targets, clip)
    assert not found.total.any()
    assert found.nonfinite == 0


def test_a_clip_of_zero_leaves_nothing() -> None:
    module, inputs, targets = task(mlp, torch.float32)
    found = clipped_gradient_sum(module, cross_entropy, inputs, targets, 0.0)
    assert not found.total.any()
    assert found.clipped == 1.0


def test_regression_and_a_module_that_is_one_layer() -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 1).double()
    inputs, targets = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    rows = gradients(module, inputs, targets, loss=squared_error)
    close(clipped_gradient_sum(module, squared_error, inputs, targets, 0.7).total, clipped(rows, 0.7), 1e-12)
    assert ghost_layers(module, inputs) == ("weight",)


@pytest.mark.parametrize("build", [mlp, cnn])
def test_frozen_parameters_have_no_gradient(build: Callable[[], nn.Module]) -> None:
    module, inputs, targets = task(build, torch.float64)
    rows = gradients(module, inputs, targets)
    name, value = next(iter(module.named_parameters()))
    value.requires_grad_(False)
    rows[:, : value.numel()] = 0.0
    assert name == Layout.of(module).parameters[0][0]
    found = clipped_gradient_sum(module, cross_entropy, inputs, targets, 0.3)
    close(found.total, clipped(rows, 0.3), 1e-12)


def test_no_examples() -> None:
    module, inputs, targets = task(mlp, torch.float32)
    found = clipped_gradient_sum(module, cross_entropy, inputs[:0], targets[:0], 1.0)
    assert (found.count, found.clipped, found.nonfinite, len(found.norms)) == (0, 0.0, 0, 0)
    assert not found.total.any()


def test_the_module_is_left_as_it_was() -> None:
    module, inputs, targets = task(mlp, torch.float32)
    module.train()
    module[2].eval()
    before = vector(module)
    clipped_difference_sum(module, before + 1, before - 1, cross_entropy, inputs, targets, 1.0)
    assert torch.equal(vector(module), before)
    assert [part.training for part in module] == [True, True, False, True, True, True]
    assert all(value.grad is None for value in module.parameters())


@pytest.mark.parametrize("build", ROWS)
def test_the_module_keeps_its_own_parameters(build: Callable[[], nn.Module]) -> None:
    module, inputs, targets = task(build, torch.float32)
    before = dict(module.named_parameters(remove_duplicate=False))
    clipped_gradient_sum(module, cross_entropy, inputs, targets, 1.0)
    after = dict(module.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, value in before.items())


def test_rows() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [torch.nan, 1.0], [torch.inf, 0.0], [1e30, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(clip_rows(rows, 1.0), expected)
    assert torch.equal(clip_rows(rows[:3], float("inf")), rows[:3])


def test_rows_keep_the_clip_to_the_last_digits() -> None:
    rows = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0)) * 1e-4
    for clip in (1e-9, 1e-4, 2.9e-3):
        assert float(clip_rows(rows, clip).double().norm(dim=1).max()) <= clip * (1 + 1e-6)


@pytest.mark.parametrize("clip", [-1.0, float("nan")])
def test_clips_that_are_none(clip: float) -> None:
    module, inputs, targets = task(mlp, torch.float32)
    with pytest.raises(FedsimError, match="clip: given"):
        clipped_gradient_sum(module, cross_entropy, inputs, targets, clip)
    with pytest.raises(FedsimError, match="clip: given"):
        clip_rows(inputs, clip)


def test_what_is_refused() -> None:
    module, inputs, targets = task(mlp, torch.float32)
    normed = nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5))
    with pytest.raises(FedsimError, match=r"batch normalisation \('1'\)"):
        clipped_gradient_sum(normed, cross_entropy, inputs, targets, 1.0)
    with pytest.raises(FedsimError, match="float32 or all float64"):
        clipped_gradient_sum(mlp().bfloat16(), cross_entropy, inputs, targets, 1.0)
    with pytest.raises(FedsimError, match="at least one that requires_grad"):
        clipped_gradient_sum(mlp().requires_grad_(False), cross_entropy, inputs, targets, 1.0)
    with pytest.raises(FedsimError, match="one for each of 23 inputs"):
        clipped_gradient_sum(module, cross_entropy, inputs, targets[:5], 1.0)
    with pytest.raises(FedsimError, match="chunk: given 0"):
        clipped_gradient_sum(module, cross_entropy, inputs, targets, 1.0, chunk=0)
    with pytest.raises(FedsimError, match="parameters: given shape"):
        clipped_difference_sum(module, torch.zeros(3), torch.zeros(3), cross_entropy, inputs, targets, 1.0)
    for build in (mlp, cnn):
        with pytest.raises(FedsimError, match="one loss for each example"):
            clipped_gradient_sum(build(), functional.cross_entropy, inputs, targets, 1.0)


MEMORY = """
import resource, sys
from types import SimpleNamespace
import fedsim, torch
from flwr.app import ConfigRecord, RecordDict
from torch import nn
from torch.nn import functional
from fedsim.data.examples import Examples
from fedsim.flower import Flat
from fedsim.privacy.clipping import GradientSum, clipped_difference_sum, clipped_gradient_sum
from fedsim.updates import Layout
from strategies.diff2 import Diff2
torch.set_num_threads(1)
torch.manual_seed(0)
way, n = sys.argv[1], int(sys.argv[2])
net = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
if way == "rows":
    net = nn.Sequential(nn.Unflatten(1, (1, 784)), *net, nn.Flatten())
if way == "both":
    net[1] = nn.GroupNorm(1, 64)
inputs, targets = torch.rand(n, 784), torch.randint(10, (n,))
loss = lambda outputs, labels: functional.cross_entropy(outputs, labels, reduction="none")
now = torch.cat([value.detach().flatten() for value in net.parameters()])
assert len(now) == 50890 + 128 * (way == "both")
layout = Layout.of(net)
unit = 1 if sys.platform == "darwin" else 1024

def sums():
    clipped_difference_sum(net, now, now + 1e-3, loss, inputs, targets, 0.1)
    clipped_gradient_sum(net, loss, inputs, targets, 0.1)

def batch():
    GradientSum(net.eval(), loss, 0.1)(inputs, targets)

def measure():
    part = Diff2(restart=2, c1=0.1, c2=0.1, lr=0.1)
    part.setting = SimpleNamespace(privacy=SimpleNamespace(trust="central", unit="example"), rounds=4)
    part.sigma = (0.0, 0.0)
    workload = SimpleNamespace(layout=layout, example_loss=loss)
    node = SimpleNamespace(module=net, workload=workload, parameters=now, round=2,
                           examples=lambda: Examples(inputs, targets))
    for restart in (True, False):
        records = {"diff2": ConfigRecord({"restart": restart}), "previous": Flat(now + 1e-3, layout)}
        assert part.measure(node, RecordDict(records))["metrics"]["num-examples"] == n

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{"norms": sums, "both": sums, "rows": sums, "batch": batch, "measure": measure}[way]()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["norms", "both", "rows", "batch", "measure"])
def test_memory_does_not_grow_with_the_examples(way: str) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, way, "60000"], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 500
