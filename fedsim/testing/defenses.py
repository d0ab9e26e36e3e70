"""What every defense keeps to, whatever it does: the checks that fedsim runs on its own defenses, for those of others.

Each check takes a function that builds the defense, and raises AssertionError with one line that says what is wrong::

    from fedsim.testing import defenses

    def test_my_defense():
        defenses.conform(lambda: MyDefense(malicious=2))

``translation_equivariant`` and ``scale_equivariant`` are checked where the defense's class declares them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedsim.data.examples import Examples
from fedsim.errors import UpdatesError
from fedsim.testing.attacks import global_states, instead, strange_generators
from fedsim.updates import Aggregate, Layout, Selection, Updates
from strategies.defense import Defense, Round, overrides

Make = Callable[[], Defense]

STAGES = ("transform", "select", "combine", "bound", "finish")
CLIENTS = 15
DIMENSION = 60
MOST_CLIENTS = 40
INPUTS, CLASSES = 14, 4
LAYOUT = Layout((("weight", (CLASSES, INPUTS)), ("bias", (CLASSES,))))
"""The toy model is linear; its parameters are the sixty numbers of a row."""
TOLERANCE = 1e-6


def conform(make: Make) -> None:
    """Run all checks.

    Raises:
        AssertionError: what the defense does not keep to.
    """
    for check in CHECKS:
        check(make)


def does_something(make: Make) -> None:
    """It defines one of the stages, or messages of its own."""
    part = type(make())
    wrong = f"it defines none of the stages{instead(part, Defense, STAGES)}"
    assert part.defines(*STAGES, "exchanges"), wrong


def gives_what_stages_give(make: Make) -> None:
    """Each stage gives what it is to give, of the right shape."""
    part, rows = make(), updates()
    ctx, n = context(part, {}), len(rows)
    if overrides(part, "transform"):
        given: Any = part.transform(rows, ctx)
        assert isinstance(given, Updates), f"transform gave a {type(given).__name__}, Updates are needed"
        assert given.d == rows.d, f"transform gave rows of {given.d} numbers for rows of {rows.d}"
        rows, n = given, len(given)
    if overrides(part, "select"):
        given = part.select(rows, ctx)
        assert isinstance(given, Selection), f"select gave a {type(given).__name__}, a Selection is needed"
        assert given.weights.shape == (n,), f"select gave weights of shape {tuple(given.weights.shape)} for {n} rows"
        scores = given.scores
        assert scores is None or scores.shape == (n,), f"select gave scores of shape {tuple(scores.shape)} for {n} rows"
        rows = rows.replace(num_examples=given.weights).rows((given.weights > 0).nonzero().flatten())
        n = len(rows)
    if overrides(part, "combine") and n:
        given = part.combine(rows, ctx)
        assert isinstance(given, Aggregate), f"combine gave a {type(given).__name__}, an Aggregate is needed"
        shape = tuple(given.update.shape)
        assert shape == (rows.d,), f"combine gave an update of shape {shape} for {rows.d} parameters"
        assert given.weights.shape == (n,), f"combine gave weights of shape {tuple(given.weights.shape)} for {n} rows"
        assert given.weights.dtype == torch.float64, f"combine gave weights of {given.weights.dtype}, float64 is needed"
    if overrides(part, "bound"):
        plain = Aggregate(rows.mean(), rows.num_examples / rows.num_examples.sum())
        given = part.bound(plain, ctx)
        assert isinstance(given, Aggregate), f"bound gave a {type(given).__name__}, an Aggregate is needed"
        shape = tuple(given.update.shape)
        assert shape == (rows.d,), f"bound gave an update of shape {shape} for {rows.d} parameters"
    given = part.finish(updates().reference, ctx)
    assert isinstance(given, Tensor), f"finish gave a {type(given).__name__}, a tensor is needed"
    assert given.shape == (DIMENSION,), f"finish gave shape {tuple(given.shape)} for {DIMENSION} parameters"


def ignores_order(make: Make) -> None:
    """Rows that change places together with their ids change neither the update nor any client's weight or score."""
    rows = updates()
    expected = run(make, rows)
    for seed in range(3):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        got = run(make, rows.rows(order))
        close(got.update, expected.update, "the update depends on the order of the clients")
        close(got.weights, expected.weights[order], "a weight depends on the order of the clients")
        assert got.scores.keys() == expected.scores.keys(), "the names of the scores depend on the order of the clients"
        for name, scores in expected.scores.items():
            close(got.scores[name], scores[order], f"score '{name}' depends on the order of the clients")
    # What it remembers belongs to a client, not to a place: in the second round the rows change places.
    part = make()
    one: dict[str, Any] = {}
    two: dict[str, Any] = {}
    for state in (one, two):
        part.aggregate(rows, context(part, state, 1))
    later, order = updates(seed=1), torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))
    expected = part.aggregate(later, context(part, one, 2))
    got = part.aggregate(later.rows(order), context(part, two, 2))
    told = "what it remembers goes by place: in the second round"
    close(got.update, expected.update, f"{told} the update depends on the order of the clients")
    close(got.weights, expected.weights[order], f"{told} a weight depends on the order of the clients")


