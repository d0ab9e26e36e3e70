"""The stacked grid trains as fedsim's clients and server do."""

from __future__ import annotations

import pytest

from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.verify.diff2_grid import Point, Stacked, grid, ranked, tune

POINTS = [Point(1.0, 0.0, 0.0, 0.25), Point(3.0, 1.0, 0.2, 0.125), Point(100.0, 100.0, 0.5, 0.25)]


def scenario(point: Point, **privacy: object) -> Scenario:
    part = {"name": point.method, "c1": point.c1, "lr": point.lr}
    if point.ratio:
        part |= {"c2": point.c2, "restart_ratio": point.ratio}
    return Scenario(
        rounds=10,
        data={"dataset": {"name": "synthetic_regression", "examples": 600, "test": 10}, "clients": 3},
        model={"name": "mlp", "hidden": [10], "activation": "softplus"},
        client={"per_round": 3},
        server={"estimator": part},
        privacy=privacy,
        evaluate={"gradient_norm": True},
    )


def test_without_noise_every_point_ends_where_the_federation_ends() -> None:
    together = Stacked(POINTS, scenario(POINTS[0], epsilon="inf")).play().tolist()
    for point, found in zip(POINTS, together, strict=True):
        lines = simulate(scenario(point, epsilon="inf")).lines
        half = [line["gradient_norm"] ** 2 for line in lines[-5:]]
        assert found == pytest.approx(sum(half) / len(half), rel=1e-3)


def test_a_points_noise_does_not_depend_on_its_neighbours() -> None:
    noisy = scenario(POINTS[0], epsilon=3.0)
    found = tune(POINTS, noisy, [100, 101], chunk=2)
    assert tune(POINTS[1:2], noisy, [101])[POINTS[1]] == pytest.approx(found[POINTS[1]][1:], rel=1e-4)
    assert found[POINTS[0]][0] != found[POINTS[0]][1]
    assert set(ranked(found, "diff2")) == set(POINTS[1:])


def test_the_grid_is_the_papers() -> None:
    points = grid()
    assert len(points) == len(set(points)) == 5 * 8 + 5 * 5 * 4 * 8
