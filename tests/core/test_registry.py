"""Parts by name: found, described, checked; a plug-in that is broken is one line."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

import fedsim
from fedsim import registry
from fedsim.errors import FedsimError, ScenarioError
from fedsim.options import accepted, type_name
from fedsim.scenario_check import SECTIONS

KINDS = [kind for kind in registry.HOMES if kind != "scenario"]
PARTS = [(kind, name) for kind in KINDS for name, _ in registry.iterate(kind)]
USED = ("attack", "defense", "partition", "dataset", "model", "optimizer", "server_optimizer", "sampler", "schedule")


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What a test registers is gone after it."""
    for kind in KINDS:
        registry.names(kind)
    monkeypatch.setattr(registry, "_parts", {kind: dict(parts) for kind, parts in registry._parts.items()})
    monkeypatch.setattr(registry, "_plugins", {kind: {} for kind in registry._plugins})
    monkeypatch.setattr(registry, "_loaded", {name for name in registry._loaded if name not in registry.HOMES})
    return monkeypatch


@pytest.mark.parametrize("kind", USED)
def test_the_kinds_that_a_scenario_names_have_parts(kind: str) -> None:
    assert len(registry.names(kind)) >= 2
    assert registry.names(kind) == sorted(registry.names(kind)) == fedsim.names(kind)


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_says_what_it_is_and_what_its_options_mean(kind: str, name: str) -> None:
    part = registry.get(kind, name)
    summary = registry.summary(part)
    assert summary.endswith((".", "…"))
    assert not summary.startswith(f"{getattr(part, '__name__', '')}(")
    assert len(registry.source(part)) > 10 or kind == "engine"
    for option in registry.options(part):
        assert option.meaning, option.name
        for shown in (option.shown_type, option.shown_default):
            assert shown
            assert not any(noise in shown for noise in ("Annotated", "FieldInfo", "typing.", "<class", "Any,")), shown


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_the_defaults_of_every_part_are_of_their_own_types(kind: str, name: str) -> None:
    options = registry.options(registry.get(kind, name))
    defaults = {o.name: o.factory() if o.factory else o.default for o in options if not o.required}
    _, faults = registry.check_options(kind, name, {k: v for k, v in defaults.items() if v is not None})
    assert all(fault.accepted.endswith("(it has no default)") for fault in faults), faults


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_no_option_is_hidden_behind_another_key_or_lost_in_toml(kind: str, name: str) -> None:
    beside = set(SECTIONS[kind].model_fields) if kind in ("model", "engine") else set()
    for option in registry.options(registry.get(kind, name)):
        assert option.name not in beside | {"name", "kind"}
        if "None" in option.shown_type or "none" in option.shown_type:
            assert option.required or option.default is None, "TOML cannot say None"


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(FedsimError, match=r"unknown attack 'sign_flop'; known: .*\(did you mean 'sign_flip'\?\)"):
        registry.get("attack", "sign_flop")
    with pytest.raises(FedsimError, match=r"unknown kind 'atack'.*\(did you mean 'attack'\?\)"):
        registry.names("atack")
    with pytest.raises(FedsimError, match="unknown kind 'atack'"):
        registry.register("atack", "x")


@pytest.mark.parametrize(("kind", "first"), [("defense", "Bulyan"), ("partition", "DirichletPartitioner")])
def test_the_name_in_flowers_prefix_stands_for_one_and_is_none(kind: str, first: str) -> None:
    with pytest.raises(ScenarioError, match=rf"given 'flwr:NAME'.*{first}"):
        registry.make(kind, "flwr:NAME")


def test_make_builds_or_names_all_faults() -> None:
    krum = fedsim.make("defense", "krum", malicious=2)
    assert (krum.malicious, krum.kind, krum.name) == (2, "defense", "krum")
    with pytest.raises(ScenarioError) as caught:
        fedsim.make("defense", "multi_krum", malicious=-1, keep=2.0, kep=1)
    assert [fault.key for fault in caught.value.faults] == ["kep", "malicious", "keep"]
    assert str(caught.value).startswith(
        "defense 'multi_krum': kep: given 1; accepted: no such option (did you mean 'keep'?)"
    )


def test_a_share_stays_a_float_and_a_count_an_int() -> None:
    for keep in (0.5, 3, 1, 1.0):
        built = fedsim.make("defense", "multi_metrics", keep=keep)
        assert (built.keep, type(built.keep)) == (keep, type(keep))


def test_what_a_base_declares_it_explains(apart: pytest.MonkeyPatch) -> None:
    class Base:
        """A base.

        Args:
            a: as the base says.
            b: as the base says.
        """

        a: int = 1
        b: int = 2

    registry.register("attack", "base")(Base)

    @registry.register("attack", "own")
    class Own(Base):
        """One.

        Args:
            b: as it says itself.
        """

        b: int = 3

    found = [(each.name, each.default, each.meaning) for each in registry.options(Own)]
    assert found == [("a", 1, "as the base says."), ("b", 3, "as it says itself.")]
    assert (Base.name, Own.name) == ("base", "own")  # type: ignore[attr-defined]


