"""The global model on the test set: in pieces, and as if in one pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fedsim import federation
from fedsim.measures import AT_ONCE
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
