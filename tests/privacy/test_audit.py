"""The audit: what is sound passes, with a bound that is near the claim; what is broken is caught."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binom, norm
from torch import Tensor, nn
from typer.testing import CliRunner

from fedsim import audit, registry
from fedsim.audit import Audit, Claim, Verdict, judge, prepare, upper
from fedsim.canary import Differences
from fedsim.cli import app
from fedsim.errors import FedsimError
from fedsim.privacy import clipping, diff2_releases, epsilon, ghost
from fedsim.privacy.clipping import ClippedSum
from fedsim.privacy.materialised import gradient_rows
from fedsim.privacy.rows import clip_rows, row_norms
from fedsim.scenario import Scenario
from fedsim.updates import Layout
from strategies.diff2 import Diff2

DIFF2: dict[str, Any] = {"name": "diff2", "restart": 4, "c1": 1.0, "c2": 5.0, "lr": 0.5}
CLIENTS = 8


def private(privacy: dict[str, Any], estimator: dict[str, Any] = DIFF2, rounds: int = 4) -> Scenario:
    return Scenario(
        rounds=rounds,
        data={"clients": CLIENTS},
        model={"name": "logistic"},
        client={"per_round": CLIENTS},
        server={"estimator": estimator},
        privacy=privacy,
    )


def differences(z1: float, z2: float) -> Audit:
    """One gradient and three differences whose noise multipliers are given, with steps so short that C is below C1."""
    n = prepare(private({"epsilon": 3.0})).subject.count  # type: ignore[attr-defined]
    return prepare(private({"noise": [z1 / (n * CLIENTS), z2 / (n * CLIENTS)]}, {**DIFF2, "lr": 0.02}))


NOISE: dict[str, Any] = {"noise": [2.0], "delta": 1e-5}
MECHANISMS: dict[str, dict[str, Any]] = {
    "diff2": {"server": {"estimator": DIFF2}, "privacy": {"epsilon": 3.0}},
    "dp_fedavg": {
        "server": {"defenses": [{"name": "dp_fedavg", "clip": 1.0}]},
        "privacy": {**NOISE, "unit": "client"},
    },
    "dp_sgd": {
        "client": {"per_round": CLIENTS, "optimizer": {"name": "dp_sgd", "lr": 0.1, "clip": 1.0}},
        "privacy": {**NOISE, "trust": "local"},
    },
}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_canary_is_on_the_client_with_the_fewest_examples(mechanism: str) -> None:
    tables: dict[str, Any] = {
        "rounds": 4,
        "data": {"clients": CLIENTS, "partition": {"name": "quantity"}},
        "model": {"name": "logistic"},
        "client": {"per_round": CLIENTS},
    }
    subject: Any = prepare(Scenario(**{**tables, **MECHANISMS[mechanism]})).subject
    sizes = np.asarray(subject.setting.sizes)
    assert sizes.min() < sizes.max()
    assert int(sizes[subject.client]) == int(sizes.min())


def broken(sound: Audit, part: type[Diff2] | None = None, kind: type[Differences] = Differences) -> Audit:
    """The same claim, with another mechanism under it."""
    subject: Any = sound.subject
    options = {name: getattr(subject.part, name) for name in ("restart", "c1", "c2", "lr")}
    estimator = subject.part
    if part is not None:
        estimator = part(**options)
        estimator.set_up(subject.setting)
    fields = {name: getattr(subject, name) for name in ("setting", "sigma", "defenses", "optimizer", "sampler")}
    return replace(sound, subject=kind(part=estimator, dimensions=subject.dimensions, **fields))


class Known:
    """Independent Gaussian releases, of which all is known."""

    canary = "a number"

    def __init__(self, multipliers: list[float], sampled: bool = False) -> None:
        self.noise = np.asarray(multipliers)
        self.shift = np.ones(len(multipliers))
        self.sampled = sampled

    def play(self, sign: float, seed: int) -> NDArray[np.float64]:
        drawn = np.random.default_rng(seed).standard_normal(len(self.noise))
        return np.asarray(sign + self.noise * drawn)


def test_the_upper_limit_is_exceeded_seldom_enough_and_not_much_seldomer() -> None:
    count, error = 50, 0.01
    for successes in (0, 3, 49):
        limit = float(upper(np.asarray([successes]), count, error)[0])
        assert binom.cdf(successes, count, limit) == pytest.approx(error)
    assert float(upper(np.asarray([50]), count, error)[0]) == 1.0


@pytest.mark.parametrize("neighbours", ["replace_one", "add_or_remove"])
def test_a_gaussian_of_known_cost_is_bounded_from_below(neighbours: str) -> None:
    multipliers = [4.0, 5.0, 6.0]
    cost = epsilon([(z, 1) for z in multipliers], 1e-5, "gdp", neighbours)
    claim = Claim(cost, 1e-5, neighbours)
    verdict = Audit(claim, Known(multipliers)).run(20_000, 0, workers=1)
    assert verdict.total.gaussian is not None
    assert 0.65 * cost < verdict.total.gaussian <= cost
    assert 0 < verdict.total.plain < verdict.total.gaussian
    assert not verdict.refuted
    assert replace(verdict, claim=replace(claim, epsilon=0.6 * cost)).refuted


def test_bounds_follow_from_the_error_rates() -> None:
    present, absent = np.full((200, 1), 1.0), np.full((200, 1), -1.0)
    present[:20], absent[:10] = -1.0, 1.0
    found = judge(Claim(1.0, 1e-5), Known([1.0]), present, absent)
    alpha, beta = (float(upper(np.asarray([each]), 200, 0.0005)[0]) for each in (10, 20))
    assert (found.total.alpha, found.total.beta, found.pair) == (0.05, 0.1, None)
    assert found.total.plain == pytest.approx(math.log((1 - 1e-5 - beta) / alpha))
    mu = norm.ppf(1 - alpha) - norm.ppf(beta)
    assert found.total.gaussian == pytest.approx(epsilon([(1 / mu, 1)], 1e-5, "gdp", "add_or_remove"))


def test_the_pairs_share_the_other_half_of_the_error() -> None:
    present, absent = np.zeros((200, 3)), np.zeros((200, 3))
    present[:, 0], absent[:, 0] = 1.0, -1.0
    found = judge(Claim(1.0, 1e-5), Known([1.0] * 3), present, absent)
    limit = float(upper(np.asarray([0]), 200, 0.001 / 6 / 2)[0])  # six ordered pairs, two rates each
    assert found.pair is not None
    assert found.pair.plain == pytest.approx(math.log((1 - 1e-5 - limit) / limit))


def test_samples_get_no_gaussian_bound() -> None:
    verdict = Audit(Claim(1.0, 1e-5), Known([2.0, 2.0], sampled=True)).run(200, 0, workers=1)
    assert verdict.pair is not None
    assert verdict.total.gaussian is verdict.pair.gaussian is None


def test_the_tails_bound_a_sampled_mechanism_better_and_no_less_surely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve Poisson samples whose cost is known."""
    rate, multiplier, steps = 0.25, 2.2, 12

    class Drawn(Known):
        def play(self, sign: float, seed: int) -> NDArray[np.float64]:
            draw = np.random.default_rng(seed)
            return np.asarray(sign * (draw.random(steps) < rate) + multiplier * draw.standard_normal(steps))

    cost = epsilon([(multiplier, steps, rate)], 1e-5, "pld", "replace_one")
    test = Audit(Claim(cost, 1e-5), Drawn([multiplier] * steps, sampled=True))

    def bounds() -> list[float]:
        return [test.run(8000, seed, workers=1).total.plain for seed in range(3)]

    tails = bounds()
    monkeypatch.setattr(audit, "TAILS", (0.0,))
    middle = bounds()
    assert all(1.5 * less < more < cost for less, more in zip(middle, tails, strict=True))


