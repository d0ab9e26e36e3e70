"""What a run lets its observers see: catches each round for those who want it, and keeps what they found out.

Their findings and their memory lie in the run's checkpoint, so that a resumed run has them again; the findings
alone in ``observations.json``, and their pictures in ``observations.npz``.
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor

from fedsim import registry
from fedsim.errors import Fault, ScenarioError
from fedsim.flower import flatten
from fedsim.observers.observer import SIGHTS, Observer, Seen, Sent, Truth, Watched, sight
from fedsim.scenario import Scenario

ClientOf = Callable[[Message], int | None]


@dataclass(frozen=True)
class Caught:
    """A round while it is played: the messages as they arrived.

    Args:
        round: the round.
        before: (d + b,) the model that was sent.
        messages: client → what it sent.
    """

    round: int
    before: Tensor
    messages: dict[int, Sent]


class Watch:
    """The observers of a run.

    Args:
        scenario: the run.
        watched: what they know of it, and are judged by; None without observers.
        guarantee: what privacy it guarantees, or None.

    Raises:
        ScenarioError: what an observer is after cannot be had from these data.
    """

    def __init__(self, scenario: Scenario, watched: Callable[[], Watched], guarantee: Any = None) -> None:
        self.scenario, self.guarantee = scenario, guarantee
        self.parts: list[Observer] = [
            registry.make("observer", part.name, **part.options) for part in scenario.observe.observers
        ]
        self.seconds = 0.0
        self.observations: list[dict[str, Any]] = []
        self._pictures: dict[str, Any] = {}
        self._memory: list[dict[str, Any]] = [{} for _ in self.parts]
        self._trained: set[int] = set()
        self._malicious: set[int] = set()
        faults: list[Fault] = []
        if self.parts:
            self.watched = watched()
        for position, part in enumerate(self.parts):
            part.fit(self.watched.info.num_classes)
            for fault in part.set_up(self.watched) or ():
                key = fault.key[1:] if fault.key.startswith("/") else f"observe.observers[{position}].{fault.key}"
                faults.append(replace(fault, key=key.rstrip(".")))
        if faults:
            raise ScenarioError(faults)

    def __bool__(self) -> bool:
        return bool(self.parts)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "memory": self._memory,
            "observations": self.observations,
            "pictures": self._pictures,
            "trained": sorted(self._trained),
            "malicious": sorted(self._malicious),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory, self.observations, self._pictures = state["memory"], state["observations"], state["pictures"]
        self._trained, self._malicious = set(state["trained"]), set(state["malicious"])

    def catch(self, round: int, before: Tensor, replies: Sequence[Message], client_of: ClientOf) -> Caught | None:
        """Copy a round's messages as they arrived; None without observers."""
        if not self.parts:
            return None
        layout, dtype = self.watched.workload.layout, before.dtype
        wanted = self._wanted(round)
        messages = {}
        for reply in replies:
            client = client_of(reply)
            if client is None or not reply.has_content():
                continue
            try:
                vector = flatten(next(iter(reply.content.array_records.values())), layout, dtype)
                count = int(next(iter(reply.content.metric_records.values()))["num-examples"])  # type: ignore[arg-type]
            except (ValueError, KeyError, TypeError, StopIteration):
                continue
            if not bool(torch.isfinite(vector).all()):
                continue
            vector = vector - before if self.scenario.guest else vector
            messages[client] = Sent(vector.clone() if wanted else vector, count)
        return Caught(round, before.clone() if wanted else before, dict(sorted(messages.items())))

    def show(self, caught: Caught | None, after: Tensor, malicious: Sequence[int]) -> None:
        """Let the observers look at a round that has been played."""
        if caught is None:
            return
        began = time.perf_counter()
        self._malicious |= set(malicious)
        answered = [client for client in caught.messages if client not in malicious]
        self._trained |= set(answered)
        for position in self._wanted(caught.round):
            part = self.parts[position]
            truth = Truth(
                tuple(sorted(self._trained)),
                tuple(answered),
                tuple(sorted(self._malicious)),
                self._epsilon(part, caught.round),
            )
            found = part.observe(self._seen(part, caught, after, truth), self._memory[position])
            if found is None:
                continue
            known = {"observer": _name(part), "position": position, "round": caught.round, "epsilon": truth.epsilon}
            known |= {"delta": None if truth.epsilon is None else self.scenario.privacy.delta}
            known |= {"standpoint": part.standpoint, "sees": SIGHTS[sight(self.scenario, part.standpoint)]}
            number = len(self.observations)
            self.observations.append({**known, **found.measures})
            self._pictures |= {f"{number}.{name}": np.asarray(each) for name, each in found.pictures.items()}
        self.seconds = time.perf_counter() - began

    def notes(self, finished: bool) -> list[str]:
        """Which observers found nothing, and why."""
        heard = {found["position"] for found in self.observations}
        return [
            f"The observer '{_name(part)}' found nothing out: {memory.get('why', 'it saw no round that it waits for')}."
            for position, (part, memory) in enumerate(zip(self.parts, self._memory, strict=True))
            if finished and position not in heard
        ]

    def files(self) -> dict[str, Any]:
        """File name → what it holds: a list for JSON, or bytes; nothing without observers."""
        if not self.parts:
            return {}
        content = io.BytesIO()
        np.savez(content, **self._pictures)
        return {"observations.json": self.observations, "observations.npz": content.getvalue()}

    def _wanted(self, round: int) -> list[int]:
        pairs = enumerate(zip(self.parts, self._memory, strict=True))
        return [position for position, (part, memory) in pairs if part.wants(round, memory)]

    def _seen(self, part: Observer, caught: Caught, after: Tensor, truth: Truth) -> Seen:
        """Copies for each, so that no observer can change what the run or another one holds."""
        what = sight(self.scenario, part.standpoint)
        messages = copy.deepcopy(caught.messages) if what == "messages" else {}
        total = self._mean(caught) if what == "sum" else None
        return Seen(caught.round, caught.before.clone(), after.clone(), messages, total, truth)

    def _mean(self, caught: Caught) -> Tensor | None:
        """What secure summation gives: the mean, by examples where clients train."""
        if not caught.messages:
            return None
        sent = list(caught.messages.values())
        estimator = self.watched.estimator
        weighted = estimator is None or estimator.weighted
        weights = torch.tensor([float(each.num_examples) if weighted else 1.0 for each in sent], dtype=torch.float64)
        rows = torch.stack([each.vector.double() for each in sent])
        mean = (rows * (weights / weights.sum().clamp(min=1e-300))[:, None].to(rows.device)).sum(0)
        return mean.to(caught.before.dtype)

    def _epsilon(self, part: Observer, round: int) -> float | None:
        """ε spent against the part's standpoint; of the whole run where no round's is known for it."""
        if self.guarantee is None or self.guarantee.none:
            return None
        for reader in self.guarantee.readers:
            if part.standpoint == "client" and reader.name == "other clients":
                known: float | None = reader.epsilons.get(self.scenario.privacy.accountant)
                return known
        spent: float | None = self.guarantee.after(round)
        return spent


def _name(part: Observer) -> str:
    return str(getattr(part, "name", type(part).__name__))


__all__ = ["Caught", "Watch"]
