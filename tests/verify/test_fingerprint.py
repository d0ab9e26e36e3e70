"""What a claim's result hangs on."""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from fedsim.verify import fingerprint as room
from fedsim.verify import runner
from fedsim.verify.fingerprint import fingerprint

SOURCE = '''
import math
from fedsim.verify.claim import Expected, Measured, claim
from fedsim.verify.digits import split

RATE = 2.0
OTHER = 3.0

def twice(x):
    return RATE * x

@claim({"x": Expected("c", "e", 0.0, 9.0)}, source="here", paper="of_a_test")
def measured(seed):
    """Says something."""
    return Measured({"x": twice(math.sqrt(seed))})

@claim({"x": Expected("c", "e")}, source="here", paper="of_a_test")
def with_digits(seed):
    return Measured({"x": float(split(seed)[1].sum())})

def draw(figure, found):
    figure.clear()
'''


def load(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(importlib.import_module("fedsim.verify.claim"), "_claims", {})
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("figure.clear()", "figure.clf()", True),
        ("9.0", "8.0", True),
        ('"""Says something."""', '"""Says more."""', True),
        ("OTHER = 3.0", "OTHER = 4.0", True),
        ("import math", "import math, json", True),
        ("return RATE * x", "return RATE * x  # a comment", True),
        ("RATE = 2.0", "RATE = 2.5", False),
        ("return RATE * x", "return RATE + x", False),
        ("math.sqrt(seed)", "math.exp(seed)", False),
    ],
)
def test_what_the_function_reaches_counts(
    old: str, new: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(tmp_path / "claims_of_a_test_a.py", SOURCE, monkeypatch)
    before = fingerprint(first.measured)
    room._definitions.cache_clear()
    path = tmp_path / "claims_of_a_test_a.py"
    second = load(path, SOURCE.replace(old, new), monkeypatch)
    linecache.checkcache()
    assert (fingerprint(second.measured) == before) == same
    room._definitions.cache_clear()


def test_a_scenario_that_is_read_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCE.replace("return Measured", "read('papers/diff2')\n    return Measured", 1)
    module = load(tmp_path / "claims_of_a_test_c.py", source, monkeypatch)
    before = fingerprint(module.measured), fingerprint(module.with_digits)
    monkeypatch.setattr(room, "read", lambda name: {"of": name})
    assert fingerprint(module.measured) != before[0]
    assert fingerprint(module.with_digits) == before[1]
    room._definitions.cache_clear()


def test_imports_within_the_room_and_parts_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(tmp_path / "claims_of_a_test_b.py", SOURCE, monkeypatch)
    assert any("load_digits" in text for text in room._reached(module.with_digits))
    assert not any("load_digits" in text for text in room._reached(module.measured))
    assert fingerprint(module.measured) != fingerprint(module.measured, ("fedsim.rng",))
    room._definitions.cache_clear()


def test_a_claim_s_own_parts_count_for_it_alone() -> None:
    module = runner.load("harmonic")
    language, cost = (
        next(each for each in runner.claims_of("harmonic") if each.key == key) for key in ("language", "cost")
    )
    assert language.parts
    assert runner.code_of(module, language) != runner.code_of(module, replace(language, parts=()))
    assert runner.code_of(module, cost) == fingerprint(cost.measure, module.PARTS)
