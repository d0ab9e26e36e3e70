"""Personal adapters: learned once, kept by the client and in the checkpoint, applied wherever its data are seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict

from fedsim import registry
from fedsim.client.adapted import ADAPT, RECORD, REFERENCE, learn_adapter
from fedsim.client.app import FederatedClient
from fedsim.client.node import Node
from fedsim.client.workload import Workload
from fedsim.data.examples import Examples
from fedsim.errors import ScenarioError
from fedsim.federation import build
from fedsim.flower import as_record, as_tensors
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from fedsim.testing.federation import CLASSES, SHAPE, initial, messages, workload
from tests.simulation.test_same_bits import interrupted

ADAPTER: dict[str, Any] = {"name": "monge_gap", "steps": 10, "hidden": [8], "batch_size": 24}
DATA = {
    "dataset": {"name": "synthetic_classification", "features": 4, "classes": 3, "examples": 200, "test": 60},
    "clients": 4,
    "root": 40,
    "partition": "iid",
}


def scenario(**more: Any) -> Scenario:
    tables: dict[str, Any] = {"rounds": 3, "data": DATA, "model": {"name": "mlp", "hidden": [6]}}
    client = {"per_round": 3, "optimizer": {"name": "sgd", "lr": 0.1}, "adapter": ADAPTER}
    return Scenario(**tables, client=client, evaluate={"clients": 2}).changed(**more)


@pytest.mark.parametrize("residual", [True, False])
def test_workers_and_interruptions_change_no_bit(tmp_path: Path, residual: bool) -> None:
    run = scenario(**{"client.adapter.residual": residual})
    digests = [simulate(run.changed(**{"engine.workers": workers})).digest for workers in (1, 2, 3)]
    assert len({*digests, interrupted(run, tmp_path)}) == 1


def test_a_plain_network_follows_the_gap_where_the_residual_one_has_none() -> None:
    """From the identity a batch's best assignment is the identity: λ moves no bit. From a random start it leads."""
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    reference = inputs.roll(1, 0) * 1.05 + 0.1

    def learned(**options: Any) -> dict[str, torch.Tensor]:
        part = registry.make("adapter", "monge_gap", steps=3, hidden=[8], epsilon=1.0, **options)
        torch.manual_seed(1)
        found: dict[str, torch.Tensor] = part.fit(part.first(inputs), inputs, reference, 2)
        mapped = part.apply(found, inputs)
        assert mapped.shape == inputs.shape
        return found | {"mapped": mapped}

    for residual in (True, False):
        gap, alone = (learned(residual=residual, gap_weight=weight) for weight in (1.0, 0.0))
        assert torch.equal(gap["mapped"], alone["mapped"]) is residual
    assert not any(name.startswith("displacement") for name in gap)


def test_each_client_learns_its_map_once_and_keeps_it() -> None:
    federation = build(scenario())
    evaluator = federation.evaluator()
    strategy = federation.strategy(evaluator)
    with federation.engine() as grid:
        from fedsim.flower import Flat

        arrays: Any = Flat(federation.initial, federation.layout)
        seen: dict[int, torch.Tensor] = {}
        for number in (1, 2, 3):
            messages = strategy.configure_train(number, arrays, {}, grid)  # type: ignore[arg-type]
            arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages, timeout=60))
            for client, state in grid.client_state.items():  # type: ignore[attr-defined]
                weights = torch.from_numpy(state[RECORD]["displacement.0.weight"].numpy())
                assert torch.equal(seen.setdefault(client, weights), weights)
        assert set(seen) <= set(range(4))
        assert len(seen) >= 3
        assert not strategy.outcome.faults  # type: ignore[attr-defined]
    evaluator.close()


def test_shifted_features_come_back_to_the_reference() -> None:
    """Features moved by a symmetric positive map and a shift: their classes lie again where the reference's do."""
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.eye(CLASSES)
    labels = torch.arange(160) % CLASSES
    features = centres[labels] + 0.3 * torch.randn(160, CLASSES, generator=generator)
    reference = centres[labels] + 0.3 * torch.randn(160, CLASSES, generator=generator)
    stretch = torch.diag(torch.tensor([0.5, 1.5, 0.7, 1.2]))
    part = registry.make("adapter", "monge_gap", steps=200, hidden=[32], gap_weight=1.0)
    load = workload((160,), lambda: torch.nn.Linear(CLASSES, CLASSES), adapter=part)
    load.train = Examples(features @ stretch + torch.tensor([5.0, 0.0, 0.0, 0.0]), labels)
    node = Node(FederatedClient(load), 0, 1, initial(load), RecordDict())
    before = node.clean().inputs
    assert torch.equal(before, load.train.inputs[torch.from_numpy(load.rows(0))])
    learn_adapter(node, RecordDict({"reference": as_record({"inputs": reference})}))
    after, targets = node.examples().inputs, node.examples().targets
    assert torch.equal(after, node.held_out().inputs)

    def right(inputs: torch.Tensor) -> float:
        return float((torch.cdist(inputs, centres).argmin(1) == targets).double().mean())

    assert right(before) < 0.9
    assert right(after) > 0.95


