"""Streams are independent of each other, and their numbers do not change."""

from __future__ import annotations

import itertools
import pickle
import random
from contextlib import suppress

import numpy as np
import pytest
import torch

from attacks.attack import Compromised
from fedsim import registry, rng
from fedsim.errors import ScenarioError
from fedsim.federation import build
from fedsim.scenario import Scenario, override
from fedsim.testing import attacks as toy
from strategies.defense import Round

GRID = list(
    itertools.product((0, 1, 2**32, 2**63 - 1), ("a", "b", "client.shuffle", ""), (0, 1, 2, 2**31), (-1, 0, 1, 999_999))
)


def test_no_two_keys_share_numbers() -> None:
    streams = {rng.stream(s, p, round=r, client=c).bytes(16) for s, p, r, c in GRID}
    assert len(streams) == len(GRID)
    integers = {rng.integer(s, p, round=r, client=c) for s, p, r, c in GRID}
    assert len(integers) == len(GRID)
    assert all(0 <= number < 2**63 for number in integers)


def test_a_key_gives_the_same_numbers_each_time() -> None:
    for s, p, r, c in GRID[::7]:
        one, two = rng.stream(s, p, round=r, client=c), rng.stream(s, p, round=r, client=c)
        assert np.array_equal(one.random(5), two.random(5))


def test_streams_of_neighbours_do_not_correlate() -> None:
    draws = np.array([rng.stream(0, "x", round=r, client=c).standard_normal(2000) for r in range(5) for c in range(8)])
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)


def test_the_numbers_are_those_of_numpys_seed_sequence() -> None:
    import hashlib

    digest = hashlib.sha256(b"client.shuffle").digest()
    words = np.frombuffer(digest[:8], dtype="<u4")
    sequence = np.random.SeedSequence(7, spawn_key=(int(words[0]), int(words[1]), 3, 5))
    expected = np.random.Generator(np.random.PCG64(sequence)).random(4)
    assert np.array_equal(rng.stream(7, "client.shuffle", round=3, client=4).random(4), expected)


def test_the_numbers_never_change() -> None:
    """Every run that was ever recorded stands on these."""
    assert rng.stream(0, "server.sample").integers(0, 2**32, 3).tolist() == [1916660793, 1780797879, 626191856]
    assert rng.integer(1, "client.shuffle", round=2, client=3) == 4941197215147240880


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_a_seed_is_an_integer_from_zero(seed: float) -> None:
    with pytest.raises((ValueError, TypeError)):
        rng.stream(seed, "x")  # type: ignore[arg-type]


def test_torch_streams_stand_on_the_same_key() -> None:
    def draw(*key: object, **more: int) -> list[float]:
        return torch.rand(4, generator=rng.torch_stream(*key, **more)).tolist()  # type: ignore[arg-type]

    assert draw(0, "a", round=1) == draw(0, "a", round=1)
    assert len({tuple(draw(s, p, round=r)) for s in (0, 1) for p in ("a", "b") for r in (0, 1)}) == 8
    assert rng.torch_stream(0, "a").initial_seed() == rng.integer(0, "a")


def test_global_states_are_seeded_and_restored() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = [draw(), draw()]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    found = [draw()]
    with rng.global_states(3, "guest", round=2):
        inside = draw()
    with suppress(RuntimeError), rng.global_states(3, "guest", round=3):
        other = draw()
        raise RuntimeError
    found.append(draw())
    assert found == expected
    assert all(a != b for a, b in zip(inside, other, strict=True))
    with rng.global_states(3, "guest", round=2):
        assert draw() == inside


