"""The catalogue on disk is what the registry says, and says all that a reader needs of each part."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from fedsim import registry
from fedsim.report.catalogue import main, markdown

PAGE = Path(__file__).parents[2] / "docs" / "catalogue.md"


def test_the_committed_page_is_up_to_date():
    assert PAGE.read_text("utf-8") == markdown(), f"python -m fedsim.report.catalogue {PAGE.name} writes it anew"


def rows(title):
    section = markdown().split(f"## {title}\n")[1].split("\n### ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


KINDS = [("Attacks", "attack"), ("Triggers", "trigger"), ("Defenses", "defense"), ("Observers", "observer")]
PARTITIONS = ("Partitions", "partition")


@pytest.mark.parametrize(("title", "kind"), KINDS)
def test_no_column_of_any_part_is_empty(title, kind):
    for row in rows(title):
        assert list(row) == ["name", "what", "kind", "sees", "options", "cost", "source"]
        empty = [column for column, cell in row.items() if not cell.strip()]
        assert not empty, f"{kind} {row['name']} has nothing under {', '.join(empty)}"
        assert not row["kind"].rstrip().endswith(":"), f"{kind} {row['name']} has no hook"


def test_partitions_say_in_what_the_clients_differ():
    listed = {row["name"].strip("`"): row for row in rows("Partitions")}
    assert {tuple(row) for row in listed.values()} == {("name", "what", "skew", "options", "source")}
    assert all(cell.strip() for row in listed.values() for cell in row.values())
    assert listed["iid"]["skew"] == "nothing"
    assert listed["dirichlet"]["skew"] == "labels, quantities"


def test_a_part_without_its_cost_is_seen(monkeypatch):
    monkeypatch.setattr(registry.get("trigger", "patch"), "cost", "")
    with pytest.raises(AssertionError, match="trigger `patch` has nothing under cost"):
        test_no_column_of_any_part_is_empty("Triggers", "trigger")


READS = {
    "ctx.root": ("root data", "input's shape"),
    "ctx.predict": ("model", "root data"),
    "ctx.state": ("last", "earlier", "history", "momentum", "model", "one scalar", "client tells"),
}
"""What a defense reads of its round → the words of which one stands under what it sees."""


def test_what_a_defense_sees_is_what_its_code_reads():
    for name, part in registry.iterate("defense"):
        code = inspect.getsource(sys.modules[part.__module__])
        for read, accepted in READS.items():
            if read in code:
                assert any(word in part.sees for word in accepted), f"{name} reads {read}, and sees '{part.sees}'"


@pytest.mark.parametrize(("title", "kind"), [*KINDS, PARTITIONS])
def test_every_part_has_a_line_with_its_source(title, kind):
    listed = {row["name"].strip("`"): row for row in rows(title)}
    assert set(listed) == {name for name, _ in registry.iterate(kind)}
    for name, row in listed.items():
        assert len(row.get("source", "")) > 20, f"{kind} '{name}' names no source"
        assert row["what"].endswith("."), f"{kind} '{name}' has no one-line summary"


@pytest.mark.parametrize(("kind"), ["attack", "trigger", "defense", "partition"])
def test_every_option_says_what_it_means(kind):
    for name, part in registry.iterate(kind):
        for option in registry.options(part):
            assert option.meaning, f"{kind} '{name}': option '{option.name}' has no line in its Args section"


def test_it_says_what_an_attack_sees_and_does():
    listed = {row["name"].strip("`"): row for row in rows("Attacks")}
    assert listed["neurotoxin"]["kind"] == "backdoor: after each step"
    assert "the model of the round before" in listed["neurotoxin"]["sees"]
    assert listed["optimal"]["sees"] == "all updates, the defense"
    found = {row["name"].strip("`"): row for row in rows("Defenses")}
    assert found["flame"]["kind"] == "filter, aggregator, model"
    assert "root data" in found["fltrust"]["sees"]
    assert found["krum"]["cost"] == "n²·d"


def test_it_writes_a_file_or_the_screen(tmp_path):
    said = []
    main([], said.append)
    main([str(tmp_path / "page.md")])
    assert said == [markdown()]
    assert (tmp_path / "page.md").read_text("utf-8") == markdown()
