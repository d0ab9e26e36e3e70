"""``make bench``: what fedsim costs beside bare PyTorch, Flower's own simulation, scipy and Opacus, as one table.

Both sides of a row are measured in turn, each in a process of its own; a row's ratio is the median over the
repetitions. The exit status is 1 when a "must" is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = ROOT / ".cache"
BEGIN, END = "<!-- the last run: begin -->", "<!-- the last run: end -->"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        what: what was measured.
        ours: fedsim's side, with its unit.
        theirs: the other side.
        value: what is held against the target: a ratio, seconds or MiB.
        unit: of the value; empty for ratios.
        must: the value may not be above it; None where it only stands beside.
        aim: where it should be.
    """

    what: str
    ours: str
    theirs: str
    value: float
    unit: str = ""
    must: float | None = None
    aim: float | None = None

    @property
    def met(self) -> bool:
        return self.must is None or self.value <= self.must

    @property
    def verdict(self) -> str:
        if self.must is None:
            return "shown"
        if not self.met:
            return "MISSED"
        return "met" if self.aim is None or self.value <= self.aim else "met, not the aim"

    def cells(self) -> tuple[str, ...]:
        target = "" if self.must is None else f"≤ {_number(self.must, self.unit)}"
        if self.aim is not None:
            target += f" (aim {_number(self.aim, self.unit)})"
        return self.what, self.ours, self.theirs, _number(self.value, self.unit), target, self.verdict


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        repetitions: of each side of a row.
        others: whether Flower's own simulation and Opacus are measured, each in an environment of its own.
    """

    repetitions: int = 3
    others: bool = True


def mlp(effort: Effort) -> Iterable[Row]:
    """The round of small models, to bare PyTorch and to Flower."""
    sides = {"ours": ours("mlp", 60, 1), "bare": bare("mlp", 60, 1)}
    found = in_turn(sides, effort.repetitions)
    yield compare("round of mlp ×1 to bare PyTorch", found, "ours", "bare", must=0.80, aim=0.60)
    if effort.others:
        interpreter = environment("flower", "flwr[simulation]")
        sides = {
            "ours": ours("mlp", 60, 1),
            "flower": [str(interpreter), str(HERE / "flower_stock.py"), "mlp", "5", "1"],
        }
        found = in_turn(sides, 1)
        yield compare("round of mlp ×1 to Flower's simulation", found, "ours", "flower", must=1 / 200, aim=1 / 350)


def cnn(effort: Effort) -> Iterable[Row]:
    """The round of a convolutional network."""
    sides = {"ours": ours("cnn", 12, 1), "best": bare("cnn", 12, 1, "best"), "plain": bare("cnn", 12, 1)}
    found = in_turn(sides, effort.repetitions)
    yield compare("round of cnn ×1 to bare PyTorch at its best", found, "ours", "best", must=1.05, aim=0.95)
    yield compare("round of cnn ×1 to bare PyTorch as people write it", found, "ours", "plain")


def cnn_heavy(effort: Effort) -> Iterable[Row]:
    """The same with ten times the images, and the price of a Ray cluster."""
    sides = {
        "ours": ours("cnn", 5, 10),
        "best": bare("cnn", 5, 10, "best"),
        "ray": ours("cnn", 5, 10, "ray"),
        "plain": bare("cnn", 5, 10),
    }
    found = in_turn(sides, effort.repetitions)
    yield compare("round of cnn ×10 to bare PyTorch at its best", found, "ours", "best", must=1.05, aim=0.95)
    yield compare("round of cnn ×10 to bare PyTorch as people write it", found, "ours", "plain")
    yield compare("RayGrid to LocalGrid, cnn ×10", found, "ray", "ours", must=1.15, aim=1.05)


def pairwise(effort: Effort) -> Iterable[Row]:
    """The filter's bottleneck, to scipy's."""
    found = measured(python("server.py", "pairwise", "100", "1000000"))
    yield Row(
        "pairwise L1, n = 100, d = 1e6, to scipy's pdist",
        _number(found["seconds"], "s"),
        _number(found["theirs"], "s"),
        found["ratio"],
        must=0.40,
        aim=0.15,
    )


def multi_metrics(effort: Effort) -> Iterable[Row]:
    """One step of the filter on updates of a ResNet-18's size."""
    found = [measured(python("server.py", "multi_metrics", "50", "11000000")) for _ in range(effort.repetitions)]
    seconds = statistics.median(each["seconds"] for each in found)
    memory = max(each["memory"] for each in found)
    what = "whole multi_metrics, n = 50, d = 11e6"
    yield Row(what, _number(seconds, "s"), "", seconds, "s", must=4.0, aim=2.5)
    yield Row(f"{what}: peak memory to the updates", f"{memory:.2f} × 2.2 GB", "2.2 GB", memory, must=1.3)


