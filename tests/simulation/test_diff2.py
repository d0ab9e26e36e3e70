"""DIFF2 in a federation: its arithmetic, its noise, its memory, and what stands in front of it."""

from __future__ import annotations

import math
import pickle
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

from fedsim import rng
from fedsim.errors import ScenarioError
from fedsim.federation import build, make_estimator, setting_of
from fedsim.privacy.local_steps import participation
from fedsim.privacy.proof import lines
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.testing.federation import messages
from fedsim.updates import Updates
from strategies.defense import Round
from strategies.strategy import Outcome

RUNS: list[dict[str, Any]] = [{"rounds": rounds, "privacy": {"noise": [1e6, 1e6]}} for rounds in (1, 2, 3, 4)]
DIFF2: dict[str, Any] = {"name": "diff2", "restart": 3, "c1": 1.0, "c2": 5.0, "lr": 0.5}


def private(estimator: dict[str, Any] = DIFF2, **changes: Any) -> Scenario:
    tables: dict[str, Any] = {
        "rounds": 5,
        "data": {"clients": 4},
        "model": {"name": "logistic"},
        "client": {"per_round": 4},
        "server": {"estimator": estimator},
        "privacy": {"epsilon": 8.0},
    }
    return Scenario(**{**tables, **changes})


def interrupted(scenario: Scenario, folder: Path, after: int) -> str:
    class Stop(Exception):
        pass

    def stop(line: dict[str, Any]) -> None:
        if line["round"] == after:
            raise Stop

    with pytest.raises(Stop):
        simulate(scenario, folder, progress=stop)
    return simulate(scenario, folder, resume=True).digest


def test_restarting_every_round_is_dp_gd_bit_by_bit() -> None:
    every = simulate(private({**DIFF2, "restart": 1}))
    assert every.digest == simulate(private({"name": "dp_gd", "c1": 1.0, "lr": 0.5})).digest
    assert every.digest != simulate(private()).digest


@pytest.mark.parametrize("restart", [1, 2, 5])
def test_without_noise_and_clipping_it_is_gradient_descent(restart: int) -> None:
    rounds, lr = 5, 0.3
    wide = {"name": "diff2", "restart": restart, "c1": 1e12, "c2": 1e12, "lr": lr}
    scenario = private(wide, privacy={"epsilon": "inf"}, engine={"precision": "float64"}, rounds=rounds)
    found = simulate(scenario)
    federation = build(scenario)
    module, train, shares = federation.module.double(), federation.dataset.train, federation.shares
    for _ in range(rounds):
        module.zero_grad()
        parts = [train.take(shares[client]) for client in range(4)]
        losses = [torch.nn.functional.cross_entropy(module(part.inputs.double()), part.targets) for part in parts]
        torch.stack(losses).mean().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                assert parameter.grad is not None
                parameter -= lr * parameter.grad
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found.parameters[name], parameter.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("trust", ["central", "local", "distributed"])
def test_workers_and_interruptions_change_no_bit(trust: str, tmp_path: Path) -> None:
    privacy = {"epsilon": 30.0, "trust": trust}
    digests = {simulate(private(privacy=privacy, engine={"workers": workers})).digest for workers in (1, 3)}
    digests |= {interrupted(private(privacy=privacy), tmp_path / str(after), after) for after in (1, 3)}
    assert len(digests) == 1
    assert simulate(private(privacy=privacy, seed=1)).digest not in digests


def rows(scenario: Scenario, server_round: int = 1) -> tuple[torch.Tensor, Any]:
    """What the clients send in a round at the initial model."""
    from flwr.app import ConfigRecord

    from fedsim.flower import Flat, flatten

    federation = build(scenario)
    evaluator = federation.evaluator()
    strategy: Any = federation.strategy(evaluator)
    grid: Any = federation.engine()
    try:
        arrays = Flat(federation.initial, federation.layout)
        sent = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        replies = list(grid.send_and_receive(sent, timeout=None))
    finally:
        grid.close()
        evaluator.close()
    found = torch.stack([flatten(reply.content["arrays"], federation.layout) for reply in replies])
    return found, strategy


