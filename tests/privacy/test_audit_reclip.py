"""The audit of reclip: the canary is cut to either side of the ball; sound noise passes, faults are caught."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedsim.audit import prepare
from fedsim.cli import app
from fedsim.scenario import Scenario
from strategies.reclip import Reclip

BOTH = pytest.mark.parametrize("neighbours", ["replace_one", "add_or_remove"])


def private(neighbours: str = "replace_one", unit: str = "client", *behind: Any, rounds: int = 4) -> Scenario:
    return Scenario(
        rounds=rounds,
        data={"clients": 6},
        model={"name": "logistic"},
        client={"per_round": 6},
        server={"defenses": ["multi_metrics", {"name": "reclip", "radius": 0.5}, *behind]},
        privacy={"epsilon": 3.0, "unit": unit, "neighbours": neighbours},
    )


@BOTH
@pytest.mark.parametrize("unit", ["client", "example"])
def test_the_canary_moves_the_aggregate_by_twice_the_radius(neighbours: str, unit: str) -> None:
    subject: Any = prepare(private(neighbours, unit)).subject
    subject.part.deviation = 0.0
    replaced = neighbours == "replace_one"
    for sign, side in ((1.0, 1.0), (-1.0, -1.0) if replaced else (0.0, 0.0)):
        np.testing.assert_allclose(subject.play(sign, 3), side, atol=1e-9)


@BOTH
def test_the_noise_is_the_claimed(neighbours: str) -> None:
    subject = prepare(private(neighbours)).subject
    seen = np.stack([subject.play(1.0, seed) for seed in range(150)]) - 1
    assert abs((seen / subject.noise).var() - 1) < 5 * np.sqrt(2 / seen.size)


@BOTH
def test_a_sound_mechanism_passes_and_much_is_found_of_it(neighbours: str) -> None:
    test = prepare(private(neighbours, "client", "crfl", rounds=1))
    found = [test.run(1000, seed, workers=1) for seed in range(3)]
    assert not any(each.refuted for each in found)
    assert max(each.bound for each in found) > 0.5 * test.claim.epsilon


@BOTH
def test_too_little_noise_is_caught(neighbours: str) -> None:
    test = prepare(private(neighbours))
    test.subject.part.deviation *= 0.5  # type: ignore[attr-defined]
    assert test.run(600, 0, workers=1).refuted


@BOTH
def test_a_clip_that_lets_pass_more_is_caught(neighbours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test, bound = prepare(private(neighbours)), Reclip.bound

    def twice(part: Reclip, aggregate: Any, ctx: Any) -> Any:
        wide = copy.copy(part)
        wide.radius = 2 * part.radius
        return bound(wide, aggregate, ctx)

    monkeypatch.setattr(Reclip, "bound", twice)
    assert test.run(600, 0, workers=1).refuted


def test_the_command_audits_it(tmp_path: Any) -> None:
    file = tmp_path / "reclip.toml"
    file.write_text(private().toml())
    call = CliRunner().invoke(app, ["audit", str(file), "--trials", "40"])
    assert call.exit_code == 0, call.output
    assert "not refuted" in call.stdout
