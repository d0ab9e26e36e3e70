"""The table of claims as docs/results/verify.md, with a figure for each paper that has one."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsim.record import make_folder, write_bytes
from fedsim.verify.claim import MEANING, Claim, Measured, Row, claims_of
from fedsim.verify.runner import PAPERS, load, results_of

FIGURES = "verify"
"""Folder of the figures, beside the page."""

HEAD = """# What the papers claim, and what is seen here

Made by `fedsim verify`, never by hand. Means over seeds with Student's interval at 95 %; a claim without an interval
draws nothing, or has run with one seed.
"""


def write_page(rows: Sequence[Row], runs: str | Path, out: str | Path) -> Path:
    """Write ``verify.md`` and the figures into a folder; the page's path."""
    folder = Path(out)
    make_folder(folder)
    parts = [HEAD, "\n".join(f"- **{verdict}**: {meaning}" for verdict, meaning in MEANING.items())]
    counts: Counter[str] = Counter(row.verdict for row in rows)
    parts.append(", ".join(f"{counts[verdict]} {verdict}" for verdict in MEANING if counts[verdict]) + ".")
    for paper in PAPERS:
        own = [row for row in rows if row.paper == paper]
        if not own:
            continue
        module = load(paper)
        parts.append(f"## {(module.__doc__ or paper).splitlines()[0].rstrip('.')}")
        if draw(paper, Path(runs), folder / FIGURES) is not None:
            parts.append(f"![{paper}]({FIGURES}/{paper}.png)")
        parts.append(table(own))
        parts += [f"- `{row.key}`: {row.expected.differs}" for row in own if row.expected.differs]
        parts += [f"- `{each.key}`: {name} {said}" for each, name, said in facts_of(paper, Path(runs))]
    page = folder / "verify.md"
    write_bytes(page, ("\n\n".join(parts) + "\n").encode())
    return page


def facts_of(paper: str, runs: Path) -> list[tuple[Claim, str, str]]:
    """What the first results of a paper's claims say in words."""
    found = [(each, results_of(runs, load(paper), each)) for each in claims_of(paper)]
    return [
        (each, name, said)
        for each, results in found
        for first, _ in results[:1]
        if first is not None
        for name, said in first.facts.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of rows."""
    head = ("claim", "source", "expected", "accepted", "ours", "verdict")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        want = row.expected
        lines.append((want.claim, row.source, want.expected, want.tolerance, row.ours, f"**{row.verdict}**"))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def draw(paper: str, runs: Path, out: Path) -> Path | None:
    """The paper's figure, ``NAME.png``, if its file draws one and the claims that it needs have results.

    The file has ``draw(figure, found)``, given a matplotlib figure and what each claim found, by seed; ``DRAWN`` names
    the claims that must be among them (all without), ``SIZE`` the figure's in inches (7 × 3.2 without).
    """
    module: Any = load(paper)
    if not hasattr(module, "draw"):
        return None
    found: dict[str, list[Measured]] = {}
    for each in claims_of(paper):
        results = [result for result, _ in results_of(runs, module, each) if result is not None]
        if results:
            found[each.key] = results
    needed = getattr(module, "DRAWN", [each.key for each in claims_of(paper)])
    if not set(needed) <= found.keys():
        return None
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=getattr(module, "SIZE", (7, 3.2)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        module.draw(figure, found)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": None})
    make_folder(out)
    write_bytes(out / f"{paper}.png", drawn.getvalue())
    return out / f"{paper}.png"
