"""What the site does beyond MkDocs: patterns in the navigation, and links out of ``docs/``.

A link such as ``../fedsim/simulation.py`` leads to the file where the repository is read. In the site it leads to a
page made of that file: Markdown as it is, a folder as a list, everything else as code.
"""

from __future__ import annotations

import ast
import fnmatch
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".sh": "sh"}
originals: dict[str, Path] = {}
"""Pages of the site that are made of files outside of ``docs/``: the file of each."""


def on_config(config: Any) -> Any:
    """Puts pages in place of the patterns in the navigation; a section without pages is left out."""
    pages = sorted(str(page.relative_to(DOCS).as_posix()) for page in DOCS.rglob("*.md"))
    named = set(_named(config["nav"]))
    config["nav"] = _filled(config["nav"], [page for page in pages if page not in named])
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each file outside of ``docs/`` that a page links to."""
    originals.clear()
    waiting = [(DOCS / file.src_uri, file.content_string) for file in files.documentation_pages()]
    while waiting:
        place, text = waiting.pop()
        for target in _targets(place, text):
            if target.is_relative_to(DOCS) or _uri(target) in originals:
                continue
            originals[_uri(target)] = target
            content = _page(target)
            files.append(File.generated(config, _uri(target), content=content, inclusion=InclusionLevel.NOT_IN_NAV))
            waiting.append((target / "." if target.is_dir() else target, content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links between ``docs/`` and what lies outside into links between pages."""
    uri = page.file.src_uri
    place = originals.get(uri, DOCS / uri)

    def turned(found: re.Match[str]) -> str:
        target = _target(place, found[1])
        if target is None or (uri not in originals and target.is_relative_to(DOCS)):
            return found[1]
        return posixpath.relpath(_uri(target), posixpath.dirname(uri))

    return LINK.sub(turned, markdown)


def _targets(place: Path, text: str) -> Iterator[Path]:
    """Files and folders of the repository that a page links to."""
    for link in LINK.findall(text):
        target = _target(place, link)
        if target is not None:
            yield target


def _target(place: Path, link: str) -> Path | None:
    if ":" in link or link.startswith("/"):
        return None
    target = ((place if place.is_dir() else place.parent) / link).resolve()
    return target if target.exists() and target.is_relative_to(ROOT) and target != ROOT else None


def _uri(target: Path) -> str:
    """The address of a file's page."""
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    name = target.relative_to(ROOT).as_posix()
    return f"source/{name}/index.md" if target.is_dir() else f"source/{name.removesuffix('.md')}.md"


def _page(target: Path) -> str:
    """The text of a file's page."""
    if target.suffix == ".md":
        return target.read_text("utf-8")
    title = f"# {target.relative_to(ROOT).as_posix()}\n\n"
    if target.is_dir():
        inner = sorted(each for each in target.iterdir() if each.suffix in (".py", ".toml"))
        inner += sorted(each / "" for each in target.iterdir() if each.is_dir() and any(each.glob("*.toml")))
        return title + "\n".join(f"- [{each.name}]({each.name}){_what(each)}" for each in inner)
    return f"{title}~~~~~~~~ {LANGUAGES.get(target.suffix, 'text')}\n{target.read_text('utf-8')}\n~~~~~~~~\n"


def _what(file: Path) -> str:
    """The first line of a module's docstring, or the title of a scenario."""
    if file.suffix == ".py":
        said = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        return f": {said.splitlines()[0]}" if said else ""
    if file.suffix == ".toml":
        title = re.search(r'^title = "(.+)"', file.read_text("utf-8"), re.MULTILINE)
        return f": {title[1]}" if title else ""
    return ""


def _named(nav: Any) -> Iterator[str]:
    """All entries of the navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from _named(each)


def _filled(nav: list[Any], pages: list[str]) -> list[Any]:
    found: list[Any] = []
    for entry in nav:
        if isinstance(entry, str) and "*" in entry:
            found += fnmatch.filter(pages, entry)
        elif isinstance(entry, dict):
            ((title, inner),) = entry.items()
            inner = _filled(inner, pages) if isinstance(inner, list) else inner
            found += [{title: inner}] if inner else []
        else:
            found.append(entry)
    return found
