"""The federation of coloured domains minimises what the centre does."""

from __future__ import annotations

import pytest
import torch

from fedsim import losses
from fedsim.verify.coloured import TWICE


@pytest.mark.parametrize("method", ["hgp", "diagonal"])
def test_the_penalty_of_two_softmax_outputs_is_that_of_one_sigmoid(method: str) -> None:
    g = torch.Generator().manual_seed(0)
    one = [
        (
            torch.randn(50, 6, generator=g, dtype=torch.float64),
            torch.randn(50, 1, generator=g, dtype=torch.float64),
            torch.randint(0, 2, (50,), generator=g),
        )
        for _ in range(3)
    ]
    two = [(features, torch.cat([torch.zeros_like(logit), logit], 1), label) for features, logit, label in one]
    of = losses.hgp_statistics if method == "hgp" else losses.diagonal_statistics
    sigmoid = losses.cmnist_penalty(of(one, head="sigmoid"))
    torch.testing.assert_close(losses.cmnist_penalty(of(two), **TWICE[method]), sigmoid)
