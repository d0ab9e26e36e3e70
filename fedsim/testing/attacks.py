"""What every attack keeps to, whatever it does: the checks that fedsim runs on its own attacks, for those of others.

Each check takes a function that builds the attack, and raises AssertionError with one line that says what is wrong::

    from fedsim.testing import attacks

    def test_my_attack():
        attacks.conform(lambda: MyAttack(scale=2.0))

The checks play an adversary that holds three of eleven clients, on a toy federation of sixty parameters and on
images of 16 × 16 pixels.
"""

from __future__ import annotations

import inspect
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attacks.adversary import Adversary
from attacks.attack import KNOWLEDGE, Attack, Compromised, Craft, LocalStep, Received, overrides
from fedsim.data.examples import Examples
from fedsim.errors import KnowledgeError, nearest
from fedsim.updates import Updates

Make = Callable[[], Attack]

HOOKS = (
    "poison",
    "learn",
    "objective",
    "after_step",
    "craft",
    "claimed_examples",
    "triggered",
    "shown",
    "observe",
)
CLASSES = 10
CLIENTS = [2, 5, 11]
OTHERS = [0, 1, 3, 7, 8, 12, 13, 19]
DIMENSION = 60
ROUNDS = (*range(1, 11), 20, 50, 100)
"""Rounds of the toy federation: an attack may wait before it acts."""


def conform(make: Make) -> None:
    """Run all checks.

    Raises:
        AssertionError: what the attack does not keep to.
    """
    for check in CHECKS:
        check(make)


def does_something(make: Make) -> None:
    """It defines one of the hooks that fedsim calls."""
    part = type(make())
    wrong = f"it defines none of the hooks that fedsim calls{instead(part, Attack, HOOKS)}"
    assert any(overrides(part, hook) for hook in HOOKS), wrong


def says_what_it_knows(make: Make) -> None:
    """``knowledge`` is one of the three levels."""
    given = make().knowledge
    assert given in KNOWLEDGE, f"the class says knowledge = {given!r}{nearest(given, KNOWLEDGE)}"


def keeps_shape(make: Make) -> None:
    """``craft`` gives a row for each malicious client, also for one alone, in the rows' precision."""
    for dtype in (torch.float32, torch.float64):
        for clients in (CLIENTS, CLIENTS[:1]):
            rows, honest = federation(dtype=dtype, clients=clients)
            given: Any = prepared(make).craft(rows.values, context(rows, honest))
            assert isinstance(given, Tensor), f"craft gave a {type(given).__name__}, a tensor is needed"
            shapes = f"{tuple(given.shape)} for {tuple(rows.values.shape)}"
            assert given.shape == rows.values.shape, f"craft gave {shapes}"
            assert given.is_floating_point(), f"craft gave {given.dtype}, whole numbers, for {dtype}"
            crafted = play(prepared(make), rows, honest)
            assert crafted.dtype == dtype, f"craft gave {crafted.dtype} for {dtype}"


def leaves_input(make: Make) -> None:
    """No hook changes what it was given, but ``after_step`` its parameters."""
    attack, state = prepared(make), dict[str, Any]()
    for round in ROUNDS:
        rows, honest = federation(seed=round)
        ctx = context(rows, honest, round=round, state=state)
        counts = rows.num_examples.clone()
        shown = {
            "the malicious rows": rows.values,
            "the honest rows": honest.values,
            "the reference": rows.reference,
            "the example counts": rows.num_examples,
            "the honest example counts": honest.num_examples,
            "the example counts so far": counts,
        }
        before = {name: each.clone() for name, each in shown.items()}
        for hook, call in (
            ("claimed_examples", partial(attack.claimed_examples, counts, ctx)),
            ("craft", partial(attack.craft, rows.values, ctx)),
        ):
            call()
            for name, each in shown.items():
                assert torch.equal(each, before[name]), f"{hook} changed {name} in place"
    train, test = images()
    attack.poison(train, node())
    attack.triggered(test)
    for given, kept, hook in ((train, images()[0], "poison"), (test, images()[1], "triggered")):
        same = torch.equal(given.inputs, kept.inputs) and torch.equal(given.targets, kept.targets)
        assert same, f"{hook} changed its examples in place"