@pytest.mark.parametrize(("trust", "factor"), [("local", 1.0), ("distributed", 2.0)])
def test_the_clients_noise_has_its_variance_and_no_correlation(trust: str, factor: float) -> None:
    noise = []
    for server_round in (1, 4):
        privacy = {"noise": [0.02, 0.02], "trust": trust}
        noisy, _ = rows(private(privacy=privacy), server_round)
        calm, _ = rows(private(privacy={"epsilon": "inf", "trust": trust}), server_round)
        noise.append((noisy - calm).double() / (0.02 * factor))
    drawn = torch.stack(noise)  # (2 rounds, 4 clients, d)
    count = drawn.numel()
    assert abs(float(drawn.mean())) < 5 / math.sqrt(count)
    assert abs(float(drawn.var()) - 1) < 5 * math.sqrt(2 / count)
    series = drawn.flatten(0, 1)
    correlations = torch.corrcoef(series) - torch.eye(len(series), dtype=torch.float64)
    assert float(correlations.abs().max()) < 5 / math.sqrt(series.shape[1])
    neighbours = (drawn[..., 1:] * drawn[..., :-1]).mean()
    assert abs(float(neighbours)) < 5 / math.sqrt(count)


def flat(scenario: Scenario) -> torch.Tensor:
    return torch.cat([value.flatten() for value in simulate(scenario).parameters.values()]).double()


@pytest.mark.parametrize(("trust", "factor"), [("central", 1.0), ("distributed", 1.0), ("local", 0.5)])
def test_the_noise_on_differences_has_its_variance_and_is_a_draw_of_its_own(trust: str, factor: float) -> None:
    def end(rounds: int, *noise: float) -> torch.Tensor:
        tables = {"rounds": rounds, "model": {"name": "mlp", "hidden": [128]}}
        return flat(private({**DIFF2, "restart": rounds}, privacy={"noise": noise, "trust": trust}, **tables))

    start = build(private(model={"name": "mlp", "hidden": [128]})).initial.double()
    calm = [start, end(1, 0.0, 0.0), end(2, 0.0, 0.0)]
    radius = 5.0 * float((calm[1] - calm[0]).norm())
    first = (end(1, 2.0, 0.0) - calm[1]) / (-0.5 * 1.0 * 2.0 * factor)
    second = (end(2, 0.0, 3.0) - calm[2]) / (-0.5 * radius * 3.0 * factor)
    count = len(second)
    for drawn in (first, second):
        assert abs(float(drawn.mean())) < 5 / math.sqrt(count)
        assert abs(float(drawn.var()) - 1) < 5 * math.sqrt(2 / count)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / math.sqrt(count)


def test_the_central_noise_is_drawn_once_a_release() -> None:
    d = 650
    found = {}
    for noise in ([0.5, 0.5], [0.0, 0.0]):
        result = simulate(private({**DIFF2, "lr": 1.0}, privacy={"noise": noise}, rounds=3))
        found[noise[0]] = torch.cat([value.flatten() for value in result.parameters.values()])
    one = simulate(private({**DIFF2, "lr": 1.0}, privacy={"noise": [0.5, 0.5]}, rounds=3))
    assert torch.equal(torch.cat([value.flatten() for value in one.parameters.values()]), found[0.5])
    assert float((found[0.5] - found[0.0]).norm()) > 0.5 * math.sqrt(d)


def test_steps_and_rows_are_inverses_and_a_restart_forgets() -> None:
    scenario = private()
    part: Any = make_estimator(scenario, np.full(4, 300))
    d = 7
    v = torch.randn(d, dtype=torch.float64)
    state = {"v": v, "at": torch.zeros(d)}
    given = torch.randn(3, d, dtype=torch.float64)
    for server_round, memory in ((2, v), (4, torch.zeros(d))):
        ctx = Round(round=server_round, state=state, parameters=torch.ones(d))
        steps = part.to_steps(given, ctx)
        torch.testing.assert_close(steps, -0.5 * (memory + given))
        torch.testing.assert_close(part.to_rows(steps, ctx), given)


