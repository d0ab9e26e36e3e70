"""The interface of an attack: hooks, all of them optional.

An attack is a class registered with ``@attack("name")``; its fields are its options. fedsim calls its hooks where
the adversary of the scenario holds a client, in rounds in which it is active:

===============  ============================  ==============================================================
hook             where it runs                 what it does
===============  ============================  ==============================================================
``poison``       the malicious client          changes the data that it trains on
``learn``        one malicious client, before  looks at the received model for something that all its clients use and
                 the round's training          that the evaluation shows, e.g. a trigger
``objective``    the malicious client          changes its loss
``after_step``   the malicious client          changes its parameters after each local step (projection, masks)
``craft``        the adversary, before         changes the malicious rows, seeing what its knowledge allows
                 they are sent
``trigger``      the evaluation                what test images get, to measure the attack success rate
``observe``      every message that it may     the honest-but-curious side
                 see, read-only
===============  ============================  ==============================================================

Attacks combine in a list: ``attacks = [{ name = "badnets" }, { name = "model_replacement" }]``; each hook of the
second works on what the first left. A plug-in lies in any file: ``attacks = [{ name = "my_attack.py:MyAttack" }]``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.data.examples import Examples
from fedsim.errors import Fault, KnowledgeError
from fedsim.registry import register
from fedsim.updates import Updates

if TYPE_CHECKING:
    from flwr.app import Message

    from fedsim.scenario import Scenario

KNOWLEDGE = ("own", "colluding", "omniscient")

NEEDED = {
    "honest_rows": "adversary.knowledge = 'omniscient' (and in the class: knowledge = \"omniscient\")",
    "honest_examples": "adversary.knowledge = 'omniscient' (and in the class: knowledge = \"omniscient\")",
    "server": "adversary.knows_defense = true with adversary.knowledge = 'omniscient' (and both in the class)",
}
"""What of a :class:`Craft` a threat model may hide, and what shows it."""

attack = partial(register, "attack")


@dataclass(frozen=True)
class Received:
    """The model as a malicious client holds it in a round.

    Args:
        parameters: (d,) parameters that it received.
        previous: (d,) those that were sent in the round before, where an attack of the list ``wants_previous``.
        predict: (parameters (d,), inputs) -> outputs in evaluation mode, differentiable by both.
        features: (parameters (d,), inputs) -> (n, width) what goes into the last linear layer, alike.
    """

    parameters: Tensor
    previous: Tensor | None
    predict: Callable[[Tensor, Tensor], Tensor]
    features: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Compromised:
    """A client that the adversary holds, as its hooks see it.

    Args:
        client: partition id.
        rank: position of this client among the adversary's clients, 0 … attackers - 1.
        attackers: how many clients the adversary holds in all.
        round: the round, from 1.
        seed: what :meth:`stream` draws from; the attack cannot read it.
        num_classes: classes of the task.
        model: what it received; None outside of a round.
        examples: its own clean data, in training; None elsewhere.
        learned: what the adversary has learnt so far (see ``learn``), by the attacks' own names for it.
    """

    client: int
    rank: int
    attackers: int
    round: int
    seed: InitVar[int]
    num_classes: int
    model: Received | None = field(default=None, repr=False, compare=False)
    examples: Examples | None = field(default=None, repr=False, compare=False)
    learned: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _streams: rng.Streams = field(init=False, repr=False)

    def __post_init__(self, seed: int) -> None:
        object.__setattr__(self, "_streams", rng.Streams(seed, "attack"))

    def holding(self, examples: Examples) -> Compromised:
        """This client with clean examples of its own."""
        other = copy.copy(self)
        object.__setattr__(other, "examples", examples)
        return other

    def stream(self, purpose: str) -> np.random.Generator:
        """Random numbers of this client for one purpose, the same in every round (poisoned data stays the same)."""
        return self._streams.stream(f"attack.{purpose}", client=self.client)

    def fresh_stream(self, purpose: str) -> np.random.Generator:
        """Random numbers of this client for one purpose, others in every round."""
        return self._streams.stream(f"attack.{purpose}", round=self.round, client=self.client)


@dataclass(frozen=True)
class LocalStep:
    """Where malicious clients stand in their local training when ``after_step`` is called.

    Args:
        reference: (d,) parameters that they received.
        step: local steps done, from 1.
        last: (k,) bool, the clients for which this was the last step of the round.
        clients: the k clients.
    """

    reference: Tensor
    step: int
    last: Tensor
    clients: tuple[Compromised, ...]

    def only(self, row: int) -> LocalStep:
        """The same for one of the clients, of whom nothing of the others is seen."""
        return replace(self, last=self.last[row : row + 1].clone(), clients=self.clients[row : row + 1])


def _hidden() -> Any:
    return None


@dataclass
class Craft:
    """What the adversary sees and may do when it crafts the malicious rows of a round.

    Args:
        rows: (f, d) what its clients trained, before any attack of the list crafted (as steps: the change of the
            parameters that each row causes).
        honest_rows: (n - f, d) rows of the honest clients. Reaching for what the threat model hides, as these three
            may be, raises a KnowledgeError that names the knowledge that it takes.
        reference: (d,) parameters that were sent in this round.
        clients: partition ids of the f malicious rows, ascending.
        num_clients: K, clients asked in this round.
        num_malicious: f, malicious ones among them that attack now.
        num_examples: (f,) example counts of the malicious rows.
        honest_examples: (n - f,) example counts of the honest rows; may be hidden.
        knowledge: ``own``, ``colluding`` or ``omniscient``.
        server_lr: learning rate of the server's optimizer.
        round: the round, from 1.
        seed: what :meth:`stream` and :meth:`noise` draw from; the attack cannot read it.
        previous_reference: (d,) parameters sent in the round before, or None in the first.
        state: memory of this attack over rounds (tensors, numbers, strings), checkpointed.
        server: what :meth:`preview` runs; may be hidden.
    """

    rows: Tensor
    reference: Tensor
    clients: list[int]
    num_clients: int
    num_malicious: int
    num_examples: Tensor
    knowledge: str
    server_lr: float
    round: int
    seed: InitVar[int]
    honest_rows: Tensor = field(default_factory=_hidden, repr=False)
    honest_examples: Tensor = field(default_factory=_hidden, repr=False)
    previous_reference: Tensor | None = None
    state: dict[str, Any] = field(default_factory=dict)
    server: Callable[[Tensor], Tensor] = field(default_factory=_hidden, repr=False)

    def __post_init__(self, seed: int) -> None:
        self._streams = rng.Streams(seed, "attack")
        for name in NEEDED:
            if vars(self)[name] is None:
                delattr(self, name)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Called for what is not there: hidden by the threat model, or misspelt."""
            if name in NEEDED:
                given = f"knowledge = '{self.knowledge}'"
                raise KnowledgeError(f"{name.replace('_', ' ')}: given {given}; accepted: {NEEDED[name]}")
            if name == "seed":
                raise AttributeError("Craft hides its seed; accepted: ctx.stream('purpose'), ctx.noise('purpose')")
            raise AttributeError(f"Craft has no attribute '{name}'", name=name, obj=self)

    @property
    def omniscient(self) -> bool:
        """Whether the honest rows are shown."""
        return "honest_rows" in vars(self)

    def stream(self, purpose: str) -> np.random.Generator:
        """Random numbers for one purpose in this round; with knowledge ``own`` each client has its own."""
        client = self.clients[0] if self.knowledge == "own" else -1
        return self._streams.stream(f"attack.{purpose}", round=self.round, client=client)

    def noise(self, purpose: str) -> Tensor:
        """(f, d) standard normal numbers, a stream for each client."""
        rows = []
        for client in self.clients:
            generator = self._streams.torch_stream(f"attack.{purpose}", round=self.round, client=client)
            rows.append(torch.randn(self.rows.shape[1], generator=generator, dtype=self.rows.dtype))
        return torch.stack(rows).to(self.rows.device)

    def honest(self) -> Tensor:
        """Rows of the honest clients, (n - f, d).

        Raises:
            KnowledgeError: the adversary is not omniscient.
        """
        return self.honest_rows

    def seen(self) -> Tensor:
        """Honest training results that the adversary knows: of all clients if omniscient, else of its own."""
        if not self.omniscient:
            return self.rows
        return torch.cat([self.rows, self.honest_rows])

    def with_state(self, state: dict[str, Any]) -> Craft:
        """The same view with another memory, e.g. for an attack within an attack."""
        other = copy.copy(self)
        other.state = state
        return other

    def skip(self, rows: Tensor) -> Tensor:
        """The rows as they are, noted in ``state["skipped"]``: this round did not allow the attack."""
        self.state["skipped"] = int(self.state.get("skipped", 0)) + 1
        return rows

    def preview(self, rows: Tensor) -> Tensor:
        """(d,) parameters after this round if these rows (f, d) were sent: a pure run of the server on copied state.

        Raises:
            KnowledgeError: the adversary does not know the defense, or does not see the honest rows.
        """
        return self.server(rows)