def repeats(make: Make) -> None:
    """The same seed gives the same bits, over rounds, also of an attack that is made anew in another process."""
    first, fresh = prepared(make), pickle.dumps(prepared(make))
    states: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for round in (1, 2, 3):
        second = pickle.loads(fresh)
        rows, honest = federation(seed=round)
        one = play(first, rows, honest, round=round, state=states[0])
        two = play(second, rows, honest, round=round, state=states[1])
        assert same_bits(one, two), f"craft gave other bits for the same seed in round {round}"
    train, test = images()
    here, there = first.poison(train, node()), second.poison(train, node())
    assert torch.equal(here.inputs, there.inputs), "poison gave other inputs for the same seed"
    assert torch.equal(here.targets, there.targets), "poison gave other targets for the same seed"
    seen, again = first.triggered(test), second.triggered(test)
    assert (seen is None) == (again is None), "triggered gave examples only once"
    if seen is not None and again is not None:
        assert torch.equal(seen.inputs, again.inputs), "triggered gave other inputs for the same seed"


def permutes(make: Make) -> None:
    """Rows that change places, with their clients, change places in the result: no client is special."""
    rows, honest = federation()
    order, others = torch.tensor([2, 0, 1]), torch.tensor([4, 2, 7, 0, 1, 6, 3, 5])
    moved_rows, moved_honest = rows.rows(order), honest.rows(others)
    # A copy: what changes its input is told so by another check, and may be equal under permutation.
    plain = prepared(make).craft(rows.values.clone(), context(rows, honest)).clone()
    moved = prepared(make).craft(moved_rows.values, context(moved_rows, moved_honest))
    close = torch.allclose(moved, plain[order], rtol=1e-6, atol=1e-6, equal_nan=True)
    assert close, "craft depends on the order of the clients"


def stays_finite(make: Make) -> None:
    """Finite rows stay finite, also equal and zero ones, unless the attack's ``finite`` says otherwise."""
    for scale in (1.0, 0.0):
        rows, honest = federation(scale=scale)
        crafted = play(prepared(make), rows, honest)
        if make().finite:
            assert bool(crafted.isfinite().all()), f"craft gave numbers that are not finite from rows of size {scale}"
        else:
            assert not bool(crafted.isfinite().all()), "craft gave finite rows, but the attack says finite = False"


def leaves_global_randomness(make: Make) -> None:
    """No hook draws from, or seeds, a generator that others use."""
    with strange_generators():
        before = global_states()
        attack = prepared(make)
        train, test = images()
        attack.poison(train, node())
        attack.triggered(test)
        rows, honest = federation()
        play(attack, rows, honest)
        if overrides(attack, "after_step"):
            attack.after_step(torch.ones(2, DIMENSION), local_step(2))
        attack.objective(torch.ones(2), torch.ones(2, DIMENSION, requires_grad=True), local_step(2))
        if overrides(attack, "learn") or overrides(attack, "shown"):
            attack.shown(test, attack.learn(train, node()))
        after = global_states()
    assert torch.equal(before[0], after[0]), "a hook used torch's global generator"
    assert before[1] == after[1], "a hook used NumPy's global generator"
    assert before[2] == after[2], "a hook used Python's global generator"


def keeps_to_its_knowledge(make: Make) -> None:
    """With the knowledge that the class declares it works, and what that knowledge hides moves nothing."""
    attack = make()
    reached = _reaches(make)
    needs = attack.knowledge == "omniscient" or attack.knows_defense
    assert not reached or needs, f"craft reached for hidden rows; the class says knowledge = '{attack.knowledge}'"
    if attack.knowledge == "omniscient" and overrides(attack, "craft"):
        assert reached, "craft needs no honest rows; the class says knowledge = 'omniscient'"
    for level in KNOWLEDGE[KNOWLEDGE.index(attack.knowledge) : 2]:
        first, second = prepared(make), prepared(make)
        states: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for round in ROUNDS:
            rows, honest = federation(seed=round)
            _, changed = federation(seed=round + 1000)
            seen: dict[str, Any] = {"knowledge": level, "knows_defense": False, "round": round}
            one = play(first, rows, honest, state=states[0], **seen)
            two = play(second, rows, changed, state=states[1], **seen)
            assert same_bits(one, two), f"honest rows changed the result under knowledge = '{level}'"
    rows, honest = federation()
    if attack.knowledge == "own":
        joined = play(prepared(make), rows, honest, knowledge="own", knows_defense=False)
        for kept in (0, len(rows) - 1):
            values = rows.values * 3
            values[kept] = rows.values[kept]
            alone = play(prepared(make), rows.replace(values=values), honest, knowledge="own", knows_defense=False)
            same = same_bits(joined[kept : kept + 1], alone[kept : kept + 1])
            assert same, "another attacker's row changed the result under knowledge = 'own'"
        train, test = images()
        first, second = prepared(make), prepared(make)
        first.poison(train, node(0))
        later, first_seen = first.poison(test, node(1)), second.poison(test, node(1))
        same = torch.equal(later.inputs, first_seen.inputs) and torch.equal(later.targets, first_seen.targets)
        assert same, "another attacker's examples changed those that poison gives under knowledge = 'own'"


