"""Run folders that nobody ran: every feature of a record, with numbers that are easy to foresee."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.analysis.statistics import auc, rates, wilson

SCENARIO = """title = "{title}"
rounds = {rounds}
seed = {seed}

[data]
clients = {clients}
holdout = 0.0
root = 0

[data.dataset]
name = "digits"

[data.partition]
name = "dirichlet"
alpha = 0.5
minimum = 1

[model]
name = "mlp"
hidden = [64]

[client]
per_round = {per_round}
epochs = 2
batch_size = 32
proximal = 0.0
dropout = 0.05
straggler = 0.0

[client.optimizer]
name = "sgd"
lr = 0.05
momentum = 0.9
nesterov = false

[client.lr_schedule]
name = "constant"

[adversary]
fraction = {fraction}
selection = "pool"
forced = 1
knowledge = "colluding"
knows_defense = false
attacks = [{attacks}]

[adversary.schedule]
name = "every_round"

[server]
defenses = [{defenses}]
limit = 100000000.0
timeout = 3600.0

[server.optimizer]
name = "sgd"
lr = 1.0
momentum = 0.0

[server.sampler]
name = "uniform"

[evaluate]
every = {every}

[engine]
name = "local"
workers = 2
device = "cpu"
precision = "float32"
"""
FILTER = '{ name = "multi_metrics", keep = 0.3, variant = "code" }'
BACKDOOR = '{ name = "badnets", target = 0, ratio = 0.5 }, { name = "model_replacement" }'


def fake_run(
    folder: Path,
    *,
    rounds: int = 30,
    clients: int = 40,
    per_round: int = 10,
    seed: int = 0,
    title: str = "A backdoor against the multi-metric filter",
    attack: bool = True,
    slip: float = 0.03,
    defenses: str = FILTER,
    weights: bool = True,
    every: int = 1,
    floor: float | None = 0.031,
    labels: Sequence[str] = tuple("0123456789"),
    images: bool = True,
    faults: int = 4,
    notes: Sequence[str] = (),
    finished: bool = True,
    reason: str = "the update is not finite (NaN or Inf in 650 of 4,810 entries)",
) -> Path:
    """Write a run's folder and return it."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    attackers = set(range(3, 3 + max(1, clients // 10))) if attack else set()
    text = SCENARIO.format(
        title=title,
        rounds=rounds if finished else rounds * 2,
        seed=seed,
        clients=clients,
        per_round=per_round,
        fraction=0.1 if attack else 0.0,
        attacks=BACKDOOR if attack else "",
        defenses=defenses,
        every=every,
    )
    (folder / "scenario.toml").write_text(text, "utf-8")
    lines: list[dict[str, Any]] = [_round(0, 0.09, 0.02 if attack else None)]
    rows: list[dict[str, Any]] = []
    asr = 0.03
    for number in range(1, rounds + 1):
        cohort = sorted(draw.choice(clients, per_round, replace=False).tolist())
        malicious = [client for client in cohort if client in attackers]
        scores = {client: float(draw.gamma(9, 1.0) + (14 if client in attackers else 0)) for client in cohort}
        lucky = {client for client in malicious if draw.random() < slip}
        order = sorted(cohort, key=lambda client: (client not in lucky, scores[client]))
        kept = sorted(order[: max(1, int(0.3 * per_round))]) if weights else cohort
        through = [client for client in malicious if client in kept]
        asr = min(0.97, asr + 0.35 * (1 - asr)) if through and weights else max(0.03, asr * 0.93)
        accuracy = 0.9 - 0.8 * np.exp(-number / (rounds / 5)) + draw.normal(0, 0.008)
        evaluated = number % every == 0 or number == rounds
        line = _round(number, float(accuracy) if evaluated else None, asr if attack and evaluated else None)
        examples = {client: int(draw.integers(10, 90)) for client in cohort}
        total = sum(examples[client] for client in kept)
        weight = {client: (examples[client] / total if client in kept else 0.0) for client in cohort}
        found = rates([c not in kept for c in cohort], [c in attackers for c in cohort])
        norms = {client: float(draw.gamma(20, 0.05)) * (8 if client in attackers else 1) for client in cohort}
        line |= {
            "cohort": cohort,
            "malicious": malicious,
            "kept": kept,
            "kept_malicious": through,
            "malicious_weight": sum(weight[c] for c in through) if weights else None,
            "norm_honest": float(np.median([norms[c] for c in cohort if c not in attackers])),
            "norm_malicious": float(np.median([norms[c] for c in malicious])) if malicious else None,
            "train_loss": float(2.3 * np.exp(-number / (rounds / 4)) + 0.15),
        }
        if malicious and weights:
            line["true_positive_rate"], line["false_positive_rate"] = found
            line["auc"] = auc(list(scores.values()), [client in attackers for client in scores])
        if number in set(np.linspace(1, rounds, faults).astype(int).tolist()) and faults:
            line["faults"] = [{"client": cohort[0], "reason": reason}]
        lines.append(line)
        rows += [
            {
                "round": number,
                "client": client,
                "malicious": client in attackers,
                "weight": weight[client] if weights else None,
                "kept": client in kept,
                "scores": {"multi_metrics": scores[client]} if weights else {},
                "norm": norms[client],
                "num_examples": examples[client],
            }
            for client in cohort
        ]
    _write_lines(folder / "rounds.jsonl", lines)
    _write_lines(folder / "clients.jsonl", rows)
    shown = min(clients, 200)
    counts = draw.multinomial(45, draw.dirichlet([0.5] * len(labels), size=shown)) + draw.poisson(
        0.3, (shown, len(labels))
    )
    _write(
        folder / "partition.json", {"labels": list(labels), "clients": list(range(shown)), "counts": counts.tolist()}
    )
    if attack and images:
        _write_samples(folder / "samples.npz", draw)
    _write(folder / "run.json", {"key": "9f2c" * 16, "title": title, "fedsim": "0.1.0", "runtime": _runtime()})
    _write(
        folder / "summary.json",
        {
            "key": "9f2c" * 16,
            "digest": "51ab" * 16,
            "rounds": rounds,
            "finished": finished,
            "notes": list(notes),
            "floor": None if floor is None or not attack else {"asr": floor},
        },
    )
    return folder


