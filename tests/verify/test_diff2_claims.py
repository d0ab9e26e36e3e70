"""DIFF2's claims that read published cells, and those that run a scenario's matrix, at toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import DataMissing
from fedsim.scenario import read
from fedsim.verify import diff2
from fedsim.verify.claim import claims_of


def rows_of(key: str) -> set[str]:
    return set(next(each for each in claims_of("diff2") if each.key == key).rows)


def cell(epsilon: str, restart: str, defense: str, seed: int, **measured: float) -> dict[str, Any]:
    point = {"privacy.epsilon": epsilon, "server.estimator.restart": restart, "defense": defense, "seed": seed}
    return point | {"attacker_rows": 80, "attacker_rows_kept": 80, "accuracy": 0.5, "asr": 1.0} | measured


def test_the_filters_table_is_what_the_published_cells_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cells.json"
    monkeypatch.setattr(diff2, "RESULTS", file)
    with pytest.raises(DataMissing, match="fedsim bench papers/diff2_filter"):
        diff2.behind_the_filter(0)
    cells = [
        cell(epsilon, restart, defense, seed)
        for epsilon in ("8", "32", "128", "inf")
        for restart in ("1", "10")
        for defense in ("fedavg", "multi_metrics (keep 0.5)")
        for seed in (1, 2)
    ]
    cells += [
        cell("32", "10", "multi_metrics (keep 0.5)", 0, attacker_rows_kept=20, asr=0.4, accuracy=0.8),
        cell("32", "10", "fedavg", 0, asr=0.7),
    ]
    file.write_text(json.dumps(cells))
    values = diff2.behind_the_filter(0).values
    assert set(values) == rows_of("behind_the_filter")
    found = {name: values[f"eps_32_restart_10_{name}"] for name in diff2.SHOWN}
    assert found == pytest.approx(
        {"kept": 180 / 240, "asr": 0.8, "bare_asr": 0.9, "accuracy": 0.6, "bare_accuracy": 0.5}
    )
    assert values["eps_inf_restart_1_kept"] == 1.0


@pytest.mark.parametrize("key", ["gradient_norm", "diabetes", "fashion_mnist"])
def test_both_methods_run_at_the_scenarios_points(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str) -> dict[str, Any]:
        tables = read(name)
        assert name == ("papers/diff2" if key == "gradient_norm" else f"papers/diff2_{key}")
        if key == "fashion_mnist":
            tables["data"]["dataset"] = {"name": "digits"}
        tables["data"]["dataset"] |= {"examples": 600} if key == "gradient_norm" else {}
        tables["matrix"]["server.estimator"][1]["restart_ratio"] = 0.5
        return tables | {"rounds": 10}

    monkeypatch.setattr(diff2, "read", small)
    values = getattr(diff2, key)(0).values
    assert set(values) == rows_of(key)
    assert values["last"] == pytest.approx(values["dp_gd_square"] / values["diff2_square"])
    assert values["ratio"] == pytest.approx(values["last"]), "one evaluation in the second half: the last round"
    assert values["last"] != 1.0, "two methods"