def population(effort: Effort) -> Iterable[Row]:
    """What a population costs that is not asked."""
    sides = {size: python("ours.py", "population", "20", str(number)) for size, number in _POPULATIONS.items()}
    found = in_turn(sides, effort.repetitions)
    what = "round with 1,000,000 clients to 1,000, cohort 200"
    yield compare(what, found, "large", "small", must=1.2, aim=1.05)
    large, small = (statistics.median(each["peak_mib"] for each in found[size]) for size in ("large", "small"))
    yield Row(f"{what}: memory more", f"{large:.0f} MiB", f"{small:.0f} MiB", large - small, "MiB", must=300)


def dp_sgd(effort: Effort) -> Iterable[Row]:
    """A client's epoch of DP-SGD, to Opacus' ghost clipping."""
    if effort.others:
        interpreter = environment("opacus", "opacus")
        sides = {
            "ours": python("dp_sgd_epoch.py", "40"),
            "opacus": [str(interpreter), str(HERE / "opacus_epoch.py"), "40"],
        }
        found = in_turn(sides, effort.repetitions)
        what = "epoch of DP-SGD, mlp, 6,000 images, batch 256, to Opacus' ghost clipping"
        yield compare(what, found, "ours", "opacus", must=0.70, aim=0.40)


def diff2(effort: Effort) -> Iterable[Row]:
    """A client's share of a DIFF2 round, to an epoch of FedAvg over the same images."""
    sides = {side: python("diff2_round.py", side, "40") for side in ("ours", "epoch")}
    found = in_turn(sides, effort.repetitions)
    what = "DIFF2 round, mlp, 6,000 images, to an epoch of FedAvg"
    yield compare(what, found, "ours", "epoch", must=1.5, aim=1.0)
    rounds = {"norms": "20", "rows": "3", "vmap_64": "3", "vmap_300": "3"}
    found = in_turn({side: python("diff2_round.py", side, count) for side, count in rounds.items()}, effort.repetitions)
    what = "clipped differences, mlp, 6,000 images, by norms to"
    yield compare(f"{what} rows of vmap", found, "norms", "rows")
    for size in (64, 300):
        yield compare(f"{what} torch.func as people write it, {size} at a time", found, "norms", f"vmap_{size}")
    sides = {"cnn": python("diff2_round.py", "cnn", "5"), "cnn_rows": python("diff2_round.py", "cnn_rows", "3")}
    what = "clipped differences, cnn, 1,000 images, linear layers by norms to rows of vmap"
    yield compare(what, in_turn(sides, effort.repetitions), "cnn", "cnn_rows")


def audit(effort: Effort) -> Iterable[Row]:
    """The attack on a privacy claim, with plain averaging and as the scenario ships: its time and its bound."""
    what = "audit, 2,000 trials of 100 rounds, linear model"
    plain = measured(python("audit_trials.py", "2000", 'server.defenses=["fedavg"]'))
    yield Row(what, _audited(plain), "", plain["seconds"], "s", must=180.0)
    shortened = measured(python("audit_trials.py", "2000"))
    yield Row(f"{what}, norm_bound in front", _audited(shortened), "", shortened["seconds"], "s")


def _audited(found: dict[str, float]) -> str:
    """What the attack took, and the epsilon that it showed of the one that is claimed."""
    return f"{_number(found['seconds'], 's')}, bound {found['bound']:.2f} of a claim of {found['claim']:.2f}"


def accounting(effort: Effort) -> Iterable[Row]:
    """The privacy of a long run without two equal rounds."""
    found = [measured(python("epsilon.py")) for _ in range(effort.repetitions)]
    seconds = statistics.median(each["seconds"] for each in found)
    what = "epsilon of 2,000 different sampled releases, by PLD"
    yield Row(what, _number(seconds, "s"), "", seconds, "s", must=5.0)


def diffgrad(effort: Effort) -> Iterable[Row]:
    """A step of DiffGrad, to one of torch's Adam."""
    found = [measured(python("diffgrad_step.py")) for _ in range(effort.repetitions)]
    numbers = (_number(statistics.median(each[side] for each in found), "s") for side in ("diffgrad", "adam"))
    ratio = statistics.median(each["ratio"] for each in found)
    yield Row("step of DiffGrad, a million parameters, to torch's Adam", *numbers, ratio, must=1.3)


def start(effort: Effort) -> Iterable[Row]:
    """How soon fedsim answers."""
    command = [sys.executable, "-c", "import fedsim"]
    yield _start_row("import fedsim", command)
    yield _start_row("fedsim --help", [str(Path(sys.executable).with_name("fedsim")), "--help"])