def test_behind_a_filter_the_attacker_is_judged_by_its_step() -> None:
    attack = {"count": 1, "attacks": [{"name": "badnets", "target": 0}, {"name": "model_replacement"}]}
    scenario = private(
        {**DIFF2, "c1": 10.0},
        data={"clients": 8},
        client={"per_round": 8},
        adversary=attack,
        privacy={"epsilon": "inf", "trust": "local"},
        server={"estimator": {**DIFF2, "c1": 10.0}, "defenses": [{"name": "multi_metrics", "keep": 0.5}]},
    )
    result = simulate(scenario)
    for line in result.lines[1:]:
        assert not line["faults"]
        assert len(line["kept"]) == 4
        assert line["norm_malicious"] > 2 * line["norm_honest"]
        assert not line["kept_malicious"]


def test_missing_shares_end_the_round_before_anything_is_released() -> None:
    privacy = {"epsilon": 30.0, "trust": "distributed", "colluding": 1}
    calm = simulate(private(privacy=privacy))
    assert not any(line["faults"] for line in calm.lines)
    scenario = private(privacy=privacy, client={"per_round": 4, "dropout": 0.6}, rounds=8)
    lines = simulate(scenario).lines
    gone = {line["round"]: sum(fault["reason"] == "dropped out" for fault in line["faults"]) for line in lines}
    short = [line for line in lines[1:] if 1 < gone[line["round"]] < 4]
    assert short
    for line in short:
        before = lines[line["round"] - 1]
        assert any("shares of the noise came" in fault["reason"] for fault in line["faults"])
        assert not line["kept"]
        assert (line["loss"], line["accuracy"]) == (before["loss"], before["accuracy"])
    assert any(line["loss"] != lines[line["round"] - 1]["loss"] for line in lines[1:]), "others go on"


def test_a_malicious_share_counts_as_missing() -> None:
    privacy = {"epsilon": 30.0, "trust": "distributed", "colluding": 1}
    attack = {"count": 1, "attacks": ["sign_flip"]}
    client = {"per_round": 4, "dropout": 0.2}
    lines = simulate(private(privacy=privacy, adversary=attack, client=client, rounds=8)).lines
    one = [line for line in lines[1:] if sum(fault["reason"] == "dropped out" for fault in line["faults"]) == 1]
    assert one
    for line in one:
        assert any("1 of them malicious: nothing is released" in fault["reason"] for fault in line["faults"])
        assert line["loss"] == lines[line["round"] - 1]["loss"]


def test_the_local_routine_moves_one_clients_iterate() -> None:
    part = {**DIFF2, "c1": 1e9, "c2": 1e9, "subroutine": "bvr_l_sgd", "local_steps_count": 5}
    result = simulate(private(part, privacy={"epsilon": "inf"}))
    plain = simulate(private({**DIFF2, "c1": 1e9, "c2": 1e9}, privacy={"epsilon": "inf"}))
    assert not any(line["faults"] for line in result.lines)
    assert result.lines[-1]["loss"] < plain.lines[-1]["loss"]


@pytest.mark.parametrize("privacy", [{"epsilon": "inf"}, {"noise": [1.0, 1.0], "trust": "local", "claim": "none"}])
def test_the_proof_tells_of_local_steps_without_noise(privacy: dict[str, Any]) -> None:
    scenario = private({**DIFF2, "subroutine": "bvr_l_sgd", "local_steps_count": 5}, privacy=privacy)
    guarantee = build(scenario).guarantee
    assert guarantee is not None
    assert guarantee.none
    said = "\n".join(lines(scenario, guarantee))
    assert re.search(
        r"clip: none, of 5 local steps on one client's raw gradients +each client's own data +unbounded", said
    )
    assert re.search(r"noise on that client's iterate: .* 0 +5\n", said)