def test_noise_that_two_releases_share_is_found_by_their_pair() -> None:
    class Shared(Known):
        def play(self, sign: float, seed: int) -> NDArray[np.float64]:
            drawn = np.random.default_rng(seed).standard_normal(3)
            return np.asarray(sign + self.noise * drawn[[0, 1, 0]])

    verdict = Audit(Claim(2.0, 1e-5), Shared([5.0, 7.0, 9.0])).run(400, 0, workers=1)
    assert verdict.pair is not None
    assert verdict.pair.what == "releases 1 and 3"
    assert verdict.pair.epsilon > 2.0 > verdict.total.epsilon


@pytest.mark.parametrize("trust", ["central", "local", "distributed"])
@pytest.mark.parametrize("unit", ["example", "client"])
def test_the_canary_moves_each_release_by_all_that_the_claim_allows(trust: str, unit: str) -> None:
    subject: Any = prepare(private({"epsilon": 30.0, "trust": trust, "unit": unit})).subject
    subject.part.sigma = (1e-9, 1e-9)
    for sign in (1.0, -1.0):
        np.testing.assert_allclose(subject.play(sign, 5), sign * subject.shift, rtol=1e-3)
    assert not np.allclose(subject.play(0.0, 5), subject.shift, rtol=0.5)


@pytest.mark.parametrize("trust", ["central", "local", "distributed"])
def test_the_noise_of_each_release_is_the_claimed(trust: str) -> None:
    privacy: dict[str, Any] = {"noise": [0.3, 0.7], "trust": trust, "accountant": "gdp"}
    privacy |= {"colluding": 3} if trust == "distributed" else {}
    subject = prepare(private(privacy)).subject
    seen = np.stack([subject.play(0.0, seed) for seed in range(100)]) / subject.noise
    assert abs(seen.mean()) < 5 / math.sqrt(seen.size)
    assert abs(seen.var() - 1) < 5 * math.sqrt(2 / seen.size)
    claimed = diff2_releases(0.3, 0.7, 4, 4, CLIENTS, subject.count, trust, colluding=privacy.get("colluding", 0))  # type: ignore[arg-type, attr-defined]
    ratio = subject.noise / subject.shift
    np.testing.assert_allclose(ratio, [each.noise_multiplier for each in claimed for _ in range(each.count)])


