"""What every observer must do: find what a run can keep, the same each time, and touch nothing that it is shown.

The toy run is one of a few digits on six clients; what it shows is what a real one shows. ``fedsim check`` runs these.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.data.examples import Examples
from fedsim.errors import FedsimError
from fedsim.federation import Federation, build
from fedsim.observers.observer import Observation, Observer, Seen, Sent, Truth, Watched, sight
from fedsim.scenario import Scenario
from fedsim.testing.attacks import global_states, leaves, strange_generators
from fedsim.testing.federation import deltas

Make = Callable[[], Any]
ROUNDS, CLIENTS = 3, 6
LATEST = 9
"""Rounds in which it is looked whether an observer, which may wait, writes into what it sees."""
RUN: dict[str, Any] = {
    "rounds": ROUNDS,
    "seed": 1,
    "data": {"dataset": "digits", "clients": CLIENTS},
    "model": {"name": "mlp", "hidden": [8], "activation": "sigmoid"},
    "client": {"per_round": 3, "steps": 1, "batch_size": 1},
}
NOISY: dict[str, Any] = {
    "server": {"estimator": {"name": "dp_gd", "c1": 1.0, "lr": 0.5}},
    "client": {"per_round": CLIENTS},
}
"""Runs in which a part adds noise, so that who draws it says what is seen."""


def has_a_standpoint(make: Make) -> None:
    """It says where it stands, which says what it is shown."""
    found = getattr(make(), "standpoint", None)
    assert found in ("server", "client"), f"its standpoint is {found!r}"


def fits_the_toy_run(make: Make) -> None:
    """``check`` and ``set_up`` let a plain run pass."""
    faults = _faults(make(), federation())
    assert not faults, f"the toy run does not fit it: {faults[0]}"


def finds_what_can_be_kept(make: Make) -> None:
    """``observe`` gives None, or an Observation of numbers, words and images."""
    for found in play(make):
        assert found is None or isinstance(found, Observation), (
            f"observe gave a {type(found).__name__}, an Observation or None is needed"
        )
        if found is None:
            continue
        try:
            json.dumps(found.measures)
        except TypeError as error:
            raise AssertionError(f"measures hold what no JSON file can: {error}") from error
        shapes = {name: np.asarray(each).shape for name, each in found.pictures.items()}
        for name, shape in shapes.items():
            assert len(shape) == 4, f"picture '{name}' has the shape {shape}, (m, C, H, W) is needed"
        assert len({shape[0] for shape in shapes.values()}) < 2, f"pictures are of unequal number: {shapes}"


def repeats(make: Make) -> None:
    """The same run shows it the same."""
    assert same(play(make), play(make)), "observe found something else in the same run"


def goes_on_after_a_resume(make: Make) -> None:
    """What it remembers lies in its state: an observer made anew in each round finds the same."""
    assert same(play(make), play(make, anew=True)), (
        "an observer that is made anew after a round, with the state of the one before, found something else"
    )


def leaves_what_it_is_shown(make: Make) -> None:
    """Models and messages are read, not written to, and neither are the data and the model of the run."""
    watched = _watched(federation())
    run = {
        "the model before the first round": watched.initial,
        "the test examples": watched.test.inputs,
        "the test labels": watched.test.targets,
        "the clients' examples": watched.workload.train.inputs,
        "the clients' labels": watched.workload.train.targets,
    }
    kept = {name: each.clone() for name, each in run.items()}
    for hide in (False, True):
        observer, state = make(), dict[str, Any]()
        for _ in observer.set_up(watched) or ():
            pass
        for round in range(1, LATEST + 1):
            seen = replace(rounds()[(round - 1) % ROUNDS], round=round)
            if hide:
                seen = replace(seen, messages={}, total=seen.after - seen.before)
            if not observer.wants(round, state):
                continue
            shown = copy.deepcopy(seen)
            # What needs the messages is told so by another check.
            with suppress(Exception) if hide else nullcontext():
                observer.observe(shown, state)
            for before, after in zip(_tensors(seen), _tensors(shown), strict=True):
                assert torch.equal(before, after), "observe changed what it was shown in place"
            for name, each in run.items():
                same = torch.equal(each, kept[name])
                each.copy_(kept[name])
                assert same, f"observe changed {name} in place"


def leaves_global_randomness(make: Make) -> None:
    """Nothing draws from, or seeds, a generator that others use."""
    with strange_generators():
        before = global_states()
        play(make)
        after = global_states()
    assert torch.equal(before[0], after[0]), "it used torch's global generator"
    assert before[1] == after[1], "it used NumPy's global generator"
    assert before[2] == after[2], "it used Python's global generator"


def remembers_plainly(make: Make) -> None:
    """Its memory holds what a checkpoint can: tensors, numbers, strings, and tables and lists of them."""
    observer, state = ready(make(), federation()), dict[str, Any]()
    for seen in rounds():
        if observer.wants(seen.round, state):
            observer.observe(copy.deepcopy(seen), state)
    for path, value in leaves(state):
        plain = isinstance(value, (Tensor, bool, int, float, str, type(None)))
        assert plain, f"state{path} holds a {type(value).__name__}"


def bears_what_is_hidden(make: Make) -> None:
    """Where no single message is shown, or none at all, it says so in ``check``, or finds what it can."""
    for trust in ("distributed", "central"):
        hidden = federation(trust)
        observer = make()
        if _faults(observer, hidden):
            continue
        what, state = sight(hidden.scenario, observer.standpoint), dict[str, Any]()
        for seen in rounds():
            shown = replace(seen, messages={}, total=seen.after - seen.before if what == "sum" else None)
            try:
                if observer.wants(seen.round, state):
                    observer.observe(shown, state)
            except Exception as error:
                raise AssertionError(f"observe broke where {_shown(what)}: {type(error).__name__}: {error}") from error


CHECKS: tuple[Callable[[Make], None], ...] = (
    has_a_standpoint,
    fits_the_toy_run,
    finds_what_can_be_kept,
    repeats,
    goes_on_after_a_resume,
    leaves_what_it_is_shown,
    leaves_global_randomness,
    remembers_plainly,
    bears_what_is_hidden,
)


@lru_cache(maxsize=3)
def federation(trust: str = "") -> Federation:
    """The toy run; with ``trust`` one whose noise is drawn by the one who is trusted."""
    if not trust:
        return build(Scenario(**RUN))
    return build(Scenario(**{**RUN, **NOISY, "privacy": {"epsilon": 5.0, "trust": trust}}))


@lru_cache(maxsize=1)
def rounds() -> tuple[Seen, ...]:
    """What the server sees of the toy run: three clients train in each round, and their mean moves the model."""
    played = federation()
    app, vector = played.app, played.initial.clone()
    trained: set[int] = set()
    found = []
    for round in range(1, ROUNDS + 1):
        clients = sorted(int(each) for each in rng.stream(1, "conformance", round=round).permutation(CLIENTS)[:3])
        rows = deltas(app, vector, clients, round=round)
        trained |= set(clients)
        after = vector + rows.mean(0)
        sent = {client: Sent(row.clone(), 30) for client, row in zip(clients, rows, strict=True)}
        truth = Truth(tuple(sorted(trained)), tuple(clients))
        found.append(Seen(round, vector.clone(), after.clone(), sent, None, truth))
        vector = after
    return tuple(found)


def ready(observer: Any, played: Federation) -> Any:
    """The observer after ``set_up``."""
    for _ in observer.set_up(_watched(played)) or ():
        pass
    return observer


def play(make: Make, anew: bool = False) -> list[Any]:
    """What an observer finds in each of the rounds; ``anew`` as after a resume before every round."""
    observer, state = ready(make(), federation()), dict[str, Any]()
    found: list[Any] = []
    for seen in rounds():
        if anew:
            observer, state = ready(make(), federation()), copy.deepcopy(state)
        wanted = observer.wants(seen.round, state)
        found.append(observer.observe(copy.deepcopy(seen), state) if wanted else None)
    return found


def same(one: list[Any], two: list[Any]) -> bool:
    """Whether two plays found the same, NaN equal to itself."""
    return [_told(each) for each in one] == [_told(each) for each in two]


def _told(found: Any) -> Any:
    if not isinstance(found, Observation):
        return found
    pictures: Mapping[str, Any] = found.pictures
    return repr(found.measures), {name: np.asarray(each).tobytes() for name, each in pictures.items()}


def _watched(played: Federation) -> Watched:
    """With data of its own: an observer that writes to them may not change what the next one sees."""
    workload = played.app.workload
    return Watched(
        played.scenario,
        replace(workload, train=_copied(workload.train)),
        played.dataset.info,
        _copied(played.dataset.test),
        played.initial.clone(),
        played.estimator,
    )


def _copied(examples: Examples) -> Examples:
    return Examples(examples.inputs.clone(), examples.targets.clone())


def _faults(observer: Observer, played: Federation) -> list[str]:
    """What of a run does not fit, in words."""
    try:
        faults = [*(observer.check(played.scenario) or ())]
        faults += [] if faults else [*(observer.set_up(_watched(played)) or ())]
    except FedsimError as error:
        return [str(error)]
    return [fault.line("observer") for fault in faults]


def _shown(what: str) -> str:
    return "the sum of the messages alone is shown" if what == "sum" else "the models alone are shown"


def _tensors(seen: Seen) -> list[Tensor]:
    hidden = [] if seen.total is None else [seen.total]
    return [seen.before, seen.after, *hidden, *(sent.vector for _, sent in sorted(seen.messages.items()))]


__all__ = ["CHECKS", "federation", "play", "rounds"]
