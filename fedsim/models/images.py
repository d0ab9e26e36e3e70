"""What the models for images have in common: they need (C, H, W), and large enough."""

from __future__ import annotations

from fedsim.data.examples import DataInfo
from fedsim.errors import FedsimError


def image_shape(info: DataInfo, model: str, smallest: int) -> tuple[int, int, int]:
    """(C, H, W) of the data set's images.

    Raises:
        FedsimError: its examples are no images, or smaller than the model's layers can reduce.
    """
    if len(info.shape) != 3 or min(info.shape[1:]) < smallest:
        raise FedsimError(
            f"model '{model}': given inputs of shape {info.shape}; accepted: images (C, H, W) of {smallest} × "
            f"{smallest} pixels or more (mlp and logistic take any shape)"
        )
    channels, height, width = info.shape
    return channels, height, width
