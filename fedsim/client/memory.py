"""What a client's optimizer remembers over rounds, where ``client.optimizer_state = "persist"``.

The state of each client is a record of arrays in its Context: per number of the model (momentum, moments, the last
gradient) in the order in which the model is exchanged, and single numbers (steps made). Clients whose single numbers
differ do not train in one tensor: their bias corrections are their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.flower import as_record, as_tensors

RECORD = "client.optimizer"
"""Key of the record in a client's state."""

Memory = dict[str, Tensor]
"""``POSITION.NAME`` → state of the parameter at this position, (d,) for all of them in one, or a single number."""


def recall(state: RecordDict) -> Memory:
    """What a client remembers."""
    record = state.get(RECORD)
    if not isinstance(record, ArrayRecord):
        return {}
    return as_tensors(record)


def remember(state: RecordDict, memory: Memory) -> None:
    """Keep it in the client's state."""
    if memory:
        state[RECORD] = as_record(memory)


def signature(memory: Memory) -> tuple[tuple[str, float | None], ...]:
    """What must be equal for clients to train in one tensor: the names, and the single numbers."""
    return tuple((name, None if each.ndim else float(each)) for name, each in sorted(memory.items()))


def restore(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    memories: Sequence[Memory],
    write: Callable[[Tensor, Tensor], None] | None = None,
) -> None:
    """Give an optimizer its state back.

    Args:
        optimizer: freshly built.
        parameters: of one client, or one (k, d) of k clients.
        memories: of each client.
        write: (into, exchanged) puts numbers in the order of the model's exchange into the parameter's own.
    """
    for name, first in memories[0].items():
        position, _, key = name.partition(".")
        parameter = parameters[int(position)]
        if not first.ndim:
            optimizer.state[parameter][key] = first.clone()
            continue
        value = torch.empty_like(parameter, requires_grad=False)
        rows = [memory[name].to(value) for memory in memories]
        if write is not None:
            write(value, rows[0])
        else:
            value.copy_(torch.stack(rows) if len(rows) > 1 or value.ndim > first.ndim else rows[0])
        optimizer.state[parameter][key] = value


def collect(state: Mapping[str, object], position: int, shape: torch.Size, read: Callable[[Tensor], Tensor]) -> Memory:
    """One client's memory of one parameter.

    Args:
        state: the optimizer's for the parameter.
        position: of the parameter.
        shape: of the parameter.
        read: takes the client's part out of a tensor of that shape, in the order of the model's exchange.

    Raises:
        FedsimError: the optimizer keeps what is neither of the parameter's shape nor a single number.
    """
    found: Memory = {}
    for key, value in state.items():
        if value is None:
            continue
        if not isinstance(value, Tensor) or (value.ndim and value.shape != shape):
            accepted = "'reset': its optimizer keeps more than numbers for each parameter"
            raise FedsimError(f"client.optimizer_state: given 'persist' (state '{key}'); accepted: {accepted}")
        found[f"{position}.{key}"] = (read(value) if value.ndim else value).detach().clone()
    return found
