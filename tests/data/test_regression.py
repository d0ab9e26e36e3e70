"""Regression tasks, and the gradient's norm that is measured on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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


def test_california_housing_is_read_from_scikit_learns_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import joblib
    from sklearn.datasets import _california_housing

    def no_network(*given: object, **more: object) -> None:
        raise AssertionError("the file is there")

    monkeypatch.setattr(_california_housing, "_fetch_remote", no_network)
    # As scikit-learn keeps it: the target first, then columns of which it divides four into means by household.
    table = np.random.default_rng(0).uniform(1, 50, (20_640, 9))
    joblib.dump(table, tmp_path / "cal_housing_py3.pkz", compress=6)
    part = make("dataset", "california_housing", folder=str(tmp_path))
    found, info = part.load(), part.info()
    assert (len(found.train), len(found.test)) == (info.train, info.test) == (16_512, 4_128)
    assert found.train.inputs.shape[1:] == info.shape == (8,)
    torch.testing.assert_close(found.train.inputs.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    values = torch.cat([found.train.targets, found.test.targets]).double()
    expected = torch.from_numpy(table[:, 0])
    torch.testing.assert_close(
        ((values - values.mean()) / values.std()).sort().values,
        ((expected - expected.mean()) / expected.std()).sort().values,
        atol=1e-4, rtol=0,
    )  # fmt: skip


def test_measured_targets_of_a_file_go_through_diff2(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((120, 4)).astype(np.float32)
    y = (x @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.01 * draw.standard_normal(120)).astype(np.float32)
    np.savez(tmp_path / "turbine.npz", x_train=x[:100], y_train=y[:100], x_test=x[100:], y_test=y[100:])
    scenario = Scenario(
        rounds=30,
        data={"dataset": {"name": "npz", "path": str(tmp_path / "turbine.npz")}, "clients": 5},
        model={"name": "logistic"},
        client={"per_round": 5},
        server={"estimator": {"name": "diff2", "restart": 10, "c1": 100.0, "c2": 100.0, "lr": 0.2}},
        privacy={"epsilon": "inf"},
        evaluate={"gradient_norm": True},
    )
    lines = simulate(scenario).lines
    assert all(line["accuracy"] is None for line in lines)
    assert lines[-1]["loss"] < 1e-3 < 1 < lines[0]["loss"]
    assert lines[-1]["gradient_norm"] < 1e-2
    noisy = simulate(scenario.changed(**{"privacy.epsilon": 3.0})).lines
    assert lines[-1]["loss"] < noisy[-1]["loss"]


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


def test_small_inputs_are_those_of_one_scaled_with_the_same_targets() -> None:
    one = make("dataset", "synthetic_regression", examples=500, test=10).load()
    small = make("dataset", "synthetic_regression", examples=500, test=10, input_std=0.3).load()
    for ours, theirs in ((small.train, one.train), (small.test, one.test)):
        torch.testing.assert_close(ours.inputs, 0.3 * theirs.inputs)
        assert torch.equal(ours.targets, theirs.targets)
    torch.testing.assert_close(small.train.inputs.std(0, correction=0), torch.full((8,), 0.3))


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
