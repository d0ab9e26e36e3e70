"""What no gradient reaches, and a student of two layers that gets better as it gets wider."""

from __future__ import annotations

import numpy as np
import torch

from fedsim.analysis.generalization import gradient_descent, teacher_student
from fedsim.verify.claim import Expected, Measured, claim

WIDTHS = (2, 4, 8, 16, 32, 64, 256, 1024)


@claim(
    {
        "moved": Expected("largest move of the weights outside of the inputs' span, over that in it", "0", None, 1e-12),
        "error": Expected("error at the end without noise, α = ¼, mean of ten draws", ".75", 0.72, 0.78),
        "start": Expected("the same from a start of variance 1: what was there stays", "1.5", 1.4, 1.6),
    },
    source="the frozen subspace, N = 200, P = 50",
    paper="generalization",
)
def frozen(seed: int) -> Measured:
    """Directions that no example has."""
    moved: list[float] = []
    errors: list[float] = []
    started: list[float] = []
    for number in range(10):
        task = teacher_student(200, 50, noise=0.0, init=1.0, seed=1000 * seed + number)
        _, _, right = np.linalg.svd(task.inputs, full_matrices=True)
        for start, found in ((task.start, started), (np.zeros(200), errors)):
            weights = gradient_descent(task.inputs, task.targets, start, 0.2, 100_000)
            move = right @ (weights - start)
            moved.append(float(np.abs(move[50:]).max() / np.abs(move[:50]).max()))
            found.append(float(np.mean((weights - task.teacher) ** 2)))
    return Measured({"moved": max(moved), "error": float(np.mean(errors)), "start": float(np.mean(started))})


@claim(
    {"peak": Expected("α of the largest test error after 100,000 steps among ¼, ½, 1, 2, 4", "1 (P = N)", 1, 1)},
    source="overtraining of a linear student, N = 200, rate .1, means of five draws",
    paper="generalization",
)
def overtrained(seed: int) -> Measured:
    """Trained to the end, a student is worst where it has as many examples as inputs."""
    errors = {}
    for alpha in (0.25, 0.5, 1.0, 2.0, 4.0):
        found = []
        for each in range(5):
            task = teacher_student(200, int(200 * alpha), seed=5 * seed + each)
            weights = gradient_descent(task.inputs, task.targets, task.start, 0.1, 100_000)
            found.append(float(np.mean((weights - task.teacher) ** 2)) + 0.2)
        errors[alpha] = float(np.mean(found))
    return Measured({"peak": max(errors, key=errors.__getitem__)})


def student(
    seed: int, widths: tuple[int, ...] = WIDTHS, steps: int = 5_000, noise: float = 0.0025
) -> tuple[list[float], list[float]]:
    """Test error at the end and the least on the way, by width: ReLU student of a ReLU teacher, full batches.

    Inputs 15 of variance 1, teacher of 30 hidden units, 300 examples, label noise of a small variance; both layers are
    trained from a small start by Adam on the mean squared error, to the end.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, hidden, examples = 15, 30, 300
    first = torch.randn(inputs, hidden, generator=generator) / inputs**0.5
    second = torch.randn(hidden, generator=generator) / hidden**0.5
    x, x_test = (torch.randn(n, inputs, generator=generator) for n in (examples, 4000))
    clean, y_test = ((each @ first).relu() @ second for each in (x, x_test))
    y = clean + noise**0.5 * torch.randn(examples, generator=generator)
    last, least = [], []
    for width in widths:
        inner = (0.1 * torch.randn(inputs, width, generator=generator) / inputs**0.5).requires_grad_()
        outer = (0.1 * torch.randn(width, generator=generator) / width**0.5).requires_grad_()
        adam, curve = torch.optim.Adam([inner, outer], lr=3e-3), []
        for step in range(steps):
            adam.zero_grad()
            ((x @ inner).relu() @ outer - y).square().mean().backward()
            adam.step()
            if step % 50 == 49:
                with torch.no_grad():
                    curve.append(float(((x_test @ inner).relu() @ outer - y_test).square().mean() / y_test.var()))
        last.append(curve[-1])
        least.append(min(curve))
    return last, least


@claim(
    {
        "widest": Expected("relative test error of the widest student (1024), no early stopping", "–"),
        "peak": Expected("largest relative test error over the widths 2 to 1024", "–"),
        "gain": Expected("largest error over that of the widest", "–"),
        "wider": Expected("error at width 1024 over that at 8", "< 1", None, 0.95),
        "last_step": Expected("error at width 1024 over that at 64", "–"),
        "overtraining": Expected("widest: last error over the least on the way", "near 1"),
    },
    source="a two-layer ReLU student, both layers trained; 300 examples, 15 inputs, teacher of 30 units",
    quick=False,
    paper="generalization",
)
def width(seed: int) -> Measured:
    """Wider is better, though each fits the training data's noise."""
    last, least = student(seed)
    values = {"widest": last[-1], "peak": max(last), "gain": max(last) / last[-1]}
    values |= {"wider": last[-1] / last[WIDTHS.index(8)], "last_step": last[-1] / last[WIDTHS.index(64)]}
    values |= {"overtraining": last[-1] / least[-1]}
    return Measured(values, {"width": [float(each) for each in WIDTHS], "width last": last, "width least": least})
