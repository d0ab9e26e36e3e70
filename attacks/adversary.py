"""The adversary: which clients it holds, in which rounds it attacks, what it sees when it crafts their updates.

Its clients are a fixed pool, drawn once by the seed. With ``selection = "pool"`` they are sampled like everyone, so
that no attack changes a cohort; with ``"forced"`` an attack round holds ``forced`` of them at least: the first honest
draws are replaced by named attackers, all other draws stay. Knowledge is enforced: under ``own`` each client's row is
crafted alone, by an attack of its own (:mod:`attacks.held`), under ``colluding`` the malicious rows together, and only
``omniscient`` shows the honest rows.
Examples of other clients, and the test set, are a right of their own, ``examples``.

The threat models of Shejwalkar et al., "Back to the Drawing Board: A Critical Evaluation of Poisoning Attacks on
Production Federated Learning", IEEE S&P 2022, arXiv:2108.10241.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attacks.attack import KNOWLEDGE, Attack, Craft, overrides
from attacks.held import Held, called, label
from attacks.schedule import Schedule
from fedsim import registry, rng
from fedsim.data.examples import Examples
from fedsim.errors import Fault, FedsimError, KnowledgeError, ScenarioError
from fedsim.tables import grants_others
from fedsim.updates import Updates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedsim.scenario import Scenario

Server = Callable[[Tensor, Tensor], Tensor]
"""(f, d) malicious rows, (f,) examples that they claim -> (d,) parameters after the round."""

_Shared = tuple[int, int, float, Tensor | None, Callable[[Tensor], Tensor] | None]
"""Round, clients asked, server learning rate, parameters of the round before, the server."""


def _seeing(server: Server | None, claimed: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The server as an attack may ask it, with the example counts that go with its rows."""
    return None if server is None else lambda rows: server(rows, claimed)