@pytest.mark.slow
def test_workers_change_no_bit() -> None:
    test = prepare(private({"epsilon": 3.0}))
    one = test.run(8, 3, workers=1)
    assert test.run(8, 3, workers=2) == one
    assert one != test.run(8, 4, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "privacy",
    [
        {"trust": "central"},
        {"trust": "central", "neighbours": "add_or_remove"},
        {"trust": "central", "unit": "client"},
        {"trust": "local"},
        {"trust": "local", "unit": "client"},
        {"trust": "distributed", "colluding": 1},
    ],
    ids=lambda privacy: " ".join(map(str, privacy.values())),
)
def test_a_sound_mechanism_passes_on_all_of_twenty_seeds(privacy: dict[str, Any]) -> None:
    """With trials enough to catch half of the noise."""
    test = prepare(private({"epsilon": 3.0, **privacy}, rounds=3, estimator={**DIFF2, "restart": 3}))
    trials = 1200
    verdicts = [test.run(trials, seed, workers=1) for seed in range(20)]
    assert [verdict.seed for verdict in verdicts if verdict.refuted] == []
    assert max(verdict.bound for verdict in verdicts) > test.claim.epsilon / 4
    assert broken(test, Halved).run(trials, 0, workers=1).refuted


@pytest.mark.slow
def test_the_bound_of_a_tight_mechanism_reaches_half_of_the_claim() -> None:
    test = prepare(private({"epsilon": 3.0, "calibration": "tight"}))
    assert test.claim.epsilon == pytest.approx(3.0, abs=1e-3)
    verdict = test.run(2000, 0, workers=1)
    assert verdict.total.gaussian is not None
    assert test.claim.epsilon / 2 <= verdict.total.gaussian <= test.claim.epsilon


class Halved(Diff2):
    """Half of the noise that it was calibrated to."""

    def sigma_in(self, server_round: int, restart: bool) -> float:
        return super().sigma_in(server_round, restart) / 2


class Twice(Diff2):
    """Draws noise for every second release alone, and uses it for two."""

    def _stream(self, stream: Callable[[str], np.random.Generator]) -> np.random.Generator | None:
        kept = vars(self).pop("kept", None)
        if kept is None:
            kept = self.kept = stream("privacy.noise")
            return copy.deepcopy(kept)
        return kept  # type: ignore[no-any-return]