@pytest.mark.parametrize("batch", [32, 10_000])
def test_the_local_routine_is_the_papers(batch: int) -> None:
    part = {**DIFF2, "restart": 1, "c1": 1e12, "lr": 0.3, "subroutine": "bvr_l_sgd", "local_steps_count": 5}
    tables: dict[str, Any] = {
        "privacy": {"epsilon": "inf"},
        "engine": {"precision": "float64"},
        "client": {"per_round": 4, "batch_size": batch},
    }
    scenario = private(part, rounds=1, **tables)
    federation = build(scenario)
    module, train, layout = federation.module.double(), federation.dataset.train, federation.layout
    own = [train.take(federation.shares[client]) for client in range(4)]

    def gradient(at: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        layout.load(module, at)
        value = torch.nn.functional.cross_entropy(module(inputs.double()), targets)
        return torch.cat([each.flatten() for each in torch.autograd.grad(value, list(module.parameters()))])

    start = federation.initial.double()
    estimate = torch.stack([gradient(start, each.inputs, each.targets) for each in own]).mean(0)
    ends = []
    for client, examples in enumerate(own):
        draws = rng.stream(scenario.seed, "client.diff2.local", round=1, client=client)
        before, x, v = start, start - 0.3 * estimate, estimate
        for _ in range(4):
            size = min(batch, len(examples))
            rows = np.sort(draws.choice(len(examples), size, replace=False))
            drawn = examples.inputs[rows], examples.targets[rows]
            v = gradient(x, *drawn) - gradient(before, *drawn) + v
            before, x = x, x - 0.3 * v
        ends.append(x)
    found = flat(scenario)
    distances = [float((found - each).norm()) for each in ends]
    assert sorted(distances)[0] < 1e-10
    assert sorted(distances)[1] > 1e-4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"estimator": {**DIFF2, "restart": 9}}, "1 to rounds = 5"),
        ({"estimator": {"name": "diff2", "c1": 1.0, "c2": 1.0, "lr": 1.0}}, "either restart = T or restart_ratio"),
        ({"client": {"per_round": 3}}, "full participation"),
        ({"estimator": {**DIFF2, "subroutine": "bvr_l_sgd"}}, "touch raw data"),
        ({"privacy": {}}, 'claim = "none"'),
    ],
)
def test_what_guarantees_nothing_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        private(**changes)
    assert said in str(error.value)


@pytest.mark.parametrize(("lr", "c2"), [(1.0, 0.3), (0.001, 0.1)])
def test_a_step_in_front_of_the_noise_moves_no_further_than_its_row(lr: float, c2: float) -> None:
    """The trap: a step rounded at v's size moves by more than 2C/(nP), where C is far smaller than v."""
    part = {"name": "diff2", "restart": 50, "c1": 1.0, "c2": c2, "lr": lr}
    server = {"estimator": part, "defenses": ["norm_bound"]}
    federation = build(private(server=server, rounds=60, data={"clients": 20}, client={"per_round": 20}))
    strategy: Any = federation.strategy(federation.evaluator())
    estimator: Any = federation.estimator
    estimator.sigma = (0.0, 0.0)
    d, g = federation.layout.d, torch.Generator().manual_seed(1)
    v = torch.randn(d, generator=g, dtype=torch.float64)
    v /= v.norm()
    now = federation.initial.clone()
    before = now + (lr * v).float()
    radius = c2 * float((now.double() - before.double()).norm())
    rows, u = torch.randn(20, d, generator=g) * (0.3 * radius / d**0.5), torch.randn(d, generator=g)
    ends = []
    for moved in (0.0, 2 * radius / 600):
        changed = rows.clone()
        changed[0] += u / u.norm() * moved
        strategy._vector, strategy.outcome = now, Outcome(2, list(range(20)))
        strategy.estimator_state = {"v": v.clone(), "at": before.clone()}
        strategy._contexts = [strategy._context(i, 2, 20) for i in range(len(strategy.defenses))]
        ones = torch.ones(20, dtype=torch.float64)
        strategy._step(
            Updates(changed, ones, list(range(20)), now, kind="gradient", layout=federation.layout), strategy._contexts
        )
        ends.append(strategy.estimator_state["v"])
    exact = (2 * radius / 600) / 20
    assert float((ends[0] - ends[1]).norm()) == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("part", ["diff2", "dp_sgd"])
