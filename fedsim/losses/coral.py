"""CORAL: the features' means and covariances are the same in every domain.

    mean over pairs e < e' of  mean (μ_e − μ_e')² + mean (C_e − C_e')²

with C_e the unbiased covariance of domain e's features.

Sun & Saenko, "Deep CORAL", ECCV 2016 workshops, arXiv 1607.01719; the form with means: Gulrajani & Lopez-Paz,
"In search of lost domain generalization", ICLR 2021, arXiv 2007.01434.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from fedsim.errors import FedsimError


def coral_penalty(features: Sequence[Tensor]) -> Tensor:
    """The mean over all pairs of domains; a scalar, 0 for one domain.

    Args:
        features: (n_e, m) of each domain, n_e at least 2.
    """
    if any(len(each) < 2 for each in features) or not features:
        raise FedsimError("CORAL: given a domain of fewer than 2 examples, or none; accepted: 2 and up each")
    moments = [_moments(each) for each in features]
    pairs = [
        (mean - other_mean).square().mean() + (covariance - other).square().mean()
        for (mean, covariance), (other_mean, other) in combinations(moments, 2)
    ]
    return torch.stack(pairs).mean() if pairs else features[0].sum() * 0


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)
