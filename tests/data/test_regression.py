"""Regression tasks, and the gradient's norm that is measured on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedsim import make
from fedsim.federation import build
from fedsim.scenario import Scenario
from fedsim.simulation import simulate


def test_diabetes_is_standardised_and_split_by_its_own_seed() -> None:
    whole = make("dataset", "diabetes", test=0.25).load()
    assert whole.info.num_classes == 0
    assert (len(whole.train), len(whole.test)) == (332, 110)
    torch.testing.assert_close(whole.train.inputs.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.train.targets.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    other = make("dataset", "diabetes", test=0.25, data_seed=1).load()
    assert other.fingerprint != whole.fingerprint


def test_a_missing_california_housing_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    from fedsim.errors import DataMissing

    def no_network(**given: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_california_housing", no_network)
    with pytest.raises(DataMissing, match=r"cal_housing_py3\.pkz"):
        make("dataset", "california_housing", folder=str(tmp_path)).load()


def test_the_noise_of_the_synthetic_task_is_what_least_squares_cannot_explain() -> None:
    calm = make("dataset", "synthetic_regression", examples=500, test=10, noise=0.0).load()
    same = make("dataset", "synthetic_regression", examples=500, test=10, noise=0.0).load()
    assert calm.fingerprint == same.fingerprint
    loud = make("dataset", "synthetic_regression", examples=500, test=10, noise=3.0).load()

    def unexplained(targets: torch.Tensor) -> float:
        x = torch.cat([calm.train.inputs, torch.ones(500, 1)], 1)
        solution = torch.linalg.lstsq(x, targets[:, None]).solution
        return float((x @ solution - targets[:, None]).square().mean() / targets.var())

    assert unexplained(calm.train.targets) < 0.3 < 0.8 < unexplained(loud.train.targets)


@pytest.mark.parametrize(("law", "skewness"), [("normal", 0.0), ("exponential", 2.0)])
def test_the_law_of_the_noise(law: str, skewness: float) -> None:
    part = make("dataset", "synthetic_regression", examples=50_000, test=10, hidden=0, noise=0.5, noise_law=law)
    train = part.load().train
    x = torch.cat([train.inputs, torch.ones(50_000, 1)], 1)
    left = (train.targets - (x @ torch.linalg.lstsq(x, train.targets[:, None]).solution)[:, 0]).double()
    assert float(left.var()) == pytest.approx(0.2, rel=0.05)  # .25 of 1 + .25
    assert float((left / left.std()).pow(3).mean()) == pytest.approx(skewness, abs=0.15)


def test_the_gradients_norm_is_that_of_the_clients_mean_loss() -> None:
    scenario = Scenario(
        rounds=1,
        data={"dataset": {"name": "diabetes"}, "partition": "quantity", "clients": 6},
        model={"name": "mlp", "hidden": [5], "activation": "softplus"},
        client={"per_round": 6},
        evaluate={"gradient_norm": True, "batch_size": 50},
        engine={"precision": "float64"},
    )
    line = simulate(scenario).lines[0]
    assert line["accuracy"] is None
    federation = build(scenario)
    module, train = federation.module.double(), federation.dataset.train
    held = [train.take(share) for share in federation.shares if len(share)]
    losses = [(module(part.inputs.double())[:, 0] - part.targets.double()).square().mean() for part in held]
    torch.stack(losses).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(torch.tensor(line["gradient_norm"], dtype=torch.float64), expected)