class Attack:
    """Base of all attacks; every hook does nothing here.

    A class may set ``knowledge``, the least that it needs to know, and ``knows_defense``.
    """

    knowledge: ClassVar[str] = "own"
    knows_defense: ClassVar[bool] = False
    untargeted: ClassVar[bool] = True
    wants_previous: ClassVar[bool] = False
    """Whether its clients are to know the parameters of the round before (``node.model.previous``)."""
    learned_trigger: ClassVar[bool] = False
    """Whether its trigger comes from ``learn``: it changes over the rounds, and a run without attack has none."""
    finite: ClassVar[bool] = True
    """Whether finite rows stay finite."""
    cost: ClassVar[str] = ""
    """What it costs beside plain training, in n clients, f malicious ones, d parameters; for the catalogue."""

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        """What about this attack does not fit the scenario (keys relative to the attack)."""
        return ()

    def poison(self, examples: Examples, node: Compromised) -> Examples:
        """The data that the malicious client trains on."""
        return examples

    def after_step(self, parameters: Tensor, step: LocalStep) -> None:
        """Change the (k, d) parameters of k malicious clients in place."""

    def objective(self, loss: Tensor, parameters: Tensor, step: LocalStep) -> Tensor:
        """The (k,) losses that the malicious clients minimise, from their (k,) task losses and (k, d) parameters."""
        return loss

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        """The (f, d) rows to send in place of ``rows``; never changes its input."""
        return rows

    def claimed_examples(self, num_examples: Tensor, ctx: Craft) -> Tensor:
        """(f,) example counts that the malicious clients claim."""
        return num_examples

    def learn(self, examples: Examples, node: Compromised) -> dict[str, Tensor]:
        """What the adversary takes from the model that one of its clients received, before the round's training.

        Asked of one malicious client of each round, the one with the smallest partition id, with its clean examples.
        All malicious clients of the round then find it in ``node.learned``, as does the next call, and ``shown``.

        Returns:
            Name (of the attack's own, ``a3fl.trigger``) → tensor; what is not in it is forgotten.
        """
        return {}

    def shown(self, test: Examples, learned: Mapping[str, Tensor]) -> Examples | None:
        """As ``triggered``, with what was learnt so far."""
        return self.triggered(test)

    def triggered(self, test: Examples) -> Examples | None:
        """The eligible test examples as attacked, targets = what the attacker wants; None if there is no trigger.

        Images whose true label is the target already, or that an attacker trained on, are left out.
        """
        return None

    def trains_on_others(self) -> bool:
        """Whether its clients train on examples that other clients hold: ``prepare`` is given all, else none.

        It is a right that the scenario grants (``adversary.examples = "population"``, or an omniscient adversary).
        Such an attack is refused behind a claim of privacy.
        """
        return False

    def reads_tests(self) -> bool:
        """Whether ``prepare`` reads the server's test examples, by the same right; else it is given none of them."""
        return self.trains_on_others()

    def prepare(self, train: Examples, test: Examples, *, num_classes: int, streams: rng.Streams) -> None:
        """Called once per process before the first round: load own data, check the trigger against the images.

        ``train`` is empty, of the right shapes, unless :meth:`trains_on_others`; so is ``test``, the server's, unless
        :meth:`reads_tests`.
        What it draws comes from ``streams.stream("attack.NAME.PURPOSE")``.
        """

    def fingerprints(self) -> dict[str, str]:
        """Name → sha256 of data that this attack reads beside the scenario's; part of the run's key."""
        return {}

    def observe(self, message: Message, reply: Message | None) -> None:
        """See a message that passed, and its reply: of its own clients, of all if omniscient; must not change it."""


def overrides(part: Attack | type[Attack], hook: str) -> bool:
    """Whether this attack defines the hook itself."""
    owner = part if isinstance(part, type) else type(part)
    return getattr(owner, hook, None) is not getattr(Attack, hook)


__all__ = ["Attack", "Compromised", "Craft", "Examples", "LocalStep", "Received", "Updates", "attack", "overrides"]