_POPULATIONS = {"large": 1_000_000, "small": 1_000}
SECTIONS: dict[str, Callable[[Effort], Iterable[Row]]] = {
    "start": start,
    "pairwise": pairwise,
    "multi_metrics": multi_metrics,
    "population": population,
    "accounting": accounting,
    "diff2": diff2,
    "audit": audit,
    "dp_sgd": dp_sgd,
    "diffgrad": diffgrad,
    "mlp": mlp,
    "cnn": cnn,
    "cnn_heavy": cnn_heavy,
}


def ours(kind: str, rounds: int, cost: int, engine: str = "local") -> list[str]:
    return python("ours.py", kind, str(rounds), str(cost), engine)


def bare(kind: str, rounds: int, cost: int, *options: str) -> list[str]:
    return python("bare_torch.py", kind, str(rounds), str(cost), *options)


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(HERE / script), *arguments]


def in_turn(sides: dict[str, list[str]], repetitions: int) -> dict[str, list[dict[str, float]]]:
    """Each side's measurements; the order of the sides is turned around from one repetition to the next."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for repetition in range(repetitions):
        for name in list(sides)[:: 1 if repetition % 2 == 0 else -1]:
            found[name].append(measured(sides[name]))
    return found


def measured(command: list[str]) -> dict[str, float]:
    """What a script says on its last line."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    result: dict[str, float] = json.loads(lines[-1])
    return result


def compare(
    what: str,
    found: dict[str, list[dict[str, float]]],
    over: str,
    under: str,
    must: float | None = None,
    aim: float | None = None,
) -> Row:
    """The median of the repetitions' ratios."""
    above, below = ([each["seconds"] for each in found[side]] for side in (over, under))
    ratio = statistics.median(a / b for a, b in zip(above, below, strict=True))
    numbers = (_number(statistics.median(side), "s") for side in (above, below))
    return Row(what, *numbers, ratio, must=must, aim=aim)


def environment(name: str, *packages: str) -> Path:
    """The interpreter of an environment with these packages and PyTorch alone, made at first use."""
    folder = CACHE / name
    interpreter, ready = folder / "bin" / "python", folder / ".installed"
    if not ready.exists():
        print(f"Making an environment with {name} alone in .cache/{name} (what pip has cached is not fetched again)")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        flags = shlex.split(os.environ.get("PIP_FLAGS", ""))
        wanted = ["-c", str(ROOT / "constraints.txt"), *packages, "torch"]
        subprocess.run([str(interpreter), "-m", "pip", "install", "-q", *flags, *wanted], check=True)
        ready.touch()
    return interpreter


def _start_row(what: str, command: list[str]) -> Row:
    seconds = []
    for _ in range(11):
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    return Row(what, _number(median, "s"), "", median, "s", must=0.3)


def _number(value: float, unit: str) -> str:
    if unit == "s" and value < 0.1:
        return f"{1000 * value:.1f} ms"
    if unit:
        return f"{value:.2f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"1/{1 / value:.0f}" if value < 0.02 else f"{value:.2f}"


HEADS = ("what", "ours", "theirs", "value", "target", "")


def printed(rows: list[Row]) -> str:
    """The table for a terminal."""
    lines = [HEADS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def markdown(rows: list[Row], machine: dict[str, Any]) -> str:
    """The table and the machine for BENCHMARKS.md."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}"
    return f"Measured on {time.strftime('%Y-%m-%d')} on {where}; {versions}.\n\n" + "\n".join(lines)


def write(text: str, file: Path) -> None:
    """Put the text between the marks of a Markdown file."""
    content = file.read_text(encoding="utf-8")
    head, _, rest = content.partition(BEGIN)
    _, _, tail = rest.partition(END)
    file.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave Flower's own simulation and Opacus out")
    parser.add_argument("--repetitions", type=int, default=3, help="of each side (default 3)")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="sections to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the machine to this file")
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    chosen = parser.parse_args()
    from fedsim import runtime

    effort = Effort(chosen.repetitions, not chosen.quick)
    machine: dict[str, Any] = runtime.describe()
    rows: list[Row] = []
    for name, section in SECTIONS.items():
        if name in chosen.only:
            print(f"measuring {name} …", file=sys.stderr, flush=True)
            rows += section(effort)
    print(printed(rows))
    if chosen.json:
        content = {"machine": machine, "rows": [asdict(row) | {"met": row.met} for row in rows]}
        chosen.json.write_text(json.dumps(content, indent=2), encoding="utf-8")
    if chosen.write:
        write(markdown(rows, machine), ROOT / "BENCHMARKS.md")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
