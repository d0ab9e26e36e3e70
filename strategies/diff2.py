"""DIFF2: the differentially private gradient, estimated by gradient differences.

P clients, client p holds n_p examples; f(x) = (1/P) Σ_p (1/n_p) Σ_i ℓ(x, z_pi). In the rounds r = 0 … R − 1, with the
restart interval T::

    r mod T = 0:  v_r = mean_p mean_i clip(∇ℓ(x_r, z_pi), C₁)                              + C₁ σ₁ N(0, I)
    otherwise:    C   = C₂ ‖x_r − x_{r−1}‖₂
                  v_r = v_{r−1} + mean_p mean_i clip(∇ℓ(x_r, z_pi) − ∇ℓ(x_{r−1}, z_pi), C)  + C σ₂ N(0, I)
    x_{r+1} = x_r − η v_r

clip is per example, of the difference itself. T = 1 is DP-GD. Every client takes part in every round with all its
examples; the radii use released iterates only. What a client sends is its own mean, which the defenses see as the
step −η (v_{r−1} + row) that it alone would cause.

Where the noise is drawn is ``privacy.trust``: ``central``: once, by the server; ``local``: by each client, for its own
row; ``distributed``: each client adds N(0, P C² σ² I) to its row, of which the mean is taken behind secure summation.

The subroutine ``bvr_l_sgd`` replaces the step by K local ones of one client, drawn uniformly: from x̃₀ = x_r with
v_0 = v_r, v_k = g_B(x̃_{k−1}) − g_B(x̃_{k−2}) + v_{k−1}, x̃_k = x̃_{k−1} − η v_k. These touch raw data without noise, and
run with ``privacy.epsilon = "inf"`` alone.

Murata & Suzuki, "DIFF2: Differential Private Optimization via Gradient Differences for Nonconvex Distributed
Learning", ICML 2023, arXiv 2302.03884, Algorithms 1 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterable
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from pydantic import Field
from torch import Tensor

from fedsim.errors import NOTHING, Fault, PrivacyError, UpdatesError
from fedsim.flower import Flat, flatten
from fedsim.privacy.mechanism import Publication
from fedsim.privacy.noise import noised
from fedsim.scenario_privacy import claims
from strategies.defense import Reply, Request, Round
from strategies.estimator import Estimator, Setting, estimator

MEASURE, LOCAL = "train.diff2", "train.diff2_local"


class GradientDifferences(Estimator):
    """What diff2 and dp_gd share."""

    message = MEASURE
    handlers: ClassVar = {MEASURE: "measure", LOCAL: "local_steps"}
    full_participation: ClassVar[bool] = True
    sends_buffers: ClassVar[bool] = False
    diagnostics: ClassVar = ("examples that were clipped", "gradients that were not finite")

    c1: float
    c2: float
    lr: float
    subroutine: str = "gd"
    local_steps_count: int = 0

    def interval(self, rounds: int) -> int:
        """T."""
        raise NotImplementedError

    def check(self, scenario: Any) -> Iterable[Fault]:
        yield from super().check(scenario)
        privacy, clients = scenario.privacy, scenario.data.clients
        if scenario.cohort != clients:
            accepted = (
                f"all {clients} clients in every round: the estimator's noise is calibrated to full participation"
            )
            yield Fault("/client.per_round", scenario.client.per_round, accepted, ("data.clients",))
        interval = self.interval(scenario.rounds)
        if not 1 <= interval <= scenario.rounds:
            accepted = (
                f"1 to rounds = {scenario.rounds}: beyond, the estimator never restarts and its noise is not calibrated"
            )
            yield Fault("restart", interval, accepted, ("rounds",))
        if privacy.epsilon is None and privacy.noise is None and privacy.claim != "none":
            accepted = 'a number, "inf" (clipped, but free of noise), privacy.noise = [σ1, σ2], or claim = "none"'
            yield Fault("/privacy.epsilon", NOTHING, accepted)
        if privacy.noise is not None and len(privacy.noise) not in ((1, 2) if interval == 1 else (2,)):
            accepted = "[σ1], of the restarts" if interval == 1 else "[σ1, σ2], of the restarts and of the differences"
            yield Fault("/privacy.noise", privacy.noise, accepted)
        if self.c1 > scenario.server.limit and claims(scenario):
            accepted = f"at most server.limit = {scenario.server.limit:g}: an example could have its client refused"
            yield Fault("c1", self.c1, accepted, ("server.limit",))

    def set_up(self, setting: Setting) -> None:
        self.setting = setting
        privacy = setting.privacy
        if privacy.noise is None:
            counts = privacy.epsilon not in (None, "inf")
        else:
            counts = any(privacy.noise) and privacy.claim != "none"
        if counts and privacy.unit == "example" and 0 in list(setting.sizes):
            raise PrivacyError(
                f"partition: given client {list(setting.sizes).index(0)} without examples; accepted: at least one "
                "for each client, since the noise is calibrated to whoever has the fewest (some partitions take "
                'min_examples; privacy.unit = "client" counts no examples)'
            )
        self.sigma = self._noise(setting)

    def _noise(self, setting: Setting) -> tuple[float, float]:
        privacy = setting.privacy
        if privacy.noise is not None:
            return privacy.noise[0], privacy.noise[-1]
        if privacy.epsilon is None or privacy.epsilon == "inf":
            return 0.0, 0.0
        from fedsim.privacy import diff2_noise

        found: tuple[float, float] = diff2_noise(
            privacy.epsilon,
            privacy.delta,
            setting.rounds,
            self.interval(setting.rounds),
            setting.clients,
            min(setting.sizes),
            calibration=privacy.calibration,
            trust=privacy.trust,
            unit=privacy.unit,
            neighbours=privacy.neighbours,
            colluding=privacy.colluding,
            accountant=privacy.accountant,
        )
        return found

    def publications(self, setting: Setting, absent: int = 0) -> list[Publication]:
        """⌈R/T⌉ clipped gradients and R − ⌈R/T⌉ clipped differences.

        Args:
            setting: the run.
            absent: shares of the noise that are missing or known, under ``distributed``.
        """
        from fedsim.privacy import diff2_releases
        from fedsim.privacy.releases import SENSITIVITY

        privacy, rounds, interval = setting.privacy, setting.rounds, self.interval(setting.rounds)
        n, clients = max(1, min(setting.sizes)), setting.clients  # 0 of them only without noise, or by clients
        found = diff2_releases(*self.sigma, rounds, interval, clients, n, privacy.trust, privacy.unit, colluding=absent)
        factor = SENSITIVITY[privacy.neighbours]
        among = {"n_min": n} if privacy.unit == "example" else {}
        among |= {} if privacy.trust == "local" else {"P": clients}
        names, numbers = "·".join(among) or "1", "·".join(map(str, among.values())) or "1"
        size = factor / math.prod(among.values())
        each = "an example's" if privacy.unit == "example" else "every example's"
        restarts = range(1, rounds + 1, interval)
        kinds = [
            Publication(
                "clipped gradients",
                f"{each} gradient to C1 = {self.c1:g}",
                f"{factor:g}·C1/({names}) = {factor:g}·{self.c1:g}/({numbers}) = {size * self.c1:.4g}",
                found[0].noise_multiplier,
                restarts,
            )
        ]
        if len(found) > 1:
            radius = f"C = {self.c2:g}·‖x − x_before‖, of released iterates"
            kinds.append(
                Publication(
                    "clipped gradient differences",
                    f"{each} difference to {radius}",
                    f"{factor:g}·C/({names}) = {factor:g}·C/({numbers}) = {size:.4g}·C",
                    found[1].noise_multiplier,
                    [number for number in range(1, rounds + 1) if number not in restarts],
                )
            )
        return kinds

    def sigma_in(self, server_round: int, restart: bool) -> float:
        """σ of a round's noise; a restart out of turn, after a lost first round, costs no more than its difference."""
        if not restart:
            return self.sigma[1]
        planned = (server_round - 1) % self.interval(self.setting.rounds) == 0
        return self.sigma[0] if planned else max(self.sigma)

    def request(self, ctx: Round) -> dict[str, Any]:
        """Whether the round restarts; if not, the iterate that v belongs to."""
        restart = self.restarts(ctx)
        records: dict[str, Any] = {"diff2": ConfigRecord({"restart": restart})}
        if not restart:
            assert ctx.layout is not None
            records["previous"] = Flat(ctx.state["at"], ctx.layout)
        return records

    def restarts(self, ctx: Round) -> bool:
        """Whether v is estimated anew: every T-th round, and wherever there is none."""
        return "v" not in ctx.state or (ctx.round - 1) % self.interval(self.setting.rounds) == 0

    def measure(self, node: Any, content: RecordDict) -> RecordDict:
        """A client's answer: the mean of its examples' clipped gradients, or of their clipped differences."""
        from fedsim.privacy.clipping import clipped_difference_sum, clipped_gradient_sum

        restart = bool(content["diff2"]["restart"])
        examples, layout = node.examples(), node.workload.layout
        n = len(examples)
        if n == 0:
            row, clipped, broken = torch.zeros_like(node.parameters[: layout.d]), 0.0, 0
            radius, sigma = self.c1, self.sigma_in(node.round, restart)
            if not restart:
                before = flatten(content["previous"], layout, row.dtype)[: layout.d].to(row.device)  # type: ignore[arg-type]
                radius = radius_of(self.c2, node.parameters[: layout.d], before)
        else:
            module, loss = node.module.eval(), node.workload.example_loss
            if restart:
                radius, sigma = self.c1, self.sigma_in(node.round, restart)
                found = clipped_gradient_sum(module, loss, examples.inputs, examples.targets, radius)
            else:
                now = node.parameters[: layout.d]
                before = flatten(content["previous"], layout, now.dtype)[: layout.d].to(now.device)  # type: ignore[arg-type]
                radius, sigma = radius_of(self.c2, now, before), self.sigma_in(node.round, restart)
                found = clipped_difference_sum(module, now, before, loss, examples.inputs, examples.targets, radius)
            row = found.total / n
            clipped, broken = found.clipped, found.nonfinite
        trust = self.setting.privacy.trust
        if trust != "central" and sigma:
            scale = radius * sigma * (math.sqrt(self.setting.clients) if trust == "distributed" else 1.0)
            row = row if scale == 0 else noised(row, scale, self._stream(node.stream))
        counted = 1 if self.setting.privacy.unit == "client" else n
        metrics = MetricRecord({"num-examples": counted})
        if trust == "central" or not sigma:
            metrics["clipped"], metrics["nonfinite"] = float(clipped), int(broken)
        return RecordDict({"arrays": Flat(torch.cat([row, row.new_zeros(layout.b)]), layout), "metrics": metrics})

    def _stream(self, stream: Callable[[str], np.random.Generator]) -> np.random.Generator | None:
        """Where noise is drawn: the scenario's seeds in simulation, the operating system in deployment."""
        return None if self.setting.deployed else stream("privacy.noise")

    def divisor(self, answered: int) -> float:
        """P, whoever answered; under ``distributed``, missing shares beyond those calibrated for end the round."""
        clients, privacy = self.setting.clients, self.setting.privacy
        needed = clients - privacy.colluding + min(self.setting.attackers, privacy.colluding)
        if privacy.trust == "distributed" and self.sigma[0] and answered < needed:
            raise UpdatesError(
                f"only {answered} of {clients} shares of the noise came, privacy.colluding = {privacy.colluding}"
                + (f", {self.setting.attackers} of them malicious" if self.setting.attackers else "")
                + ": nothing is released"
            )
        return float(clients)

    def _memory(self, ctx: Round) -> Tensor | float:
        return 0.0 if self.restarts(ctx) else ctx.state["v"]

    def to_steps(self, rows: Tensor, ctx: Round) -> Tensor:
        """−η (v_{r−1} + row), with v_{r−1} = 0 where the round restarts."""
        steps = (rows.double() + self._memory(ctx)) * -self.lr
        # In front of central noise a step keeps all its bits: rounded as v is, it would move by more than rows do.
        return steps if self.setting.privacy.trust == "central" else steps.to(rows.dtype)

    def to_rows(self, steps: Tensor, ctx: Round) -> Tensor:
        return (steps.double() / -self.lr - self._memory(ctx)).to(steps.dtype)

    def step(self, row: Tensor, ctx: Round) -> Tensor:
        """v moves on, with the server's own noise under ``central``; −η v."""
        assert ctx.parameters is not None
        restart = self.restarts(ctx)
        radius = self.c1 if restart else radius_of(self.c2, ctx.parameters, ctx.state["at"])
        sigma = self.sigma_in(ctx.round, restart)
        v = row.double() + self._memory(ctx)
        if self.setting.privacy.trust == "central" and sigma and radius:
            v = noised(v, radius * sigma, self._stream(ctx.stream))
        ctx.state |= {"v": v, "at": ctx.parameters.clone(), "restarted": restart, "radius": radius}
        return (v * -self.lr).to(row.dtype)

    def afterwards(self, ctx: Round) -> Generator[Request, list[Reply], Tensor | None]:
        if self.subroutine == "gd":
            return None
        assert ctx.layout is not None and ctx.parameters is not None
        chosen = int(ctx.stream("local").integers(self.setting.clients))
        v = Flat(ctx.state["v"].to(ctx.parameters.dtype), ctx.layout)
        replies = yield Request("local steps", LOCAL, {"v": v}, cohort=[chosen])
        if not replies:
            return torch.zeros_like(ctx.parameters)
        return flatten(replies[0].content["arrays"], ctx.layout, ctx.parameters.dtype)[: ctx.layout.d]  # type: ignore[arg-type]

    def local_steps(self, node: Any, content: RecordDict) -> RecordDict:
        """BVR-L-SGD's local routine on one client; the change of the parameters."""
        from fedsim.privacy.clipping import clipped_difference_sum

        layout, examples = node.workload.layout, node.examples()
        start = node.parameters[: layout.d]
        v = flatten(content["v"], layout, start.dtype)[: layout.d].to(start.device)  # type: ignore[arg-type]
        before, x = start, start - self.lr * v
        generator = node.stream("client.diff2.local")
        for _ in range(self.local_steps_count - 1):
            size = min(node.workload.batch_size, len(examples))
            rows = torch.from_numpy(np.sort(generator.choice(len(examples), size, replace=False))).to(start.device)
            found = clipped_difference_sum(
                node.module.eval(),
                x,
                before,
                node.workload.example_loss,
                examples.inputs[rows],
                examples.targets[rows],
                math.inf,
            )
            v = v + found.total / size
            before, x = x, x - self.lr * v
        change = torch.cat([x - start, start.new_zeros(layout.b)])
        return RecordDict({"arrays": Flat(change, layout), "metrics": MetricRecord({"num-examples": len(examples)})})


