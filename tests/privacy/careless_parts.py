"""Parts of one's own that forget what a claim of privacy forbids."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fedsim.data.examples import Examples
from fedsim.data.iid import Iid
from fedsim.errors import Fault
from fedsim.flower import Flat
from fedsim.losses.loss import Loss
from fedsim.losses.regularizer import Regularizer
from fedsim.optim.dp_sgd import DpSgd
from fedsim.privacy.mechanism import Publication, Setting
from fedsim.updates import Updates
from strategies.analysis import Analysis
from strategies.defense import Request, Round
from strategies.diff2 import Diff2
from strategies.dp_fedavg import DpFedAvg
from strategies.estimator import Estimator


class Mixing(Loss):
    reads: ClassVar[str] = "example"

    def example_losses(
        self, outputs: Tensor, targets: Tensor, num_classes: int, present: Tensor | None = None
    ) -> Tensor:
        losses = functional.cross_entropy(outputs, targets, reduction="none")
        return losses / losses.mean()


class Doubled(Loss):
    reads: ClassVar[str] = "example"

    def example_losses(
        self, outputs: Tensor, targets: Tensor, num_classes: int, present: Tensor | None = None
    ) -> Tensor:
        return 2 * functional.cross_entropy(outputs, targets, reduction="none")


class Silent(Doubled):
    """Inherits no declaration."""


class Still:
    def step(self, parameters: Tensor, update: Tensor, state: dict[str, Any], round: int) -> Tensor:
        return parameters + update


class Lengths(Analysis):
    def check(self, scenario: Any) -> Iterable[Fault]:
        return ()

    def measure(self, updates: Any, ctx: Round) -> dict[str, float | None]:
        return {"length": float(updates.values.norm())}


class PrivateLengths(Lengths):
    reads: ClassVar[str] = "rows"


class Moved(Analysis):
    reads: ClassVar[str] = "released"

    def measure(self, updates: Any, ctx: Round) -> dict[str, float | None]:
        return {"rounds": float(ctx.round)}


class Centred(Iid):
    def view(self, examples: Examples, client: int, seed: int) -> Examples:
        return Examples(examples.inputs - examples.inputs.mean(0), examples.targets)


class RawGradients(Estimator):
    handlers: ClassVar = {"train.estimate": "measure"}

    def measure(self, node: Any, content: RecordDict) -> RecordDict:
        row = torch.zeros_like(node.parameters)
        metrics = MetricRecord({"num-examples": len(node.examples())})
        return RecordDict({"arrays": Flat(row, node.workload.layout), "metrics": metrics})

    def to_steps(self, rows: Tensor, ctx: Round) -> Tensor:
        return -rows

    def to_rows(self, steps: Tensor, ctx: Round) -> Tensor:
        return -steps

    def step(self, row: Tensor, ctx: Round) -> Tensor:
        assert ctx.updates is not None
        return -ctx.updates.values.mean(0)


class Unchecked(Regularizer):
    def check(self, scenario: Any) -> Iterable[Fault]:
        return ()


class Asks(Analysis):
    def check(self, scenario: Any) -> Iterable[Fault]:
        return ()

    def before(self, ctx: Round) -> Generator[Request, Any, Any]:
        yield Request("again", "train")


class Twice:
    reads_sizes: ClassVar[bool] = False

    def sample(
        self, round: int, sizes: NDArray[Any], per_round: int, generator: np.random.Generator
    ) -> NDArray[np.int64]:
        return np.asarray([2, 0, 2], dtype=np.int64)


class Quieter(Diff2):
    """A hundredth of the noise."""

    def sigma_in(self, server_round: int, restart: bool) -> float:
        return super().sigma_in(server_round, restart) / 100


class Loose(DpFedAvg):
    """Neither clips nor adds noise."""

    def transform(self, updates: Updates, ctx: Round) -> Updates:
        return updates

    def combine(self, updates: Updates, ctx: Round) -> Tensor:
        return updates.values.mean(0)


class Hasty(DpSgd):
    def set_up(self, setting: Setting) -> None:
        super().set_up(setting)
        self.noise_multiplier /= 1000


class Louder(Diff2):
    """Twice the noise, and says what it releases itself."""

    def sigma_in(self, server_round: int, restart: bool) -> float:
        return super().sigma_in(server_round, restart) * 2

    def publications(self, setting: Setting, absent: int = 0) -> list[Publication]:
        return super().publications(setting, absent)
