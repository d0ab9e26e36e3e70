"""SAM-GS: the gradients of K tasks combined by how alike their sizes are.

    ψ(a, b) = 2·|a|·|b| / (|a|² + |b|²)            Ψ = mean of ψ over pairs of tasks
    m_k = β1·m_k + (1 - β1)·g_k                    h = β2·h + (1 - β2)·(1 - Ψ)² + ε
    Ψ < γ:      w_k = mean_j |g_j| / |g_k|         equalise
    otherwise:  w_k = |m̂_k| / (sqrt(ĥ) + ε)        elementwise, bias-corrected
    θ ← θ - lr · Σ_k w_k ⊙ g_k

Ψ runs over pairs i < j in the authors' code (``pairs="distinct"``), over all i, j with i = j in the paper
(``pairs="all"``): with two tasks that one is never below ½. The momentum branch is quadratic in the gradients' scale:
let Adam follow (:meth:`SamGS.backward`, as in the authors' experiments), or ``rescale``. Two equal and opposite
gradients cancel in either branch: a saddle that SAM-GS does not leave.

Tasks are objectives on a client, or clients on the server (g_k = -Δ_k, each with its own m_k and count of rounds).

Borsani et al., "Gradient Similarity Surgery in Multi-Task Deep Learning", 2025 (arXiv:2506.06130).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import FedsimError

Pairs = Literal["distinct", "all"]


@dataclass
class State:
    """What SAM-GS remembers of K tasks.

    Args:
        momentum: (K, d) m_k.
        spread: () h.
        steps: () how often h was updated.
        counts: (K,) how often each m_k was.
    """

    momentum: Tensor
    spread: Tensor
    steps: Tensor
    counts: Tensor

    @classmethod
    def fresh(cls, tasks: int, d: int, dtype: torch.dtype = torch.float32, device: Any = None) -> State:
        """Before the first step."""
        count = torch.zeros((), dtype=torch.int64)
        return cls(
            torch.zeros(tasks, d, dtype=dtype, device=device), torch.zeros(()).double(), count, count.repeat(tasks)
        )


class Combined(NamedTuple):
    """The combined gradient (d,), the similarity Ψ, and whether the gradients were equalised."""

    gradient: Tensor
    similarity: float
    equalised: bool


def similarity(gradients: Tensor, pairs: Pairs = "distinct") -> float:
    """Ψ of (K, d) gradients; two zeros are alike, a zero and another are not. One task alone is like itself, 1."""
    norms = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64).cpu().numpy()
    below = norms[:, None] ** 2 + norms**2
    psi = np.divide(2 * norms[:, None] * norms, below, out=np.ones_like(below), where=below > 0)
    if pairs == "all":
        return float(psi.mean())
    return float(psi[np.triu_indices(len(psi), 1)].mean()) if len(psi) > 1 else 1.0


@torch.no_grad()
def surgery(
    gradients: Tensor,
    state: State,
    *,
    tasks: Sequence[int] | None = None,
    betas: tuple[float, float] = (0.9, 0.99),
    gamma: float = 0.1,
    eps: float = 1e-8,
    pairs: Pairs = "distinct",
    rescale: bool = False,
) -> Combined:
    """One gradient (d,) out of those of the tasks; ``state`` is updated in place.

    Args:
        gradients: (r, d), one row for each task that takes part.
        state: of all K tasks.
        tasks: (r,) which tasks the rows are; all K, in order, without. The others' momentum and count stay.
        betas: decay β1 of the momenta and β2 of the spread.
        gamma: γ, the similarity below which gradients are equalised.
        eps: ε.
        pairs: what Ψ runs over, "distinct" (the code) or "all" (the paper).
        rescale: give the momentum branch the norm that the sum of the gradients has.

    Raises:
        FedsimError: rows and tasks do not fit each other.
    """
    chosen = list(range(len(state.momentum))) if tasks is None else list(tasks)
    if len(gradients) != len(chosen) or len(set(chosen)) != len(chosen) or not chosen:
        raise FedsimError(f"sam_gs: given {len(gradients)} gradients for tasks {chosen}; accepted: one for each task")
    beta1, beta2 = betas
    psi = similarity(gradients, pairs)
    everyone = tasks is None
    momentum = state.momentum if everyone else state.momentum[chosen]
    momentum.lerp_(gradients, 1 - beta1)
    if not everyone:
        state.momentum[chosen] = momentum
    state.counts[slice(None) if everyone else chosen] += 1
    state.steps += 1
    state.spread.mul_(beta2).add_((1 - beta2) * (1 - psi) ** 2 + eps)
    if psi < gamma:
        norms = torch.linalg.vector_norm(gradients, dim=1)
        unit = gradients / torch.where(norms > 0, norms, 1.0)[:, None]
        return Combined(unit.sum(0) * norms.mean(), psi, True)
    correction = (1 - beta1 ** state.counts[chosen].double()).to(gradients)
    spread = math.sqrt(float(state.spread) / (1 - beta2 ** int(state.steps))) + eps
    weights = momentum.abs() / correction[:, None] / spread
    combined = (weights * gradients).sum(0)
    if rescale:
        norm = torch.linalg.vector_norm(combined)
        combined = combined * (torch.linalg.vector_norm(gradients.sum(0)) / norm if norm > 0 else 1.0)
    return Combined(combined, psi, False)


RULE = ("betas", "gamma", "eps", "pairs", "rescale")
"""Options of the rule, which is of all parameters together."""


class SamGS(torch.optim.Optimizer):
    """SAM-GS over the losses of K tasks, which share all parameters.

    ``step(closure)`` is the method alone; ``backward(losses)`` writes the combined gradient, for another optimizer.

    Args:
        params: parameters, or groups of them with a learning rate of their own.
        lr: learning rate.
        betas: decay β1 of the momenta and β2 of the spread.
        gamma: γ, the similarity below which gradients are equalised.
        eps: ε.
        pairs: what Ψ runs over, "distinct" (the code) or "all" (the paper).
        rescale: give the momentum branch the norm that the sum of the gradients has.

    Raises:
        FedsimError: an option out of range; a group with a rule of its own, since gradients are compared as a whole.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        gamma: float = 0.1,
        eps: float = 1e-8,
        *,
        pairs: Pairs = "distinct",
        rescale: bool = False,
    ) -> None:
        accepted = {
            "lr": (lr, 0 <= lr < math.inf, "finite, lr ≥ 0"),
            "betas": (betas, all(0 <= beta < 1 for beta in betas), "0 ≤ beta < 1"),
            "gamma": (gamma, gamma >= 0, "gamma ≥ 0"),
            "eps": (eps, 0 < eps < math.inf, "finite, eps > 0"),
            "pairs": (pairs, pairs in get_args(Pairs), "'distinct', 'all'"),
        }
        for name, (given, fits, wanted) in accepted.items():
            if not fits:
                raise FedsimError(f"SamGS: {name}: given {given!r}; accepted: {wanted}")
        options = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "pairs": pairs, "rescale": rescale}
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """More parameters, with a learning rate of their own; before the first step."""
        if self.state:
            raise FedsimError("SamGS: given a group after the first step; accepted: one before it")
        for name in RULE if self.param_groups else ():
            wanted = self.param_groups[0][name]
            if (given := param_group.get(name, wanted)) != wanted:
                raise FedsimError(f"SamGS: {name}: given {given!r} for a group; accepted: {wanted!r}, one rule for all")
        super().add_param_group(param_group)

    def backward(self, losses: Sequence[Tensor] | Tensor) -> Combined:
        """Write the combined gradient of the tasks' losses into ``.grad`` of the parameters; frozen ones stay out."""
        parameters = [each for group in self.param_groups for each in group["params"]]
        if (isinstance(losses, Tensor) and not losses.ndim) or not len(losses):
            raise FedsimError("SamGS: losses: given none, or a single number; accepted: one for each task, in a list")
        moving = [each for each in parameters if each.requires_grad]
        rows = []
        for i, loss in enumerate(losses):
            found = iter(_derived(loss, moving, keep=i + 1 < len(losses)))
            pairs = [(each, next(found) if each.requires_grad else None) for each in parameters]
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in pairs]))
        gradients = torch.stack(rows)
        options = {name: self.param_groups[0][name] for name in RULE}
        combined = surgery(gradients, self._state(gradients), **options)
        position = 0
        for each in parameters:
            if each.requires_grad:
                each.grad = combined.gradient[position : position + each.numel()].view_as(each).clone()
            position += each.numel()
        return combined

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the losses that ``closure`` gave.

        Args:
            closure: computes the losses of the K tasks, without a backward. Without it the step goes along the
                gradients that :meth:`backward` has written.
        """
        losses = None
        if closure is not None:
            with torch.enable_grad():
                losses = closure()
                self.backward(losses)
        with torch.no_grad():
            for group in self.param_groups:
                for each in group["params"]:
                    if each.grad is not None:
                        each.add_(each.grad, alpha=-group["lr"])
        return losses

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, but h and the counts keep their types, whatever the parameters are."""
        super().load_state_dict(state_dict)
        saved, parameter = state_dict["param_groups"][0]["params"][0], self.param_groups[0]["params"][0]
        for name in ("spread", "steps", "counts"):
            if name in (kept := state_dict["state"].get(saved, {})):
                self.state[parameter][name] = kept[name].detach().cpu().clone()

    def _state(self, gradients: Tensor) -> State:
        """The state, kept with the first parameter so that it goes through ``state_dict``."""
        kept = self.state[self.param_groups[0]["params"][0]]
        if not kept:
            kept.update(vars(State.fresh(len(gradients), gradients.shape[1], gradients.dtype, gradients.device)))
        state = State(**kept)
        if state.momentum.shape != gradients.shape:
            raise FedsimError(
                f"SamGS: given {len(gradients)} losses; accepted: {len(state.momentum)}, as in the first step"
            )
        return state


def _derived(loss: Tensor, parameters: Sequence[Tensor], keep: bool) -> Sequence[Tensor | None]:
    """The gradients of one task; None where it does not reach."""
    if not loss.requires_grad:
        raise FedsimError("SamGS: losses: given one without a graph; accepted: the losses themselves, not detached")
    try:
        return torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        accepted = "a closure that gives the losses and calls no backward()"
        raise FedsimError(f"SamGS: closure: given one that calls backward(); accepted: {accepted}") from error
