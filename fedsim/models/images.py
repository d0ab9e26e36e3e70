"""What the models for images have in common: they need (C, H, W), and large enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fedsim.data.examples import DataInfo
from fedsim.data.partition import known_info
from fedsim.errors import Fault, FedsimError


def at_least(smallest: int) -> Callable[[Any], Any]:
    """Give a model's function the ``check`` the scenario asks: images of that size, where it is known, and a path."""

    def check(scenario: Any) -> Iterable[Fault]:
        info = known_info(scenario)
        if info is not None and not info.vocabulary and not _large_enough(info, smallest):
            yield Fault("name", scenario.model.name, _accepted(info, smallest), ("data.dataset",))
        if scenario.engine.path == "stacked":
            accepted = (
                f"'auto', 'vmap' or 'reference': convolutions, as '{scenario.model.name}' has, have no stacked twin"
            )
            yield Fault("/engine.path", "stacked", accepted, ("model.name",))

    def decorate(function: Any) -> Any:
        function.check, function.takes = check, "numbers"
        return function

    return decorate


def buffered(when: Callable[[Mapping[str, Any]], bool]) -> Callable[[Any], Any]:
    """Tell the scenario's check with which options the model of a function keeps buffers, such as batch statistics."""

    def decorate(function: Any) -> Any:
        function.has_buffers = when
        return function

    return decorate


def image_shape(info: DataInfo, model: str, smallest: int) -> tuple[int, int, int]:
    """(C, H, W) of the data set's images.

    Raises:
        FedsimError: its examples are no images, or smaller than the model's layers can reduce.
    """
    if not _large_enough(info, smallest):
        raise FedsimError(f"model '{model}': given inputs of shape {info.shape}; accepted: {_images(smallest)}")
    channels, height, width = info.shape
    return channels, height, width


def _large_enough(info: DataInfo, smallest: int) -> bool:
    return len(info.shape) == 3 and min(info.shape[1:]) >= smallest


def _images(smallest: int) -> str:
    return f"images (C, H, W) of {smallest} × {smallest} pixels or more (mlp and logistic take any shape)"


def _accepted(info: DataInfo, smallest: int) -> str:
    return f"a model for inputs of shape {info.shape}; this one takes {_images(smallest)}"