def test_a_deployed_node_answers_each_round_once(part: str) -> None:
    """A second answer would carry noise of its own, of which no epsilon knows."""
    local = {"epsilon": 8.0, "trust": "local"}
    trained = {"client": {"per_round": 4, "optimizer": "dp_sgd"}, "server": {}}
    scenario = private(privacy=local, **(trained if part == "dp_sgd" else {}))
    for deployed in (True, False):
        federation = build(scenario, deployed)
        app = pickle.loads(pickle.dumps(federation.app))
        kind = "train" if part == "dp_sgd" else "train.diff2"
        sent, contexts = messages(federation.app.workload, federation.initial, [0], kind=kind)
        if part == "diff2":
            sent[0].content["diff2"] = ConfigRecord({"restart": True})
        refused = []
        for server_round in (1, 1, 3, 2, 5, 6):
            sent[0].content["config"]["server-round"] = server_round
            refused.append(app.many(sent, contexts)[0].has_error())
        assert refused == ([False, True, False, True, False, True] if deployed else [False] * 6)


def test_a_node_answers_no_more_rounds_than_it_is_accounted_for() -> None:
    scenario = Scenario(
        rounds=8,
        data={"clients": 4},
        model={"name": "logistic"},
        client={"per_round": 1, "optimizer": {"name": "dp_sgd"}},
        privacy={"noise": [2.0], "trust": "local"},
    )
    federation = build(scenario, deployed=True)
    counts, _ = participation(setting_of(scenario, federation.shares.sizes))
    app = pickle.loads(pickle.dumps(federation.app))
    answered = []
    for client in range(4):
        sent, contexts = messages(federation.app.workload, federation.initial, [client])
        answered.append(0)
        for server_round in range(1, 9):
            sent[0].content["config"]["server-round"] = server_round
            answered[-1] += not app.many(sent, contexts)[0].has_error()
    assert answered == counts.tolist()
    assert sum(answered) == 8


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_behind_noise_of_its_own_a_client_answers_nothing_else(kind: str) -> None:
    federation = build(private(privacy={"epsilon": 8.0, "trust": "local"}), deployed=True)
    sent, contexts = messages(federation.app.workload, federation.initial, [0], kind=kind)
    (answer,) = federation.app.many(sent, contexts)
    assert answer.has_error()
    again = pickle.loads(pickle.dumps(federation.app))
    assert again.many(sent, contexts)[0].has_error()


@pytest.mark.parametrize(
    "privacy",
    [
        {"epsilon": "inf"},
        {"epsilon": 8.0, "unit": "client"},
        {"epsilon": 8.0, "unit": "client", "trust": "local"},
        {"claim": "none"},
        {"claim": "none", "noise": [1.0, 1.0]},
    ],
)
def test_where_no_example_counts_a_client_may_have_none(privacy: dict[str, Any]) -> None:
    partition = {"name": "dirichlet", "alpha": 0.001, "min_examples": 0}
    scenario = private(data={"clients": 30, "partition": partition}, client={"per_round": 30}, privacy=privacy)
    assert 0 in build(scenario).shares.sizes
    assert len(simulate(scenario.changed(rounds=3)).lines) == 4


def test_a_client_without_examples_sends_its_noise_all_the_same() -> None:
    partition = {"name": "dirichlet", "alpha": 0.001, "min_examples": 0}
    privacy = {"epsilon": 8.0, "unit": "client", "trust": "local"}
    federation = build(private(data={"clients": 30, "partition": partition}, client={"per_round": 30}, privacy=privacy))
    empty = int(np.argmin(federation.shares.sizes))
    records = {"diff2": ConfigRecord({"restart": True})}
    sent, contexts = messages(federation.app.workload, federation.initial, [empty], kind="train.diff2", round=1)
    sent[0].content.update(records)
    (answer,) = federation.app.many(sent, contexts)
    vector: Any = answer.content["arrays"]
    assert float(vector.vector.std()) == pytest.approx(federation.estimator.sigma[0], rel=0.2)  # type: ignore[union-attr]


