"""Gradient inversion: an observer that rebuilds a client's training images from its update.

It takes the first update that it sees of its client, simulates the client's local steps on images of its own, and
moves these until the simulated update points where the observed one does (:mod:`fedsim.observers.inversion`). Under
secure summation, or where it sees the models alone, it takes the aggregate for the one gradient of all that trained;
its length, from which labels are counted, is told without the learning rates: the clients' in that round or the
estimator's, and the server's where its optimizer is plain SGD. Another optimizer of the server is not undone: the
change of the models is then neither as long as the gradient nor points where it does, and only the labels of the
clients' messages are right. Nor is what shortens an update undone, ``client.clip_norm`` or a defense that shortens the
aggregate: the counts of the labels are then too flat. The images are judged by their peak signal-to-noise ratio
(PSNR), each against the true one that the best assignment gives it; beside it stands what blind guessing reaches, the
mean image of the test set.

Geiping, Bauermeister, Dröge & Moeller, "Inverting Gradients: How easy is it to break privacy in federated learning?",
NeurIPS 2020, arXiv:2003.14053.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsim import registry
from fedsim.errors import NOTHING, Fault, FedsimError
from fedsim.losses.loss import last_linear
from fedsim.observers.inversion import Steps, inferred_labels, local_change, matched, psnr, reconstruct
from fedsim.observers.observer import Observation, Observer, Seen, Standpoint, Watched, observer, sight

if TYPE_CHECKING:
    from fedsim.data.examples import Examples
    from fedsim.scenario import Scenario

MOST_STEPS = 5
"""Local steps that are simulated at most."""
KNOWN = ("sgd", "dp_sgd")
"""Client optimizers whose steps can be simulated."""


@observer("gradient_inversion")
class GradientInversion(Observer):
    """Rebuilds training images from an update by cosine similarity, total variation and signed steps of Adam.

    Args:
        standpoint: server or client; see the observers' page for what each sees.
        client: whose update; none: the first honest one whose work is within the limits.
        round: in which round; none: the first in which the client's update is seen.
        labels: inferred from the last layer's bias, or known (the attacker is told them).
        images: most examples that it rebuilds at once.
        iterations: steps of Adam.
        lr: their rate, in units of the inputs' range.
        total_variation: weight of the total variation.
        restarts: starts from other random images, of which the best fit counts.
    """

    goal: ClassVar[str] = "a client's training images"
    cost: ClassVar[str] = "iterations · restarts · local steps backward passes"
    takes: ClassVar[str] = "numbers"

    standpoint: Standpoint = "server"
    client: Annotated[int, Field(ge=0)] | None = None
    round: Annotated[int, Field(ge=1)] | None = None
    labels: Literal["inferred", "known"] = "inferred"
    images: Annotated[int, Field(ge=1, le=256)] = 16
    iterations: Annotated[int, Field(ge=8)] = 1000
    lr: Annotated[float, Field(gt=0)] = 0.1
    total_variation: Annotated[float, Field(ge=0)] = 1e-4
    restarts: Annotated[int, Field(ge=1)] = 1

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        client, estimator = scenario.client, scenario.server.estimator
        what = sight(scenario, self.standpoint)
        if self.client is not None and self.client >= scenario.data.clients:
            yield Fault("client", self.client, f"0 to {scenario.data.clients - 1}", ("data.clients",))
        elif self.client is not None and what != "messages":
            accepted = "none: this standpoint does not show a single client's message"
            yield Fault("client", self.client, accepted, ("privacy.trust",))
        if self.round is not None and self.round > scenario.rounds:
            yield Fault("round", self.round, f"at most rounds = {scenario.rounds}", ("rounds",))
        if estimator is None and client.optimizer.name not in KNOWN:
            accepted = f"{' or '.join(map(repr, KNOWN))}, whose local steps the observer can simulate"
            yield Fault("/client.optimizer", client.optimizer.name, accepted)
        unlike: dict[str, Any] = {"regularizers": [], "adapter": None, "step_control": None, "straggler": 0.0}
        unlike |= {"optimizer_state": "reset"} if client.optimizer.options.get("momentum") else {}
        for name, default in unlike.items():
            if getattr(client, name) != default:
                given = getattr(client, name)
                shown = getattr(given, "name", [each.name for each in given] if isinstance(given, list) else given)
                accepted = f"{default!r}, the default: 'gradient_inversion' cannot simulate such local steps"
                yield Fault(f"/client.{name}", shown, accepted)

    def fit(self, num_classes: int) -> None:
        if num_classes < 2:
            accepted = "none for targets that are numbers: it guesses labels"
            raise FedsimError(f"observe.observers: given 'gradient_inversion'; accepted: {accepted}")

    def set_up(self, watched: Watched) -> Iterable[Fault]:
        super().set_up(watched)
        estimator = watched.estimator
        if not watched.workload.train.inputs.is_floating_point():
            yield Fault("/data.dataset", watched.scenario.data.dataset.name, "inputs that are numbers, not tokens")
            return
        if self.labels == "inferred" and self._bias() is None:
            accepted = "'known' with a model whose last layer is not linear with a bias"
            yield Fault("labels", "inferred", accepted)
        if hasattr(estimator, "interval") and self.round is not None and not self._restarts(self.round):
            accepted = "a round in which the estimator restarts: in others the clients send differences of gradients"
            yield Fault("round", self.round, accepted)
        sizes = [len(watched.workload.rows(each)) for each in range(len(watched.workload.shares))]
        chosen = [n for i, n in enumerate(sizes) if n and self.client in (None, i)]
        if self.client is not None and not chosen:
            yield Fault("client", self.client, "a client that holds examples")
        elif not any(self._feasible(self._steps(n)) for n in chosen):
            least = min((self._steps(n) for n in chosen), key=lambda each: (len(each.sizes), each.images))
            given = NOTHING if self.client is None else self.client
            accepted = (
                f"a client with at most {MOST_STEPS} local steps on at most images = {self.images} examples; the least "
                f"that a client does here is {len(least.sizes)} on {least.images} (client.steps, client.batch_size)"
            )
            yield Fault("client", given, accepted)
        if sight(watched.scenario, self.standpoint) != "messages" and len(self._steps(max(sizes, default=1)).sizes) > 1:
            accepted = "1 with the aggregate alone in sight, which is then one gradient of all that trained"
            yield Fault("/client.steps", watched.scenario.client.steps or NOTHING, accepted)
        inputs = watched.workload.train.inputs
        self.box = float(inputs.min()), float(inputs.max())

    def wants(self, round: int, state: dict[str, Any]) -> bool:
        if state.get("done") or not self._restarts(round):
            return False
        return self.round is None or round == self.round

    def observe(self, seen: Seen, state: dict[str, Any]) -> Observation | None:
        clients, observed, steps = self._target(seen, state)
        if observed is None or steps is None:
            return None
        state["done"] = True
        watched, d = self.watched, self.watched.workload.layout.d
        visited = [watched.visited(client, seen.round) for client in clients]
        truth = np.concatenate([each.inputs.cpu().double().numpy() for each in visited])
        true_labels = torch.cat([each.targets for each in visited])
        labels = true_labels if self.labels == "known" else self._inferred(observed, seen.before, steps)
        objective = watched.workload.objective

        def change(inputs: Tensor) -> Tensor:
            return local_change(watched.outputs, objective.mean_loss, seen.before, d, inputs, labels, steps)

        tried = [
            reconstruct(
                change,
                observed,
                self._start(seen.round, restart, steps.images),
                self.box,
                iterations=self.iterations,
                lr=self.lr,
                weight=self.total_variation,
            )
            for restart in range(self.restarts)
        ]
        inputs, fit = min(tried, key=lambda each: each[1])
        found = inputs.cpu().double().numpy()
        return self._judged(clients, truth, found, true_labels, labels, fit, steps)

    def _target(self, seen: Seen, state: dict[str, Any]) -> tuple[list[int], Tensor | None, Steps | None]:
        """Whose update, which way it points, and the steps behind it."""
        d = self.watched.workload.layout.d
        sign = -1.0 if self.watched.estimator is not None else 1.0
        if sight(self.watched.scenario, self.standpoint) == "messages":
            for client in seen.truth.answered if self.client is None else [self.client]:
                if client in seen.messages and client not in seen.truth.malicious:
                    steps = self._steps(len(self.watched.workload.rows(client)), seen.round)
                    if self._feasible(steps) and len(self.watched.visited(client, seen.round)):
                        return [client], sign * seen.messages[client].vector[:d], steps
            who = "no honest client" if self.client is None else f"client {self.client}"
            state["why"] = f"{who} with few enough examples and steps answered in a round that it may look at"
            return [], None, None
        clients = list(seen.truth.answered)
        images = sum(len(self.watched.visited(client, seen.round)) for client in clients)
        change = (seen.after - seen.before if seen.total is None else sign * seen.total) / self._rate(seen)
        if not images or images > self.images or not bool(change[:d].any()):
            state["why"] = f"the aggregate was of {images} examples, and images = {self.images}"
            return [], None, None
        return clients, change[:d], Steps([images], images)

    def _steps(self, examples: int, round: int = 1) -> Steps:
        """What a client with so many examples does in a round; how many steps and images is the same in all rounds."""
        workload, scenario = self.watched.workload, self.watched.scenario
        if self.watched.estimator is not None:
            return Steps([examples], examples)
        epoch = [min(workload.batch_size, examples - i) for i in range(0, examples, workload.batch_size)]
        count = workload.steps_of(examples)
        sizes = (epoch * -(-count // max(1, len(epoch))))[:count]
        options = scenario.client.optimizer.options
        return Steps(
            sizes,
            min(examples, sum(sizes)),
            float(options["lr"]) * self._scale(round),
            float(options.get("momentum", 0.0)),
            float(options.get("dampening", 0.0)),
            float(options.get("weight_decay", 0.0)),
            bool(options.get("nesterov", False)),
            workload.proximal,
            workload.clip_norm,
        )

    def _rate(self, seen: Seen) -> float:
        """How far the aggregate goes along the gradient of all that trained, by the learning rates alone."""
        scenario = self.watched.scenario
        client, estimator, server = scenario.client.optimizer, scenario.server.estimator, scenario.server.optimizer
        if estimator is not None:
            return 1.0 if seen.total is not None else float(estimator.options.get("lr", 1.0))
        plain = server.name == "sgd" and not server.options.get("momentum")
        known = plain and seen.total is None
        local = float(client.options["lr"]) * self._scale(seen.round)
        return local * (float(server.options.get("lr", 1.0)) if known else 1.0)

    def _scale(self, round: int) -> float:
        """Factor on the clients' learning rate in a round."""
        scenario = self.watched.scenario
        schedule = registry.make("lr_schedule", scenario.client.lr_schedule.name, **scenario.client.lr_schedule.options)
        return float(schedule.factor(round, scenario.rounds))

    def _feasible(self, steps: Steps) -> bool:
        return 0 < len(steps.sizes) <= MOST_STEPS and 0 < steps.images <= self.images

    def _restarts(self, round: int) -> bool:
        """Whether clients send gradients in this round, not differences of gradients."""
        interval = getattr(self.watched.estimator, "interval", None)
        return interval is None or (round - 1) % int(interval(self.watched.scenario.rounds)) == 0

    def _bias(self) -> str | None:
        """The name of the last layer's bias."""
        try:
            name, layer = last_linear(self.watched.workload.fresh_module())
        except FedsimError:
            return None
        bias = f"{name}.bias" if name else "bias"
        known = [each for each, _ in self.watched.workload.layout.parameters]
        return bias if getattr(layer, "bias", None) is not None and known[-1] == bias else None

    def _inferred(self, observed: Tensor, before: Tensor, steps: Steps) -> Tensor:
        bias = self._bias()
        assert bias is not None
        gradient = -self.watched.workload.layout.views(observed)[bias] / steps.rate
        guess = self._start(0, 0, 64)
        with torch.no_grad():
            probabilities = self.watched.outputs(before, guess).softmax(1).mean(0)
        return inferred_labels(gradient, steps.images, probabilities)

    def _start(self, round: int, restart: int, images: int) -> Tensor:
        """(images, …) uniform in the inputs' range."""
        stream = self.watched.stream(f"gradient_inversion.{restart}", round)
        drawn = stream.uniform(*self.box, size=(images, *self.watched.info.shape))
        return self.watched.workload.inputs(torch.from_numpy(drawn))

    def _judged(
        self,
        clients: list[int],
        truth: np.ndarray[Any, Any],
        found: np.ndarray[Any, Any],
        true_labels: Tensor,
        labels: Tensor,
        fit: float,
        steps: Steps,
    ) -> Observation:
        width = self.box[1] - self.box[0]
        rows, order, errors = matched(truth, found)
        blind = ((truth - blind_guess(self.watched.test)) ** 2).reshape(len(truth), -1).mean(1)[rows]
        each = [psnr(float(error), width) for error in errors]
        counts = [torch.bincount(each.cpu(), minlength=self.watched.info.num_classes) for each in (labels, true_labels)]
        right = int(torch.minimum(*counts).sum())
        measures: dict[str, Any] = {
            "clients": clients,
            "images": len(truth),
            "steps": len(steps.sizes),
            "psnr": float(np.mean(each)),
            "psnr_best": float(max(each)),
            "psnr_blind": float(np.mean([psnr(float(error), width) for error in blind])),
            "mse": float(errors.mean()),
            "misfit": fit,
            "labels": self.labels,
            "labels_right": right / len(true_labels),
        }
        shown = {"truth": truth[rows], "found": found[order]} if truth.ndim == 4 else {}
        scaled = {name: ((each - self.box[0]) / width).astype(np.float32) for name, each in shown.items()}
        return Observation(measures, scaled)


def blind_guess(test: Examples) -> np.ndarray[Any, Any]:
    """What one would guess without any update: the mean of examples that are nobody's."""
    mean: np.ndarray[Any, Any] = test.inputs.cpu().double().mean(0).numpy()
    return mean
