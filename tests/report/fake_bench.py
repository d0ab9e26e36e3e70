"""A benchmark's folder that nobody ran: fake runs, entered into a real store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from fake_run import BACKDOOR, fake_run

from fedsim.bench.store import Store

DEFENSES = {
    "fedavg": '"fedavg"',
    "multi_metrics": '{ name = "multi_metrics", keep = 0.3 }',
    "median": '"median"',
}
ATTACKS = {
    "badnets": '{ name = "badnets", target = 0 }',
    "badnets + pgd": '{ name = "badnets", target = 0 }, { name = "pgd", epsilon = 0.5 }',
    "dba": '{ name = "dba", target = 0 }',
}


def fake_bench(
    out: Path,
    *,
    defenses: dict[str, str] = DEFENSES,
    attacks: dict[str, str] = ATTACKS,
    datasets: Sequence[str] = ("digits",),
    seeds: Sequence[int] = (0, 1, 2),
    rounds: int = 8,
) -> Path:
    """Write the folder and return it. Attackers slip through more often the later the defense stands in the list."""
    store = Store(out)
    try:
        for dataset in datasets:
            for place, (defense, told) in enumerate(defenses.items()):
                for attack, parts in attacks.items():
                    for seed in seeds:
                        key = hashlib.sha256(f"{dataset} {defense} {attack} {seed}".encode()).hexdigest()
                        folder = fake_run(
                            out / f"{defense}-{seed}-{key[:12]}",
                            rounds=rounds,
                            seed=seed,
                            title="A benchmark",
                            slip=1.0 - 0.8 * place / len(defenses),
                            defenses=told,
                        )
                        text = (folder / "scenario.toml").read_text("utf-8")
                        text = text.replace(BACKDOOR, parts).replace('name = "digits"', f'name = "{dataset}"')
                        text = text.replace(f"defenses = [{told}]", f"defenses = [{_tables(told)}]")
                        (folder / "scenario.toml").write_text(text, "utf-8")
                        _change(folder / "run.json", key=key)
                        calm = {str(number): 0.03 for number in range(rounds + 1)}
                        floor = {"asr": 0.03, "rounds": calm, "accuracies": dict.fromkeys(calm, 0.9)}
                        _change(folder / "summary.json", key=key, digest=key[::-1], floor=floor)
                        values = {"data.dataset": dataset, "server.defenses": [defense], "adversary.attacks": attack}
                        if len(datasets) == 1:
                            del values["data.dataset"]
                        assert store.adopt(folder, values | {"seed": seed})
    finally:
        store.close()
    return out


def _tables(told: str) -> str:
    """A resolved scenario names parts by tables."""
    return f"{{ name = {told} }}" if told.startswith('"') else told


def _change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")
