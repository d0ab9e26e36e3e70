"""Commands that judge defenses: ``redteam`` and ``leaderboard``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim import terminal

INTERRUPTED = 130


def add(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (redteam, leaderboard):
        app.command()(command)


def redteam(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A scenario: who the adversary is, what it knows, what it wants.")
    ],
    defense: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help='A name, or TOML: \'[{ name = "nnm" }, "krum"]\'; may be given often.'),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, metavar="N", help="Attacks tried, beside the static ones.")] = 40,
    goal: Annotated[
        str | None, typer.Option(help="asr or damage; by default asr where the scenario's attack has a trigger.")
    ] = None,
    bound: Annotated[float, typer.Option(min=0, max=1, help="Main accuracy that an attack may cost (asr).")] = 0.02,
    attack: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Try these attacks alone; may be given often.")
    ] = None,
    tune: Annotated[int, typer.Option(min=1, metavar="K", help="Seeds on which attacks are tuned.")] = 2,
    report: Annotated[int, typer.Option(min=1, metavar="K", help="Other seeds, on which they are reported.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each a process.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder of the search; by default runs/redteam-NAME.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line for each attack.")] = False,
) -> None:
    """Search the worst attack against a defense; a stopped search goes on by the same call."""
    from fedsim.bench.redteam import redteam as search
    from fedsim.report.redteam import HEADS, rows
    from fedsim.scenario import toml_value

    if goal not in (None, "asr", "damage"):
        raise typer.BadParameter(f"--goal: given '{goal}'; accepted: asr, damage")
    folder = out or Path("runs") / f"redteam-{Path(file).stem}"
    options: dict[str, Any] = {"--defense": defense, "--attack": attack, "--set": sets}
    single = {"--budget": budget, "--goal": goal, "--bound": bound, "--tune": tune, "--report": report, "--jobs": jobs}
    again = [
        "fedsim",
        "redteam",
        file,
        *(piece for name, given in options.items() for each in given or () for piece in (name, each)),
    ]
    again += [piece for name, given in single.items() if given is not None for piece in (name, str(given))]
    again += ["--out", str(folder)]
    try:
        search(
            file,
            [toml_value(each) for each in defense or ()],
            budget,
            folder,
            goal=goal,  # type: ignore[arg-type]
            bound=bound,
            tune=tune,
            report=report,
            jobs=jobs,
            attacks=attack or (),
            sets=sets or (),
            say=(lambda text: None) if quiet else (lambda text: typer.echo(text, err=True)),
        )
    except KeyboardInterrupt:
        typer.echo(f"stopped; go on with: {shlex.join(again)}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    import json

    found = json.loads((folder / "redteam.json").read_text("utf-8"))
    terminal.show(terminal.columns(rows(found), HEADS, (1, 3)))
    typer.echo(f"report  {folder / 'redteam.html'}")


def leaderboard(
    source: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder of a benchmark, or of a leaderboard (its results.json).")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the pages; by default DIR/leaderboard.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the first page.")] = "Which defense holds?",
) -> None:
    """Write a static site: ranking by the worst case, heat maps, a page a defense and an attack."""
    from fedsim.report.leaderboard import write_leaderboard

    typer.echo(write_leaderboard(source, out, title))
