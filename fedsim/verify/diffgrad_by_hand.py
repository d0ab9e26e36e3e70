"""diffGrad's iterates on F2 and F3, beside the formula in plain Python with derivatives by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

from fedsim.optim.diffgrad import DiffGrad
from fedsim.verify.claim import Expected, Measured, claim
from fedsim.verify.diffgrad import BETAS, descend, f2, f3


def slope2(x: float) -> float:
    """F2': −40 up to −.9, 3x² + sin 8x + 8x cos 8x beyond."""
    return -40.0 if x <= -0.9 else 3 * x**2 + math.sin(8 * x) + 8 * x * math.cos(8 * x)


def slope3(x: float) -> float:
    """F3': 2x outside of ±½, 1 to −.4, −⅞ to 0, ⅞ to .4, −1 to ½."""
    for end, slope in ((-0.5, 2 * x), (-0.4, 1.0), (0.0, -7 / 8), (0.4, 7 / 8), (0.5, -1.0)):
        if x <= end:
            return slope
    return 2 * x


def iterates(slope: Callable[[float], float], steps: int, lr: float = 0.1) -> list[float]:
    """x_t = x_{t−1} − lr·(√(1−β₂ᵗ)/(1−β₁ᵗ))·σ(|g_{t−1} − g_t|)·m_t/(√v_t + 1e-8) from −1, with g_0 = 0."""
    found, m, v, before = [-1.0], 0.0, 0.0, 0.0
    for t in range(1, steps + 1):
        g = slope(found[-1])
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
        friction = 1 / (1 + math.exp(-abs(before - g)))
        rate = lr * math.sqrt(1 - BETAS[1] ** t) / (1 - BETAS[0] ** t)
        found.append(found[-1] - rate * friction * m / (math.sqrt(v) + 1e-8))
        before = g
    return found


@claim(
    {
        "f2_x1": Expected("F2: x_1 = −1 + .1·σ(40)", "-.900000", -0.9000005, -0.8999995),
        "f2_x2": Expected(
            "F2: x_2, where the slope has not changed: −.9 + .1·σ(0)", "-.850000", -0.8500005, -0.8499995
        ),
        "f3_x1": Expected("F3: x_1 = −1 + .1·σ(2)", "-.911920", -0.9119205, -0.9119195),
        "f3_x2": Expected("F3: x_2", "-.857648", -0.8576487, -0.8576477),
        "off": Expected("largest difference from the formula in plain Python, x_1 to x_20", "equal", None, 1e-9),
    },
    source="Section III, functions F2 and F3, from −1, lr .1, β₁ .95; derivatives by hand",
    exact=True,
    paper="diffgrad",
)
def by_hand(seed: int) -> Measured:
    """The first iterates on the two functions that the known figures leave out."""
    values: dict[str, float] = {}
    off = []
    for name, function, slope in (("f2", f2, slope2), ("f3", f3, slope3)):
        ours = descend(lambda p: DiffGrad(p, lr=0.1, betas=BETAS), 20, function)
        off.append(max(abs(a - b) for a, b in zip(ours, iterates(slope, 20), strict=True)))
        values |= {f"{name}_x1": ours[1], f"{name}_x2": ours[2]}
    return Measured(values | {"off": max(off)})
