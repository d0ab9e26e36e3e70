"""The audit of DP-SGD: the canary is cut to C where it is drawn; sound noise passes, halved noise is caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsim.audit import prepare
from fedsim.scenario import Scenario

CLIENTS = 40


def private(batch: int, privacy: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    """DP-SGD on digits, about 36 examples a client; a batch of more than that is no sample."""
    tables: dict[str, Any] = {
        "rounds": 3,
        "data": {"clients": CLIENTS},
        "model": {"name": "logistic"},
        "client": {"per_round": CLIENTS, "optimizer": {"name": "dp_sgd", "clip": 0.7}, "batch_size": batch, "steps": 4},
        "privacy": {"epsilon": 3.0, "trust": "local", **(privacy or {})},
    }
    return Scenario(**{**tables, **changes})


@pytest.mark.parametrize("batch", [8, 64])
def test_an_example_is_cut_to_its_clip_whenever_it_is_drawn(batch: int) -> None:
    subject: Any = prepare(private(batch, rounds=30)).subject
    assert (subject.sampled, len(subject.noise)) == (batch == 8, 120)
    assert subject.count == min(subject.setting.sizes)
    subject.part.noise_multiplier = 1e-6
    rate = min(1.0, batch / subject.count)
    for sign in (1.0, -1.0, 0.0):
        seen = subject.play(sign, 3)
        drawn = np.abs(seen) > 1e-3
        np.testing.assert_allclose(seen[drawn], sign, atol=1e-4)
        expected = rate * abs(sign)
        assert abs(drawn.mean() - expected) <= 5 * np.sqrt(expected * (1 - expected) / 120)


@pytest.mark.parametrize("batch", [8, 64])
def test_the_noise_of_each_step_is_the_claimed(batch: int) -> None:
    subject = prepare(private(batch)).subject
    seen = np.stack([subject.play(0.0, seed) for seed in range(100)]) / subject.noise
    assert abs(seen.mean()) < 5 / np.sqrt(seen.size)
    assert abs(seen.var() - 1) < 5 * np.sqrt(2 / seen.size)
    assert np.abs(np.corrcoef(seen.T) - np.eye(seen.shape[1])).max() < 0.5


def test_who_is_audited_takes_part() -> None:
    subject: Any = prepare(private(8, client={"per_round": 2, "optimizer": "dp_sgd", "batch_size": 8})).subject
    assert subject.rounds > 0
    assert len(subject.noise) == subject.rounds * -(-subject.count // 8)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "epsilon", "share"), [(64, 3.0, 0.5), (8, 0.5, 0.1)])
@pytest.mark.parametrize("neighbours", ["replace_one", "add_or_remove"])
def test_a_sound_mechanism_passes_on_all_of_twenty_seeds(
    batch: int, epsilon: float, share: float, neighbours: str
) -> None:
    """With trials enough to catch too little noise: half of it in whole batches, a tenth in samples of a fifth."""
    test = prepare(private(batch, {"epsilon": epsilon, "neighbours": neighbours}))
    assert not any(test.run(2000, seed, workers=1).refuted for seed in range(20))
    test.subject.part.noise_multiplier *= share  # type: ignore[attr-defined]
    assert test.run(2000, 0, workers=1).refuted


@pytest.mark.slow
def test_whole_batches_get_the_gaussian_bound_and_samples_do_not() -> None:
    whole, sampled = (prepare(private(batch)).run(1000, 0, workers=1) for batch in (64, 8))
    assert sampled.total.gaussian is None
    assert whole.total.gaussian is not None
    assert whole.claim.epsilon / 6 < whole.total.gaussian < whole.claim.epsilon
    assert sampled.bound < sampled.claim.epsilon


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "epsilon", "share"), [(64, 3.0, 0.5), (20, 1.0, 0.1)])
def test_too_little_noise_is_caught(batch: int, epsilon: float, share: float) -> None:
    test = prepare(private(batch, {"epsilon": epsilon}))
    assert not test.run(1000, 0, workers=1).refuted
    test.subject.part.noise_multiplier *= share  # type: ignore[attr-defined]
    assert test.run(1000, 0, workers=1).refuted