@pytest.mark.slow
def test_half_of_the_noise_is_caught() -> None:
    assert broken(prepare(private({"epsilon": 3.0})), Halved).run(600, 0, workers=1).refuted


@pytest.mark.slow
def test_noise_used_for_two_releases_is_caught() -> None:
    sound = prepare(private({"epsilon": 1.5}))
    assert not broken(sound).run(300, 0, workers=1).refuted
    verdict = broken(sound, Twice).run(300, 0, workers=1)
    assert verdict.refuted
    assert verdict.pair is not None
    assert verdict.pair.epsilon > verdict.claim.epsilon > verdict.total.epsilon


Sum = Callable[..., ClippedSum]
SUMS: tuple[Sum, Sum] = (clipping.clipped_gradient_sum, clipping.clipped_difference_sum)


def raw(module: Any, point: Tensor, loss: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """(n, d) gradients of the examples at a point."""
    layout = Layout.of(module)
    return gradient_rows(module, loss, layout)(layout.views(point), inputs, targets)


def told(total: Tensor, rows: Tensor) -> ClippedSum:
    return ClippedSum(total, len(rows), 0.0, 0, row_norms(rows))


def separately(then: Callable[[Tensor, float], Tensor], radius: float | None = None) -> Sum:
    """Differences of gradients that are clipped on their own, at ``radius`` or at the difference's own."""

    def found(
        module: Any, now: Tensor, before: Tensor, loss: Any, inputs: Tensor, targets: Tensor, clip: float
    ) -> ClippedSum:
        new, old = (clip_rows(raw(module, at, loss, inputs, targets), radius or clip) for at in (now, before))
        return told(then(new - old, clip).sum(0), new)

    return found


def mean_clipped(module: Any, loss: Any, inputs: Tensor, targets: Tensor, clip: float) -> ClippedSum:
    """The client's mean is clipped, not what it is the mean of."""
    rows = raw(module, module.x.detach(), loss, inputs, targets)
    return told(clip_rows(rows.mean(0, keepdim=True), clip)[0] * len(rows), rows)


def batch_means(module: Any, loss: Any, inputs: Tensor, targets: Tensor, clip: float) -> ClippedSum:
    """The mean of the batches' means, the short last one's included, with the canary in it."""
    rows = clip_rows(raw(module, module.x.detach(), loss, inputs, targets), clip)
    means = torch.stack([batch.mean(0) for batch in torch.split(rows, (len(rows) - 5) // 4)])
    return told(means.mean(0) * len(rows), rows)


def forged(monkeypatch: pytest.MonkeyPatch, test: Audit, trials: int = 600, **sums: Sum) -> Verdict:
    """The verdict on a mechanism whose clients sum by other rules."""
    with monkeypatch.context() as patch:
        for name, each in sums.items():
            patch.setattr(clipping, name, each)
        return test.run(trials, 0, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("radius", [None, 1.0])
def test_differences_of_gradients_clipped_on_their_own_are_caught(
    monkeypatch: pytest.MonkeyPatch, radius: float | None
) -> None:
    wrong = separately(lambda rows, clip: rows, radius)
    assert forged(monkeypatch, differences(1e3, 4.0), trials=400, clipped_difference_sum=wrong).refuted


@pytest.mark.slow
def test_what_is_merely_biased_is_private_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = forged(monkeypatch, differences(1e3, 4.0), clipped_difference_sum=separately(clip_rows, 1.0))
    assert not verdict.refuted
    assert verdict.bound > verdict.claim.epsilon / 3


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [mean_clipped, batch_means])
def test_a_rule_that_bounds_no_example_is_caught(monkeypatch: pytest.MonkeyPatch, wrong: Sum) -> None:
    sound = prepare(private({"epsilon": 3.0}, {"name": "dp_gd", "c1": 1.0, "lr": 0.5}, rounds=2))
    verdict = forged(monkeypatch, sound, trials=400, clipped_gradient_sum=wrong)
    assert verdict.refuted


def layer_of(rows: Tensor) -> nn.Linear:
    """A layer whose inputs are the audit's rows: the canary's loss by it has the canary's gradient."""
    return nn.Linear(rows.shape[1], 1, bias=False, dtype=rows.dtype)


class Beside(nn.Module):
    """The same layer, and a norm whose gradients are zero: some by signals, some by rows."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.layer, self.norm = layer_of(rows), nn.LayerNorm(rows.shape[1], dtype=rows.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 0.0 * self.norm(x).sum(1, keepdim=True)


def gradients_by_both(module: Any, loss: Any, inputs: Tensor, targets: Tensor, clip: float) -> ClippedSum:
    rows = raw(module, module.x.detach(), loss, inputs, targets)
    found = SUMS[0](Beside(rows), lambda out, _: out[:, 0], rows, targets, clip)
    return replace(found, total=found.total[: rows.shape[1]])


def differences_by_both(
    module: Any, now: Tensor, before: Tensor, loss: Any, inputs: Tensor, targets: Tensor, clip: float
) -> ClippedSum:
    rows = raw(module, now, loss, inputs, targets)
    canary = rows.sum(0)
    at = canary / canary.square().sum().clamp(min=1e-300)
    norm = torch.cat([torch.ones_like(canary), torch.zeros_like(canary)])
    ends = (torch.cat([at, norm]), torch.cat([-at, norm]))
    found = SUMS[1](Beside(rows), *ends, lambda out, _: out[:, 0].square() / 2, rows, targets, clip)
    return replace(found, total=found.total[: rows.shape[1]])


def gradients_by_norms(module: Any, loss: Any, inputs: Tensor, targets: Tensor, clip: float) -> ClippedSum:
    rows = raw(module, module.x.detach(), loss, inputs, targets)
    return SUMS[0](layer_of(rows), lambda out, _: out[:, 0], rows, targets, clip)


def differences_by_norms(
    module: Any, now: Tensor, before: Tensor, loss: Any, inputs: Tensor, targets: Tensor, clip: float
) -> ClippedSum:
    rows = raw(module, now, loss, inputs, targets)
    canary = rows.sum(0)  # all others are zero; at this point the layer's output of it is 1, at the opposite one −1
    at = canary / canary.square().sum().clamp(min=1e-300)
    return SUMS[1](layer_of(rows), at, -at, lambda out, _: out[:, 0].square() / 2, rows, targets, clip)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gradients", "changes"), [(gradients_by_norms, differences_by_norms), (gradients_by_both, differences_by_both)]
)
def test_the_clip_of_linear_layers_passes_and_is_caught_where_it_clips_nothing(
    monkeypatch: pytest.MonkeyPatch, gradients: Sum, changes: Sum
) -> None:
    sound = prepare(private({"epsilon": 3.0}))
    sums = {"clipped_gradient_sum": gradients, "clipped_difference_sum": changes}
    verdict = forged(monkeypatch, sound, trials=400, **sums)
    assert not verdict.refuted
    assert verdict.bound > verdict.claim.epsilon / 4
    factors = ghost.clip_factors
    monkeypatch.setattr(ghost, "clip_factors", lambda norms, clip, dtype: factors(norms, 3 * clip, dtype))
    assert forged(monkeypatch, sound, trials=400, **sums).refuted


class Crowd(Differences):
    """Two groups of clients far from each other, along the canary's direction; the canary stands in the middle."""

    def others(self, restart: bool) -> Tensor:
        rows = super().others(restart)
        rest = [client for client in range(len(rows)) if client != self.client][:6]
        for i, client in enumerate(rest):
            rows[client] = self.direction * (1.0 if i < 3 else -1.0) * restart
        return rows


def test_a_filter_in_front_of_central_noise_is_refused_and_caught_behind_a_bypass() -> None:
    tables = private({"epsilon": 3.0}, rounds=1, estimator={**DIFF2, "restart": 1}).table()
    tables["server"]["defenses"] = [{"name": "krum"}]
    with pytest.raises(FedsimError, match="central"):
        Scenario(**tables)
    sound = prepare(private({"epsilon": 3.0}, rounds=1, estimator={**DIFF2, "restart": 1}))
    crowd = broken(sound, kind=Crowd)
    assert not crowd.run(200, 0, workers=1).refuted
    crowd.subject.defenses = [registry.make("defense", "krum", malicious=2)]  # type: ignore[attr-defined]
    assert crowd.run(400, 0, workers=1).refuted


def averaging(neighbours: str = "replace_one", rounds: int = 3, epsilon: float = 3.0, **options: Any) -> Scenario:
    """DP-FedAvg with Poisson cohorts of half of the clients."""
    return Scenario(
        rounds=rounds,
        data={"clients": CLIENTS},
        model={"name": "logistic"},
        client={"per_round": CLIENTS},
        server={"defenses": [{"name": "dp_fedavg", **options}], "sampler": {"name": "poisson", "rate": 0.5}},
        privacy={"epsilon": epsilon, "unit": "client", "neighbours": neighbours},
    )


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_client_is_clipped_whenever_it_is_drawn(adaptive: bool) -> None:
    subject: Any = prepare(averaging(adaptive=adaptive, rounds=40)).subject
    subject.part.noise_multiplier = 1e-6 if not adaptive else subject.part.noise_multiplier
    seen = np.stack([subject.play(sign, seed) for seed, sign in enumerate([1.0, -1.0, 0.0])])
    assert subject.sampled
    if adaptive:
        assert abs(seen[2].std() / subject.noise[0] - 1) < 0.5
        return
    for row, sign in zip(seen, [1.0, -1.0, 0.0], strict=True):
        moved = np.abs(row) > 1e-3
        np.testing.assert_allclose(row[moved], sign, atol=1e-4)
        assert (8 < moved.sum() < 32) if sign else not moved.any()


@pytest.mark.slow
@pytest.mark.parametrize("neighbours", ["replace_one", "add_or_remove"])
def test_clients_in_poisson_cohorts_are_audited_without_the_gaussian_bound(neighbours: str) -> None:
    sound = prepare(averaging(neighbours, epsilon=1.0))
    verdicts = [sound.run(2000, seed, workers=1) for seed in range(20)]
    assert {verdict.total.gaussian for verdict in verdicts} == {None}
    assert not any(verdict.refuted for verdict in verdicts)
    sound.subject.part.noise_multiplier /= 10  # type: ignore[attr-defined]
    assert sound.run(2000, 0, workers=1).refuted


FILE = """
rounds = 3
[data]
clients = 4
[model]
name = "logistic"
[client]
per_round = 4
[server]
estimator = { name = "diff2", restart = 3, c1 = 1.0, c2 = 5.0, lr = 0.5 }
[privacy]
epsilon = 3.0
"""


def called(tmp_path: Any, text: str, *options: str) -> Any:
    file = tmp_path / "private.toml"
    file.write_text(text, encoding="utf-8")
    return CliRunner().invoke(app, ["audit", str(file), "--trials", "20", *options], catch_exceptions=False)


def test_the_command_tells_claim_bound_and_verdict(tmp_path: Any) -> None:
    done = called(tmp_path, FILE, "--seeds", "2")
    assert done.exit_code == 0, done.output
    assert "claim    ε = 3 at δ = 1e-05 (replace_one, by pld) against the public" in done.output.replace("2.999", "3")
    assert done.output.count("not refuted") == 5
    assert re.search(r"verdict  ε ≥ [\d.]+, claimed (3.000|2.999) \(replace_one\): not refuted", done.output)


def test_a_refuted_claim_is_exit_status_1(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = audit.prepare

    def hopeful(scenario: Scenario) -> Audit:
        return Audit(Claim(1.0, 1e-5), Known([0.05])) if prepared(scenario) else None  # type: ignore[return-value]

    monkeypatch.setattr(audit, "prepare", hopeful)
    done = called(tmp_path, FILE, "--trials", "200")
    assert done.exit_code == 1
    assert "REFUTED" in done.output


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (FILE.replace("epsilon = 3.0", 'epsilon = "inf"'), 1, "there is no noise"),
        (FILE.replace("per_round = 4", "per_round = 3"), 2, "full participation"),
        ("rounds = 3\n", 1, "no part adds noise"),
    ],
)
def test_what_cannot_be_audited_is_said(tmp_path: Any, text: str, status: int, said: str) -> None:
    done = called(tmp_path, text)
    assert done.exit_code == status
    assert said in done.output
