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
    """Columns of the last layer's weight: the last parameter of that name with two dimensions or more."""
    found = _weight(updates)
    return slice(0, 0) if found is None else slice(*found[:2])


def output_classes(updates: Updates) -> int:
    """C, the rows of the last layer's weight; 0 where the layout is not known."""
    found = _weight(updates)
    return 0 if found is None else found[2]


def _weight(updates: Updates) -> tuple[int, int, int] | None:
    """(start, stop, rows) of the last layer's weight; a distance's matrix beside it has another name."""
    if updates.layout is None:
        return None
    matrices = [
        (name, start, stop, shape[0])
        for name, start, stop, shape in updates.layout.slices
        if stop <= updates.layout.d and len(shape) > 1
    ]
    named = [each for each in matrices if each[0].split(".")[-1] == "weight"] or matrices
    return named[-1][1:] if named else None