class Adversary:
    """Who attacks, when, with what knowledge, and how.

    Args:
        attacks: the attacks, each works on what the ones before left.
        population: clients of the federation.
        fraction: share of the population that the adversary holds, ⌊fraction · population⌋ clients.
        count: how many it holds, in place of a fraction.
        selection: ``pool`` or ``forced``.
        forced: attackers at least in an attack round, with ``forced``.
        schedule: in which rounds it attacks; every round if None.
        knowledge: ``own``, ``colluding`` or ``omniscient``.
        examples: ``own`` or ``population``; None: that if omniscient, or for an attack whose paper gives it them.
        knows_defense: whether it may run the server on rows of its own.
        claim: example count that its clients claim; None: the true one.
        seed: the scenario's.
        rounds: the scenario's.

    Raises:
        ScenarioError: an attack needs more knowledge than is given.
    """

    def __init__(
        self,
        attacks: Sequence[Attack],
        population: int,
        *,
        fraction: float | None = None,
        count: int | None = None,
        selection: str = "pool",
        forced: int = 1,
        schedule: Schedule | None = None,
        knowledge: str = "colluding",
        examples: str | None = None,
        knows_defense: bool = False,
        claim: int | None = None,
        seed: int = 0,
        rounds: int = 1,
    ) -> None:
        size = count if count is not None else math.floor((fraction or 0.0) * population + 1e-9)
        faults = [*_rights(attacks, knowledge, knows_defense)]
        if not 0 <= size <= population:
            faults.append(Fault("adversary.count", size, f"0 to data.clients = {population}"))
        if faults:
            raise ScenarioError(faults, "adversary")
        self.attacks = list(attacks)
        self.population, self.seed, self.rounds = population, seed, rounds
        self.selection, self.forced, self.schedule = selection, forced, schedule
        self.knowledge, self.knows_defense, self.claim = knowledge, knows_defense, claim
        self.examples = examples
        drawn = rng.stream(seed, "adversary.pool").permutation(population if size else 0)[:size]
        self.pool: NDArray[np.int64] = np.sort(drawn).astype(np.int64)
        self.learned: dict[str, Tensor] = {}
        self._held = Held(self.attacks, knowledge)

    @classmethod
    def of(cls, scenario: Scenario) -> Adversary:
        """The adversary of a scenario."""
        table = scenario.adversary
        return cls(
            [registry.make("attack", part.name, **part.options) for part in table.attacks],
            scenario.data.clients,
            count=scenario.attackers,
            selection=table.selection,
            forced=table.forced,
            schedule=registry.make("schedule", table.schedule.name, **table.schedule.options),
            knowledge=table.knowledge,
            examples=table.examples,
            knows_defense=table.knows_defense,
            claim=table.claim,
            seed=scenario.seed,
            rounds=scenario.rounds,
        )

    def __len__(self) -> int:
        """How many clients the adversary holds."""
        return len(self.pool)

    def active(self, round: int) -> bool:
        """Whether the adversary attacks in this round, from 1."""
        if len(self.pool) == 0 or not self.attacks:
            return False
        return self.schedule is None or self.schedule.active(round, self.rounds)

    def holds(self, clients: Sequence[int] | NDArray[Any]) -> NDArray[np.bool_]:
        """(n,) whether each of these clients is the adversary's, in any round."""
        ids = np.asarray(clients, dtype=np.int64)
        if len(self.pool) == 0:
            return np.zeros(ids.shape, dtype=np.bool_)
        where = np.minimum(np.searchsorted(self.pool, ids), len(self.pool) - 1)
        return np.asarray(self.pool[where] == ids, dtype=np.bool_)

    def malicious(self, cohort: Sequence[int] | NDArray[Any], round: int) -> list[int]:
        """The clients of a cohort that attack in this round, ascending."""
        if not self.active(round):
            return []
        ids = np.asarray(cohort, dtype=np.int64)
        return [int(client) for client in np.sort(ids[self.holds(ids)])]

    def rank(self, client: int) -> int:
        """Position of a client among the adversary's, from 0.

        Raises:
            FedsimError: the adversary does not hold it.
        """
        if not self.holds([client])[0]:
            raise FedsimError(f"client {client}: not one of the adversary's {len(self.pool)} clients")
        return int(np.searchsorted(self.pool, client))

    def force(self, round: int, cohort: Sequence[int] | NDArray[Any]) -> tuple[list[int], list[tuple[int, int]]]:
        """The round's cohort with the attackers that this round needs.

        Args:
            round: from 1.
            cohort: partition ids in the order in which they were drawn.

        Returns:
            The cohort, in the same order, and (attacker, client that it replaced) for each replacement.
        """
        drawn = [int(client) for client in cohort]
        if self.selection != "forced" or not self.active(round):
            return drawn, []
        held = self.holds(drawn)
        missing = min(self.forced, len(self.pool), len(drawn)) - int(held.sum())
        if missing <= 0:
            return drawn, []
        order = rng.stream(self.seed, "adversary.forced", round=round).permutation(self.pool)
        free = order[~np.isin(order, np.asarray(drawn, dtype=np.int64))][:missing]
        places = np.flatnonzero(~held)[: len(free)]
        replaced = [(int(attacker), drawn[place]) for attacker, place in zip(free, places, strict=True)]
        for (attacker, _), place in zip(replaced, places, strict=True):
            drawn[place] = attacker
        return drawn, replaced

    def craft(
        self,
        rows: Updates,
        honest: Updates | None,
        *,
        round: int,
        num_clients: int,
        server_lr: float = 1.0,
        previous_reference: Tensor | None = None,
        server: Server | None = None,
        state: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The rows that the malicious clients send, and the example counts that they claim.

        Args:
            rows: the f malicious rows as trained, steps, with true example counts.
            honest: the rows of the others; None or not, only an omniscient adversary is shown them.
            round: from 1.
            num_clients: K, clients asked in this round.
            server_lr: learning rate of the server's optimizer.
            previous_reference: (d,) parameters sent in the round before.
            server: (f, d) malicious rows, (f,) claimed examples -> (d,) parameters after the round, on copied state.
            state: memory of all attacks over rounds, changed in place.

        Returns:
            (f, d) and (f,) float64, in the order of ``rows``, which is not changed.
        """
        memory: dict[str, Any] = {} if state is None else state
        current = rows.values
        if len(rows) == 0:
            return current, rows.num_examples
        told = (round, num_clients, server_lr, previous_reference)
        claimed = rows.replace(num_examples=self._claimed(rows, honest, (*told, _seeing(server, self._stated(rows)))))
        shared = (*told, _seeing(server, claimed.num_examples))
        for position, part in enumerate(self.attacks):
            if not overrides(part, "craft"):
                continue
            name = f"{position}.{label(part)}"
            pieces = []
            for index, own in self._views(len(rows), memory.setdefault(name, {}), rows.client_ids):
                ctx = self._craft(claimed.rows(index), honest, len(rows), own, shared)
                with _named(part, position):
                    crafted = self.held(position, ctx.clients[0]).craft(current[index], ctx)
                pieces.append(_same_shape(crafted, current[index], name))
            current = torch.cat(pieces)
        return current, claimed.num_examples

    def _stated(self, rows: Updates) -> Tensor:
        """The example counts before any attack has its say."""
        counts = rows.num_examples
        return counts if self.claim is None else torch.full_like(counts, float(self.claim))

    def _claimed(self, rows: Updates, honest: Updates | None, shared: _Shared) -> Tensor:
        counts = self._stated(rows)
        for position, part in enumerate(self.attacks):
            if not overrides(part, "claimed_examples"):
                continue
            pieces = []
            for index, own in self._views(len(rows), {}, rows.client_ids):
                ctx = self._craft(rows.rows(index), honest, len(rows), own, shared)
                with _named(part, position):
                    pieces.append(self.held(position, ctx.clients[0]).claimed_examples(counts[index], ctx))
            counts = torch.cat(pieces).to(torch.float64)
        return counts

    def prepare(self, train: Examples, test: Examples, *, num_classes: int) -> None:
        """Let every attack load its own data, once a process.

        Raises:
            KnowledgeError: an attack wants examples that the adversary has no right to.
        """
        streams, nothing = rng.Streams(self.seed, "attack", "data.tail"), np.zeros(0, dtype=np.int64)
        for position, part in enumerate(self.attacks):
            trains, tests = part.trains_on_others(), part.reads_tests()
            if (trains or tests) and not grants_others(self.examples, self.knowledge, type(part)):
                what = "examples of other clients" if trains else "the server's test examples"
                given = f"knowledge = '{self.knowledge}'" + (f", examples = '{self.examples}'" if self.examples else "")
                with _named(part, position):
                    raise KnowledgeError(f"{what}: given {given}; accepted: adversary.examples = 'population'")
            part.prepare(
                train if trains else train.take(nothing),
                test if tests else test.take(nothing),
                num_classes=num_classes,
                streams=streams,
            )
        self._held = Held(self.attacks, self.knowledge)

    def held(self, position: int, client: int) -> Attack:
        """The attack at a place of the list, as this client has it."""
        return self._held.attack(position, client)

    @property
    def learns(self) -> bool:
        """Whether what the evaluation shows may change over the rounds."""
        return any(part.learned_trigger for part in self.attacks)

    def triggered(self, test: Examples) -> Examples | None:
        """What attack success is measured on: eligible test examples as attacked, with the attacker's targets."""
        for part in self.attacks:
            found = part.shown(test, self.learned)
            if found is not None:
                return found
        return None

    def _views(self, f: int, memory: dict[str, Any], clients: list[int]) -> list[tuple[list[int], dict[str, Any]]]:
        """(positions crafted together, the memory that goes with them)."""
        if self.knowledge == "own":
            return [([i], memory.setdefault(str(clients[i]), {})) for i in range(f)]
        return [(list(range(f)), memory)]

    def _craft(
        self,
        rows: Updates,
        honest: Updates | None,
        malicious: int,
        state: dict[str, Any],
        shared: _Shared,
    ) -> Craft:
        round, num_clients, server_lr, previous_reference, server = shared
        shown: dict[str, Any] = {}
        if self.knowledge == "omniscient" and honest is not None:
            shown = {"honest_rows": honest.values, "honest_examples": honest.num_examples}
            shown |= {"server": server} if self.knows_defense else {}
        return Craft(
            rows=rows.values,
            reference=rows.reference,
            clients=rows.client_ids,
            num_clients=num_clients,
            num_malicious=malicious,
            num_examples=rows.num_examples,
            knowledge=self.knowledge,
            server_lr=server_lr,
            round=round,
            seed=self.seed,
            previous_reference=previous_reference,
            state=state,
            **shown,
        )


def _rights(attacks: Sequence[Attack], knowledge: str, knows_defense: bool) -> list[Fault]:
    if knowledge not in KNOWLEDGE:
        return [Fault("adversary.knowledge", knowledge, "own, colluding or omniscient")]
    faults = []
    for position, part in enumerate(attacks):
        who = called(part, position)
        if KNOWLEDGE.index(part.knowledge) > KNOWLEDGE.index(knowledge):
            faults.append(Fault("adversary.knowledge", knowledge, f"'{part.knowledge}', which {who} needs"))
        elif knowledge == "own" and overrides(part, "learn"):
            accepted = f"'colluding', which {who} needs: what one client learns it hands to all"
            faults.append(Fault("adversary.knowledge", knowledge, accepted))
        if part.knows_defense and not knows_defense:
            faults.append(Fault("adversary.knows_defense", False, f"true, which {who} needs"))
    if knows_defense and knowledge != "omniscient":
        faults.append(Fault("adversary.knows_defense", True, "true only with adversary.knowledge = 'omniscient'"))
    return faults


@contextmanager
def _named(part: Attack, position: int) -> Iterator[None]:
    """What reaches for hidden rows is named in the error."""
    try:
        yield
    except KnowledgeError as error:
        raise KnowledgeError(f"{called(part, position)} reached for {error}") from error


def _same_shape(crafted: Tensor, rows: Tensor, name: str) -> Tensor:
    if crafted.shape != rows.shape:
        raise FedsimError(f"attack {name}: craft gave shape {tuple(crafted.shape)}; accepted: {tuple(rows.shape)}")
    return crafted.to(dtype=rows.dtype, device=rows.device)
