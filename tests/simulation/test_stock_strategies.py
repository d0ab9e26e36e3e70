"""Every stock Flower strategy that can work serves fedsim's own clients, and no round of it is skipped."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.serverapp import strategy as stock

from fedsim.simulation import simulate
from strategies.guest import UNUSABLE
from tests.simulation.test_runs import small

OPTIONS: dict[str, dict[str, Any]] = {
    "FedProx": {"proximal_mu": 0.5},
    "QFedAvg": {"client_learning_rate": 0.1},
    **{name: {"num_malicious_nodes": 1} for name in ("Krum", "MultiKrum", "Bulyan")},
    "DifferentialPrivacyServerSideFixedClipping": {"noise_multiplier": 0.1, "clipping_norm": 1.0},
    "DifferentialPrivacyServerSideAdaptiveClipping": {"noise_multiplier": 0.1},
}
OPTIONS["MultiKrum"] = {"num_malicious_nodes": 1, "num_nodes_to_select": 3}


@pytest.mark.parametrize("name", [each for each in stock.__all__ if each not in ("Result", "Strategy", *UNUSABLE)])
def test_it_moves_the_model_in_every_round(name: str) -> None:
    defense = {"name": f"flwr:{name}", **OPTIONS.get(name, {})}
    result = simulate(small(rounds=2, server={"defenses": [defense]}, evaluate={}))
    assert not any(line["faults"] for line in result.lines)
    assert len({line["loss"] for line in result.lines}) == 3
