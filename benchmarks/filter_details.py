"""How much hangs on details: ``python filter_details.py [--seeds 0 1 2 3 4] [--out DIR]``.

Runs the rows of docs/multi_metrics.md's last table, a seed at a time; what is finished in DIR is taken as it is, and
what was interrupted goes on. The first line, the scenario as it is, is in docs/results/multi_metrics.json. It writes
docs/results/filter_details.json and the page's table. With ``--dry`` two processes can share DIR, each with its seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run import ROOT, write

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

PAGE, NUMBERS, TABLES = (
    ROOT / "docs" / name for name in ("multi_metrics.md", "results/filter_details.json", "results/multi_metrics.json")
)
RUNS = ROOT / "runs" / "filter_details"
FILE = "papers/multi_metrics"
DEFENSES: list[Any] = [{"name": "multi_metrics", "keep": 0.3}, "median"]
SETS = ['server.defenses=[{ name = "multi_metrics", keep = 0.3 }, "median"]']
OWN = (
    "adversary.attacks=["
    '{ name = "edge_case", dataset = "mnist", source = 7, target = 5, examples = 100, clean = 400, test = 500, '
    'clean_from = "own" }, { name = "pgd", epsilon = 2.0, every = 10 }]'
)
PLAIN = "[0, 1], 10 (the tables above)"
ROWS: dict[str, list[str]] = {
    "[0, 1], 16": ["client.batch_size=16"],
    "[0, 1], 32": ["client.batch_size=32"],
    "mean .286, sd .353, 32": ["model.standardize=[0.286, 0.353]", "client.batch_size=32"],
    "mean .131, sd .308, 32": ["model.standardize=[0.131, 0.308]", "client.batch_size=32"],
    "mean .5, sd .5, 64": ["model.standardize=[0.5, 0.5]", "client.batch_size=64"],
    "mean .5, sd .5, 32, the attacker's clean images its own": [
        "model.standardize=[0.5, 0.5]",
        "client.batch_size=32",
        OWN,
    ],
}
"""A row's name → what ``--set`` changes of the scenario."""

Line = dict[str, Any]


def folder(row: str, seed: int) -> str:
    """Of a run: the row's own words in letters that every file system takes."""
    word = "".join(letter if letter.isalnum() else " " for letter in row.lower())
    return "-".join([*word.split()[:5], str(seed)])


def cell(sets: Sequence[str], seed: int) -> Scenario:
    """The scenario's cell with the median behind the filter and an attacker in every round."""
    from fedsim.scenario import Scenario

    tables = Scenario.load(FILE, {"seed": seed}, [*SETS, *sets]).table()
    return Scenario(**{name: table for name, table in tables.items() if name != "matrix"})


def played(row: str, seed: int, out: Path) -> tuple[Line, dict[str, Any]]:
    """A run's line, and the versions and the machine that it was played with."""
    import fedsim
    from fedsim.bench.cell import measured

    place = out / folder(row, seed)
    result = fedsim.run(cell(ROWS[row], seed), out=place, resume=True)
    if not result.finished:
        raise SystemExit(f"{place}: interrupted; the same command goes on with it")
    names = ("last_rounds", "accuracy", "asr", "attacker_rows", "attacker_rows_kept", "digest", "notes")
    found = measured(place)
    line = {"row": row, "sets": ROWS[row], "seed": seed, "key": result.key, "rounds": result.lines[-1]["round"]}
    runtime = json.loads((place / "run.json").read_text())["runtime"]
    return line | {name: found[name] for name in names}, runtime


def plain(seeds: Sequence[int]) -> list[Line]:
    """The first line's, of the page's first table."""
    cells = json.loads(TABLES.read_text("utf-8"))
    wanted = {"adversary.schedule": {"name": "every_round"}, "server.defenses": DEFENSES}
    lines = [line for line in cells if all(line["values"][name] == value for name, value in wanted.items())]
    return [line for seed in seeds for line in lines if line["values"]["seed"] == seed]


def cells(lines: Sequence[Line]) -> list[str]:
    """What the table says of a row's runs."""
    rates = [f"{line['asr']:.2f}" for line in lines]
    return [
        ", ".join(str(line["attacker_rows_kept"]) for line in lines),
        ", ".join(each[1:] if each.startswith("0.") else each for each in rates),
    ]


def table(kept: dict[str, Any]) -> str:
    """The numbers for docs/multi_metrics.md."""
    lines: list[Line] = kept["lines"]
    seeds = sorted({line["seed"] for line in lines})
    rows = {PLAIN: plain(seeds)} | {
        row: sorted((line for line in lines if line["row"] == row), key=lambda line: int(line["seed"])) for row in ROWS
    }
    order = f"Seeds {', '.join(map(str, seeds))}, in this order" if len(seeds) > 1 else f"Seed {seeds[0]} alone"
    machine = kept["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("fedsim-flwr", "torch", "numpy"))
    return "\n".join(
        [
            f"| inputs, batch size | attacker kept of {lines[0]['attacker_rows']} | ASR |",
            "|---|---|---|",
            *("| " + " | ".join([row, *cells(found)]) + " |" for row, found in rows.items()),
            "",
            f"{order}. {machine['processor']}, Python {machine['python']}; {versions}. "
            "[The numbers](results/filter_details.json).",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of each row (default: 0 to 4)")
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="folder of the runs' folders")
    parser.add_argument("--dry", action="store_true", help="print, and write into no file")
    chosen = parser.parse_args()
    lines: list[Line] = []
    machines: list[dict[str, Any]] = []
    for seed in chosen.seeds:
        for row in ROWS:
            line, machine = played(row, seed, chosen.out)
            lines.append(line)
            machines.append({name: machine[name] for name in ("python", "system", "processor", "versions")})
    if any(each != machines[0] for each in machines):
        raise SystemExit(f"{chosen.out}: runs of several machines or versions; give an empty --out")
    kept = {"machine": machines[0], "lines": lines}
    print(table(kept))
    if not chosen.dry:
        NUMBERS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write(table(kept), PAGE)


if __name__ == "__main__":
    main()
