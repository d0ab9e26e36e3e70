"""From the scenario's ``[model]`` to a module: built, seeded, and warm-started from a file."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedsim import registry, rng
from fedsim.data.examples import DataInfo
from fedsim.errors import FedsimError, nearest
from fedsim.models.standardize import standardized

_lock = threading.Lock()

CHECKPOINT = "model."
"""What the names of the model's tensors begin with in a run's checkpoint."""


class ModelPart(Protocol):
    """What :func:`build_model` reads of a scenario's model."""

    @property
    def name(self) -> str:
        """Registry name or ``module:function``."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of the model."""


def build_model(
    part: ModelPart,
    info: DataInfo,
    seed: int,
    precision: str = "float32",
    head: Callable[[nn.Module], nn.Module] | None = None,
) -> nn.Module:
    """The scenario's model with its initial weights, the same for the same seed.

    A function of the user's gets the :class:`DataInfo` as its first argument if it has one, else nothing. torch's
    global generator is seeded around the call and left as it was.

    Args:
        part: name, options, ``init`` where there is a file to start from, ``standardize`` (mean, sd) of the inputs.
        info: of the data set.
        seed: the scenario's seed.
        head: puts another head on the model, with weights of its own; its file to start from has them too.
        precision: ``float64`` makes the weights so; else they are float32 (bfloat16 is for the computation alone).

    Raises:
        FedsimError: the function returns no module or asks for more arguments; the file does not fit.
        ScenarioError: unknown names or options.
    """
    bound = registry.make("model", part.name, **dict(part.options))
    with _lock, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.integer(seed, "model.init"))
        model = bound if isinstance(bound, nn.Module) else _called(bound, part.name, info)
        if not isinstance(model, nn.Module):
            raise FedsimError(f"model '{part.name}': returns {type(model).__name__}; accepted: a torch.nn.Module")
        model = model if head is None else head(model)
    standardize = getattr(part, "standardize", None)
    if standardize is not None:
        model = standardized(model, *standardize)
    init = getattr(part, "init", None)
    if init is not None:
        warm_start(model, Path(init).expanduser())
    return model.to(torch.float64 if precision == "float64" else torch.float32)


def warm_start(model: nn.Module, file: Path) -> None:
    """Set a model's parameters, and those buffers that are there, from a .safetensors file of named tensors.

    A run's own ``checkpoint-R.safetensors`` is one too: of what is in it the model is taken.

    Raises:
        FedsimError: there is no such file, or names or shapes differ; all differences at once.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        given: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise FedsimError(
            f"model.init: given '{file}', {error}; accepted: a .safetensors file of parameters"
        ) from error
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    needed = {name for name, _ in model.named_parameters()}
    if all(f"{CHECKPOINT}{name}" in given for name in own):
        given = {name: given[f"{CHECKPOINT}{name}"] for name in own}
    faults = [f"'{name}' is not in it" for name in sorted(needed - set(given))]
    faults += [f"'{name}' is not in the model{nearest(name, own)}" for name in sorted(set(given) - set(own))]
    faults += [
        f"'{name}' is {tuple(given[name].shape)}, in the model {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if faults:
        raise FedsimError(f"model.init: '{file}' does not fit the model: {'; '.join(faults)}")
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)


def _called(bound: Any, name: str, info: DataInfo) -> Any:
    function = getattr(bound, "function", bound)
    places = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    required = [p.name for p in places if p.default is p.empty]
    if len(required) > 1:
        accepted = "at most one, which is the data set's info; options are keyword-only"
        raise FedsimError(f"model '{name}': asks for positional arguments {', '.join(required)}; accepted: {accepted}")
    takes_info = bool(required) or (bool(places) and places[0].name == "info")
    return bound(info) if takes_info else bound()
