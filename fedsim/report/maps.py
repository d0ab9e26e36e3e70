"""Maps made of cells: who was kept in each round, and which labels each client holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.report.figures import Chart, Hint, Key, Shape, Tick
from fedsim.report.folder import RunFolder
from fedsim.report.words import cut, plural

Mask = NDArray[np.bool_]
BY_CLIENT = 60
"""Up to so many clients each gets a row of its own; beyond, a round's cohort is stacked by what became of it."""
STATES = (
    ("malicious-kept", "malicious, kept"),
    ("malicious-dropped", "malicious, dropped"),
    ("honest-kept", "honest, kept"),
    ("honest-dropped", "honest, dropped"),
)


def kept_map(run: RunFolder) -> Chart | None:
    """Rounds from left to right, a column of cells for the cohort of each: malicious or honest, kept or dropped.

    Returns:
        The chart; None where no round had a cohort.
    """
    rounds = [line for line in run.rounds if line.get("cohort")]
    if not rounds:
        return None
    clients = sorted({int(client) for line in rounds for client in line["cohort"]})
    by_client = len(clients) <= BY_CLIENT
    grid, groups = _by_client(rounds, clients, run.malicious_clients) if by_client else _stacked(rounds)
    rows, columns = grid.shape
    shapes = [Shape(cells(grid == state, down=not by_client), f"cell {STATES[state][0]}") for state in range(4)]
    if columns <= 120:
        shapes.append(Shape("".join(f"M{column} 0V{rows}" for column in range(1, columns)), "gap"))
    if rows <= BY_CLIENT:
        shapes.append(Shape("".join(f"M0 {row}H{columns}" for row in range(1, rows)), "gap"))
    if by_client and len(groups) == 2:
        shapes.append(Shape(f"M0 {groups[0][1]}H{columns}", "axis"))
    used = [state for state in range(4) if (grid == state).any()]
    numbers = [int(line["round"]) for line in rounds]
    where = "one row a client, empty where it was not asked" if by_client else "each round's cohort, stacked"
    kept = sum(len(set(line.get("malicious") or ()) & set(line.get("kept_malicious") or ())) for line in rounds)
    return Chart(
        "Who was kept",
        f"Who was kept in {plural(len(rounds), 'round')}: {where}. Malicious clients were kept {plural(kept, 'time')}.",
        [shape for shape in shapes if shape.path],
        _round_ticks(numbers),
        [Tick(100 * (start + end) / 2 / rows, name) for name, end, start in groups],
        [Key(f"cell {STATES[state][0]}", STATES[state][1]) for state in used],
        [Hint(column, 1, _told(line)) for column, line in enumerate(rounds)] if columns <= 1000 else [],
        "round",
        f"Columns are rounds, {where}.",
        float(columns),
        float(rows),
        pixels=min(max(rows * (9 if by_client else 14), 90), 420),
        min_pixels=columns if columns > 300 else 0,
    )


