"""The benchmarks that ship with fedsim."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedsim.scenario import Scenario, cells, override, read

SIZES = {"quick": (6, 8, 3, 2), "standard": (12, 16, 5, 1), "published": (6, 8, 3, 1)}


def parts(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables without title and matrix, and the matrix."""
    tables = read(f"bench/{name}")
    matrix = tables.pop("matrix")
    tables.pop("title")
    return tables, matrix


@pytest.mark.parametrize("name", SIZES)
def test_a_benchmark_has_its_size_and_each_value_is_valid(name: str) -> None:
    tables, matrix = parts(name)
    sizes = [len(matrix.get(key, [0])) for key in ("adversary.attacks", "server.defenses", "seed", "data.dataset")]
    assert tuple(sizes) == SIZES[name]
    assert math.prod(sizes) == math.prod(len(values) for values in matrix.values())
    first = {key: values[0] for key, values in matrix.items()}
    for key, values in matrix.items():
        for value in values:
            Scenario(**override(tables, first | {key: value}))


def test_the_published_cells_are_cells_of_the_standard_benchmark() -> None:
    small, few = parts("published")
    large, many = parts("standard")
    assert small == large
    assert few.keys() == many.keys()
    assert all(value in many[key] for key, values in few.items() for value in values)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_every_cell_is_valid(name: str) -> None:
    assert len(cells(read(f"bench/{name}"), name)) == math.prod(SIZES[name])
