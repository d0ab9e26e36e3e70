"""The tutorials and the page on plug-ins: their files are written, their commands run, their code executed.

A block with a title is a file; ``sh`` blocks are commands of fedsim; other ``python`` blocks run. A comment
``<!-- fails -->`` stands before a command that is to fail. A ``text`` block behind a command is what it says, where it
has an ellipsis up to there.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pytest
from typer.testing import CliRunner

from fedsim import registry
from fedsim.cli import app

mpl.use("Agg")
DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    "plug-in.md",
    "tutorials/first-scenario.md",
    "tutorials/new-attack.md",
    "tutorials/new-defense.md",
    "tutorials/benchmark-a-defense.md",
    "tutorials/privacy.md",
]
BLOCK = re.compile(r'(<!-- fails -->\n)?```(\w+)(?: title="([^"]+)")?\n(.*?)```', re.DOTALL)


@dataclass
class Block:
    """A block of code of a page."""

    fails: bool
    language: str
    file: str
    text: str


def blocks(page: str) -> list[Block]:
    found = BLOCK.findall((DOCS / page).read_text("utf-8"))
    return [Block(bool(fails), language, file, text) for fails, language, file, text in found]


@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_shows_works(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in registry.HOMES:
        registry.names(kind)
    monkeypatch.setattr(registry, "_parts", {kind: dict(parts) for kind, parts in registry._parts.items()})
    monkeypatch.chdir(tmp_path)
    said = ""
    for block in blocks(page):
        if block.language != "text":
            said = ""
        if block.file:
            Path(block.file).write_text(block.text, "utf-8")
            if block.file.startswith("test_"):
                space: dict[str, object] = {}
                exec(compile(block.text, block.file, "exec"), space)
                tests = [each for name, each in space.items() if name.startswith("test_")]
                assert tests
                for test in tests:
                    test()
        elif block.language == "sh":
            for line in block.text.splitlines():
                command, *arguments = shlex.split(line, comments=True)
                assert command == "fedsim", line
                done = CliRunner().invoke(app, arguments, catch_exceptions=False)
                assert (done.exit_code != 0) == block.fails, f"{line}\n{done.stderr or done.stdout}"
                said += done.stdout + done.stderr
        elif block.language == "text" and said:
            assert said.startswith(block.text.rstrip().removesuffix("…")), said
            said = ""
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), {})


def test_the_knowledge_error_is_the_one_that_is_shown() -> None:
    from attacks.attack import NEEDED

    (shown,) = [b.text for b in blocks("plug-in.md") if b.language == "text" and "reached for" in b.text]
    assert shown.strip().endswith(f"given knowledge = 'colluding'; accepted: {NEEDED['honest_rows']}")


def test_links_of_these_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = (DOCS / page).read_text("utf-8")
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert target.startswith("http") or ((DOCS / page).parent / target).exists(), f"{page}: {target}"
