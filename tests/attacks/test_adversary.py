"""Who attacks, when, and what it sees."""

from __future__ import annotations

import tracemalloc
from typing import ClassVar

import numpy as np
import pytest
import torch

from attacks.adversary import Adversary
from attacks.attack import Attack
from fedsim import registry
from fedsim.errors import FedsimError, KnowledgeError, ScenarioError
from fedsim.launch import twin
from fedsim.scenario import Scenario, override
from fedsim.testing.attacks import federation


def flip():
    return registry.make("attack", "sign_flip")


def adversary(attacks=None, population=100, **options):
    return Adversary([flip()] if attacks is None else attacks, population, rounds=20, **options)


def active_rounds(name, **options):
    schedule = registry.make("schedule", name, **options)
    return [round for round in range(1, 21) if schedule.active(round, 20)]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("every_round", {}, list(range(1, 21))),
        ("fixed_frequency", {"every": 7}, [7, 14]),
        ("fixed_frequency", {"every": 7, "start": 1}, [1, 8, 15]),
        ("fixed_frequency", {"every": 3, "start": 15}, [15, 18]),
        ("window", {"start": 4, "stop": 6}, [4, 5, 6]),
        ("window", {"start": 18}, [18, 19, 20]),
        ("single_shot", {"round": 9}, [9]),
        ("single_shot", {}, [20]),
        ("rounds", {"rounds": [2, 3, 11]}, [2, 3, 11]),
    ],
)
def test_schedules(name, options, expected):
    assert active_rounds(name, **options) == expected


def test_pool_is_drawn_by_the_seed_and_is_not_the_first_clients():
    pools = [tuple(adversary(fraction=0.1, seed=seed).pool) for seed in range(30)]
    assert all(len(set(pool)) == 10 and list(pool) == sorted(pool) for pool in pools)
    assert len(set(pools)) == 30
    assert tuple(range(10)) not in pools
    assert sum(0 in pool for pool in pools) < 12
    singles = {int(adversary(count=1, seed=seed).pool[0]) for seed in range(30)}
    assert len(singles) > 20
    assert pools[3] == tuple(adversary(fraction=0.1, seed=3).pool)


def test_pool_sizes():
    assert len(adversary(fraction=0.3, population=10)) == 3
    assert len(adversary(count=7)) == 7
    assert len(adversary(fraction=1.0)) == 100
    assert len(adversary(count=0)) == 0
    with pytest.raises(ScenarioError, match=r"accepted: 0 to data\.clients = 100"):
        adversary(count=101)


def test_malicious_are_the_held_ones_in_attack_rounds():
    enemy = adversary(fraction=0.2, schedule=registry.make("schedule", "fixed_frequency", every=5))
    cohort = list(range(99, -1, -1))
    assert enemy.malicious(cohort, 5) == enemy.pool.tolist()
    assert enemy.malicious(cohort, 6) == []
    assert enemy.malicious([c for c in cohort if c not in set(enemy.pool.tolist())], 5) == []
    assert [enemy.rank(client) for client in enemy.pool.tolist()] == list(range(20))
    honest = next(client for client in range(100) if client not in enemy.pool)
    with pytest.raises(FedsimError, match=f"client {honest}"):
        enemy.rank(honest)


def test_no_clients_no_attack():
    enemy = adversary(count=0)
    assert not enemy.active(1)
    assert enemy.malicious(range(100), 1) == []
    assert enemy.force(1, [3, 1, 2]) == ([3, 1, 2], [])


def test_forced_attacker_replaces_the_first_honest_draw_and_nothing_else():
    enemy = adversary(count=3, selection="forced", schedule=registry.make("schedule", "fixed_frequency", every=2))
    honest = [client for client in range(100) if client not in enemy.pool]
    drawn = honest[40:50]
    cohort, replaced = enemy.force(2, drawn)
    assert len(replaced) == 1
    attacker, gone = replaced[0]
    assert attacker in enemy.pool
    assert gone == drawn[0]
    assert cohort == [attacker, *drawn[1:]]
    assert enemy.force(3, drawn) == (drawn, [])
    assert enemy.force(2, drawn) == (cohort, replaced)