def _reaches(make: Make) -> bool:
    """Whether ``craft`` or ``claimed_examples`` reaches in some round for what a colluding adversary is not shown."""
    attack, state = prepared(make), dict[str, Any]()
    for round in ROUNDS:
        rows, honest = federation(seed=round)
        ctx = context(rows, honest, knowledge="colluding", knows_defense=False, round=round, state=state)
        try:
            attack.claimed_examples(rows.num_examples.clone(), ctx)
            attack.craft(rows.values, ctx)
        except KnowledgeError:
            return True
    return False


def poisons_validly(make: Make) -> None:
    """``poison`` gives examples of the same shapes, finite, with labels of the task; an empty client stays valid."""
    attack = prepared(make)
    train, _ = images()
    for examples in (train, train.take(torch.arange(1)), train.take(torch.arange(0))):
        found = attack.poison(examples, node())
        assert len(found.inputs) == len(found.targets), "poison gave other numbers of inputs and targets"
        assert found.inputs.shape[1:] == examples.inputs.shape[1:], "poison gave inputs of another shape"
        assert found.inputs.dtype == examples.inputs.dtype, "poison gave inputs of another precision"
        assert found.targets.dtype == examples.targets.dtype, "poison gave targets of another type"
        assert bool(found.inputs.isfinite().all()), "poison gave inputs that are not finite"
        valid = bool(((found.targets >= 0) & (found.targets < CLASSES)).all())
        assert valid, "poison gave labels that are no class of the task"


def excludes_the_target(make: Make) -> None:
    """``triggered`` leaves out images whose label is the target already, and those that were trained on."""
    attack = prepared(make)
    train, test = images()
    found = attack.triggered(test)
    if found is None or len(found) == 0:
        return
    target = found.targets[0]
    only = attack.triggered(test.take((test.targets == target).nonzero().flatten()))
    assert only is not None, "triggered gave examples for one test set and None for another"
    own_images = len(only) == len(found) and torch.equal(only.inputs, found.inputs)
    assert len(only) == 0 or own_images, "triggered holds images whose true label is the target already"
    if own_images:
        trained = {row.numpy().tobytes() for row in attack.poison(train, node()).inputs}
        overlap = sum(row.numpy().tobytes() in trained for row in found.inputs)
        assert overlap == 0, f"triggered holds {overlap} images that were trained on"


def steps_row_by_row(make: Make) -> None:
    """``after_step`` treats each client alone: chunks of clients change nothing."""
    attack = prepared(make)
    parameters = torch.randn(4, DIMENSION, generator=torch.Generator().manual_seed(3)) * 3
    together = parameters.clone()
    attack.after_step(together, local_step(4))
    alone = parameters.clone()
    for i in range(4):
        attack.after_step(alone[i : i + 1], local_step(4, only=i))
    assert torch.equal(together, alone), "after_step gives other bits for clients in one chunk than for each alone"
    assert bool(together.isfinite().all()), "after_step gave numbers that are not finite"


def weighs_row_by_row(make: Make) -> None:
    """``objective`` gives each client a loss and a finite gradient of its own, also at the received parameters."""
    attack = prepared(make)
    generator = torch.Generator().manual_seed(4)
    start = torch.cat([torch.zeros(1, DIMENSION), torch.randn(3, DIMENSION, generator=generator)])
    task = torch.rand(4, generator=generator)
    parameters = start.clone().requires_grad_()
    losses = attack.objective(task, parameters, local_step(4))
    assert losses.shape == (4,), f"objective gave {tuple(losses.shape)} losses for 4 clients"
    if not losses.requires_grad:
        return
    (together,) = torch.autograd.grad(losses.sum(), parameters)
    assert bool(losses.isfinite().all() & together.isfinite().all()), "objective or its gradient is not finite"
    for i in range(4):
        row = start[i : i + 1].clone().requires_grad_()
        alone = attack.objective(task[i : i + 1], row, local_step(4, only=i))
        close = torch.allclose(alone, losses[i : i + 1], rtol=1e-5, atol=1e-6)
        assert close, "objective gives other losses for clients in one chunk than for each alone"