def repeats(make: Make) -> None:
    """The same rounds from the same seed give the same bits, also when the state is copied between them."""
    first, second = make(), make()
    states: list[dict[str, Any]] = [{}, {}]
    for number in range(1, 4):
        rows = updates(seed=number)
        one = first.aggregate(rows, context(first, states[0], number))
        states[1] = copy.deepcopy(states[1])
        two = make().aggregate(rows, context(second, states[1], number))
        assert torch.equal(one.update, two.update), f"round {number}: the same seed and state gave other bits"
    _only_plain(states[0], "state")


def leaves_input(make: Make) -> None:
    """Neither the rows nor the counts nor the reference are changed."""
    rows = updates()
    kept = [rows.values.clone(), rows.num_examples.clone(), rows.reference.clone(), rows.extras["buffers"].clone()]
    run(make, rows)
    given = [rows.values, rows.num_examples, rows.reference, rows.extras["buffers"]]
    for name, now, before in zip(("values", "num_examples", "reference", "buffers"), given, kept, strict=True):
        assert torch.equal(now, before), f"the defense changed {name} in place"


def leaves_global_randomness(make: Make) -> None:
    """No stage draws from, or seeds, a generator that others use."""
    with strange_generators():
        before = global_states()
        part, rows = make(), updates()
        part.finish(rows.reference, context(part, {}))
        run(make, rows)
        after = global_states()
    for place, whose in enumerate(("torch", "NumPy", "Python")):
        same = torch.equal(before[0], after[0]) if place == 0 else before[place] == after[place]
        assert same, f"a stage used {whose}'s global generator"


def survives_refusals(make: Make) -> None:
    """A client whose row is not finite is dropped before the defense, which goes on without it, and later with it."""
    part, state = make(), dict[str, Any]()
    for number, refused in ((1, []), (2, [4, 7]), (3, []), (4, [0])):
        rows = updates(seed=number)
        values = rows.values.clone()
        values[refused] = math.nan
        valid = values.isfinite().all(dim=1).nonzero().flatten()
        left = f"in round {number}, with {len(valid)} of {len(rows)} clients left,"
        try:
            got = part.aggregate(rows.replace(values=values).rows(valid), context(part, state, number))
        except Exception as error:
            raise AssertionError(f"{left} it raised {type(error).__name__}: {error}") from error
        assert got.update.shape == (rows.d,), f"{left} the update has shape {tuple(got.update.shape)}"
        assert bool(got.update.isfinite().all()), f"{left} the update is not finite"
        assert got.weights.shape == (len(valid),), f"{left} there are {len(got.weights)} weights"


def fits(make: Make) -> None:
    """The aggregate has the rows' width and precision, weights that sum to 1 or are unknown, scores for each client."""
    for dtype in (torch.float32, torch.float64):
        rows = updates(dtype=dtype)
        got = run(make, rows)
        assert got.update.shape == (rows.d,), f"the update has shape {tuple(got.update.shape)} for {rows.d} parameters"
        assert got.update.dtype == dtype, f"the update is {got.update.dtype} for rows of {dtype}"
        assert bool(got.update.isfinite().all()), "the update is not finite"
        assert got.weights.shape == (len(rows),), f"{len(got.weights)} weights for {len(rows)} clients"
        known = got.weights[~got.weights.isnan()]
        assert bool((known >= 0).all()), "a weight is negative"
        if len(known) == len(rows):
            assert math.isclose(float(known.sum()), 1, abs_tol=1e-9), f"the weights sum to {float(known.sum())}"
        for name, scores in got.scores.items():
            assert scores.shape == (len(rows),), f"score '{name}' has {len(scores)} values for {len(rows)} clients"
        assert got.buffers is not None, "buffers got lost"
        assert got.buffers.shape == rows.extras["buffers"][0].shape, "buffers changed their shape"


def ignores_the_empty(make: Make) -> None:
    """A client without examples moves nothing and gets no weight."""
    rows = updates()
    counts = rows.num_examples.clone()
    counts[4] = 0
    values = rows.values.clone()
    values[4] = 1e6
    others = [i for i in range(len(rows)) if i != 4]
    got, expected = run(make, rows.replace(values=values, num_examples=counts)), run(make, rows.rows(others))
    close(got.update, expected.update, "a client without examples moves the update")
    assert float(got.weights[4]) == 0, f"a client without examples has weight {float(got.weights[4])}"


def withstands(make: Make) -> None:
    """Rows that are equal, zero, huge or tiny give a finite update and no exception."""
    rows = updates()
    same = rows.values[:1].expand(len(rows), -1).clone()
    huge, largest = rows.values.clone(), rows.values.clone()
    huge[3], largest[3] = 1e8, 1e30
    cases = {
        "equal rows": same,
        "zero rows": torch.zeros_like(rows.values),
        "one row of 1e8": huge,
        "one row of 1e30": largest,
        "all rows around 1e8": rows.values + 1e8,
        "rows of 1e-12": rows.values * 1e-12,
        "rows that undo the model": -rows.reference.expand(len(rows), -1).clone(),
    }
    for name, values in cases.items():
        for kind, reference in (("", rows.reference), (" around zero", torch.zeros_like(rows.reference))):
            got = run(make, rows.replace(values=values, reference=reference))
            assert bool(got.update.isfinite().all()), f"{name}{kind}: the update is not finite"


