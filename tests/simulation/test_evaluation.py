"""The global model on the test set: in pieces, and as if in one pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fedsim import federation
from fedsim.data.examples import DataInfo, Examples
from fedsim.measures import AT_ONCE, Evaluator
from fedsim.models.cnn import cnn
from fedsim.updates import Layout
from tests.simulation.test_runs import small


@pytest.mark.parametrize("batch_size", [1000, AT_ONCE + 7, 64])
def test_pieces_are_the_whole(batch_size: int) -> None:
    built = federation.build(small(evaluate={"batch_size": batch_size}))
    evaluator, test = built.evaluator(), built.dataset.test
    assert len(test) > AT_ONCE, "more than one piece"
    seen: list[int] = []
    evaluator.module.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    correct, loss = evaluator.score(test)
    evaluator.close()
    assert max(seen) == min(AT_ONCE, batch_size)
    assert sum(seen) == len(test)
    with torch.no_grad():
        outputs = evaluator.module(test.inputs)
    assert correct == int((outputs.argmax(1) == test.targets).sum())
    assert loss == pytest.approx(float(functional.cross_entropy(outputs, test.targets, reduction="sum")), rel=1e-6)


def test_a_convolutions_outputs_do_not_hang_on_the_size_of_a_piece() -> None:
    """To the bit: a model that is scored in pieces has the digests of one that is scored at once."""
    torch.manual_seed(0)
    module = cnn(DataInfo((1, 28, 28), 10))
    evaluator = Evaluator(module, Layout.of(module), 1000, 1, torch.device("cpu"), torch.float32)
    inputs, seen = torch.rand(2 * AT_ONCE + 100, 1, 28, 28), []
    evaluator.module.register_forward_hook(lambda module, given, outputs: seen.append(outputs))
    evaluator.score(Examples(inputs, torch.zeros(len(inputs), dtype=torch.long)))
    evaluator.close()
    assert [len(each) for each in seen] == [AT_ONCE, AT_ONCE, 100]
    pieces = torch.cat(seen)
    with torch.no_grad():
        assert torch.equal(pieces, evaluator.module(inputs))
