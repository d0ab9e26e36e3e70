"""Where the output layer stands in an update."""

from __future__ import annotations

from fedsim.updates import Updates


def output_columns(updates: Updates) -> slice:
    """Columns of the last layer's weight and bias; all of them where the layout is not known."""
    if updates.layout is None or not updates.layout.parameters:
        return slice(None)
    weight = output_weight(updates)
    return slice(weight.start, updates.layout.d)


def output_weight(updates: Updates) -> slice:
    """Columns of the last layer's weight: the last parameter with two dimensions or more."""
    if updates.layout is None:
        return slice(0, 0)
    matrices = [
        (start, stop)
        for name, start, stop, shape in updates.layout.slices
        if stop <= updates.layout.d and len(shape) > 1
    ]
    return slice(*matrices[-1]) if matrices else slice(0, 0)