@pytest.mark.parametrize("privacy", [{"epsilon": 3.0}, {"noise": [1.0, 1.0]}])
def test_a_client_without_examples_is_named(privacy: dict[str, Any]) -> None:
    partition = {"name": "dirichlet", "alpha": 0.001, "min_examples": 0}
    with pytest.raises(
        ScenarioError, match=r"given client \d+ without examples; accepted: at least one for each client"
    ):
        build(private(data={"clients": 30, "partition": partition}, client={"per_round": 30}, privacy=privacy))


def test_a_slip_is_told_with_the_rounds_that_it_lasts() -> None:
    attack = {"count": 2, "attacks": [{"name": "badnets", "target": 0}]}
    part = {**DIFF2, "restart": 4}
    tables: dict[str, Any] = {
        "data": {"clients": 8},
        "client": {"per_round": 8},
        "adversary": attack,
        "privacy": {"epsilon": 2.0, "trust": "local"},
        "rounds": 7,
    }
    filtered = {"estimator": part, "defenses": [{"name": "multi_metrics", "keep": 0.5}]}
    noisy = simulate(private(**tables, server=filtered))
    slipped = [line["round"] for line in noisy.lines if line.get("kept_malicious")]
    assert slipped
    lasts = [min(4 - (server_round - 1) % 4, 7 - server_round + 1) for server_round in slipped]
    said = next(note for note in noisy.notes if "slipped through" in note)
    assert f"in {len(slipped)} of 7 rounds" in said
    assert f"{sum(lasts) / len(lasts):.1f} rounds on average, {max(lasts)} at most" in said
    assert f"{lasts[-1]} from round {slipped[-1]}" in said
    kept = [set(line["kept"]) for line in noisy.lines[1:]]
    shares = [len((a | b) - (a & b)) / len(a | b) for a, b in pairwise(kept)]
    assert len(shares) == 6
    assert 0 < sum(shares) / 6 < 1
    told = next(note for note in noisy.notes if "of the kept set changed" in note)
    assert told.startswith(f"From one round to the next {round(100 * sum(shares) / 6)}% of the kept set changed")
    plain = simulate(private(**tables, server={"estimator": part}))
    assert not any("slipped" in note or "kept set" in note for note in plain.notes)


def test_the_central_noise_has_its_variance_and_no_memory() -> None:
    part = {"name": "dp_gd", "c1": 1e-6, "lr": 1.0}  # gradients move nothing beside noise of sd 1
    seen = [
        torch.cat([value.flatten() for value in simulate(private(part, **run)).parameters.values()]) for run in RUNS
    ]
    noise = torch.stack(seen).double().diff(dim=0)
    count = noise.numel()
    assert abs(float(noise.mean())) < 5 / math.sqrt(count)
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / count)
    correlations = torch.corrcoef(noise) - torch.eye(len(noise), dtype=torch.float64)
    assert float(correlations.abs().max()) < 5 / math.sqrt(noise.shape[1])
    assert abs(float((noise[:, 1:] * noise[:, :-1]).mean())) < 5 / math.sqrt(count)


