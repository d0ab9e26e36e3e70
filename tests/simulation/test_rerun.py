"""A run beside its rerun: bits on one kind of machine, numbers on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import ResumeError
from fedsim.rerun import compare
from fedsim.simulation import simulate
from tests.simulation.test_runs import small


def edited(folder: Path, **runtime: Any) -> None:
    path = folder / "run.json"
    content = json.loads(path.read_text())
    content["runtime"] |= runtime
    path.write_text(json.dumps(content))


def test_bits_are_compared_on_one_kind_of_machine_and_numbers_on_two(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    simulate(small(rounds=2), one)
    simulate(small(rounds=2), two)
    found = compare(one, two)
    assert (found.exact, found.same, found.differs, found.parameters) == (True, True, [], 0.0)
    said = json.loads((two / "summary.json").read_text())
    (two / "summary.json").write_text(json.dumps(said | {"digest": "another"}))
    assert not compare(one, two).same
    edited(two, processor="another")
    found = compare(one, two)
    assert (found.exact, found.same) == (False, True)
    assert [key for key, *_ in found.differs] == ["processor"]


def test_what_is_no_rerun_is_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    simulate(small(rounds=1), one)
    simulate(small(rounds=1, seed=1), other)
    with pytest.raises(ResumeError, match="a run of the same scenario"):
        compare(one, other)
    with pytest.raises(ResumeError, match="holds no run"):
        compare(one, tmp_path / "nothing")


def test_models_that_are_apart_are_not_the_same_on_another_machine(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    simulate(small(rounds=1), one)
    simulate(small(rounds=1, seed=1), other)
    for name in ("run.json",):
        content = json.loads((other / name).read_text())
        content["key"] = json.loads((one / name).read_text())["key"]
        (other / name).write_text(json.dumps(content))
    edited(other, python="3.99")
    found = compare(one, other)
    assert not found.exact
    assert not found.same
    assert found.parameters > 0.01
