"""Every partitioner of flwr-datasets by its own name: ``flwr:PathologicalPartitioner`` with its own options.

The examples are shuffled by the scenario's seed first, as Flower's FederatedDataset does. ``num_partitions`` and
``seed`` are the scenario's; the columns to go by are ``label`` and those that the data set has beside it.

Flower Labs, flwr-datasets.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import logging
import re
import types
import typing
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import SkipValidation

from fedsim import rng
from fedsim.data.examples import Dataset, Shares
from fedsim.data.partition import Partition
from fedsim.errors import FedsimError, nearest
from fedsim.registry import _parts

log = logging.getLogger("fedsim")


class FlwrPartition(Partition):
    """A partitioner of flwr-datasets."""

    partitioner: typing.ClassVar[Any]
    arrays: typing.ClassVar[tuple[str, ...]] = ()

    def assign(self, dataset: Dataset, clients: int, seed: int) -> Shares:
        import datasets

        self.refuse(dataset, clients)
        name = self.partitioner.__name__
        order = rng.stream(seed, f"partition.flwr.{name}").permutation(len(dataset.train))
        columns = {"label": dataset.train.targets.cpu().numpy(), **dataset.columns}
        rows = datasets.Dataset.from_dict({"fedsim_position": order, **{k: v[order] for k, v in columns.items()}})
        accepted = inspect.signature(self.partitioner.__init__).parameters
        given = {option.name: getattr(self, option.name) for option in dataclasses.fields(self)}  # type: ignore[arg-type]
        given |= {option: np.asarray(given[option], dtype=np.float64) for option in self.arrays}
        if "num_partitions" in accepted:
            given["num_partitions"] = clients
        if "seed" in accepted:
            given["seed"] = rng.integer(seed, f"partition.flwr.{name}.seed") % 2**32
        datasets.disable_progress_bars()
        try:
            partitioner = self.partitioner(**given)
            partitioner.dataset = rows
            pieces = [
                np.asarray(partitioner.load_partition(i)["fedsim_position"], dtype=np.int64) for i in range(clients)
            ]
            there = int(partitioner.num_partitions)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FedsimError(f"partition 'flwr:{name}' with {clients} clients: {reason}") from error
        if there != clients:
            raise FedsimError(f"partition 'flwr:{name}' makes {there} partitions; accepted: data.clients = {there}")
        shares = Shares.of(pieces)
        if len(np.unique(shares.indices)) < len(shares.indices):
            raise FedsimError(f"partition 'flwr:{name}' gives an example to several clients")
        if len(shares.indices) < len(order):
            log.warning(
                "partition 'flwr:%s' leaves out %d of %d examples", name, len(order) - len(shares.indices), len(order)
            )
        return shares


@lru_cache(maxsize=64)
def partition_class(name: str) -> type[FlwrPartition]:
    """The part ``flwr:NAME``: a dataclass whose fields are the options of that partitioner.

    Raises:
        FedsimError: flwr-datasets has no such partitioner, or it divides columns instead of examples.
    """
    from flwr_datasets import partitioner as flower

    known = [each for each in flower.__all__ if each != "Partitioner" and not each.startswith("Vertical")]
    if name not in known:
        why = "divides columns, not examples" if name in flower.__all__ else "does not exist"
        raise FedsimError(f"partition 'flwr:{name}' {why}{nearest(name, known)}; known: {', '.join(known)}")
    original = getattr(flower, name)
    hints = typing.get_type_hints(original.__init__)
    fields: list[Any] = []
    arrays = []
    for parameter in list(inspect.signature(original.__init__).parameters.values())[1:]:
        if parameter.name in ("num_partitions", "seed"):
            continue
        kinds = [
            typing.get_origin(k) or k for k in typing.get_args(hints.get(parameter.name)) or [hints.get(parameter.name)]
        ]
        if np.ndarray in kinds and list not in kinds:
            arrays.append(parameter.name)
        default = "label" if parameter.name == "partition_by" else parameter.default
        required = default is inspect.Parameter.empty
        default_field = dataclasses.field() if required else dataclasses.field(default=default)
        fields.append((parameter.name, plain_type(hints.get(parameter.name, Any)), default_field))
    made = dataclasses.make_dataclass(name, fields, bases=(FlwrPartition,), kw_only=True, eq=False)
    made.partitioner, made.arrays = original, tuple(arrays)  # type: ignore[attr-defined]
    made.__doc__ = documented(inspect.getdoc(original) or name, [field[0] for field in fields], name)
    made.__module__ = __name__
    made.kind, made.name = "partition", f"flwr:{name}"  # type: ignore[attr-defined]
    return typing.cast(type[FlwrPartition], made)


def documented(text: str, options: list[str], name: str) -> str:
    """Flower's docstring (NumPy's style) as the registry reads one: first line, ``Args:``, ``Source:``."""
    lines = []
    for option in options:
        found = re.search(rf"^{option} ?:.*\n((?:    .*\n?|\n(?=    ))+)", text, re.MULTILINE)
        if found:
            lines.append(f"    {option}: {' '.join(found.group(1).split())}")
    arguments = "Args:\n" + "\n".join(lines) + "\n\n" if lines else ""
    return f"{text.splitlines()[0]}\n\n{arguments}Source: flwr-datasets, {name}."


def plain_type(hint: Any) -> Any:
    """An option's type as a scenario can give it: arrays as lists of numbers, functions unchecked."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [plain_type(each) for each in typing.get_args(hint)]
        return typing.Union[tuple(dict.fromkeys(members))]  # noqa: UP007
    base = typing.get_origin(hint) or hint
    if base is np.ndarray:
        return list[float] | list[list[float]]
    if base is collections.abc.Callable:
        return Annotated[Any, SkipValidation]
    if base is collections.abc.Sequence:
        return list[typing.get_args(hint)[0]]  # type: ignore[misc]
    return hint


_parts["partition"]["flwr:NAME"] = partition_class
