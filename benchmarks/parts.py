"""What each part of the papers adds to a round's time: ``python parts.py [--repetitions N] [--only PART…] [--write]``.

For each part of the papers that a scenario can name, a round with it and the same round without it: Fashion-MNIST as
in :mod:`workload` (20 clients of 288 images, 784-64-10, 9 steps of batch 32), in one process and one worker, the two in
turn. Processor time, so that what else runs on the machine counts little; the ratio is the median of the repetitions'.
A part that works on features (``monge_gap``) or on a small model (``gns``, ``generalization``) has data of its own, the
same with and without.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, get_args

import fedsim
from fedsim.losses.harmonic import Distance
from fedsim.scenario_file import override, read

BEGIN, END = "<!-- parts: begin -->", "<!-- parts: end -->"
VERSIONS = ("fedsim-flwr", "torch", "numpy")
HEAD = "| part | round with it | without | ratio |"
ROUNDS = 5
"""Rounds of a measured run; the first and the last are not counted."""
SGD = {"name": "sgd", "lr": 0.05}
ALIGNED = {"name": "hessian_alignment"}
IMAGES: dict[str, Any] = {
    "data": {
        "dataset": "fashion_mnist",
        "partition": {"name": "iid", "examples": 288},
        "clients": 100,
        "root": 500,
    },
    "model": {"name": "mlp"},
    "client": {"per_round": 20, "batch_size": 32, "optimizer": SGD},
    "engine": {"workers": 1},
}
NUMBERS: dict[str, Any] = {
    "data": {"dataset": {"name": "teacher_student", "inputs": 200, "examples": 2000}, "clients": 20},
    "model": {"name": "linear"},
    "client": {"per_round": 20, "batch_size": 32, "optimizer": SGD},
    "engine": {"workers": 1},
}
FEATURES: dict[str, Any] = {
    "data": {
        "dataset": {"name": "synthetic_classification", "examples": 5760, "features": 20, "classes": 10},
        "clients": 20,
        "root": 200,
    },
    "model": {"name": "mlp"},
    "client": {"per_round": 20, "batch_size": 32, "optimizer": SGD},
    "engine": {"workers": 1},
}
NAMED = {key: value for key, value in read("papers/langevin_planted").items() if key not in ("title", "matrix")}
PLANTED = override(
    NAMED,
    {
        "data.dataset.examples": 5760,
        "data.clients": 20,
        "client": {
            "per_round": 20,
            "batch_size": 32,
            "epochs": None,
            "optimizer": {"name": "spherical_sgd", "lr": 0.1},
        },
        "engine.workers": 1,
    },
)
EVEN = {"data.dataset.exponent": 4, "model.exponent": 4}
LINEAR = {**FEATURES, "model": {"name": "logistic"}, "client": {"per_round": 20}}
LEARNING = "adapter monge_gap, a first round of 10 steps"
TOGETHER = f"{LEARNING}, to a client at a time"
FIRST = (LEARNING, TOGETHER)
"""What is measured in the first round."""
ADAPTED = {"client.adapter": {"name": "monge_gap", "steps": 10}}
ALONE = {"engine.path": "reference"}
Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
PARTS: dict[str, Case] = {
    "hessian_alignment, hgp": (IMAGES, {}, {"client.regularizers": [ALIGNED]}),
    "hessian_alignment, hgp, exact": (IMAGES, {}, {"client.regularizers": [{**ALIGNED, "reference": "exact"}]}),
    "hessian_alignment, diagonal": (IMAGES, {}, {"client.regularizers": [{**ALIGNED, "method": "diagonal"}]}),
    "hessian_alignment, 300 draws": (
        IMAGES,
        {},
        {"client.regularizers": [{**ALIGNED, "method": "diagonal", "hutchinson_samples": 300}]},
    ),
    "hessian_alignment, lagged references": (
        IMAGES,
        {},
        {"client.regularizers": [{**ALIGNED, "references": "lagged"}]},
    ),
    **{name: (IMAGES, {}, {"client.regularizers": [name]}) for name in ("coral", "irm", "vrex", "fishr")},
    "optimizer diffgrad, to adam": (IMAGES, {"client.optimizer": "adam"}, {"client.optimizer": "diffgrad"}),
    "optimizer diffgrad, log_friction, to diffgrad": (
        IMAGES,
        {"client.optimizer": "diffgrad"},
        {"client.optimizer": {"name": "diffgrad", "log_friction": True}},
    ),
    "optimizer langevin": (IMAGES, {}, {"client.optimizer": "langevin"}),
    "optimizer spherical_langevin": (IMAGES, {}, {"client.optimizer": "spherical_langevin"}),
    **{
        f"optimizer {name}": (IMAGES, {}, {"client.optimizer": name})
        for name in ("normalized_sgd", "rm3", "m3", "ra3", "winsorized")
    },
    "optimizer normalized_sgd, to spherical_sgd": (
        PLANTED,
        {},
        {"client.optimizer": {"name": "normalized_sgd", "lr": 0.1}},
    ),
    "optimizer even_sgd, to spherical_sgd, exponent 4": (
        PLANTED,
        EVEN,
        {**EVEN, "client.optimizer": {"name": "even_sgd", "lr": 0.1}},
    ),
    "optimizer even_spherical_langevin, to spherical_sgd, exponent 4": (
        PLANTED,
        EVEN,
        {**EVEN, "client.optimizer": "even_spherical_langevin"},
    ),
    "optimizer spherical_sgd, to sgd": (PLANTED, {"client.optimizer": {"name": "sgd", "lr": 0.001}}, {}),
    "optimizer gns": (LINEAR | {"client": FEATURES["client"]}, {}, {"client.optimizer": "gns"}),
    "optimizer gns, to a client at a time": (
        LINEAR | {"client": FEATURES["client"]},
        {"client.optimizer": "gns", **ALONE},
        {"client.optimizer": "gns"},
    ),
    "server optimizer diffgrad, to adam": (
        IMAGES,
        {"server.optimizer": {"name": "adam", "lr": 0.01}},
        {"server.optimizer": {"name": "diffgrad", "lr": 0.01}},
    ),
    **{
        f"defense {name}": (IMAGES, {}, {"server.defenses": [name]})
        for name in ("sam_gs", "pcgrad", "cagrad", "rm3", "winsorized_mean", "softmax_cap", "softmax_radius")
    },
    "defense prototype_average, to harmonic": (
        IMAGES,
        {"client.loss": {"name": "harmonic"}},
        {"client.loss": {"name": "harmonic"}, "server.defenses": ["prototype_average"]},
    ),
    "step control softmax_radius": (IMAGES, {}, {"client.step_control": "softmax_radius"}),
    **{
        f"loss harmonic, {distance}": (IMAGES, {}, {"client.loss": {"name": "harmonic", "distance": distance}})
        for distance in get_args(Distance)
    },
    "loss harmonic, absent classes masked": (
        IMAGES,
        {},
        {"client.loss": {"name": "harmonic", "mask_absent": True}},
    ),
    "loss correlation, to squared_error": (PLANTED, {"client.loss": "squared_error"}, {}),
    "loss with_reconstruction, by adam, to adam": (
        IMAGES,
        {"client.optimizer": "adam"},
        {"client.optimizer": "adam", "client.loss": "with_reconstruction"},
    ),
    "optimizer sam_gs, to adam on the sum": (
        IMAGES,
        {"client.optimizer": "adam", "client.loss": "with_reconstruction"},
        {"client.optimizer": "sam_gs", "client.loss": "with_reconstruction"},
    ),
    "analysis coherence, clients": (IMAGES, {}, {"server.analysis": ["coherence"]}),
    "analysis coherence, examples": (IMAGES, {}, {"server.analysis": [{"name": "coherence", "examples": True}]}),
    "analysis generalization": (NUMBERS, {}, {"server.analysis": ["generalization"]}),
    LEARNING: (FEATURES, {}, ADAPTED),
    TOGETHER: (FEATURES, {**ADAPTED, **ALONE}, ADAPTED),
    "adapter monge_gap, learned already": (FEATURES, {}, ADAPTED),
    **{
        f"estimator gns, {curvature}, to a local epoch": (
            FEATURES | {"model": {"name": "logistic"}},
            {},
            {"client": LINEAR["client"], "server.estimator": {"name": "gns", "curvature": curvature, "l2": 1e-3}},
        )
        for curvature in ("gauss_newton", "empirical_fisher", "exact", "zero")
    },
}


def scenario(tables: dict[str, Any], changes: dict[str, Any]) -> fedsim.Scenario:
    whole = {key: value for key, value in changes.items() if "." not in key}
    dotted = {key: value for key, value in changes.items() if "." in key}
    end = {"rounds": ROUNDS, "evaluate": {"every": ROUNDS}}
    return fedsim.Scenario(**{**tables, **end, **whole}).changed(**dotted)


def seconds(run: fedsim.Scenario, first: bool = False) -> float:
    """Processor time of the first round, or the median of the others but the last, which is evaluated."""
    from fedsim.simulation import simulate

    ends: list[float] = []
    simulate(run, progress=lambda line: ends.append(time.process_time()))
    if first:
        return ends[1] - ends[0]
    return statistics.median(after - before for before, after in itertools.pairwise(ends[1:-1]))


def measure(case: Case, repetitions: int, first: bool = False) -> dict[str, float]:
    """Seconds of a round with and without the part, measured in turn, and their ratio."""
    tables, without, part = case
    sides = {"without": scenario(tables, without), "with": scenario(tables, part)}
    found: dict[str, list[float]] = {side: [] for side in sides}
    for repetition in range(repetitions):
        for side in list(sides)[:: 1 if repetition % 2 == 0 else -1]:
            found[side].append(seconds(sides[side], first))
    ratio = statistics.median(a / b for a, b in zip(found["with"], found["without"], strict=True))
    return {side: statistics.median(each) for side, each in found.items()} | {"ratio": ratio}


def table(found: list[dict[str, Any]], machine: dict[str, Any], load: float, before: str = "") -> str:
    """The rows and the machine for BENCHMARKS.md; rows that were not measured anew stay as they were ``before``."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if name in VERSIONS)
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}"
    busy = "" if load < machine["cores"] else f" Other programs were at work (load {load:.0f}): the ratios are rough."
    rows = {}
    for each in found:
        sides = " | ".join(f"{1000 * each[side]:.1f} ms" for side in ("with", "without"))
        rows[each["part"]] = f"| {each['part']} | {sides} | {each['ratio']:.2f} |"
    old = {line.split("|")[1].strip(): line for line in before.splitlines() if line.startswith("| ")}
    kept = {part: old[part] for part in PARTS if part in old and part not in rows}
    which = f" These rows: {'; '.join(rows)}." if kept else ""
    said = [line for line in before.splitlines() if line.startswith("Measured")] if kept else []
    said.append(f"Measured on {time.strftime('%Y-%m-%d')} on {where}; {versions}; one worker.{busy}{which}")
    lines = [(rows | kept)[part] for part in PARTS if part in rows or part in kept]
    return "\n\n".join(said) + "\n\n" + "\n".join([HEAD, "|---|---|---|---|", *lines])


def between(file: Path) -> str:
    """What stands between the marks of a Markdown file."""
    return file.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def write(text: str, file: Path) -> None:
    """Put the text between the marks of a Markdown file."""
    head, _, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    file.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    import torch

    from fedsim import runtime

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="of each side (default 3)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to measure")
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for name in chosen.only:
        found.append({"part": name, **measure(PARTS[name], chosen.repetitions, name in FIRST)})
        print(json.dumps(found[-1]), flush=True)
    if chosen.write:
        file = Path(__file__).resolve().parent.parent / "BENCHMARKS.md"
        write(table(found, runtime.describe(), os.getloadavg()[0], between(file)), file)


if __name__ == "__main__":
    main()
