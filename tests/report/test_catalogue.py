"""The catalogue on disk is what the registry says, and says all that a reader needs of each part."""

from __future__ import annotations

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
    return [dict(zip(lines[0], line, strict=False)) for line in lines[2:]]


@pytest.mark.parametrize(("title", "kind"), [("Attacks", "attack"), ("Triggers", "trigger"), ("Defenses", "defense")])
def test_every_part_has_a_line_with_its_source(title, kind):
    listed = {row["name"].strip("`"): row for row in rows(title)}
    assert set(listed) == {name for name, _ in registry.iterate(kind)}
    for name, row in listed.items():
        assert len(row.get("source", "")) > 20, f"{kind} '{name}' names no source"
        assert row["what"].endswith("."), f"{kind} '{name}' has no one-line summary"


@pytest.mark.parametrize(("kind"), ["attack", "trigger", "defense"])
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