@estimator("diff2")
class Diff2(GradientDifferences):
    """Gradient differences with a restart every T rounds.

    Args:
        restart: T, rounds between restarts.
        restart_ratio: T/R in place of T; T = max(1, ⌊ratio·R⌋).
        c1: C1, bound on an example's gradient in a restart.
        c2: C2, bound on an example's gradient difference, per unit of the step between the two iterates.
        lr: η, the step size.
        subroutine: gd, or bvr_l_sgd (only with privacy.epsilon = "inf").
        local_steps_count: K, local steps of bvr_l_sgd.
    """

    restart: Annotated[int, Field(ge=1)] | None = None
    restart_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    c1: Annotated[float, Field(gt=0)]
    c2: Annotated[float, Field(gt=0)]
    lr: Annotated[float, Field(gt=0)]
    subroutine: Literal["gd", "bvr_l_sgd"] = "gd"
    local_steps_count: Annotated[int, Field(ge=1)] = 10

    def reads(self) -> Collection[str]:
        return ("batch_size",) if self.subroutine == "bvr_l_sgd" else ()

    def publications(self, setting: Setting, absent: int = 0) -> list[Publication]:
        """As of gradient descent; and the iterates of the local routine, which nothing clips and no noise covers."""
        kinds = super().publications(setting, absent)
        if self.subroutine != "gd":
            what = f"none, of {self.local_steps_count} local steps on one client's raw gradients"
            kinds.append(Publication("that client's iterate", what, "unbounded", 0.0, range(1, setting.rounds + 1)))
        return kinds

    def interval(self, rounds: int) -> int:
        if self.restart is not None:
            return self.restart
        return max(1, math.floor((self.restart_ratio or 0.0) * rounds + 1e-9))

    def check(self, scenario: Any) -> Iterable[Fault]:
        if (self.restart is None) == (self.restart_ratio is None):
            yield Fault("restart", self.restart or NOTHING, "either restart = T or restart_ratio = T/R")
            return
        yield from super().check(scenario)
        if self.subroutine == "bvr_l_sgd" and scenario.privacy.epsilon != "inf" and scenario.privacy.claim != "none":
            accepted = (
                "'gd', or privacy.epsilon = \"inf\": local steps of bvr_l_sgd touch raw data, and each would need a "
                "clipped difference, noise and accounting of its own"
            )
            yield Fault("subroutine", self.subroutine, accepted, ("privacy.epsilon",))


@estimator("dp_gd")
class DpGd(GradientDifferences):
    """Gradient descent on clipped gradients with noise: diff2 with T = 1, the same bits.

    Args:
        c1: C1, bound on an example's gradient.
        lr: η, the step size.
    """

    c1: Annotated[float, Field(gt=0)]
    lr: Annotated[float, Field(gt=0)]

    def interval(self, rounds: int) -> int:
        return 1


def radius_of(c2: float, now: Tensor, before: Tensor) -> float:
    """C = C2·‖x_r − x_{r−1}‖₂, of the two released iterates, in float64."""
    return c2 * float(torch.linalg.vector_norm(now.double() - before.double()))