def partition_map(run: RunFolder) -> Chart | None:
    """Labels from top to bottom, clients from left to right, the darker the more examples.

    Returns:
        The chart; None where the partition was not recorded.
    """
    counts = np.array(run.partition.get("counts") or [], dtype=np.int64)
    if counts.ndim != 2 or counts.size == 0 or counts.max() == 0:
        return None
    labels = [str(label) for label in run.partition.get("labels") or range(counts.shape[1])]
    clients = [int(client) for client in run.partition.get("clients", range(len(counts)))]
    attackers = set(run.malicious_clients)
    marked = np.array([client in attackers for client in clients])
    head = 1 if marked.any() else 0
    table = np.pad(counts.T, ((head, 0), (0, 0)))
    rows, columns = table.shape
    top = int(table.max())
    bounds = [1, *sorted({max(2, round(top * share)) for share in (0.1, 0.25, 0.5, 0.75)}), top + 1]
    shapes, legend = [], []
    for level, (low, high) in enumerate(pairwise(bounds), start=7 - len(bounds)):
        if low < high:
            shapes.append(Shape(cells((table >= low) & (table < high)), f"cell level-{level}"))
            legend.append(Key(f"cell level-{level}", f"{low}" if high == low + 1 else f"{low} to {high - 1}"))
    if columns <= 100:
        shapes.append(Shape("".join(f"M{column} 0V{rows}" for column in range(1, columns)), "gap"))
    if rows <= 40:
        shapes.append(Shape("".join(f"M0 {row}H{columns}" for row in range(1 + head, rows)), "gap"))
    if head:
        shapes.append(Shape(cells(marked[None, :]).replace("v1H", "v.55H"), "area malicious"))
        legend.append(Key("area malicious", "malicious client"))
    totals = counts.sum(axis=1)
    population = int((run.scenario.get("data") or {}).get("clients") or columns)
    step = max(1, -(-rows // 20))
    x_step = max(1, -(-columns // 8))
    return Chart(
        "Who holds what",
        f"Examples by label of {plural(columns, 'client')}: from {totals.min()} to {totals.max()} examples a client, "
        f"at most {top} of one label.",
        [shape for shape in shapes if shape.path],
        [Tick(100 * (column + 0.5) / columns, str(clients[column])) for column in range(0, columns, x_step)],
        [Tick(100 * (row + head + 0.5) / rows, cut(labels[row], 12)) for row in range(0, len(labels), step)],
        legend,
        [Hint(column, 1, _held(client, counts[column], labels)) for column, client in enumerate(clients)],
        "client",
        f"{plural(int(totals.sum()), 'example')}; a client holds {totals.min()} to {totals.max()}, "
        f"half of them at least {int(np.median(totals))}."
        + (f" Shown: {columns} of {population} clients." if population > columns else ""),
        float(columns),
        float(rows),
        pixels=min(max(rows * 16, 80), 420),
    )


def cells(mask: Mask, down: bool = False) -> str:
    """An SVG path over the True cells of a (rows, columns) mask; neighbours in a row (down: a column) are one piece."""
    table = mask.T if down else mask
    edges = np.diff(np.pad(table.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    lines, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    runs = zip(lines.tolist(), starts.tolist(), ends.tolist(), strict=True)
    if down:
        return "".join(f"M{line} {start}h1V{end}h-1z" for line, start, end in runs)
    return "".join(f"M{start} {line}H{end}v1H{start}z" for line, start, end in runs)


def _state(line: Mapping[str, Any]) -> dict[int, int]:
    malicious, kept = set(line.get("malicious") or ()), set(line.get("kept") or ())
    return {int(client): (0 if client in malicious else 2) + (0 if client in kept else 1) for client in line["cohort"]}


def _by_client(
    rounds: Sequence[Mapping[str, Any]], clients: list[int], malicious: Sequence[int]
) -> tuple[NDArray[np.int8], list[tuple[str, int, int]]]:
    attackers = [client for client in clients if client in set(malicious)]
    order = attackers + [client for client in clients if client not in set(attackers)]
    row = {client: position for position, client in enumerate(order)}
    grid = np.full((len(order), len(rounds)), -1, dtype=np.int8)
    for column, line in enumerate(rounds):
        for client, state in _state(line).items():
            grid[row[client], column] = state
    groups = [("malicious", len(attackers), 0), ("honest", len(order), len(attackers))]
    return grid, [group for group in groups if group[1] > group[2]]


def _stacked(rounds: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.int8], list[tuple[str, int, int]]]:
    grid = np.full((max(len(line["cohort"]) for line in rounds), len(rounds)), -1, dtype=np.int8)
    for column, line in enumerate(rounds):
        states = sorted(_state(line).values())
        grid[: len(states), column] = states
    return grid, []


def _round_ticks(numbers: list[int]) -> list[Tick]:
    count = len(numbers)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if count / step <= 7)
    return [
        Tick(100 * (column + 0.5) / count, str(number))
        for column, number in enumerate(numbers)
        if number % step == 0 or (step > 1 and column == 0)
    ]


def _told(line: Mapping[str, Any]) -> str:
    malicious = list(line.get("malicious") or ())
    kept = list(line.get("kept") or ())
    through = [client for client in malicious if client in set(kept)]
    text = f"round {line['round']}: {len(kept)} of {len(line['cohort'])} kept"
    if malicious:
        text += f"; malicious: {', '.join(map(str, malicious))}, kept of them: {', '.join(map(str, through)) or 'none'}"
    return text


def _held(client: int, counts: NDArray[np.int64], labels: Sequence[str]) -> str:
    held = [f"{label}: {count}" for label, count in zip(labels, counts.tolist(), strict=False) if count]
    more = f", and {len(held) - 20} more labels" if len(held) > 20 else ""
    return f"client {client}: {int(counts.sum())} examples ({', '.join(held[:20])}{more})"