def test_options_of_classes_and_functions(apart: pytest.MonkeyPatch) -> None:
    @registry.register("attack", "table")
    class Table:
        """One.

        Args:
            a: the first,
                on two lines.
            b (float): the second.
        """

        a: Annotated[int, Field(ge=1)] = 1
        b: tuple[float, ...] = (1.0,)
        c: Literal["x", "y"]
        d: list[tuple[int, int]] | None = None
        untyped = 3

    @registry.register("model", "function")
    def function(info: Any, *, json: int, model_config: str = "x") -> Any:
        return info, json, model_config

    class Own:
        def __init__(self, a: int, *, copy: float = 1.0) -> None:
            self.total = a + copy

    registry.register("attack", "own")(Own)
    assert [(o.name, o.shown_type, o.required, o.meaning) for o in registry.options(Table)] == [
        ("a", "int ≥ 1", False, "the first, on two lines."),
        ("b", "tuple[float, …]", False, "the second."),
        ("c", "'x' | 'y'", True, ""),
        ("d", "list[tuple[int, int]] | none", False, ""),
    ]
    built = registry.make("attack", "table", b=[1, 2.5], c="y", d=[[1, 2]])
    assert (built.b, built.d) == ((1.0, 2.5), [(1, 2)])
    assert registry.make("model", "function", json=3)("info") == ("info", 3, "x")
    assert registry.make("attack", "own", a=2).total == 3.0
    for wrong in ({"c": "z"}, {"c": "x", "b": 3}, {"c": "x", "d": [[1, 2, 3]]}, {"c": "x", "d": [1]}, {}):
        with pytest.raises(ScenarioError):
            registry.make("attack", "table", **wrong)


MANY = "a list of int (3 or more of them)"


@pytest.mark.parametrize(
    ("annotation", "shown", "said"),
    [
        (int, "int", "int"),
        (bool, "bool", "true or false"),
        (str | None, "str | none", "a string"),
        (Annotated[float, Field(gt=0, le=1)], "float > 0, ≤ 1", "float > 0, ≤ 1"),
        (Annotated[list[int], Field(min_length=2, max_length=2)], "list[int] (2 of them)", "a list of int (2 of them)"),
        (Annotated[list[int], Field(min_length=3)], "list[int] (3 or more of them)", MANY),
        (tuple[int, float], "tuple[int, float]", "a list [int, float]"),
        (dict[str, int], "dict[str, int]", "a table of int"),
        (Literal["a", 1], "'a' | 1", "'a', 1"),
    ],
)  # fmt: skip
def test_types_in_words(annotation: Any, shown: str, said: str) -> None:
    assert type_name(annotation) == shown
    assert accepted(annotation) == said


def test_two_parts_of_one_name_are_refused(apart: pytest.MonkeyPatch) -> None:
    def part() -> type:
        class Twice:
            """Once."""

        return Twice

    first = part()
    registry.register("attack", "twice")(first)
    registry.register("attack", "twice")(part())
    with pytest.raises(FedsimError, match=r"attack 'sign_flip' is registered twice: .*sign_flip.*Twice"):
        registry.register("attack", "sign_flip")(part())
    registry.register("defense", "twice")(type("Other", (), {}))


def test_an_option_called_name_is_refused(apart: pytest.MonkeyPatch) -> None:
    with pytest.raises(FedsimError, match="cannot have an option called 'name'"):

        @registry.register("attack", "named")
        class Named:
            name: str = "x"


