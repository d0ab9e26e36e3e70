"""FedID: the multi-metric score, and a cut-off in place of a fixed share.

The whitened score s_i of Multi-metrics (variant "code") ranks the clients; those are dropped whose modified z-score

    z_i = 0.6745 · (s_i − median s) / MAD,   MAD = median |s_i − median s|

is above ``cutoff``, and the others are averaged, weighted by example count: a round without attackers loses nobody to
a quota. Where more than half of the scores agree (MAD = 0) the mean deviation takes its place, s_i − median s over
1.2533 times it. Needs four clients.

Huang et al., FedID, IEEE TPAMI 2025, the successor of "Multi-metrics adaptively identifies backdoors in Federated
learning", ICCV 2023, arXiv 2303.06601; the modified z-score is Iglewicz & Hoaglin's, "How to Detect and Handle
Outliers", 1993.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsim.errors import Fault
from fedsim.updates import Selection, Updates
from strategies.defense import Defense, Round, defense, require
from strategies.multi_metrics import FEWEST, code_features, whitened

if TYPE_CHECKING:
    from fedsim.scenario import Scenario


@defense("fedid")
class FedID(Defense):
    """Clients whose multi-metric score is an outlier are dropped.

    Args:
        cutoff: largest modified z-score that is kept (3.5: Iglewicz and Hoaglin's).
    """

    cost = "n²·d"
    sees = "updates, the model"

    cutoff: Annotated[float, Field(gt=0)] = 3.5

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        n = scenario.cohort
        if n < FEWEST:
            yield Fault("name", "fedid", f"at least {FEWEST} clients a round, here {n}", ("client.per_round",))

    def select(self, updates: Updates, ctx: Round) -> Selection:
        n = len(updates)
        require(n >= FEWEST, "fedid", f"{n} clients", f"at least {FEWEST}")
        scores = whitened(torch.stack(list(code_features(updates).values()), dim=1))
        return Selection.of((modified_z(scores) <= self.cutoff).nonzero().flatten(), updates, scores)


def modified_z(scores: Tensor) -> Tensor:
    """(n,) Iglewicz and Hoaglin's z-scores around the median; zeros where all scores agree."""
    away = scores - scores.quantile(0.5)
    middle = float(away.abs().quantile(0.5))
    unit = middle / 0.6745 if middle > 1e-12 * float(scores.abs().max()) else 1.253314 * float(away.abs().mean())
    return away / unit if unit > 0 else torch.zeros_like(away)
