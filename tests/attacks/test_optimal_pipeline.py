"""``optimal`` searches its scalar through the pipeline that the run has: every stage, its memory, the server's step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attacks.optimal import Optimal
from fedsim.errors import ScenarioError
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from strategies.strategy import DefendedStrategy

PIPELINES = {
    "pre-aggregator, filter and aggregator": [
        {"name": "nnm", "malicious": 2},
        {"name": "multi_krum", "malicious": 2},
        "median",
    ],
    "a memory": [{"name": "centered_clipping", "radius": 0.5}],
    "a history of each client": ["foolsgold"],
    "noise": [{"name": "weak_dp", "radius": 1.0, "noise": 0.001}],
}
SEARCHED = {"damage": "ipm", "success": "model_replacement"}
"""The attack whose scalar is searched for each goal."""
SERVERS = {"sgd": {"name": "sgd", "lr": 0.5}, "adam": {"name": "adam", "lr": 0.05}}


def scenario(defenses, optimizer, goal):
    search = {"attack": SEARCHED[goal], "goal": goal, "low": 0.1, "high": 20.0, "steps": 6, "refine": 2}
    return Scenario(
        rounds=3,
        data={"clients": 8},
        model={"name": "logistic"},
        client={"per_round": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
        adversary={
            "count": 2,
            "knowledge": "omniscient",
            "knows_defense": True,
            "attacks": [{"name": "optimal", **search}],
        },
        server={"defenses": defenses, "optimizer": optimizer},
        engine={"name": "local", "workers": 1},
    )


@pytest.mark.parametrize("goal", SEARCHED)
@pytest.mark.parametrize("optimizer", SERVERS)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_it_tries_is_what_the_server_would_do(monkeypatch, pipeline, optimizer, goal):
    """The best outcome that the preview promised for any of its rows is the round's outcome, its noise aside."""
    promised: dict[int, list[torch.Tensor]] = {}
    happened: dict[int, torch.Tensor] = {}
    backdoored: dict[int, torch.Tensor] = {}
    preview, step, craft = DefendedStrategy.preview, DefendedStrategy._step, Optimal.craft

    def previewed(self, updates, server_round):
        found = preview(self, updates, server_round)
        promised.setdefault(server_round, []).append(found.clone())
        return found

    def stepped(self, updates, contexts, talks=True):
        found = step(self, updates, contexts, talks)
        if talks:
            happened[self.outcome.round] = found[: self.layout.d].clone()
        return found

    def crafted(self, rows, ctx):
        backdoored[ctx.round] = ctx.reference + rows.mean(dim=0)
        return craft(self, rows, ctx)

    monkeypatch.setattr(Optimal, "craft", crafted)
    monkeypatch.setattr(DefendedStrategy, "preview", previewed)
    monkeypatch.setattr(DefendedStrategy, "_step", stepped)
    simulate(scenario(PIPELINES[pipeline], SERVERS[optimizer], goal), None)
    noise = 0.01 if pipeline == "noise" else 0.0
    for number in (1, 2, 3):
        assert len(promised[number]) >= 7, "the scan of six values and the honest outcome"
        nearest = min(float((each - happened[number]).abs().max()) for each in promised[number])
        assert nearest <= noise, f"round {number}: no value that was tried led where the server went"
        honest, *tried = promised[number]
        start = honest if goal == "damage" else backdoored[number]
        reached = float((happened[number] - start).norm())
        away = [float((each - start).norm()) for each in tried]
        slack = 0.9 if noise else 1 - 1e-6
        assert reached >= max(away) * slack if goal == "damage" else reached * slack <= min(away)


def test_both_ends_of_the_search_must_be_values_that_the_attack_takes(tmp_path: Path) -> None:
    """A value that it refuses would end the run in its first attack round."""
    plug_in = tmp_path / "capped.py"
    plug_in.write_text(
        "from typing import Annotated\n\nfrom pydantic import Field\n\nfrom attacks.attack import Attack, attack\n\n\n"
        '@attack("capped")\nclass Capped(Attack):\n'
        '    """A share of each row.\n\n    Args:\n        share: kept.\n    """\n\n'
        "    share: Annotated[float, Field(ge=0, le=1)] = 0.5\n\n"
        "    def craft(self, rows, ctx):\n        return self.share * rows\n"
    )
    optimal = {"name": "optimal", "attack": f"{plug_in}:Capped", "option": "share", "low": 0.1}
    adversary = {"count": 2, "knowledge": "omniscient", "knows_defense": True}
    Scenario(adversary={**adversary, "attacks": [{**optimal, "high": 1.0}]})
    with pytest.raises(ScenarioError, match=r"attack\.share.*given 10"):
        Scenario(adversary={**adversary, "attacks": [{**optimal, "high": 10.0}]})
