"""The server's cap on its own step by the softmax's radius, at one scalar per client.

The server shows the clients of the round the step p that its optimizer is about to make; each answers with the largest
spread over its examples

    Δ_k = max_x (max_c a_c − min_c a_c),    a = J_z(x) p,    s = min(1, π / max_k Δ_k),

and the model moves by s·p. The optimizer's state is as if nothing had been scaled. One client can throttle the step
(its own data, or a lie): ``quantile`` below 1 leaves the largest answers out.

Sao, "Ghosts of Softmax: Complex Singularities That Limit Safe Step Sizes in Cross-Entropy", 2026, arXiv 2603.13552.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from flwr.app import MetricRecord, RecordDict
from pydantic import Field
from torch import Tensor

from fedsim.errors import Fault, FedsimError
from fedsim.flower import Flat, flatten
from fedsim.functional import functional_call
from fedsim.optim.softmax_radius import directional, spread
from strategies.defense import TRAIN, Defense, Request, Round, defense

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

SPREAD = "query.softmax_spread"
BLOCK = 256
"""Examples in one Jacobian-vector product."""


@defense("softmax_cap")
class SoftmaxCap(Defense):
    """Keeps the server's step within the radius in which the clients' cross-entropy converges along it.

    Args:
        quantile: of the clients' spreads; 1 is the largest.
        temperature: by which the loss divides the logits.
    """

    cost = "d, and a Jacobian-vector product over each client's examples"
    sees = "one scalar per client"
    handlers: ClassVar = {SPREAD: "spread"}

    quantile: Annotated[float, Field(ge=0, le=1)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        """It needs a step to cap, and the softmax."""
        estimator, loss = scenario.server.estimator, getattr(scenario.client, "loss", None)
        if estimator is not None:
            accepted = f"none with server.estimator = '{estimator.name}', which makes the server's step itself"
            yield Fault("", "softmax_cap", accepted, ("server.estimator",))
        if loss is not None and loss.name == "squared_error":
            accepted = "none with client.loss = 'squared_error', which has no softmax"
            yield Fault("", "softmax_cap", accepted, ("client.loss",))

    def fit(self, num_classes: int) -> None:
        if num_classes < 2:
            accepted = "none for targets that are numbers: there is no softmax"
            raise FedsimError(f"server.defenses: given 'softmax_cap'; accepted: {accepted}")

    def exchanges(self, ctx: Round) -> Generator[Request, Any, None]:
        ctx.state.pop("scale", None)
        yield TRAIN
        assert ctx.aggregate is not None and ctx.server_step is not None and ctx.layout is not None
        step = ctx.server_step(ctx.aggregate.update)
        buffers = step.new_zeros(ctx.layout.b)
        replies = yield Request("softmax spread", SPREAD, {"step": Flat(torch.cat([step, buffers]), ctx.layout)})
        spreads = [max(0.0, float(reply.content["spread"]["spread"])) for reply in replies]
        radius = float(np.quantile(spreads, self.quantile)) / (math.pi * self.temperature)
        ctx.state["scale"] = min(1.0, 1 / radius) if radius > 0 else 1.0
        ctx.measures |= {"radius": radius, "scale": ctx.state["scale"]}

    def finish(self, parameters: Tensor, ctx: Round) -> Tensor:
        """x + s·p; as it is where no client was asked (a preview)."""
        scale = float(ctx.state.pop("scale", 1.0))
        if scale == 1.0:
            return parameters
        assert ctx.parameters is not None
        return ctx.parameters + scale * (parameters - ctx.parameters)

    def spread(self, node: Any, content: RecordDict) -> RecordDict:
        """A client's Δ_k of the step that it is shown, 0 without examples."""
        layout, examples = node.workload.layout, node.examples()
        module, start = node.module.eval(), node.parameters[: node.workload.layout.d]
        step = flatten(content["step"], layout, start.dtype)[: layout.d].to(start.device)  # type: ignore[arg-type]

        def logits(vector: Tensor, inputs: Tensor) -> Tensor:
            return functional_call(module, layout.views(vector), (inputs,))  # type: ignore[no-any-return]

        largest = 0.0
        with torch.no_grad():
            for first in range(0, len(examples), BLOCK):
                found = directional(logits, start, step, examples.inputs[first : first + BLOCK])
                largest = max(largest, float(spread(found).amax()))
        return RecordDict({"spread": MetricRecord({"spread": largest})})