@pytest.mark.parametrize("trust", ["central", "distributed", "local"])
def test_an_example_that_is_not_finite_decides_nothing(trust: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    inputs, labels = draw.random((40, 1, 4, 4), dtype=np.float32), draw.integers(0, 2, 40)
    inputs[7] = np.nan
    np.savez(tmp_path / "d.npz", x_train=inputs, y_train=labels, x_test=inputs[:8] % 1, y_test=labels[:8])
    data = {"clients": 4, "dataset": {"name": "npz", "path": str(tmp_path / "d.npz")}}
    found = simulate(private(data=data, privacy={"noise": [0.1, 0.1], "trust": trust}))
    assert not any(line["faults"] for line in found.lines)
    assert all(line["kept"] == [0, 1, 2, 3] for line in found.lines[1:])
    assert all(bool(value.isfinite().all()) for value in found.parameters.values())
    told = [line.get("nonfinite") for line in found.lines[1:]]
    assert told == ([1] * 5 if trust == "central" else [None] * 5)
    assert any("not finite and counted as zero" in note for note in found.notes) == (trust == "central")


@pytest.mark.parametrize("trust", ["central", "distributed"])
def test_no_gradient_is_so_long_that_its_client_is_refused(trust: str) -> None:
    steep = {**DIFF2, "c1": 0.01, "c2": 50.0, "lr": 100.0}  # differences are longer than the limit, gradients are not
    given: dict[str, Any] = {"server": {"estimator": steep, "limit": 0.01}}
    noise = {"noise": [1e-6, 1e-6]}
    claimed = simulate(private(**given, privacy={**noise, "trust": trust})).lines[1:]
    assert all(line["kept"] == [0, 1, 2, 3] and not line["faults"] for line in claimed)
    unclaimed = simulate(private(**given, privacy={**noise, "trust": trust, "claim": "none"})).lines[1:]
    assert any("beyond the limit 0.01" in fault["reason"] for line in unclaimed for fault in line["faults"])


def test_behind_a_filter_the_step_is_the_equal_mean_of_what_is_kept_whatever_clients_hold() -> None:
    """By hand from the messages: with example counts as weights it would be another step."""
    scenario = private(
        data={"clients": 8, "partition": {"name": "quantity", "min_examples": 10}},
        client={"per_round": 8},
        privacy={"noise": [1e-4, 1e-4], "trust": "local"},
        server={"estimator": {**DIFF2, "restart": 1}, "defenses": [{"name": "multi_metrics", "keep": 0.5}]},
        rounds=1,
    )
    federation = build(scenario)
    sizes = np.asarray(federation.shares.sizes, dtype=float)
    assert sizes.max() > 3 * sizes.min()
    found = simulate(scenario)
    kept = found.lines[1]["kept"]
    assert len(kept) == 4
    sent, _ = rows(scenario)
    moved = torch.cat([found.parameters[name].flatten() for name in found.parameters]).double() - federation.initial
    equal = -DIFF2["lr"] * sent[kept].double().mean(0)
    weights = torch.from_numpy(sizes[kept] / sizes[kept].sum())
    by_counts = -DIFF2["lr"] * (sent[kept].double() * weights[:, None]).sum(0)
    torch.testing.assert_close(moved, equal, rtol=1e-4, atol=1e-6)
    assert float((by_counts - equal).norm()) > 0.01 * float(equal.norm())


def test_the_central_noise_is_as_large_whoever_is_missing() -> None:
    """Of nobody's gradient, by dp_gd's own step, with all clients, some of them and one."""
    scenario = private({"name": "dp_gd", "c1": 1.0, "lr": 1.0}, privacy={"noise": [3.0]}, rounds=60)
    federation = build(scenario)
    evaluator = federation.evaluator()
    strategy: Any = federation.strategy(evaluator)
    evaluator.close()
    d = federation.layout.d
    for present in ([0, 1, 2, 3], [1, 3], [2]):
        steps = []
        for server_round in range(1, 41):
            none = torch.zeros(len(present), d)
            counts = torch.ones(len(present), dtype=torch.float64)
            updates = Updates(none, counts, present, torch.zeros(d), layout=federation.layout)
            steps.append(strategy.preview(updates, server_round).double())
        noise = torch.stack(steps)[:, :d]
        assert float(noise.std()) == pytest.approx(3.0, rel=5 / math.sqrt(2 * noise.numel()))
        assert abs(float(noise.mean())) < 5 * 3.0 / math.sqrt(noise.numel())
