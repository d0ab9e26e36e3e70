"""Membership inference: an observer that asks of each example whether the model was trained on it (LiRA).

It attacks the global model after a round, or one client's own model, which is what was sent plus the client's update.
The pool: all examples that the model was trained on, and as many others where there are (what clients hold out, clients
that were never drawn, the test set). Shadow models are trained on random halves of it, from the model that training
started from, by the clients' optimizer, for as many local steps as the clients made (behind an estimator by full-batch
descent). What the server adds, noise included, they do not have. Their confidences say what an example looks like to a
model that has seen it and to one that has not (:mod:`fedsim.observers.likelihood_ratio`).

Carlini, Chien, Nasr, Song, Terzis & Tramèr, "Membership Inference Attacks From First Principles", IEEE S&P 2022,
arXiv:2112.03570.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedsim import registry, rng
from fedsim.analysis.statistics import auc
from fedsim.data.examples import Examples
from fedsim.errors import NOTHING, Fault, FedsimError
from fedsim.observers import shadows
from fedsim.observers.likelihood_ratio import bound, confidences, curve, likelihood_ratios, operating_point
from fedsim.observers.observer import Observation, Observer, Seen, Standpoint, Watched, observer, sight

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

RATES = (0.01, 0.001)
"""False positive rates at which the true positive rate is told."""
FEW = 64
"""Shadow models under which all examples share their variances."""
POINTS = 200
"""Points of the curve that are kept."""


@observer("membership_inference")
class MembershipInference(Observer):
    """Tells members from others by the likelihood ratio of their confidences under shadow models.

    Args:
        standpoint: server or client; see the observers' page for what each sees.
        client: whose own model is attacked; none: the global one.
        round: after which round; none: the last, or the first in which the client's update is seen.
        shadows: shadow models, an even number.
        steps: local steps of each; none: as many as a client makes (in all rounds so far, for the global model).
        mode: online (shadow models with and without each example) or offline (without it alone).
        variance: each example's own, pooled over all, or auto: pooled with fewer than 64 shadow models.
        pool: most examples that are asked about, half of them members; none: all.
    """

    goal: ClassVar[str] = "which examples the model was trained on"
    cost: ClassVar[str] = "shadows · steps training steps"

    standpoint: Standpoint = "server"
    client: Annotated[int, Field(ge=0)] | None = None
    round: Annotated[int, Field(ge=1)] | None = None
    shadows: Annotated[int, Field(ge=4, multiple_of=2)] = 16
    steps: Annotated[int, Field(ge=1)] | None = None
    mode: Literal["online", "offline"] = "online"
    variance: Literal["auto", "example", "pooled"] = "auto"
    pool: Annotated[int, Field(ge=20)] | None = None

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        if self.client is not None and self.client >= scenario.data.clients:
            yield Fault("client", self.client, f"0 to {scenario.data.clients - 1}", ("data.clients",))
        elif self.client is not None and sight(scenario, self.standpoint) != "messages":
            accepted = "none: this standpoint does not show a single client's message"
            yield Fault("client", self.client, accepted, ("privacy.trust",))
        elif self.client is not None and scenario.server.estimator is not None:
            accepted = "none behind an estimator, whose clients train no model of their own"
            yield Fault("client", self.client, accepted, ("server.estimator",))
        if self.round is not None and self.round > scenario.rounds:
            yield Fault("round", self.round, f"at most rounds = {scenario.rounds}", ("rounds",))
        if scenario.client.adapter is not None:
            accepted = "none with 'membership_inference': only the client knows how it maps its inputs"
            yield Fault("/client.adapter", scenario.client.adapter.name, accepted)

    def fit(self, num_classes: int) -> None:
        if num_classes < 2:
            accepted = "none for targets that are numbers: a confidence is a probability's"
            raise FedsimError(f"observe.observers: given 'membership_inference'; accepted: {accepted}")

    def set_up(self, watched: Watched) -> Iterable[Fault]:
        super().set_up(watched)
        workload, scenario = watched.workload, watched.scenario
        if workload.view is not None:
            accepted = "one that gives clients the inputs as they are: a shift of its own tells a member at once"
            yield Fault("/data.partition", scenario.data.partition.name, accepted)
        if self.client is not None and not len(workload.rows(self.client)):
            yield Fault("client", self.client, "a client that holds examples")
        held = {int(row) for client in range(len(workload.shares)) for row in workload.rows(client)}
        if len(watched.test) + len(workload.train) - len(held) < 10:
            accepted = "a share above 0, or a data set with test examples: somebody must be no member"
            yield Fault("/data.holdout", scenario.data.holdout or NOTHING, accepted)

    def wants(self, round: int, state: dict[str, Any]) -> bool:
        if state.get("done"):
            return False
        if self.round is None and self.client is None:
            return round == self.watched.scenario.rounds
        return self.round in (None, round)

    def observe(self, seen: Seen, state: dict[str, Any]) -> Observation | None:
        watched, workload = self.watched, self.watched.workload
        if self.client is None:
            start, model = watched.initial, seen.after
            trained = [client for client in seen.truth.trained if client not in seen.truth.malicious]
        else:
            if self.client not in seen.messages or self.client in seen.truth.malicious:
                state["why"] = f"client {self.client} sent no honest message in a round that it may look at"
                return None
            start, model, trained = seen.before, seen.before + seen.messages[self.client].vector, [self.client]
        pool, members = self._pool(trained, {*seen.truth.trained, *seen.truth.malicious}, seen.round)
        if min(members.sum(), (~members).sum()) < 10:
            state["why"] = f"of its pool, {int(members.sum())} were members and {int((~members).sum())} were not"
            return None
        state["done"] = True
        inside = shadows.halves(self.shadows, len(members), watched.stream("membership_inference.halves", seen.round))
        steps = self._steps(seen.round, trained) if self.steps is None else self.steps
        seed = rng.integer(watched.scenario.seed, "observer.membership_inference.shadows", round=seen.round)
        models = shadows.train(workload, pool, inside, start, steps, seed, **self._training(len(members)))
        labels = pool.targets.cpu().numpy()
        target, *others = [confidences(shadows.logits(workload, each, pool), labels) for each in (model, *models)]
        pooled = self.variance == "pooled" or (self.variance == "auto" and self.shadows < FEW)
        scores = likelihood_ratios(target, np.stack(others), inside, self.mode, pooled)
        return self._judged(scores, members, target, seen.truth.epsilon, steps)

    def _pool(self, trained: list[int], touched: set[int], round: int) -> tuple[Examples, NDArray[np.bool_]]:
        """Members, then others: at most as many of these, drawn by the seed."""
        watched, workload = self.watched, self.watched.workload
        stream = watched.stream("membership_inference.pool", round)
        inner = np.unique(np.concatenate([workload.rows(client) for client in trained] or [np.zeros(0, np.int64)]))
        seen = np.concatenate([inner, *(workload.rows(client) for client in sorted(touched))])
        outer = np.setdiff1d(np.arange(len(workload.train)), seen)
        outer = np.concatenate([outer, len(workload.train) + np.arange(len(watched.test))])
        most = len(inner) if self.pool is None else min(len(inner), self.pool // 2)
        inner = np.sort(stream.permutation(inner)[:most])
        outer = np.sort(stream.permutation(outer)[:most])
        train, others = workload.train.take(inner), outer[outer < len(workload.train)]
        drawn = [train, workload.train.take(others), watched.test.take(outer[len(others) :] - len(workload.train))]
        pool = Examples(torch.cat([each.inputs for each in drawn]), torch.cat([each.targets for each in drawn]))
        return pool, np.arange(len(pool)) < len(inner)

    def _steps(self, rounds: int, trained: list[int]) -> int:
        """Local steps that the attacked model has behind it."""
        if self.watched.estimator is not None:
            return rounds
        workload = self.watched.workload
        each = int(np.median([workload.steps_of(len(workload.rows(client))) for client in trained]))
        return max(1, each * (rounds if self.client is None else 1))

    def _training(self, pool: int) -> dict[str, Any]:
        """How shadow models train otherwise than clients do."""
        estimator = self.watched.estimator
        if estimator is None:
            return {}
        lr = float(self.watched.scenario.server.estimator.options["lr"])  # type: ignore[union-attr]
        return {"optimizer": registry.make("optimizer", "sgd", lr=lr), "batch_size": pool}

    def _judged(
        self,
        scores: NDArray[np.float64],
        members: NDArray[np.bool_],
        target: NDArray[np.float64],
        epsilon: float | None,
        steps: int,
    ) -> Observation:
        delta = self.watched.scenario.privacy.delta
        points = []
        for rate in RATES:
            found = operating_point(scores, members, rate)._asdict()
            found["bound"] = None if epsilon is None else bound(rate, epsilon, delta)
            points.append(found)
        fprs, tprs = curve(scores, members)
        kept = np.unique(np.linspace(0, len(fprs) - 1, min(POINTS, len(fprs))).round().astype(int))
        return Observation(
            {
                "client": self.client,
                "auc": auc(scores, members),
                "rates": points,
                "members": int(members.sum()),
                "others": int((~members).sum()),
                "accuracy_members": float((target[members] > 0).mean()),
                "confidence_members": float(target[members].mean()),
                "confidence_others": float(target[~members].mean()),
                "mode": self.mode,
                "shadows": self.shadows,
                "steps": steps,
                "roc": [[float(x), float(y)] for x, y in zip(fprs[kept], tprs[kept], strict=True)],
            }
        )
