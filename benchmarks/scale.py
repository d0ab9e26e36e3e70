"""How fedsim grows: ``python scale.py [--cluster] [--quick]`` measures what docs/scale.md shows.

The population, the cohort and the model grow one at a time, each size in a process of its own (scale_round.py); then a
matrix of cells is played by one and by two processes; matrices of 100 and 1,000 cells of one round
are planned, played and summed up; and with ``--cluster`` on one and on two nodes of a simulated Ray cluster, each node
with one processor, three times in turn. It writes docs/results/scale.json, the table in docs/scale.md and its figure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from run import ROOT, measured, python, write

PAGE, FIGURE, NUMBERS = (ROOT / "docs" / name for name in ("scale.md", "scale.png", "results/scale.json"))
POPULATIONS = (100, 1_000, 10_000, 100_000, 1_000_000)
COHORTS = (10, 20, 50, 100, 200, 400)
WIDTHS = (16, 64, 256, 1024, 4096)
DEFENSES = ("fedavg", "krum")
JOBS = (1, 2)
NODES = (1, 2)
REPEATS = 3
"""How often cells a minute are measured, one process and two in turn."""
MATRICES = (100, 1_000)
MATRIX = """
rounds = {rounds}
[data]
clients = 50
[client]
per_round = 10
[adversary]
count = 5
[engine]
workers = 1
[matrix]
"server.defenses" = [["fedavg"], ["median"]]
"adversary.attacks" = [["sign_flip"], ["gaussian"]]
seed = {seeds}
"""

SHORT = """
rounds = 1
[data]
clients = 10
[model]
name = "logistic"
[client]
per_round = 2
steps = 1
[evaluate]
clients = 0
[engine]
workers = 1
[matrix]
"server.defenses" = [["fedavg"], ["median"]]
seed = {seeds}
"""
"""Cells of next to nothing: what is left is what a cell costs beside its training."""

Line = dict[str, Any]


def growth(
    what: str, size: int, rounds: int, clients: int = 1_000, cohort: int = 20, width: int = 64, defense: str = "fedavg"
) -> Line:
    """One size of a series; what does not grow is 1,000 clients, 20 a round, and a hidden layer of 64."""
    tables = {
        "rounds": rounds,
        "data": {
            "dataset": {"name": "synthetic_classification", "features": 784},
            "partition": {"name": "iid", "examples": 64},
            "clients": clients,
        },
        "model": {"name": "mlp", "hidden": [width]},
        "client": {"per_round": cohort},
        "server": {"defenses": [defense]},
    }
    return {"what": what, "defense": defense, "size": size, **measured(python("scale_round.py", json.dumps(tables)))}


def population(rounds: int, quick: bool) -> Iterator[Line]:
    for size in POPULATIONS[: 2 if quick else None]:
        yield growth("population", size, rounds, clients=size)


def cohort(rounds: int, quick: bool) -> Iterator[Line]:
    for defense in DEFENSES:
        for size in COHORTS[: 2 if quick else None]:
            yield growth("cohort", size, rounds, cohort=size, defense=defense)


def width(rounds: int, quick: bool) -> Iterator[Line]:
    for defense in DEFENSES:
        for size in WIDTHS[: 2 if quick else None]:
            yield growth("width", size, rounds, width=size, defense=defense)


def in_turn(measures: Sequence[Callable[[], Line]], quick: bool) -> Iterator[Line]:
    """Each measured once, then each again: the run of the middle throughput, with the least and the greatest."""
    found: list[list[Line]] = [[] for _ in measures]
    for _ in range(1 if quick else REPEATS):
        for measure, lines in zip(measures, found, strict=True):
            lines.append(measure())
    for lines in found:
        rates = sorted(each["steady"] for each in lines)
        middle = next(each for each in lines if each["steady"] == rates[len(rates) // 2])
        yield middle | {"least": rates[0], "greatest": rates[-1], "runs": len(rates)}


def cells(what: str, size: int, quick: bool, flags: Sequence[str]) -> Line:
    """A matrix played by ``size`` processes.

    Cells per minute of the whole call, start included, and of its steady part: from the moment when as many cells have
    ended as are played at once to the end of the last one.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "matrix.toml", Path(folder) / "out"
        file.write_text(MATRIX.format(rounds=10 if quick else 100, seeds=list(range(2 if quick else 8))))
        command = [sys.executable, "-m", "fedsim", "bench", str(file), "--out", str(out), "--quiet", *flags]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        store = sqlite3.connect(out / "results.sqlite")
        ended = [row[0] for row in store.execute("SELECT ended FROM plays WHERE state = 'finished' ORDER BY ended")]
        store.close()
    steady = 60 * (len(ended) - size) / (ended[-1] - ended[size - 1])
    return {
        "what": what,
        "size": size,
        "cells": len(ended),
        "seconds": seconds,
        "whole": 60 * len(ended) / seconds,
        "steady": steady,
    }