def says_too_few(make: Make) -> None:
    """Fewer clients than the rule can work on are an UpdatesError of one line; the fewest give a finite update."""
    enough = fewest_clients(make)
    fewest = run(make, updates(clients=enough)).update
    assert bool(fewest.isfinite().all()), f"{enough} clients, which it takes, give an update that is not finite"
    for clients in range(1, enough):
        message = ""
        try:
            run(make, updates(clients=clients))
        except UpdatesError as error:
            message = str(error)
        assert message, f"{clients} clients work, though {clients + 1} are too few"
        assert "\n" not in message, "the message has more than one line"


def translates(make: Make, vector: Tensor | None = None) -> None:
    """The same vector added to every update is added to the aggregate, if the class says so."""
    if not type(make()).translation_equivariant:
        return
    rows = updates(dtype=torch.float64)
    vector = torch.linspace(-2, 3, rows.d, dtype=torch.float64) if vector is None else vector
    moved = run(make, rows.replace(values=rows.values + vector)).update
    scale = float(vector.abs().max()) + 1
    close((moved - vector) / scale, run(make, rows).update / scale, "the aggregate does not move with the updates")


def scales(make: Make, factor: float = 3.0) -> None:
    """Updates times a positive number give the aggregate times it, if the class says so."""
    if not type(make()).scale_equivariant:
        return
    rows = updates(dtype=torch.float64)
    scaled = run(make, rows.replace(values=rows.values * factor)).update
    close(scaled / factor, run(make, rows).update, "the aggregate does not scale with the updates")


CHECKS: tuple[Callable[[Make], None], ...] = (
    does_something,
    gives_what_stages_give,
    fits,
    ignores_order,
    repeats,
    leaves_input,
    leaves_global_randomness,
    survives_refusals,
    ignores_the_empty,
    withstands,
    says_too_few,
    translates,
    scales,
)


def updates(clients: int = CLIENTS, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Updates:
    """Updates of unequal clients, a fifth of them far off, with buffers, around a model of norm about 8."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(clients, DIMENSION, generator=generator, dtype=torch.float64)
    values += torch.linspace(-1, 1, DIMENSION, dtype=torch.float64)
    values[: clients // 5] *= 6
    return Updates(
        values.to(dtype),
        torch.randint(1, 50, (clients,), generator=generator),
        [2 * i + i // 3 for i in range(clients)],
        torch.randn(DIMENSION, generator=generator).to(dtype),
        extras={"buffers": torch.randn(clients, 4, generator=generator).to(dtype)},
        layout=LAYOUT,
    )


def context(part: Defense, state: dict[str, Any], number: int = 1) -> Round:
    """A round of this part alone, with its state."""
    name = getattr(part, "name", type(part).__name__)
    return Round(round=number, seed=7, part=name, layout=LAYOUT, root=root_data(), predict=predict, state=state)


def root_data() -> Examples:
    """Clean examples that the server holds: forty of them, in four classes."""
    generator = torch.Generator().manual_seed(5)
    return Examples(torch.randn(40, INPUTS, generator=generator), torch.arange(40) % CLASSES)


def predict(parameters: Tensor, inputs: Tensor) -> Tensor:
    """(m, 4) logits of the toy model."""
    views = LAYOUT.views(parameters)
    return torch.nn.functional.linear(inputs.to(parameters.dtype), views["weight"], views["bias"])


def run(make: Make, rows: Updates) -> Aggregate:
    """The first round of a fresh defense."""
    part = make()
    return part.aggregate(rows, context(part, {}))


def fewest_clients(make: Make) -> int:
    """The smallest number of clients on which the defense does not refuse to work."""
    for clients in range(1, MOST_CLIENTS):
        try:
            run(make, updates(clients=clients))
        except UpdatesError:
            continue
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{clients} clients raise {said}; an UpdatesError is needed") from error
        return clients
    raise AssertionError(f"the defense refuses up to {MOST_CLIENTS - 1} clients")


def close(got: Tensor, expected: Tensor, message: str) -> None:
    """Equal to 1e-6, absolute and relative, NaN to NaN."""
    same = torch.allclose(got.double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    assert same, f"{message}: {float((got.double() - expected.double()).abs().nan_to_num().max()):g} apart"


def _only_plain(value: object, where: str) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            assert isinstance(key, (str, int)), f"{where} has the key {key!r}, which no checkpoint can hold"
            _only_plain(each, f"{where}[{key!r}]")
        return
    plain = value is None or isinstance(value, (Tensor, bool, int, float, str))
    assert plain, f"{where} is a {type(value).__name__}, which no checkpoint can hold"
