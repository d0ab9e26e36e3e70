"""What somebody who only watches learns: ``python privacy_attacks.py [--seeds 0 1 2] [--out DIR]``.

Runs the rows of docs/privacy-attacks.md, a seed at a time; what is finished in DIR is taken as it is. It writes
docs/results/privacy_attacks.json and the page's table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from run import ROOT, write

PAGE, NUMBERS = (ROOT / "docs" / name for name in ("privacy-attacks.md", "results/privacy_attacks.json"))
RUNS = ROOT / "runs" / "privacy_attacks"
ROWS: dict[str, tuple[str, list[str]]] = {
    "SGD": ("observe", []),
    "SGD behind `weak_dp` (radius 5, noise .002)": (
        "observe",
        ['server.defenses=[{ name = "weak_dp", radius = 5.0, noise = 0.002 }]'],
    ),
    "SGD behind `krum`": ("observe", ['server.defenses=[{ name = "krum", malicious = 0 }]']),
    "DP-SGD": ("observe", ['client.optimizer="dp_sgd"', "privacy.epsilon=4", 'privacy.trust="local"']),
    "DP-SGD without noise (ε = ∞)": (
        "observe",
        ['client.optimizer="dp_sgd"', 'privacy.epsilon="inf"', 'privacy.trust="local"'],
    ),
    "DIFF2, forty such clients (`observe_diff2`)": ("observe_diff2", []),
    "DIFF2 without noise (`observe_diff2`, ε = ∞)": ("observe_diff2", ['privacy.epsilon="inf"']),
}
"""A row's name → its scenario and what ``--set`` changes of it."""
HEAD = (
    "| | accuracy | images rebuilt (mean PSNR) | blind guess | membership: AUC | "
    "members found at a false positive rate of at most 1 % | ε (replace_one) |"
)

Line = dict[str, Any]


def folder(row: str, seed: int) -> str:
    """Of a run: the row's own words in letters that every file system takes."""
    word = "".join(letter if letter.isalnum() else " " for letter in row.lower())
    return "-".join([*word.split()[:4], str(seed)])


def played(row: str, seed: int, out: Path) -> tuple[Line, dict[str, Any]]:
    """A run's line, and the versions and the machine that it was played with."""
    import fedsim
    from fedsim.scenario import Scenario

    file, sets = ROWS[row]
    scenario = Scenario.load(file, {"seed": seed}, sets)
    result = fedsim.run(scenario, out=out / folder(row, seed), resume=True)
    if not result.finished:
        raise SystemExit(f"{out / folder(row, seed)}: interrupted; the same command goes on with it")
    described = json.loads((out / folder(row, seed) / "run.json").read_text())
    inversion, membership = (
        next(found for found in result.observations if found["observer"] == name)
        for name in ("gradient_inversion", "membership_inference")
    )
    line = {
        "row": row,
        "scenario": file,
        "sets": sets,
        "seed": seed,
        "key": result.key,
        "digest": result.digest,
        "rounds": result.lines[-1]["round"],
        "accuracy": result.lines[-1]["accuracy"],
        "gradient_inversion": inversion,
        "membership_inference": {name: value for name, value in membership.items() if name != "roc"},
        "notes": result.notes,
    }
    return line, described["runtime"]


def told(values: Sequence[float], form: str, unit: str = "", limit: float | None = None) -> str:
    """A mean, over several seeds with Student's 95 % interval, which is kept from 0 to a limit where there is one."""
    from fedsim.analysis.statistics import t_interval

    mean, low, high, seeds = t_interval(values)
    if seeds == 1:
        return f"{number(mean, form)}{unit}"
    if limit is not None:
        low, high = max(0.0, low), min(limit, high)
    return f"{number(mean, form)}{unit} ({number(low, form)} to {number(high, form)})"


def share(members: Sequence[Line]) -> str:
    """The members that were found: over several seeds as any other measure, of one seed with Wilson's interval."""
    rates = [each["rates"][0] for each in members]
    found = told([100 * each["tpr"] for each in rates], ".0f", " %", 100.0)
    if len(rates) > 1:
        return found
    return f"{found} ({100 * rates[0]['tpr_low']:.0f} to {100 * rates[0]['tpr_high']:.0f})"


def number(value: float, form: str) -> str:
    text = format(value, form)
    return text.replace("0.", ".", 1) if form == ".3f" and text.lstrip("-").startswith("0.") else text


def cells(lines: Sequence[Line]) -> list[str]:
    """A row of the table, of its runs."""
    inversions = [line["gradient_inversion"] for line in lines]
    members = [line["membership_inference"] for line in lines]
    spent = [(a["epsilon"], b["epsilon"]) for a, b in zip(inversions, members, strict=True)]
    best = max(each["psnr_best"] for each in inversions)
    first, last = spent[0]
    return [
        lines[0]["row"],
        told([100 * line["accuracy"] for line in lines], ".1f", " %", 100.0),
        f"{told([each['psnr'] for each in inversions], '.1f', ' dB')}, the best {best:.1f} dB",
        told([each["psnr_blind"] for each in inversions], ".1f", " dB"),
        told([each["auc"] for each in members], ".3f", limit=1.0),
        share(members),
        "none" if first is None else f"{first:.1f} after the first round, {last:.0f} after the last",
    ]


def table(kept: dict[str, Any]) -> str:
    """The numbers for docs/privacy-attacks.md; a row without runs is left out."""
    lines: list[Line] = kept["lines"]
    seeds = sorted({line["seed"] for line in lines})
    runs = {row: [line for line in lines if line["row"] == row] for row in ROWS}
    machine = kept["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("fedsim-flwr", "torch", "numpy"))
    few, many = (lines[place]["membership_inference"]["members"] for place in (0, -1))
    what = (
        f"Seed {seeds[0]} alone; shares of members with Wilson's 95 % interval"
        if len(seeds) == 1
        else f"Means over the seeds {', '.join(map(str, seeds))} with Student's 95 % interval over them, "
        "cut off at what a share or an AUC can be"
    )
    sample = f"{few} members and as many others a seed ({many} of each with DIFF2)"
    return "\n".join(
        [
            HEAD,
            "|---|---|---|---|---|---|---|",
            *("| " + " | ".join(cells(found)) + " |" for found in runs.values() if found),
            "",
            f"{what}; {sample}. "
            f"{machine['processor']}, Python {machine['python']}; {versions}. "
            "[The numbers](results/privacy_attacks.json).",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of each row (default: 0 1 2)")
    parser.add_argument("--out", type=Path, default=RUNS, metavar="DIR", help="folder of the runs' folders")
    parser.add_argument("--dry", action="store_true", help="print, and write into no file")
    chosen = parser.parse_args()
    lines: list[Line] = []
    machines: list[dict[str, Any]] = []
    for row in ROWS:
        for seed in chosen.seeds:
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