PLUGIN = '''
"""A plug-in.

Me, "Mine", 2026.
"""
from attacks.attack import Attack

class Mine(Attack):
    """Mine.

    Args:
        strength: how strong.
    """
    strength: float = 2.0

    def craft(self, rows, ctx):
        return rows * self.strength

class Bare(Attack):
    def craft(self, rows, ctx):
        return rows

class Duck:
    pass

class Typed(Attack):
    x: "Nowhere" = 1

class Mutable(Attack):
    x: list = []

NUMBER = 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "boom.py").write_text("x = 1\nraise RuntimeError('two\\nlines')\n")
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "leave.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "needs.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_a_plug_in(folder: Path) -> None:
    mine = registry.make("attack", "mine.py:Mine", strength=3.0)
    assert (mine.strength, mine.name, mine.kind) == (3.0, "mine.py:Mine", "attack")
    part = registry.get("attack", "mine.py:Mine")
    assert registry.summary(part) == "Mine."
    assert registry.source(part) == 'Me, "Mine", 2026.'
    assert [option.meaning for option in registry.options(part)] == ["how strong."]
    assert registry.options(registry.get("attack", f"{folder}/mine.py:Bare")) == []
    assert registry.plugin_file("mine.py:Mine") == Path("mine.py")
    assert registry.plugin_file("attacks.attack:Attack") is None
    assert "mine.py:Mine" not in registry.names("attack")


def test_an_edited_plug_in_is_read_anew(folder: Path) -> None:
    assert registry.make("attack", "mine.py:Mine").strength == 2.0
    (folder / "mine.py").write_text(PLUGIN.replace("float = 2.0", "float = 5.0"))
    assert registry.make("attack", "mine.py:Mine").strength == 5.0


def test_a_plug_in_may_register_itself_and_be_edited(folder: Path, apart: pytest.MonkeyPatch) -> None:
    for strength in ("2.0", "5.0"):
        text = PLUGIN.replace("class Mine", "from attacks.attack import attack\n@attack('mine')\nclass Mine")
        (folder / "mine.py").write_text(text.replace("2.0", strength))
        assert registry.make("attack", "mine.py:Mine").strength == float(strength)
        assert registry.make("attack", "mine").strength == float(strength)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("boom.py:X", "importing boom.py raised RuntimeError in line 2 of boom.py: two lines"),
        ("syntax.py:X", "importing syntax.py raised SyntaxError in line 2: invalid syntax"),
        ("leave.py:X", "importing leave.py raised SystemExit in line 2 of leave.py: 3"),
        ("needs.py:X", "importing needs.py raised ModuleNotFoundError in line 1 of needs.py: No module named 'nowhere"),
        ("none.py:X", "there is no file none.py"),
        ("mine.py:Min", "mine.py has no 'Min' (did you mean 'Mine'?)"),
        ("mine.py:", "a file or module and a name in it are needed"),
        (":", "a file or module and a name in it are needed"),
        ("mine.py:NUMBER", "it is a int, a class is needed"),
        ("mine.py:Duck", "Duck is not derived from attacks.attack.Attack"),
        ("math:sin", "it is a builtin_function_or_method, a class is needed"),
        ("collections:OrderedDict", "OrderedDict is not derived from attacks.attack.Attack"),
        ("nowhere.at.all:X", "importing nowhere.at.all raised ModuleNotFoundError: No module named 'nowhere'"),
        ("mine.py:Mutable", "mutable default"),
        ("mine.py:Typed", "an option's type is not known"),
    ],
)
def test_a_broken_plug_in_is_one_line(folder: Path, name: str, said: str) -> None:
    for _ in range(2):
        with pytest.raises(ScenarioError) as caught:
            registry.make("attack", name)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "fedsim_plugin" not in str(caught.value)


class Entry(SimpleNamespace):
    """What importlib.metadata gives for an entry point."""

    def load(self) -> Any:
        self.loads += 1
        if isinstance(self.part, Exception):
            raise self.part
        return self.part


def entries(monkeypatch: pytest.MonkeyPatch, **groups: list[Entry]) -> None:
    def found(*, group: str) -> list[Entry]:
        return groups.get(group.removeprefix("fedsim."), [])

    monkeypatch.setattr(importlib.metadata, "entry_points", found)


def entry(name: str, part: Any, value: str = "their.module:Part") -> Entry:
    return Entry(name=name, value=value, module=value.split(":")[0], part=part, loads=0)


def test_installed_packages_add_parts(apart: pytest.MonkeyPatch) -> None:
    class Theirs:
        """Theirs."""

        strength: float = 1.0

    theirs, broken = entry("theirs", Theirs), entry("broken", ImportError("no\nway"), "other.module:Part")
    loss = entry("sharp", Theirs, "third.module:Part")
    watcher = entry("watcher", Theirs, "fourth.module:Part")
    entries(apart, attacks=[theirs, broken], losses=[loss], observers=[watcher])
    assert {"theirs", "broken", "sign_flip"} <= set(registry.names("attack"))
    assert theirs.loads == broken.loads == 0, "a plug-in is imported when it is asked for"
    assert registry.make("attack", "theirs", strength=2).strength == 2.0
    assert registry.make("attack", "theirs").name == "theirs"
    assert theirs.loads == 1
    assert "sharp" in registry.names("loss")
    assert registry.make("observer", "watcher", strength=3).strength == 3.0
    with pytest.raises(
        FedsimError, match=r"attack 'broken': importing other\.module:Part raised ImportError.*: no way"
    ):
        registry.get("attack", "broken")


@pytest.mark.parametrize(
    "names", [("sign_flip",), ("same", "same")], ids=["one of fedsim's", "one of another plug-in's"]
)
def test_installed_packages_take_no_name_that_is_taken(apart: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    entries(apart, attacks=[entry(name, object, f"module{i}:Part") for i, name in enumerate(names)])
    with pytest.raises(FedsimError, match=f"attack '{names[0]}' is registered twice"):
        registry.names("attack")


def test_shipped_scenarios_have_names() -> None:
    shipped = registry.shipped_scenarios()
    assert shipped["quickstart"].name == "quickstart.toml"
    assert registry.names("scenario") == sorted(shipped)