def _round(number: int, accuracy: float | None, asr: float | None) -> dict[str, Any]:
    low, high = wilson(round(asr * 324), 324) if asr is not None else (None, None)
    empty = (
        "true_positive_rate",
        "false_positive_rate",
        "auc",
        "norm_honest",
        "norm_malicious",
        "train_loss",
        "malicious_weight",
    )
    return {
        "round": number,
        "accuracy": accuracy,
        "loss": None if accuracy is None else 2.4 * (1 - accuracy),
        "asr": asr,
        "asr_low": low,
        "asr_high": high,
        "asr_eligible": None if asr is None else 324,
        "cohort": [],
        "malicious": [],
        "kept": [],
        "kept_malicious": [],
        "worst10": None,
        "epsilon": None,
        "faults": [],
        "forced": [],
        "defense_acted": True,
        "attack_acted": True,
        "seconds": {"train": 0.041, "aggregate": 0.0062, "evaluate": 0.009, "record": 0.0011},
        **dict.fromkeys(empty),
    }


def _write_samples(file: Path, draw: np.random.Generator) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    clean = (digits.images[1:9, None] / 16).astype(np.float32)
    triggered = clean.copy()
    triggered[:, :, -3:, -3:] = 1.0
    np.savez(file, clean=clean, triggered=triggered, labels=digits.target[1:9], target=np.array(0))


def _runtime() -> dict[str, Any]:
    return {
        "python": "3.11.2",
        "system": "Linux x86_64",
        "processor": "An Ordinary Processor @ 2.60GHz",
        "cores": 2,
        "versions": {"fedsim-flwr": "0.1.0", "flwr": "1.41.0", "torch": "2.13.0+cpu", "numpy": "2.3.0"},
        "malloc_tuned": True,
        "environment": {},
    }


def _write(file: Path, table: dict[str, Any]) -> None:
    file.write_text(json.dumps(table), "utf-8")


def _write_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
