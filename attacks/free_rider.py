"""Free rider: a client that takes the model and gives no work for it.

It sends the zero update (``mode = "zero"``), or the global step of the round before (``"previous"``): the change from
the parameters sent then to those sent now, zero in the first round. ``noise`` adds N(0, s²) to each coordinate, so
that the row does not give itself away.

Lin, Du and Liu, "Free-riders in Federated Learning: Attacks and Defenses", 2019, arXiv:1911.12560; Fraboni et al.,
"Free-rider Attacks on Model Aggregation in Federated Learning", AISTATS 2021, arXiv:2006.11901.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Craft, attack


@attack("free_rider")
class FreeRider(Attack):
    """An update that no data went into.

    Args:
        mode: the ``zero`` update, or the ``previous`` round's global step.
        noise: s, standard deviation of the noise on top.
    """

    cost = "f·d"

    mode: Literal["zero", "previous"] = "zero"
    noise: Annotated[float, Field(ge=0)] = 0.0

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        sent = torch.zeros_like(rows)
        if self.mode == "previous" and ctx.previous_reference is not None:
            sent += (ctx.reference - ctx.previous_reference).to(rows)
        return sent + ctx.noise("free_rider") * self.noise if self.noise > 0 else sent
