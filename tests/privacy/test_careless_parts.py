"""Parts of one's own beside a claim of privacy: what would make its epsilon false is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import FedsimError, ScenarioError
from fedsim.federation import build
from fedsim.privacy.proof import Stage, stages
from fedsim.registry import names
from fedsim.scenario import Scenario
from fedsim.scenario_privacy import reads_of
from fedsim.simulation import simulate

FILE = str(Path(__file__).with_name("careless_parts.py"))
DIFF2 = {"estimator": {"name": "diff2", "restart": 2, "c1": 1.0, "c2": 1.0, "lr": 0.1}}
LOCAL: dict[str, Any] = {"privacy": {"noise": [1.0], "trust": "local"}}
CENTRAL: dict[str, Any] = {"privacy": {"noise": [1.0, 1.0]}, "server": DIFF2}
CLIENTS: dict[str, Any] = {"privacy": {"noise": [1.0], "unit": "client"}, "server": {"defenses": ["dp_fedavg"]}}
SGD = {"per_round": 6, "optimizer": "dp_sgd"}


def own(name: str) -> str:
    return f"{FILE}:{name}"


def private(**changes: Any) -> Scenario:
    tables: dict[str, Any] = {
        "rounds": 2,
        "data": {"clients": 6},
        "model": {"name": "logistic"},
        "client": {"per_round": 6},
    }
    return Scenario(**{**tables, **changes})


@pytest.mark.parametrize("base", [{**LOCAL, "client": SGD}, CENTRAL], ids=["dp_sgd", "diff2"])
def test_a_loss_that_mixes_examples_is_refused(base: dict[str, Any]) -> None:
    client = base.get("client", {"per_round": 6})
    with pytest.raises(ScenarioError, match=r"client\.loss: given '.*:Mixing'.*no clip bounds"):
        build(private(**{**base, "client": {**client, "loss": own("Mixing")}}))
    build(private(**{**base, "client": {**client, "loss": own("Doubled")}}))


def test_what_a_class_of_another_file_releases_is_not_what_its_parent_says() -> None:
    """Its noise, its clip or its calibration may be another: it has to say so itself."""
    options = DIFF2["estimator"] | {"name": own("Quieter")}
    changed: list[dict[str, Any]] = [
        {**CENTRAL, "server": {"estimator": options}},
        {**CLIENTS, "server": {"defenses": [own("Loose")]}},
        {**LOCAL, "client": {**SGD, "optimizer": own("Hasty")}},
    ]
    for base in changed:
        with pytest.raises(ScenarioError, match=r"a part whose own file says what it releases \(publications\)"):
            build(private(**base))
        build(private(**{**base, "privacy": {**base["privacy"], "claim": "none"}}))
    guarantee = build(private(**{**CENTRAL, "server": {"estimator": {**options, "name": own("Louder")}}})).guarantee
    assert guarantee is not None
    assert not guarantee.none


def test_where_whole_clients_are_protected_a_loss_may_mix() -> None:
    build(private(**CLIENTS, client={"per_round": 6, "loss": own("Mixing")}))


def test_a_view_that_mixes_a_clients_examples_is_refused() -> None:
    data = {"clients": 6, "dataset": "digits"}
    with pytest.raises(ScenarioError, match=r"data\.partition: given '.*:Centred'.*no clip bounds"):
        build(private(**CENTRAL, data={**data, "partition": own("Centred")}))
    build(private(**CENTRAL, data={**data, "partition": {"name": "feature_shift", "shift": "noise"}}))
    build(private(**CLIENTS, data={**data, "partition": own("Centred")}))


def test_an_estimator_in_front_of_a_part_that_clips_updates_is_refused() -> None:
    server = {"defenses": ["dp_fedavg"], "estimator": own("RawGradients")}
    with pytest.raises(ScenarioError, match=r"server\.estimator: given '.*:RawGradients'.*reads them as they are"):
        private(**{**CLIENTS, "server": server})
    private(**{**CLIENTS, "server": server, "privacy": {**CLIENTS["privacy"], "claim": "none"}})


def test_a_regularizer_is_refused_whatever_its_own_check_says() -> None:
    with pytest.raises(ScenarioError, match=r"client\.regularizers\[0\]: given '.*:Unchecked'") as error:
        private(**CLIENTS, client={"per_round": 6, "regularizers": [own("Unchecked")]})
    assert len(error.value.faults) == 1
    given = r"client\.regularizers\[0\]: given 'hessian_alignment'.*statistics of the clients' data"
    with pytest.raises(ScenarioError, match=given) as error:
        private(**CLIENTS, client={"per_round": 6, "regularizers": ["hessian_alignment"]})
    assert len(error.value.faults) == 1


def test_an_analysis_that_asks_clients_by_others_handlers_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"server\.analysis\[0\]: given '.*:Asks'"):
        private(**LOCAL, client=SGD, server={"analysis": [own("Asks")]})


def test_no_client_is_asked_twice_in_a_round() -> None:
    with pytest.raises(FedsimError, match=r"given \[2, 0, 2\] in round 1; accepted: each client once"):
        simulate(private(**LOCAL, client=SGD, server={"sampler": own("Twice")}))


def test_a_loss_that_declares_nothing_is_refused_where_single_examples_are_protected() -> None:
    with pytest.raises(ScenarioError, match=r"client\.loss: given '.*:Silent'; accepted: .*reads = 'example'") as error:
        private(**CENTRAL, client={"per_round": 6, "loss": own("Silent")})
    assert len(error.value.faults) == 1
    private(**CLIENTS, client={"per_round": 6, "loss": own("Silent")})
    scenario = private(
        **{**CENTRAL, "privacy": {"noise": [1.0, 1.0], "claim": "none"}}, client={"per_round": 6, "loss": own("Silent")}
    )
    assert proven(scenario)[f"client objective: {own('Silent')}, no local steps"].sensitivity == "not declared"


def test_a_server_optimizer_that_declares_nothing_is_named_behind_the_noise() -> None:
    clients = {"per_round": 6, "optimizer": "sgd"}
    for optimizer, bound in (("adam", "post-processing"), (own("Still"), "post-processing, not declared")):
        server = {**CLIENTS["server"], "optimizer": optimizer}
        found = proven(private(**{**CLIENTS, "server": server}, client=clients))
        assert found[f"server optimizer: {optimizer}"].sensitivity == bound


@pytest.mark.parametrize("registered", ["sgd", "adagrad", "adam", "yogi", "diffgrad"])
def test_every_server_optimizer_declares_what_it_reads(registered: str) -> None:
    assert reads_of("server_optimizer", registered) == "released"
    assert set(names("server_optimizer")) == {"sgd", "adagrad", "adam", "yogi", "diffgrad"}


def test_an_analysis_is_let_in_by_what_it_declares() -> None:
    said = r"server\.analysis\[0\]: given '.*'; accepted: .*reads = 'released'"
    for base in ({**LOCAL, "client": SGD}, CENTRAL):
        with pytest.raises(ScenarioError, match=said) as error:
            private(**analysed(base, "Lengths"))
        assert len(error.value.faults) == 1
        found = proven(private(**analysed(base, "Moved")))
        assert found[f"analysis: {own('Moved')}"].sensitivity == "post-processing"
    with pytest.raises(ScenarioError, match=said):
        private(**analysed(CENTRAL, "PrivateLengths"))
    found = proven(private(**analysed({**LOCAL, "client": SGD}, "PrivateLengths")))
    assert found[f"analysis: {own('PrivateLengths')}"][1:3] == ("private messages", "post-processing")


def analysed(base: dict[str, Any], name: str) -> dict[str, Any]:
    return {**base, "server": {**base.get("server", {}), "analysis": [own(name)]}}


def proven(scenario: Scenario) -> dict[str, Stage]:
    guarantee = build(scenario).guarantee
    assert guarantee is not None
    return {each.stage: each for each in stages(scenario, guarantee)}


def test_the_proof_begins_with_what_clients_minimise() -> None:
    for tables, line in (
        (CENTRAL, ("the task's own loss, no local steps", "an example's loss reads it alone")),
        (
            {**CLIENTS, "client": {"per_round": 6, "epochs": 2, "optimizer": "sgd", "loss": "squared_error"}},
            ("squared_error, 2 epochs of sgd, batches of 32", "what comes of it is clipped as a whole"),
        ),
        (
            {**LOCAL, "client": {**SGD, "steps": 7}},
            ("the task's own loss, 7 steps of dp_sgd, batches of 32", "an example's loss reads it alone"),
        ),
    ):
        first = next(iter(proven(private(**tables)).values()))
        assert first[:3] == (f"client objective: {line[0]}", "each client's own data", line[1])