def learns_for_all(make: Make) -> None:
    """``learn`` hands to all clients what one finds: more than an attack needs that says ``own``."""
    part = make()
    assert part.knowledge != "own" or not overrides(part, "learn"), "it has learn; the class says knowledge = 'own'"


def learns_the_same(make: Make) -> None:
    """``learn`` gives tensors, the same for the same seed and model, and changes neither data nor model."""
    train, test = images()
    before = train.inputs.clone()
    first, second = prepared(make).learn(train, node()), prepared(make).learn(train, node())
    assert first.keys() == second.keys(), "learn gave other names for the same seed"
    for name, each in first.items():
        assert isinstance(each, Tensor), f"learn gave a {type(each).__name__} as '{name}'"
        assert bool(each.isfinite().all()), f"learn gave numbers that are not finite as '{name}'"
        assert torch.equal(each, second[name]), f"learn gave another '{name}' for the same seed"
    assert torch.equal(train.inputs, before), "learn changed its examples in place"
    shown = prepared(make).shown(test, first)
    if shown is not None:
        assert bool(shown.inputs.isfinite().all()), "shown gave inputs that are not finite"


def remembers_plainly(make: Make) -> None:
    """The attack's memory holds what a checkpoint can: tensors, numbers, strings, and tables and lists of them."""
    rows, honest = federation()
    state: dict[str, Any] = {}
    for round in (1, 2):
        play(prepared(make), rows, honest, round=round, state=state)
    for path, value in leaves(state):
        assert isinstance(value, (Tensor, bool, int, float, str, type(None))), (
            f"state{path} holds a {type(value).__name__}"
        )


CHECKS: tuple[Callable[[Make], None], ...] = (
    does_something,
    says_what_it_knows,
    keeps_shape,
    leaves_input,
    repeats,
    permutes,
    stays_finite,
    leaves_global_randomness,
    keeps_to_its_knowledge,
    poisons_validly,
    excludes_the_target,
    steps_row_by_row,
    weighs_row_by_row,
    learns_for_all,
    learns_the_same,
    remembers_plainly,
)


def federation(
    *, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32, clients: list[int] | None = None
) -> tuple[Updates, Updates]:
    """Malicious rows and honest rows of a toy round."""
    held = CLIENTS if clients is None else clients
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(DIMENSION, generator=generator)
    values = scale * (common + 0.3 * torch.randn(len(held) + len(OTHERS), DIMENSION, generator=generator))
    reference = torch.randn(DIMENSION, generator=generator).to(dtype)
    counts = torch.arange(10, 10 + len(values))
    values = values.to(dtype)
    return (
        Updates(values[: len(held)], counts[: len(held)], list(held), reference),
        Updates(values[len(held) :], counts[len(held) :], list(OTHERS), reference),
    )


def play(
    attack: Attack,
    rows: Updates,
    honest: Updates,
    *,
    round: int = 1,
    knowledge: str = "omniscient",
    knows_defense: bool = True,
    state: dict[str, Any] | None = None,
) -> Tensor:
    """The rows that an adversary with this attack alone sends."""
    adversary = Adversary([attack], 20, count=3, knowledge=knowledge, knows_defense=knows_defense, rounds=max(ROUNDS))
    crafted, _ = adversary.craft(
        rows,
        honest,
        round=round,
        num_clients=len(rows) + len(honest),
        previous_reference=rows.reference * 0.5 if round > 1 else None,
        server=(lambda sent, _: mean_server(rows, honest)(sent)) if knows_defense else None,
        state=state,
    )
    return crafted


def context(
    rows: Updates,
    honest: Updates,
    *,
    knowledge: str = "omniscient",
    knows_defense: bool = True,
    round: int = 1,
    state: dict[str, Any] | None = None,
) -> Craft:
    """What the adversary sees in a toy round."""
    shown: dict[str, Any] = {}
    if knowledge == "omniscient":
        shown = {"honest_rows": honest.values, "honest_examples": honest.num_examples}
        shown |= {"server": mean_server(rows, honest)} if knows_defense else {}
    return Craft(
        rows=rows.values,
        reference=rows.reference,
        clients=rows.client_ids,
        num_clients=len(rows) + len(honest),
        num_malicious=len(rows),
        num_examples=rows.num_examples,
        knowledge=knowledge,
        server_lr=1.0,
        round=round,
        seed=0,
        previous_reference=rows.reference * 0.5 if round > 1 else None,
        state={} if state is None else state,
        **shown,
    )


