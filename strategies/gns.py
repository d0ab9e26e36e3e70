"""Gradient-normalized smoothness as the server's step: a regularised Newton step on sums over clients.

A round is one iteration of :func:`fedsim.optim.gns.search` on f(x) = Σ_k (n_k/n) f_k(x) + (l2/2)‖x‖²:

    g, f at x (the round's rows)  →  H at x, once  →  f⁺, g⁺ at each trial x⁺ = x − (H + |g|/γ)⁻¹ g

f, g, the generalised Gauss-Newton matrix Σ JᵀWJ, the empirical Fisher Σ gᵢgᵢᵀ and the Hessian add over clients with
weights n_k, so that the step is the centralised one; γ is all that is kept between rounds. A client's H travels as its
upper triangle, d(d+1)/2 numbers. The record counts: ``gns.exchanges`` of the round, ``gns.numbers_up`` and
``gns.numbers_down`` of each client, training message included.

All answers of a round must come from the same clients, or the round changes nothing: f⁺ of some is no progress over f
of others. Trials pass no defense, so none is accepted before it.

Semenov, Jaggi & Doikov, "Gradient-Normalized Smoothness for Optimization with Approximate Hessians", ICLR 2026,
arXiv 2506.13710, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from pydantic import Field
from torch import Tensor
from torch.func import jacrev, vmap

from fedsim.errors import Fault, FedsimError, UpdatesError
from fedsim.flower import Flat, as_tensor, flatten
from fedsim.functional import functional_call
from fedsim.optim import gns
from fedsim.optim.gns_curvature import zero
from strategies.defense import Reply, Request, Round
from strategies.estimator import Estimator, estimator

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

EVALUATE, CURVE = "train.gns", "query.gns_curvature"
MOST = 2000
"""Parameters of the largest model whose H is sent as a matrix."""
NUMBERS = 2**22
"""Numbers of the Jacobians that are held at once on a client."""

Kind = Literal["gauss_newton", "empirical_fisher", "exact", "zero"]


@estimator("gns")
class GradientNormalizedSmoothness(Estimator):
    """Newton-like steps whose regularisation follows the gradient's norm.

    Args:
        curvature: H: generalised Gauss-Newton, empirical Fisher, the Hessian, or zero (a normalised gradient step).
        gamma: γ_0.
        l2: of the penalty (l2/2)‖x‖² on all parameters, which the server adds.
        tolerance: below this norm of the gradient the model stays.
    """

    message = EVALUATE
    weighted: ClassVar[bool] = True
    handlers: ClassVar = {EVALUATE: "evaluate", CURVE: "curve"}

    curvature: Kind = "gauss_newton"
    gamma: Annotated[float, Field(gt=0)] = 1.0
    l2: Annotated[float, Field(ge=0)] = 0.0
    tolerance: Annotated[float, Field(ge=0)] = 1e-8

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        yield from super().check(scenario)
        for position, part in enumerate(scenario.server.defenses):
            if part.name != "fedavg":
                accepted = "'fedavg' before the estimator 'gns', whose trials no defense sees"
                yield Fault(f"/server.defenses[{position}]", part.name, accepted, ("server.estimator",))

    def to_steps(self, rows: Tensor, ctx: Round) -> Tensor:
        """−g_k, a step's direction without H."""
        return -rows

    def to_rows(self, steps: Tensor, ctx: Round) -> Tensor:
        return -steps

    def step(self, row: Tensor, ctx: Round) -> Tensor:
        """The step with H = 0, which is all that is known before the exchanges: −γ g/|g|."""
        assert ctx.parameters is not None
        gradient = row.double() + self.l2 * ctx.parameters.double()
        ctx.state["gradient"] = gradient
        change: Tensor = -self._gamma(ctx) * gradient / gradient.norm().clamp(min=1e-300)
        return change.to(row.dtype)

    def afterwards(self, ctx: Round) -> Generator[Request, list[Reply], Tensor | None]:
        """One iteration of the search, its evaluations and its H answered by the clients."""
        assert ctx.parameters is not None and ctx.layout is not None and ctx.updates is not None
        d, layout, start = ctx.layout.d, ctx.layout, ctx.parameters
        if d > MOST and self.curvature != "zero":
            raise FedsimError(f"gns: given a model of {d} parameters; accepted: {MOST}, or curvature = 'zero'")
        held = (ctx.updates.num_examples > 0).nonzero().flatten().tolist()
        clients = [ctx.updates.client_ids[i] for i in held]
        total = float(ctx.updates.num_examples.sum())
        weights = {c: float(ctx.updates.num_examples[i]) / total for c, i in zip(clients, held, strict=True)}
        up, down, exchanges = d + 1, d, 1
        point = start.double()
        method = gns.search(point, gamma=self._gamma(ctx), tolerance=self.tolerance, max_iterations=1)
        request = method.send(None)
        answer: Any = (ctx.train_loss + self._penalty(point), ctx.state.pop("gradient"))
        while True:
            try:
                request = method.send(answer)
            except StopIteration as end:
                trace: gns.Trace = end.value
                break
            if isinstance(request, gns.Evaluate):
                asked = Request("trial", EVALUATE, parameters=request.x.to(start), cohort=clients)
                replies = self._of_all((yield asked), clients)
                value = sum(weights[r.client] * float(_metrics(r)["loss"]) for r in replies)
                rows = [weights[r.client] * _vector(r, layout)[:d] for r in replies]
                sent = request.x.to(start).double()
                answer = (value + self._penalty(sent), torch.stack(rows).sum(0) + self.l2 * sent)
                up, down, exchanges = up + d + 1, down + d, exchanges + 1
            elif self.curvature == "zero":
                answer = gns.Products(lambda v: self.l2 * v) if self.l2 else zero(point)
            else:
                matrix = self.l2 * torch.eye(d, dtype=torch.float64)
                asked = Request("curvature", CURVE, cohort=clients)
                for reply in self._of_all((yield asked), clients):
                    matrix += weights[reply.client] * _square(reply, d)
                up, down, exchanges = up + d * (d + 1) // 2, down + d, exchanges + 1
                answer = matrix
        ctx.state["gamma"] = trace.gammas[-1]
        ctx.measures |= {
            "value": trace.values[0],
            "gamma": trace.gammas[-1],
            "moved": float(trace.iterations),
            "exchanges": float(exchanges),
            "numbers_up": float(up),
            "numbers_down": float(down),
        }
        return (trace.x.to(start) - start).to(start)

    def evaluate(self, node: Any, content: RecordDict) -> RecordDict:
        """A client's f_k and ∇f_k, means over all its examples, in evaluation mode."""
        workload, examples = node.workload, node.examples()
        layout, n = workload.layout, len(examples)
        row, value = torch.zeros_like(node.parameters), 0.0
        if n:
            loss_of = _mean_loss(node)
            point = node.parameters[: layout.d].clone().requires_grad_()
            size = max(1, NUMBERS // max(1, layout.d))
            for first in range(0, n, size):
                part = examples.inputs[first : first + size], examples.targets[first : first + size]
                with torch.enable_grad():
                    loss = loss_of(point, *part) * (len(part[0]) / n)
                    (gradient,) = torch.autograd.grad(loss, point)
                row[: layout.d] += gradient
                value += float(loss.detach())
        metrics = MetricRecord({"num-examples": n, "loss": value})
        return RecordDict({"arrays": Flat(row, layout), "metrics": metrics})

    def curve(self, node: Any, content: RecordDict) -> RecordDict:
        """The upper triangle of a client's H_k, of the mean over its examples."""
        examples, layout = node.examples(), node.workload.layout
        matrix = torch.zeros(layout.d, layout.d, dtype=node.parameters.dtype)
        if len(examples):
            matrix = _curvature(self.curvature, node, examples.inputs, examples.targets)
        above = torch.triu_indices(layout.d, layout.d)
        return RecordDict({"curvature": ArrayRecord({"triangle": matrix[above[0], above[1]].cpu()})})

    def _gamma(self, ctx: Round) -> float:
        return float(ctx.state.get("gamma", self.gamma))

    def _penalty(self, x: Tensor) -> float:
        return 0.5 * self.l2 * float(x @ x)

    def _of_all(self, replies: list[Reply], clients: list[int]) -> list[Reply]:
        answered = {reply.client for reply in replies}
        missing = [client for client in clients if client not in answered]
        if missing:
            raise UpdatesError(f"gns: clients {missing} did not answer in the midst of a round")
        return replies


def _metrics(reply: Reply) -> Any:
    return reply.content["metrics"]


def _vector(reply: Reply, layout: Any) -> Tensor:
    return flatten(reply.content["arrays"], layout, torch.float64)  # type: ignore[arg-type]


def _square(reply: Reply, d: int) -> Tensor:
    """(d, d) float64 of its upper triangle."""
    told: Any = reply.content["curvature"]
    triangle = as_tensor(told["triangle"].numpy()).double()
    if triangle.shape != (d * (d + 1) // 2,):
        raise UpdatesError(f"gns: client {reply.client} sent {tuple(triangle.shape)} numbers for {d} parameters")
    above = torch.triu_indices(d, d)
    matrix = torch.zeros(d, d, dtype=torch.float64)
    matrix[above[0], above[1]] = triangle
    return matrix + matrix.triu(1).T


def _mean_loss(node: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(parameters (d,), inputs, targets) → mean loss."""
    module, workload = node.module.eval(), node.workload

    def loss(vector: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = functional_call(module, workload.layout.views(vector), (inputs,))
        mean: Tensor = workload.example_loss(outputs, targets).mean()
        return mean

    return loss


def _hessian(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """By two backward passes: torch's own goes forward in the second, which threads cannot do at once."""
    second: Callable[..., Tensor] = jacrev(jacrev(function))
    return second


def _curvature(kind: Kind, node: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """(d, d) of the mean loss."""
    module, workload, d = node.module.eval(), node.workload, node.workload.layout.d
    point, n = node.parameters[:d], len(inputs)
    loss_of = _mean_loss(node)
    if kind == "exact":
        whole: Tensor = _hessian(loss_of)(point, inputs, targets)
        return whole

    def outputs_of(vector: Tensor, one: Tensor) -> Tensor:
        outputs: Tensor = functional_call(module, workload.layout.views(vector), (one[None],))[0]
        return outputs

    def loss_at(outputs: Tensor, target: Tensor) -> Tensor:
        value: Tensor = workload.example_loss(outputs[None], target[None])[0]
        return value

    def one_example(one: Tensor, target: Tensor) -> Tensor:
        """(r, d) factors F with H = FᵀF of the example."""
        if kind == "empirical_fisher":
            gradient: Tensor = torch.func.grad(loss_of)(point, one[None], target[None])
            return gradient[None]
        jacobian: Tensor = jacrev(outputs_of)(point, one)
        return jacobian

    matrix = torch.zeros(d, d, dtype=point.dtype, device=point.device)
    classes = max(1, int(node.predict(inputs[:1]).numel())) if kind == "gauss_newton" else 1
    size = max(1, NUMBERS // (d * classes))
    for first in range(0, n, size):
        x, y = inputs[first : first + size], targets[first : first + size]
        factors = vmap(one_example)(x, y)
        flat = factors.reshape(-1, d)
        if kind == "gauss_newton":
            outputs = functional_call(module, workload.layout.views(point), (x,))
            weighted = vmap(_hessian(loss_at))(outputs, y) @ factors
            matrix += weighted.reshape(-1, d).T @ flat
        else:
            matrix += flat.T @ flat
    return matrix / n