def matrix(size: int) -> Line:
    """A matrix of ``size`` cells of one round, on two processes: its plan, its cells, its store, its results."""
    from fedsim.bench.cell import Cell
    from fedsim.scenario import cells as product
    from fedsim.scenario import read

    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "matrix.toml", Path(folder) / "out"
        file.write_text(SHORT.format(seeds=list(range(size // 2))))
        product(read("quickstart"), "quickstart")  # what is imported on the way is no part of a plan
        began = time.perf_counter()
        found = product(read(file), str(file))
        planned = [Cell.of(i + 1, len(found), values, each, out) for i, (values, each) in enumerate(found)]
        plan = time.perf_counter() - began
        fedsim = [sys.executable, "-m", "fedsim"]
        taken = []
        for call in (["bench", str(file), "--out", str(out), "--quiet", "--jobs", "2"], ["results", str(out), "--csv"]):
            began = time.perf_counter()
            done = subprocess.run([*fedsim, *call], capture_output=True, text=True, check=False)
            taken.append(time.perf_counter() - began)
            if done.returncode:
                raise SystemExit(f"fedsim {' '.join(call)} failed:\n{done.stderr[-4000:]}")
        ended = len(done.stdout.splitlines()) - 1
        assert ended == len(planned) == size, (ended, len(planned))
        kept = sum(each.stat().st_size for each in out.rglob("*") if each.is_file())
        index = (out / "results.sqlite").stat().st_size
    return {
        "what": "cells",
        "size": size,
        "plan": plan,
        "seconds": taken[0],
        "whole": 60 * size / taken[0],
        "bytes": kept,
        "index": index,
        "results": taken[1],
    }


@contextmanager
def nodes(count: int) -> Iterator[str]:
    """The address of a Ray cluster on this machine, of nodes with one processor each."""
    from fedsim.grids.ray import import_ray

    import_ray()
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="nodes-", dir="/tmp")  # Ray's sockets need a short path.
    os.environ["RAY_TMPDIR"] = folder
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(folder, ignore_errors=True)


def jobs(rounds: int, quick: bool) -> Iterator[Line]:
    yield from in_turn([partial(cells, "jobs", size, quick, ["--jobs", str(size)]) for size in JOBS], quick)


def on_cluster(rounds: int, quick: bool) -> Iterator[Line]:
    def of(size: int) -> Line:
        with nodes(size) as address:
            return cells("nodes", size, quick, ["--runner", "ray", "--address", address])

    yield from in_turn([partial(of, size) for size in NODES], quick)


def matrices(rounds: int, quick: bool) -> Iterator[Line]:
    for size in MATRICES:
        yield matrix(10 if quick else size)


LATER = {
    "population": "Clients in all",
    "cohort": "Clients a round",
    "width": "Parameters",
    "jobs": "Processes",
    "cells": "Matrices",
    "nodes": "Ray nodes",
}
SERIES = {
    "population": population,
    "cohort": cohort,
    "width": width,
    "jobs": jobs,
    "cells": matrices,
    "nodes": on_cluster,
}


def number(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def told(machine: dict[str, Any], what: str = "") -> str:
    """When, on what, beside what load."""
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("flwr", "torch", "numpy", "ray"))
    return (
        f"{what}Measured on {machine['date']} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['system']}, Python {machine['python']}; {versions}. "
        f"Load average before it began: {machine['load']:.1f}."
    )


def table(lines: list[Line], machine: dict[str, Any], again: dict[str, dict[str, Any]]) -> str:
    """The numbers for docs/scale.md."""
    text = [
        f"{told(machine)} [The numbers](results/scale.json).",
        *(line for name, where in again.items() for line in ("", told(where, f"{LATER[name]}: "))),
        "",
        "![ms per round over population, cohort and parameters; cells per minute](scale.png)",
    ]
    heads = {"population": "clients in all", "cohort": "clients a round", "width": "parameters d"}
    for what, head in heads.items():
        text += ["", f"| {head} | defense | round | training | aggregation | until round 1 | peak memory |"]
        text.append("|---:|---|---:|---:|---:|---:|---:|")
        for line in (each for each in lines if each["what"] == what):
            size = line["parameters"] if what == "width" else line["size"]
            parts = " | ".join(number(line[part]) for part in ("seconds", "train", "aggregate", "start"))
            text.append(f"| {size:,} | {line['defense']} | {parts} | {line['peak_mib']:.0f} MiB |")
    text += ["", "| cells played by | cells | cells a minute | least to greatest | the start included |"]
    text.append("|---|---:|---:|---:|---:|")
    names = {"jobs": ("process", "processes"), "nodes": ("Ray node", "Ray nodes")}
    for line in (each for each in lines if each["what"] in names):
        name = names[line["what"]][line["size"] > 1]
        spread = f"{line['least']:.0f} to {line['greatest']:.0f}, {line['runs']} runs" if "runs" in line else "one run"
        text.append(
            f"| {line['size']} {name} | {line['cells']} | {line['steady']:.0f} | {spread} | {line['whole']:.0f} |"
        )
    many = [each for each in lines if each["what"] == "cells"]
    if many:
        text += [
            "",
            "| cells of one round | planned in | cells a minute | on disk | `results.sqlite` | `fedsim results` |",
        ]
        text.append("|---:|---:|---:|---:|---:|---:|")
    for line in many:
        sizes = " | ".join(f"{line[part] / 2**20:.1f} MiB" for part in ("bytes", "index"))
        text.append(
            f"| {line['size']:,} | {number(line['plan'])} | {line['whole']:.0f} | {sizes} | {number(line['results'])} |"
        )
    return "\n".join(text)


def draw(lines: list[Line], file: Path) -> None:
    """Four panels; colours of Okabe and Ito, and a mark and a dash for each, so that none is needed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    styles = {"fedavg": ("#0072B2", "o", "-"), "krum": ("#D55E00", "s", "--")}
    heads = {"population": "clients in all (20 a round)", "cohort": "clients a round", "width": "parameters d"}
    figure, panels = pyplot.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    for panel, (what, head) in zip(panels.flat, heads.items(), strict=False):
        for defense, (colour, mark, dash) in styles.items():
            found = [each for each in lines if each["what"] == what and each["defense"] == defense]
            if found:
                sizes = [each["parameters"] if what == "width" else each["size"] for each in found]
                times = [1000 * each["seconds"] for each in found]
                panel.loglog(sizes, times, color=colour, marker=mark, linestyle=dash, label=defense)
        panel.set(xlabel=head, ylabel="ms per round")
        low, high = panel.get_ylim()
        panel.set_ylim(min(low, 5), max(high, 100))
        panel.grid(alpha=0.3)
        if what != "population":
            panel.legend()
    bars = [each for each in lines if each["what"] in ("jobs", "nodes")]
    colours = {"jobs": "#0072B2", "nodes": "#E69F00"}
    names = {"jobs": "--jobs", "nodes": "Ray nodes:"}
    for place, each in enumerate(bars):
        hatch = "//" if each["what"] == "nodes" else ""
        bar = panels[1, 1].bar(place, each["steady"], color=colours[each["what"]], hatch=hatch, edgecolor="white")
        panels[1, 1].bar_label(bar, fmt="%.0f")
    panels[1, 1].set_xticks(range(len(bars)), [f"{names[each['what']]} {each['size']}" for each in bars])
    panels[1, 1].set(ylabel="cells per minute")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", action="store_true", help="also on a simulated Ray cluster")
    parser.add_argument("--quick", action="store_true", help="two sizes of each and few rounds: does it run?")
    parser.add_argument("--only", nargs="+", choices=list(SERIES), default=list(SERIES), help="series to measure")
    parser.add_argument("--dry", action="store_true", help="print, and write into no file")
    chosen = parser.parse_args()
    if chosen.only == ["nodes"] and not chosen.cluster:
        parser.error("--only nodes: needs --cluster")
    if chosen.quick and not chosen.dry:
        parser.error("--quick: needs --dry; what is published is measured whole")
    from fedsim import runtime

    # What else ran on the machine when it began: figures from a busy one say so.
    machine = runtime.describe() | {"load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}
    lines: list[Line] = []
    for name, series in SERIES.items():
        if name not in chosen.only or (name == "nodes" and not chosen.cluster):
            continue
        for line in series(6 if chosen.quick else 30, chosen.quick):
            print(json.dumps(line), file=sys.stderr, flush=True)
            lines.append(line)
    again: dict[str, dict[str, Any]] = {}
    if {line["what"] for line in lines} < set(SERIES):  # the others stay as they were measured
        kept = json.loads(NUMBERS.read_text(encoding="utf-8"))
        new = {line["what"] for line in lines}
        lines = [*(line for line in kept["lines"] if line["what"] not in new), *lines]
        lines.sort(key=lambda line: list(SERIES).index(line["what"]))
        again = {**kept.get("again", {}), **dict.fromkeys(new, machine)}
        machine = kept["machine"]
    text = table(lines, machine, again)
    print(text)
    if not chosen.dry:
        numbers = {"machine": machine, "again": again, "lines": lines}
        NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        write(text, PAGE)
        draw(lines, FIGURE)


if __name__ == "__main__":
    main()