def mean_server(rows: Updates, honest: Updates) -> Callable[[Tensor], Tensor]:
    """A server that averages all rows."""
    return lambda sent: rows.reference + torch.cat([sent, honest.values]).mean(0)


def images() -> tuple[Examples, Examples]:
    """Training and test images (1, 16, 16) of ten classes."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for n in (600, 300):
        targets = torch.arange(n) % CLASSES
        inputs = torch.rand(n, 1, 16, 16, generator=generator) * 0.5 + targets[:, None, None, None] / 20
        found.append(Examples(inputs, targets))
    return found[0], found[1]


def prepared(make: Make) -> Attack:
    """The attack after ``prepare`` on the toy images."""
    attack = make()
    train, test = images()
    alone = Adversary([attack], 20, count=3, examples="population", knowledge="omniscient", knows_defense=True)
    alone.prepare(train, test, num_classes=CLASSES)
    return attack


def node(rank: int = 0) -> Compromised:
    """A malicious client."""
    _, test = images()
    return Compromised(
        client=CLIENTS[rank],
        rank=rank,
        attackers=3,
        round=1,
        seed=0,
        num_classes=CLASSES,
        model=received(torch.zeros(DIMENSION)),
        examples=test,
    )


def received(parameters: Tensor) -> Received:
    """A linear model on five means over the image's pixels, of the first sixty parameters."""

    def features(vector: Tensor, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)[:, :255].reshape(len(inputs), 5, 51).mean(dim=2).to(vector.dtype)

    def predict(vector: Tensor, inputs: Tensor) -> Tensor:
        return torch.nn.functional.linear(features(vector, inputs), vector[:50].view(CLASSES, 5), vector[50:60])

    previous = parameters - torch.linspace(-1, 1, len(parameters))
    return Received(parameters, previous, predict, features)


def local_step(k: int, only: int | None = None, d: int = DIMENSION) -> LocalStep:
    """Step 5 of k clients, every second of which is done; or of one of them."""
    chosen = range(k) if only is None else [only]
    last = torch.tensor([i % 2 == 0 for i in chosen])
    _, test = images()
    model = received(torch.zeros(d))
    nodes = tuple(Compromised(i, i, k, 1, 0, CLASSES, model, test.take(torch.arange(i, 300, k))) for i in chosen)
    return LocalStep(torch.zeros(d), 5, last, nodes)


def global_states() -> tuple[Tensor, str, tuple[Any, ...]]:
    """The generators of torch, NumPy (its legacy one) and Python that everyone shares."""
    return torch.get_rng_state(), repr(np.random.get_state(legacy=False)), random.getstate()  # noqa: NPY002


@contextmanager
def strange_generators() -> Iterator[None]:
    """The global generators in a state to which no one seeds them, until the block ends."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.set_rng_state(torch.Generator().manual_seed(20_011).get_state())
    np.random.seed(20_011)  # noqa: NPY002
    random.seed(20_011)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def instead(part: type, base: type, hooks: Sequence[str]) -> str:
    """What a class defines in the place of its base's hooks: ``: only 'crafft' (did you mean 'craft'?)``."""
    own = {name: None for each in part.__mro__ if not issubclass(base, each) for name in vars(each)}
    methods = [name for name in own if not name.startswith("_") and inspect.isfunction(getattr(part, name))]
    return f": only {', '.join(f'{name!r}{nearest(name, hooks)}' for name in methods)}" if methods else ""


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Equal bit for bit, NaN equal to itself."""
    return torch.equal(one.nan_to_num(nan=12345.0), two.nan_to_num(nan=12345.0))


def leaves(state: Any, path: str = "") -> list[tuple[str, Any]]:
    """(path, value) of everything in nested tables and lists."""
    if isinstance(state, dict):
        return [leaf for key, value in state.items() for leaf in leaves(value, f"{path}[{key!r}]")]
    if isinstance(state, (list, tuple)):
        return [leaf for i, value in enumerate(state) for leaf in leaves(value, f"{path}[{i}]")]
    return [(path, state)]