def test_streams_give_the_same_numbers_of_their_subjects_alone_and_not_the_seed():
    given = rng.Streams(12345, "attack", "data.tail")
    assert (
        given.stream("attack.x", round=2, client=3).random()
        == rng.stream(12345, "attack.x", round=2, client=3).random()
    )
    assert given.integer("data.tail.a") == rng.integer(12345, "data.tail.a")
    drawn, expected = (
        torch.rand(3, generator=one) for one in (given.torch_stream("attack.n"), rng.torch_stream(12345, "attack.n"))
    )
    assert torch.equal(drawn, expected)
    for other in ("server.krum.noise", "attacker.x", "attack"):
        with pytest.raises(ValueError, match=r"accepted: 'attack\.…' or 'data\.tail\.…'"):
            given.stream(other)
    assert pickle.loads(pickle.dumps(given)) == given != rng.Streams(1, "attack", "data.tail")
    public = [getattr(given, name) for name in dir(given) if not name.startswith("_")]
    assert 12345 not in public
    assert "12345" not in repr(given)


def test_neither_attack_nor_defense_is_handed_the_seed():
    node = Compromised(0, 0, 1, 1, 12345, 10)
    ctx = Round(seed=12345, part="krum")
    craft = toy.context(*toy.federation())
    for each in (node, ctx, craft):
        with pytest.raises(AttributeError):
            _ = each.seed
        assert not [value for value in vars(each).values() if isinstance(value, int) and value == 12345]
        assert "12345" not in repr(each)
    assert ctx.stream("x").random() == rng.stream(12345, "server.krum.x").random()
    assert node.stream("x").random() == rng.stream(12345, "attack.x", client=0).random()


NOSY = """
from attacks.attack import Attack, attack
from strategies.defense import Defense, defense


class Nosy:
    seen = []

    def check(self, scenario):
        Nosy.seen.append(type(self).__name__)
        Nosy.seen.append(READ)
        return ()


class Attacks(Nosy, Attack):
    def craft(self, rows, ctx):
        return -rows


class Defends(Nosy, Defense):
    def finish(self, parameters, ctx):
        return parameters
"""


@pytest.mark.parametrize(
    "read", ["scenario.seed", "scenario.matrix", "getattr(scenario, 'seed', 7)", "scenario.title", "scenario.plugins"]
)
@pytest.mark.parametrize(("key", "name"), [("adversary.attacks", "Attacks"), ("server.defenses", "Defends")])
def test_no_check_of_an_attack_or_a_defense_is_handed_the_seed(tmp_path, key, name, read):
    file = tmp_path / "nosy.py"
    file.write_text(NOSY.replace("READ", read))
    part = f"{file}:{name}"
    with pytest.raises(ScenarioError) as caught:
        Scenario(**override({"seed": 12345, "adversary": {"count": 1, "attacks": ["sign_flip"]}}, {key: [part]}))
    (fault,) = caught.value.faults
    assert fault.key == f"{key}[0]"
    what = next(name for name in ("matrix", "title", "plugins", "seed") if name in read)
    assert f"it reached for {what}: hidden from every " in fault.accepted
    assert registry.get(key.rpartition(".")[2][:-1], part).seen == [name], "it read on"


def test_a_defense_that_adds_noise_is_told_neither_seed_nor_attackers(tmp_path):
    file = tmp_path / "noisy.py"
    file.write_text(
        "from strategies.dp_fedavg import DpFedAvg\n\n\nclass Noisy(DpFedAvg):\n    told = []\n\n"
        "    def set_up(self, setting):\n        super().set_up(setting)\n"
        "        Noisy.told.append((setting.seed, setting.attackers))\n"
    )
    part = f"{file}:Noisy"
    scenario = Scenario(
        seed=12345,
        adversary={"count": 2, "attacks": ["sign_flip"]},
        server={"defenses": [part]},
        privacy={"noise": [1.0], "unit": "client", "claim": "none"},
    )
    federation = build(scenario)
    federation.strategy(federation.evaluator())
    told = registry.get("defense", part).told
    assert len(told) == 2
    assert set(told) == {(None, 0)}


def test_an_estimator_is_not_told_the_seed():
    scenario = Scenario(
        seed=12345,
        adversary={"count": 2, "attacks": ["sign_flip"]},
        server={"estimator": {"name": "diff2", "c1": 1.0, "c2": 1.0, "lr": 0.1, "restart": 4}},
        privacy={"noise": [1.0, 1.0], "claim": "none"},
    )
    told = build(scenario).estimator.setting
    assert (told.seed, told.attackers) == (None, 2)
