"""What the adversary sees: previews are what the server then does, every message passes ``observe``, read-only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from attacks.adversary import Adversary
from fedsim import flower, registry
from fedsim.federation import build
from fedsim.grids.local import LocalGrid
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from tests.simulation.test_exchanges import PART
from tests.simulation.test_hostile import Mischief, Trick, reasons, same_model, scenario
from tests.simulation.test_runs import small

WATCHING = f"{Path(__file__).with_name('watching.py')}:Watching"
SERVERS: dict[str, dict[str, Any]] = {
    "filter": {"defenses": [{"name": "multi_metrics", "keep": 0.5}, "median"]},
    "memory": {"defenses": ["centered_clipping"], "optimizer": {"name": "adam", "lr": 0.01}},
    "krum": {"defenses": [{"name": "krum", "malicious": 1}], "optimizer": {"name": "sgd", "momentum": 0.9}},
    "poisson": {"defenses": ["nnm", "trimmed_mean"], "sampler": {"name": "poisson", "rate": 0.6}},
}


def watched(server: dict[str, Any], **options: Any) -> Scenario:
    adversary = {
        "count": 3,
        "knowledge": "omniscient",
        "knows_defense": True,
        "attacks": [{"name": WATCHING, **options}],
    }
    return small(server=server, adversary=adversary, **{"engine.precision": "float64"})


def plug_in() -> Any:
    found = registry.get("attack", WATCHING)
    sys.modules[found.__module__].none_seen()
    return found


@pytest.mark.parametrize("huge", [False, True], ids=["turned", "huge"])
@pytest.mark.parametrize("name", SERVERS)
def test_a_preview_is_what_the_server_then_does_and_changes_nothing(name: str, huge: bool) -> None:
    """Also where the server refuses the rows: they are named, not believed."""
    watching = plug_in()
    case = watched(SERVERS[name], huge=huge)
    result = simulate(case)
    final = torch.cat([tensor.flatten() for tensor in result.parameters.values()])
    sent = {**watching.received, case.rounds + 1: final}
    checked = [round for round in watching.previews if round + 1 in sent]
    assert checked
    for round in checked:
        torch.testing.assert_close(watching.previews[round], sent[round + 1], rtol=1e-12, atol=1e-14)


def test_every_message_is_observed_and_none_is_changed() -> None:
    watching = plug_in()
    case = small(server={"defenses": [PART, "median"]}, adversary={"count": 0, "attacks": [{"name": WATCHING}], **ALL})
    result = simulate(case)
    without = simulate(small(server={"defenses": [PART, "median"]}, adversary={}))
    assert same_model(result, without)
    kinds = ("query.visits", "train", "train.vote")
    for kind in kinds:
        nodes = [node for found, node, answered in watching.seen if found == kind and answered]
        cohorts = [client + flower.FIRST_NODE for line in result.lines for client in line["cohort"]]
        assert nodes == cohorts
    assert {found for found, _, _ in watching.seen} == {*kinds, "evaluate"}


@pytest.mark.parametrize("knowledge", ["own", "colluding", "omniscient"])
def test_other_clients_messages_pass_an_adversary_that_is_not_omniscient_unseen(knowledge: str) -> None:
    watching = plug_in()
    overhearing = {"name": WATCHING.replace(":Watching", ":Overhearing")}
    case = small(adversary={"count": 3, "knowledge": knowledge, "attacks": [overhearing]})
    result = simulate(case)
    held = {int(client) + flower.FIRST_NODE for client in Adversary.of(case).pool}
    asked = {client + flower.FIRST_NODE for line in result.lines for client in line["cohort"]}
    seen = {node for kind, node, answered in watching.seen if kind == "train" and answered}
    assert asked - held
    assert asked & held
    assert seen == (asked if knowledge == "omniscient" else asked & held)


ALL = {"knowledge": "omniscient", "knows_defense": True}


def content(**records: Any) -> Trick:
    def trick(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
        return [flower.with_content(reply, RecordDict(records))]

    return trick


def twice(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
    return [reply, reply]


def silent(reply: Message, arrays: ArrayRecord, metrics: MetricRecord) -> list[Message]:
    return []


TRICKS: dict[int, tuple[Trick, str]] = {
    0: (content(), "not like those of most"),
    3: (content(visits=MetricRecord({"count": float("nan")})), "not finite"),
    4: (content(visits=MetricRecord({"counts": 1})), "not like those of most"),
    6: (content(visits=MetricRecord({"count": [1, 2]})), "not like those of most"),
    7: (content(visits=ArrayRecord({"count": torch.ones(1)})), "not like those of most"),
    9: (twice, "a second reply"),
    11: (silent, "no reply"),
    12: (content(x=ArrayRecord({"x": torch.full((2,), 1e30)})), "beyond the limit"),
}


def test_hostile_replies_in_an_exchange_are_named_and_left_out() -> None:
    case = scenario(PART)
    with LocalGrid(build(case).app, case.data.clients) as inner:
        tricks = {client: trick for client, (trick, _) in TRICKS.items()}
        result = simulate(case, grid=Mischief(inner, tricks, kind="query.visits"))
    assert same_model(result, simulate(case))
    for line in result.lines[1:]:
        assert reasons(line).keys() == TRICKS.keys()
        for client, reason in reasons(line).items():
            assert reason.startswith("visits: ")
            assert TRICKS[client][1] in reason


@pytest.mark.parametrize("kind", ["query.visits", "train.vote"])
def test_an_exchange_that_no_one_answers_skips_the_round(kind: str) -> None:
    case = scenario(PART)
    with LocalGrid(build(case).app, case.data.clients) as inner:
        tricks = dict.fromkeys(range(case.data.clients), silent)
        result = simulate(case, grid=Mischief(inner, tricks, kind=kind, rounds=[2]))
    assert result.finished
    assert "round skipped: " in reasons(result.lines[2])[-1]
    assert result.lines[2]["accuracy"] == result.lines[1]["accuracy"]
    assert result.lines[3]["loss"] != result.lines[2]["loss"]


def test_a_preview_does_not_show_the_servers_dice() -> None:
    watching = plug_in()
    noisy = {"defenses": [{"name": "weak_dp", "radius": 100.0, "noise": 0.01}]}
    case = watched(noisy, huge=False)
    simulate(case)
    checked = [round for round in watching.previews if round + 1 in watching.received]
    assert checked
    for round in checked:
        off = watching.previews[round] - watching.received[round + 1]
        assert 0.008 < float(off.std()) < 0.03