def test_forced_leaves_a_cohort_that_holds_enough():
    enemy = adversary(count=3, selection="forced", forced=2)
    honest = [client for client in range(100) if client not in enemy.pool]
    drawn = [int(enemy.pool[1]), *honest[:5]]
    cohort, replaced = enemy.force(1, drawn)
    assert len(replaced) == 1
    assert cohort[0] == drawn[0]
    assert cohort[2:] == drawn[2:]
    assert len(set(cohort)) == 6
    assert enemy.holds(cohort).sum() == 2
    full = [*enemy.pool.tolist(), *honest[:2]]
    assert enemy.force(1, full) == (full, [])
    assert enemy.force(1, [honest[0]])[0][0] in enemy.pool


def test_every_attacker_is_forced_in_some_round():
    enemy = adversary(count=4, selection="forced")
    honest = [client for client in range(100) if client not in enemy.pool]
    forced = {enemy.force(round, honest[:5])[1][0][0] for round in range(1, 60)}
    assert forced == set(enemy.pool.tolist())


def test_sampling_from_a_pool_changes_no_cohort():
    enemy = adversary(count=30)
    assert enemy.force(1, [5, 3, 99]) == ([5, 3, 99], [])


def test_a_million_clients_cost_nothing_per_round():
    enemy = adversary(population=1_000_000, fraction=0.1)
    cohort = np.random.default_rng(0).permutation(1_000_000)[:200]
    truth = set(enemy.pool.tolist())
    tracemalloc.start()
    found = enemy.malicious(cohort, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == sorted(int(c) for c in cohort if int(c) in truth)
    assert peak < 100_000


class Spy(Attack):
    """Notes on its class, which all clients share, what it is shown."""

    seen: ClassVar[list] = []

    def __init__(self):
        Spy.seen = []

    def craft(self, rows, ctx):
        self.seen.append(ctx)
        ctx.state["times"] = ctx.state.get("times", 0) + 1
        return rows


def sees(knowledge, **options):
    spy, state = Spy(), {}
    rows, honest = federation()
    enemy = Adversary([spy], 20, count=3, knowledge=knowledge, **options)
    server = lambda sent, claimed: rows.reference + sent.mean(0)  # noqa: E731
    for round in (1, 2):
        enemy.craft(rows, honest, round=round, num_clients=11, server=server, state=state)
    return spy.seen, state


def test_own_knowledge_is_one_row_a_client():
    seen, state = sees("own")
    assert [ctx.rows.shape[0] for ctx in seen] == [1] * 6
    assert [ctx.clients for ctx in seen] == [[2], [5], [11]] * 2
    assert [ctx.num_malicious for ctx in seen] == [3] * 6
    assert state == {"0.Spy": {"2": {"times": 2}, "5": {"times": 2}, "11": {"times": 2}}}
    with pytest.raises(KnowledgeError, match="knowledge = 'own'"):
        seen[0].honest()


def test_colluding_knowledge_is_the_malicious_rows():
    seen, state = sees("colluding")
    assert [ctx.rows.shape[0] for ctx in seen] == [3, 3]
    assert state == {"0.Spy": {"times": 2}}
    assert not seen[0].omniscient
    for reach in (lambda ctx: ctx.honest(), lambda ctx: ctx.honest_rows, lambda ctx: ctx.honest_examples):
        with pytest.raises(
            KnowledgeError, match=r"knowledge = 'colluding'; accepted: adversary\.knowledge = 'omniscient'"
        ):
            reach(seen[0])
    with pytest.raises(KnowledgeError):
        getattr(seen[0], "honest_rows", None)
    assert "honest_rows" not in repr(seen[0])
    with pytest.raises(KnowledgeError, match="knows_defense"):
        seen[0].preview(seen[0].rows)


class Reaching(Attack):
    def craft(self, rows, ctx):
        return -ctx.honest_rows.mean(0).expand_as(rows)


@pytest.mark.parametrize("knowledge", ["own", "colluding"])
def test_who_reaches_for_honest_rows_is_named_with_the_knowledge_that_it_takes(knowledge):
    rows, honest = federation()
    said = (
        rf"the attack 'Reaching' \(adversary\.attacks\[1\]\) reached for honest rows: given knowledge = '{knowledge}'"
    )
    with pytest.raises(KnowledgeError, match=said):
        adversary([flip(), Reaching()], count=3, knowledge=knowledge).craft(rows, honest, round=1, num_clients=11)


class Claiming(Attack):
    def claimed_examples(self, num_examples, ctx):
        return num_examples + ctx.honest_examples.sum()


def test_who_claims_by_what_is_hidden_is_named_too():
    rows, honest = federation()
    said = r"the attack 'Claiming' \(adversary\.attacks\[0\]\) reached for honest examples: given knowledge = 'own'"
    with pytest.raises(KnowledgeError, match=said):
        adversary([Claiming()], count=3, knowledge="own").craft(rows, honest, round=1, num_clients=11)


def test_a_misspelt_field_is_no_matter_of_knowledge():
    with pytest.raises(AttributeError, match="honest_row"):
        sees("omniscient")[0][0].honest_row  # noqa: B018


def test_omniscience_shows_the_honest_rows_and_the_defense_only_by_right():
    seen, _ = sees("omniscient")
    assert seen[0].honest().shape == (8, 60)
    with pytest.raises(KnowledgeError):
        seen[0].preview(seen[0].rows)
    seen, _ = sees("omniscient", knows_defense=True)
    assert torch.equal(seen[0].preview(seen[0].rows), seen[0].reference + seen[0].rows.mean(0))


def test_attacks_that_need_more_are_refused():
    with pytest.raises(ScenarioError, match=r"adversary\.knowledge: given 'colluding'; accepted: 'omniscient'.*ipm"):
        adversary([registry.make("attack", "ipm")], count=1, knowledge="colluding")
    with pytest.raises(ScenarioError, match="knows_defense"):
        adversary(count=1, knowledge="own", knows_defense=True)
    with pytest.raises(ScenarioError, match="own, colluding or omniscient"):
        adversary(count=1, knowledge="all")


def test_attacks_work_on_what_the_ones_before_left_but_see_what_was_trained():
    rows, honest = federation(dtype=torch.float64)
    replaced = registry.make("attack", "model_replacement", scale=3.0)
    crafted, _ = adversary([flip(), replaced], count=3).craft(rows, honest, round=1, num_clients=11)
    assert torch.equal(crafted, -3 * rows.values)
    alie = registry.make("attack", "alie", z=0.0)
    crafted, _ = adversary([flip(), alie], count=3).craft(rows, honest, round=1, num_clients=11)
    torch.testing.assert_close(crafted, rows.values.mean(0).expand(3, -1))


def test_claimed_example_counts():
    rows, honest = federation()
    _, counts = adversary(count=3).craft(rows, honest, round=1, num_clients=11)
    assert torch.equal(counts, rows.num_examples)
    _, counts = adversary(count=3, claim=1000).craft(rows, honest, round=1, num_clients=11)
    assert counts.tolist() == [1000.0] * 3
    assert rows.num_examples.tolist() == [10, 11, 12]
    assert honest.num_examples.tolist() == list(range(13, 21))


def test_no_attack_knows_which_defense_stands_in_front_of_it():
    """fedsim hands no attack the defense: the same options do the same under every scenario."""
    from dataclasses import fields

    from attacks.attack import Compromised, Craft, LocalStep

    for given in (Compromised, Craft, LocalStep):
        assert not {"defense", "defenses", "scenario", "strategy"} & {each.name for each in fields(given)}


READS = """
from attacks.attack import Attack
from attacks.schedule import Schedule
from strategies.defense import Defense


class Reads:
    def check(self, scenario):
        Reads.seen = READ
        return ()


class Attacks(Reads, Attack):
    def craft(self, rows, ctx):
        return -rows


class Waits(Reads, Schedule):
    def active(self, round, rounds):
        return True


class Defends(Reads, Defense):
    def finish(self, parameters, ctx):
        return parameters
"""


def reading(folder, read, key, part, **adversary):
    """What a part saw that reads this in its ``check``, or what was said of it."""
    file = folder / "reads.py"
    file.write_text(READS.replace("READ", read))
    table = {"adversary": {"count": 2, "attacks": ["sign_flip"], **adversary}, "server": {"defenses": ["median"]}}
    name = f"{file}:{part}"
    try:
        Scenario(**override(table, {key: name if part == "Waits" else [name]}))
    except ScenarioError as error:
        (fault,) = error.faults
        assert fault.key.removesuffix("[0]") == key
        return fault.accepted
    return registry.get({"Attacks": "attack", "Waits": "schedule", "Defends": "defense"}[part], name).seen


@pytest.mark.parametrize(("key", "part"), [("adversary.attacks", "Attacks"), ("adversary.schedule", "Waits")])
def test_no_check_of_the_adversarys_parts_reads_the_defense_without_the_right(tmp_path, key, part):
    for read in ("scenario.server.defenses[0].name", "scenario.server.estimator", "scenario.guest"):
        said = reading(tmp_path, read, key, part)
        assert "it reached for server." in said
        assert said.endswith("accepted: adversary.knows_defense = true with adversary.knowledge = 'omniscient'")
    rights = {"knowledge": "omniscient", "knows_defense": True}
    assert reading(tmp_path, "scenario.server.defenses[0].name", key, part, **rights) == "median"
    assert reading(tmp_path, "(scenario.attackers, scenario.cohort, scenario.server.limit)", key, part) == (2, 10, 1e8)


def test_no_check_of_a_defense_reads_the_adversary(tmp_path):
    for read in ("scenario.adversary.attacks", "scenario.attackers"):
        assert "it reached for adversary: hidden" in reading(tmp_path, read, "server.defenses", "Defends")
    assert reading(tmp_path, "scenario.cohort", "server.defenses", "Defends") == 10


class Remembers(Attack):
    """Sends the mean of all rows that it was ever given."""

    knowledge = "own"

    def __init__(self):
        self.seen = []

    def craft(self, rows, ctx):
        self.seen.append(rows)
        return torch.cat(self.seen).mean(dim=0, keepdim=True).expand_as(rows).clone()


def test_under_own_no_client_remembers_what_another_was_given():
    rows, honest = federation()
    who = adversary([Remembers()], knowledge="own", count=3)
    first, _ = who.craft(rows, honest, round=1, num_clients=11)
    assert torch.equal(first, rows.values)
    later, _ = federation(seed=1)
    second, _ = who.craft(later, honest, round=2, num_clients=11)
    assert torch.allclose(second, (rows.values + later.values) / 2), "what it remembers of its own stays"


def test_pgd_radius_is_the_same_in_every_round():
    from attacks.attack import Compromised, LocalStep

    attack = registry.make("attack", "pgd", epsilon=1.5)
    norms = []
    for round in (1, 50, 200):
        parameters = torch.full((1, 40), 9.0)
        node = Compromised(3, 0, 1, round, 0, 10)
        attack.after_step(parameters, LocalStep(torch.zeros(40), 10, torch.tensor([False]), (node,)))
        norms.append(float(parameters.norm()))
    assert norms == [pytest.approx(1.5, rel=1e-6)] * 3
    assert len(set(norms)) == 1


class Curious(Attack):
    """Notes what it is given."""

    trains, tests, given = False, False, ()

    def trains_on_others(self):
        return self.trains

    def reads_tests(self):
        return self.tests

    def prepare(self, train, test, *, num_classes, streams):
        self.given = (len(train), len(test), tuple(train.inputs.shape[1:]), tuple(test.inputs.shape[1:]))


def curious(trains, tests):
    part = Curious()
    part.trains, part.tests = trains, tests
    return part


@pytest.mark.parametrize("rights", [{"examples": "population"}, {"knowledge": "omniscient"}])
@pytest.mark.parametrize(("trains", "tests"), [(False, False), (True, False), (False, True)])
def test_prepare_is_given_what_the_attack_declares_and_no_more(trains, tests, rights):
    data = registry.make("dataset", "digits").load()
    part, shape = curious(trains, tests), tuple(data.train.inputs.shape[1:])
    adversary([part], **rights).prepare(data.train, data.test, num_classes=10)
    assert part.given == (len(data.train) * trains, len(data.test) * tests, shape, shape)


@pytest.mark.parametrize("rights", [{}, {"knowledge": "own"}, {"knowledge": "omniscient", "examples": "own"}])
@pytest.mark.parametrize(("trains", "tests", "what"), [(True, False, "other clients"), (False, True, "test examples")])
def test_examples_that_the_scenario_does_not_grant_are_refused(trains, tests, what, rights):
    data = registry.make("dataset", "digits").load()
    part = curious(trains, tests)
    with pytest.raises(KnowledgeError, match=f"{what}: given .*accepted: adversary.examples = 'population'"):
        adversary([part], **rights).prepare(data.train, data.test, num_classes=10)
    assert part.given == ()


def test_attacks_whose_papers_give_them_sources_have_them_until_the_scenario_takes_them_away():
    data = registry.make("dataset", "digits").load()
    images = (data.train, data.test)
    for part in (registry.make("attack", "semantic"), registry.make("attack", "edge_case", mode="lowest_density")):
        adversary([part], knowledge="own").prepare(*images, num_classes=10)
        with pytest.raises(KnowledgeError, match=f"'{part.name}'.*other clients"):
            adversary([part], knowledge="own", examples="own").prepare(*images, num_classes=10)


PLUGIN = """
from attacks.attack import Attack, attack

@attack("sourced_plugin")
class Sourced(Attack):
    \"\"\"Trains on what others hold.\"\"\"

    def trains_on_others(self):
        return True

    def triggered(self, test):
        return test
"""


def test_a_scenario_says_which_attack_needs_the_right_and_loads_with_it(tmp_path):
    file = tmp_path / "sourced.py"
    file.write_text(PLUGIN)
    tables = {"plugins": [str(file)], "adversary": {"count": 2, "attacks": ["sourced_plugin"], "knowledge": "own"}}
    with pytest.raises(ScenarioError, match=r"adversary.examples.*'population', which the attack 'sourced_plugin'"):
        Scenario(**tables)
    for right in ({"examples": "population"}, {"knowledge": "omniscient"}):
        scenario = Scenario(**tables | {"adversary": tables["adversary"] | right})
        assert twin(scenario).adversary.examples == "population"


def test_the_right_left_unsaid_is_no_part_of_a_scenario_s_table():
    scenario = Scenario(adversary={"count": 2, "attacks": ["semantic"]})
    assert "examples" not in scenario.table()["adversary"]
    assert "examples" not in twin(scenario).table()["adversary"]
    with pytest.raises(ScenarioError, match=r"adversary.examples.*'own'.*'population', which the attack 'semantic'"):
        scenario.changed(**{"adversary.examples": "own"})


class Boaster(Spy):
    """Claims ten times what it has."""

    def claimed_examples(self, counts, ctx):
        return counts * 10


def test_a_preview_counts_the_examples_that_the_attack_claims():
    rows, honest = federation()
    asked = []

    def server(sent, claimed):
        asked.append(claimed)
        return rows.reference

    boaster = Boaster()
    enemy = Adversary([boaster], 20, count=3, knowledge="omniscient", knows_defense=True)
    _, claimed = enemy.craft(rows, honest, round=1, num_clients=11, server=server, state={})
    boaster.seen[0].preview(rows.values)
    assert torch.equal(asked[-1], claimed)
    assert torch.equal(claimed, rows.num_examples * 10)
