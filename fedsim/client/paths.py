"""Which of the three ways trains a model: stacked, vmap or reference; one meaning, see the tests.

- stacked, if every layer has a twin with weights of each client's own: the fastest for many small models.
- reference, a client at a time: convolutions (the fastest there), batch norm, dropout, whatever vmap does not take.
- vmap: everything else.

The first and the last take the gradients of single examples or of several objectives apart, too, for optimizers that
combine them (:mod:`fedsim.client.apart`). For an optimizer that evaluates the batches' objectives itself and takes
products with their Hessians (:mod:`fedsim.client.searched`) vmap serves the first as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.client.chunk import Engine
from fedsim.client.objective import Aside, class_mask
from fedsim.client.randomness import replace_dropout, uses_global_generator
from fedsim.client.searched import Batch, Searched
from fedsim.client.stacked import Stacked
from fedsim.client.vmapped import Vmapped
from fedsim.client.workload import Workload
from fedsim.errors import Fault, ScenarioError

log = logging.getLogger("fedsim")

_LOOPED = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.RNNBase,
)


@dataclass(frozen=True)
class Path:
    """How clients are trained.

    Args:
        name: stacked, vmap or reference.
        reason: why.
        engine: makes a worker thread's engine; None for the reference path.
    """

    name: str
    reason: str
    engine: Callable[[], Engine] | None = None


def choose(workload: Workload) -> Path:
    """The path of a workload, said in the log.

    Raises:
        ScenarioError: the path that was asked for cannot serve the model.
    """
    asked = workload.path
    if workload.layout.b and getattr(workload.optimizer, "evaluates", False):
        accepted = f"one without buffers ('{workload.layout.buffers[0][0]}') with client.optimizer = "
        accepted += f"'{workload.optimizer.name}', whose evaluations of a batch move no statistics"
        raise ScenarioError([Fault("model", "a model with buffers", accepted)])
    found = _reference("engine.path asks for it") if asked == "reference" else None
    obstacle = why = _row_obstacle(workload) if found is None else ""
    if found is None and asked in ("auto", "stacked"):
        found, why = (None, obstacle) if obstacle else _stacked(workload)
        if found is None and asked == "stacked":
            raise ScenarioError([Fault("engine.path", asked, f"'vmap' or 'reference', since {why}")])
    if found is None:
        why_not = obstacle or (_loop_is_better(workload.fresh_module()) if asked == "auto" else "")
        why_not = why_not or _vmap_obstacle(workload)
        if why_not and asked == "vmap":
            raise ScenarioError([Fault("engine.path", asked, f"'reference', since {why_not}")])
        found = (
            _reference(why_not) if why_not else Path("vmap", why or "engine.path asks for it", lambda: _vmap(workload))
        )
    log.info("training path: %s (%s)", found.name, found.reason)
    return found


def _reference(reason: str) -> Path:
    return Path("reference", reason)


def _compute(workload: Workload) -> torch.dtype | None:
    return torch.bfloat16 if workload.precision == "bfloat16" else None


def _stacked(workload: Workload) -> tuple[Path | None, str]:
    if workload.searches:
        why = f"the optimizer '{workload.optimizer.name}' takes products with the Hessian, which no twin gives"
        return None, why

    def engine() -> Stacked:
        examples = workload.apart == "examples"
        return Stacked(workload.fresh_module(), workload.layout, workload.objective, _compute(workload), examples)

    try:
        found = engine()
    except ValueError as error:
        return None, str(error)
    if workload.objective.objectives > 1 and (why := _refusal(workload, found)):
        return None, f"the stacked path does not take its loss ({why})"
    return Path("stacked", "every layer has a stacked twin", engine), ""


def _vmap(workload: Workload) -> Vmapped:
    return Vmapped(workload.fresh_module(), workload.layout, workload.objective, _compute(workload))


def _row_obstacle(workload: Workload) -> str:
    """Why one (k, d) tensor cannot hold k clients, or nothing."""
    if not getattr(workload.optimizer, "row_wise", False) and not workload.searches:
        return (
            f"the optimizer '{getattr(workload.optimizer, 'name', type(workload.optimizer).__name__)}' is not row-wise"
        )
    if workload.layout.b:
        return f"the model has buffers ('{workload.layout.buffers[0][0]}')"
    if any(not parameter.requires_grad for parameter in workload.fresh_module().parameters()):
        return "some of its parameters are frozen"
    return ""


def _loop_is_better(module: nn.Module) -> str:
    for name, layer in module.named_modules():
        if isinstance(layer, _LOOPED):
            return f"layer '{name}' ({type(layer).__name__}) trains best, or only, a client at a time"
    return ""


def _vmap_obstacle(workload: Workload) -> str:
    """Why vmap does not take the model: found out by trying it on two clients of two examples each."""
    module = workload.fresh_module()
    if replace_dropout(module):
        return "its dropout layers draw from a stream of each client's own"
    inputs, targets = workload.inputs(workload.examples.inputs[:1]), workload.targets(workload.examples.targets[:1])
    if not len(targets):
        return "there is no example to try vmap on"
    twice = inputs.expand(2, *inputs.shape[1:])
    try:
        if uses_global_generator(module, twice):
            return "it draws from torch's global generator"
    except Exception as error:
        return f"vmap does not take it ({_said(error)})"
    why = _refusal(workload, _vmap(workload))
    return f"vmap does not take it ({why})" if why else ""


def _refusal(workload: Workload, engine: Engine) -> str:
    """What an engine says when it is tried on two clients of two examples each; nothing if it takes them."""
    inputs, targets = workload.inputs(workload.examples.inputs[:1]), workload.targets(workload.examples.targets[:1])
    if not len(targets):
        return ""
    rows = torch.zeros(2, workload.layout.d, dtype=workload.dtype, device=workload.device)
    batch = inputs.expand(2, 2, *inputs.shape[1:]), targets.expand(2, 2, *targets.shape[1:])
    if engine.flat_inputs:
        batch = batch[0].flatten(2), batch[1]
    aside = _aside(workload, batch[1])
    try:
        if workload.searches:
            searched = Searched(engine, [Batch(0, *batch)], aside, workload.dtype)  # type: ignore[arg-type]
            rows = rows.double()
            searched.evaluate(torch.arange(2, device=rows.device), rows)
            searched.products(torch.arange(2, device=rows.device), rows)(rows)
        elif workload.apart:
            parts = rows.new_zeros(
                2, workload.objective.objectives if workload.apart == "objectives" else 2, len(rows[0])
            )
            engine.apart(engine.views(rows), parts, *batch, aside)
        else:
            engine.gradient(engine.views(rows), engine.views(torch.zeros_like(rows)), *batch, aside)
        if workload.step_control is not None:
            workload.step_control.scale(engine.logits, rows, rows, batch[0], batch_dims=1)
    except Exception as error:
        return _said(error)
    return ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"


def _aside(workload: Workload, targets: Tensor) -> Aside:
    """What the objective would be given beside a batch of (k, B) targets, to try it."""
    present = None
    if workload.loss is not None and workload.loss.masks:
        present = torch.stack([class_mask(workload.num_classes, each) for each in targets])
    return Aside(present, tuple({} for _ in workload.regularizers))
