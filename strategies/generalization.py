"""A run of linear regression held against the theory of its generalization error, and the round in which to stop.

With N inputs of variance 1/N, P examples over all clients and α = P/N, local steps of rate η on the mean squared error
move the pooled flow on by 2η/P each (full batches or mini-batches, clients weighted by examples), so that after r
rounds of E local steps

    t/τ = 2η·E·r / P,    test_error = E_g(t),    train_error = E_t(t),    stopping_round = t_opt / (2η·E/P).

E = 1 with full batches is exact gradient descent; more local steps drift off the theory, which is then seen. The
variances of teacher, noise and start are assumptions of the prediction, not estimates.

Advani & Saxe, "High-dimensional dynamics of generalization error in neural networks", 2017, arXiv 1710.03667.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from fedsim import registry
from fedsim.analysis import generalization as theory
from fedsim.errors import Fault, FedsimError
from fedsim.updates import Updates
from strategies.analysis import Analysis, Measures, analysis
from strategies.defense import Round

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedsim.data.examples import DataInfo
    from fedsim.scenario import Scenario

Variance = Annotated[float, Field(ge=0)]
STUDENT = "linear"


@analysis("generalization")
class Generalization(Analysis):
    """Expected test and training error of each round, and the round in which the test error is least.

    Args:
        signal: σ_w², variance of the teacher's weights.
        noise: σ_ε², variance of the label noise.
        init: σ_0², variance of the student's first weights.
    """

    signal: Variance = 1.0
    noise: Variance = 0.2
    init: Variance = 0.0

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        """The theory is of plain gradient descent on a linear model's squared error."""
        yield from super().check(scenario)
        client, server = scenario.client, scenario.server
        if scenario.model.name != STUDENT:
            accepted = f"'{STUDENT}': the theory is of a linear student without bias"
            yield Fault("/model.name", scenario.model.name, accepted)
        loss = getattr(client, "loss", None)
        if loss is not None and loss.name != "squared_error":
            yield Fault("/client.loss", loss.name, "the squared error, of which the theory is")
        momentum = client.optimizer.options.get("momentum", 0.0)
        if client.optimizer.name != "sgd" or momentum:
            accepted = "sgd without momentum, of which the theory is"
            yield Fault("/client.optimizer", client.optimizer.model_dump(), accepted)
        if client.adapter is not None:
            accepted = "none: the theory of server.analysis 'generalization' is of the inputs as they are"
            yield Fault("/client.adapter", client.adapter.name, accepted, ("server.analysis",))
        unread = {"clip_norm": client.clip_norm, "proximal": client.proximal, "straggler": client.straggler}
        unread["optimizer.weight_decay"] = client.optimizer.options.get("weight_decay")
        for name, value in unread.items():
            if value:
                accepted = "none: the theory of server.analysis 'generalization' is of plain gradient descent"
                yield Fault(f"/client.{name}", value, accepted, ("server.analysis",))
        step = server.optimizer
        if (step.name, step.options.get("lr", 1.0), step.options.get("momentum", 0.0)) != ("sgd", 1.0, 0.0):
            yield Fault("/server.optimizer", step.model_dump(), "sgd with lr = 1, of which the theory is")
        if server.estimator is not None:
            yield Fault("/server.estimator", server.estimator.name, "none: the theory is of clients that train")

    def fit(self, num_classes: int) -> None:
        """The theory is of targets that are numbers."""
        if num_classes:
            accepted = "none for targets that are classes: the theory is of the squared error of numbers"
            raise FedsimError(f"server.analysis: given 'generalization'; accepted: {accepted}")

    def set_up(self, scenario: Scenario, info: DataInfo, sizes: NDArray[Any]) -> None:
        client = scenario.client
        held = np.asarray(sizes, dtype=np.float64)
        held = held - np.floor(held * scenario.data.holdout + 1e-9)
        steps = np.where(held > 0, client.steps or (client.epochs or 1) * np.ceil(held / client.batch_size), 0.0)
        examples = float(held.sum())
        schedule = registry.make("lr_schedule", client.lr_schedule.name, **client.lr_schedule.options)
        factors = [float(schedule.factor(number, scenario.rounds)) for number in range(1, scenario.rounds + 1)]
        rate = float(client.optimizer.options["lr"]) * float(steps @ held) / examples
        self.times = theory.mse_time(rate, 1, int(examples)) * np.cumsum(factors)
        self.alpha = examples / math.prod(info.shape)
        best = theory.optimal_stopping(self.alpha, self.signal, self.noise, self.init)
        self.stopping = _round_at(best.time, self.times)

    def measure(self, updates: Updates, ctx: Round) -> Measures:
        time = float(self.times[ctx.round - 1])
        options = (self.alpha, self.signal, self.noise, self.init)
        return {
            "time": time,
            "test_error": float(theory.generalization_error(time, *options)),
            "train_error": float(theory.training_error(time, *options)),
            "stopping_round": self.stopping,
        }


def _round_at(time: float, times: NDArray[np.float64]) -> float | None:
    """The round at which this time comes, at the last round's pace where it lies beyond; None for never."""
    if not math.isfinite(time):
        return None
    if time <= times[-1]:
        return float(np.interp(time, [0.0, *times], np.arange(len(times) + 1)))
    pace = times[-1] - (times[-2] if len(times) > 1 else 0.0)
    return None if pace <= 0 else float(len(times) + (time - times[-1]) / pace)