def learned(load: Workload, *groups: Sequence[int]) -> tuple[dict[int, torch.Tensor], dict[int, str]]:
    """Each client's map, flat, and what those said that failed, where each group is asked at once."""
    app, reference = FederatedClient(load), torch.randn(9, *SHAPE, generator=torch.Generator().manual_seed(5))
    maps, failed = {}, {}
    for group in groups:
        sent, contexts = messages(load, initial(load), group, kind=ADAPT)
        for message in sent:
            message.content[REFERENCE] = as_record({"inputs": reference.to(load.dtype)})
        for client, context, reply in zip(group, contexts, app.many(sent, contexts), strict=True):
            if not reply.has_content():
                failed[client] = reply.error.reason
            elif RECORD in context.state:
                record = context.state.array_records[RECORD]
                maps[client] = torch.cat([each.flatten() for each in as_tensors(record).values()])
    return maps, failed


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_the_maps_of_a_chunk_are_those_of_a_client_at_a_time(precision: str, tolerance: float, residual: bool) -> None:
    """To rounding; and bit for bit those of any other chunk. Who fails, fails alone."""
    part = registry.make("adapter", "monge_gap", steps=2, hidden=[5], epsilon=4.0, residual=residual)

    def load(path: str) -> Workload:
        return workload((10, 7, 0, 1, 20), adapter=part, path=path, precision=precision)

    together, failed = learned(load("auto"), range(5))
    in_pairs, _ = learned(load("auto"), [0, 3], [4, 2], [1])
    alone, failed_alone = learned(load("reference"), range(5))
    assert list(together) == list(alone) == [0, 1, 4]
    assert failed == failed_alone
    assert list(failed) == [3]
    assert "holds 1 example" in failed[3]
    for client, found in together.items():
        assert torch.equal(found, in_pairs[client])
        torch.testing.assert_close(found, alone[client], rtol=tolerance, atol=tolerance)


def test_what_cannot_be_learned_together_is_learned_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    part = registry.make("adapter", "monge_gap", steps=1, hidden=[5], epsilon=0.5)
    load = workload((10, 7, 20), adapter=part)
    wanted, _ = learned(load, range(3))
    fit = type(part).fit_together

    def seven_fails(self: object, starts: Sequence[Any]) -> Any:
        if any(len(inputs) == 7 for _, inputs, _, _ in starts):
            raise ValueError("costs that are not finite")
        return fit(self, starts)

    monkeypatch.setattr(type(part), "fit_together", seven_fails)
    found, failed = learned(load, range(3))
    assert failed == {1: "ValueError: costs that are not finite"}
    assert all(torch.equal(found[client], wanted[client]) for client in (0, 2))
    assert "the maps of 3 clients failed" in caplog.text


PRIVATE = {"privacy": {"epsilon": 3.0, "trust": "local"}, "evaluate.clients": 0}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no reference": ({"data.root": 0}, "data.root.*2 or more"),
    "a stock strategy": ({"server.defenses": ["flwr:FedAvg"]}, "client.adapter.*sends no reference"),
    "an estimator": ({"server.estimator": {"name": "dp_gd", "c1": 1.0, "lr": 0.1}}, "client.adapter"),
    "dp_sgd": ({"client.optimizer": "dp_sgd", **PRIVATE}, "client.adapter.*privacy is claimed"),
    "a large batch": ({"client.adapter.batch_size": 500}, "client.adapter.batch_size"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused(fault: str) -> None:
    changes, said = FAULTS[fault]
    with pytest.raises(ScenarioError, match=said):
        scenario(**changes)


def test_a_client_of_one_example_learns_no_map(tmp_path: Path) -> None:
    file = tmp_path / "shares.json"
    file.write_text(json.dumps([list(range(20)), [20], [], list(range(21, 60))]))
    partition = {"name": "file", "path": str(file), "partial": True}
    with pytest.raises(ScenarioError, match=r"data\.partition: given 'file'; accepted: .*client 1 holds 1"):
        build(scenario(**{"data.partition": partition}))
    file.write_text(json.dumps([list(range(20)), [20, 60], [], list(range(21, 60))]))
    assert not any(line["faults"] for line in simulate(scenario(**{"data.partition": partition, "rounds": 1})).lines)
