"""``fedsim new``, ``check``, ``doctor``; what a shell completes, and what a run keeps quiet."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim.errors import FedsimError, ScenarioError

FAILED = 1
VERBOSE = "fedsim.verbose"
"""Where a call's context holds whether ``--verbose`` was given."""


def add(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (new, check, doctor):
        app.command()(command)


def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="attack, defense, observer or optimizer.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The part's name in scenarios, and the file's.")],
    out: Annotated[Path, typer.Option(help="Folder of the file.")] = Path(),
) -> None:
    """Write the first file of a plug-in; it runs at once."""
    from fedsim import skeletons

    file = skeletons.write(kind, name, out)
    typer.echo(f"wrote     {file}")
    for word, command in zip(("run it", "check it"), skeletons.next_steps(kind, name, file), strict=True):
        typer.echo(f"{word:10}{command}")


def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="my_attack.py, or my_attack.py:MyAttack.")],
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the part; VALUE is TOML.")
    ] = None,
    plugins: Annotated[
        list[str] | None, typer.Option("--plugin", metavar="FILE", help="A file whose parts these files name.")
    ] = None,
) -> None:
    """Run fedsim's conformance suite on parts of your own, and say what they get wrong."""
    from fedsim import registry
    from fedsim.scenario import toml_value
    from fedsim.testing.plugin import SUITES, findings, subjects

    for file in plugins or ():
        registry.plug_in(file)
    options = {}
    for text in sets or ():
        key, separator, value = text.partition("=")
        if not separator:
            raise FedsimError(f"--set: given '{text}'; accepted: OPTION=VALUE, e.g. strength=2.0")
        options[key.strip()] = toml_value(value.strip())
    failed = False
    for subject in [subject for file in files for subject in subjects(file)]:
        try:
            registry.make(subject.kind, subject.name, **options)
        except ScenarioError as error:
            raise FedsimError(f"{error}; options are given by --set OPTION=VALUE") from error
        found = findings(subject, **options)
        faults = [finding for finding in found if finding.fault]
        failed |= bool(faults)
        ends = f"{len(SUITES[subject.kind])} checks, " + _counted(len(faults))
        typer.echo(f"{subject}: {ends}")
        for finding in found:
            mark = "✗" if finding.fault else "!"
            typer.echo(f"  {mark} {finding.head}: {finding.said}")
            if finding.advice:
                typer.echo(f"    → {finding.advice}")
    if failed:
        raise typer.Exit(FAILED)


ACCEPTED: tuple[tuple[type[OSError], str], ...] = (
    (IsADirectoryError, "a file, this is a folder"),
    (NotADirectoryError, "a path through folders, a part of this one is a file"),
    (FileExistsError, "a name that is not taken"),
    (FileNotFoundError, "a file in a folder that exists; make the folder first"),
    (PermissionError, "a place that you may read and write"),
)
"""What the system refused, and what it takes; the first that fits."""


def said_of_file(error: OSError) -> str:
    """``PATH: what the system says; accepted: what it takes``."""
    accepted = next((text for kind, text in ACCEPTED if isinstance(error, kind)), "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        accepted = "a disk with space left; free some, and run the command again"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; accepted: {accepted or 'a path that works; --verbose shows where it was used'}"


def _counted(faults: int) -> str:
    return "all well" if not faults else "1 fault" if faults == 1 else f"{faults} faults"


def doctor(
    address: Annotated[str | None, typer.Option(help="A Ray cluster to reach, HOST:PORT or auto.")] = None,
) -> None:
    """Look at this machine: versions, cores, data sets, Ray, and a self test of a few seconds."""
    from fedsim import doctor as examination

    failed = False
    for line in examination.examine(address):
        failed |= line.state == examination.FAULT
        typer.echo(f"{line.state:5}  {line.subject:20}  {line.said}")
    if failed:
        raise typer.Exit(FAILED)


def noise(ctx: typer.Context, wanted: bool) -> bool:
    """The callback of ``--verbose``: holds until the command ends."""
    from fedsim import runtime

    if not ctx.resilient_parsing:
        ctx.meta[VERBOSE] = wanted
        ctx.with_resource(runtime.noise(wanted))
    return wanted


def trackers(given: Sequence[str] | None) -> list[str | dict[str, Any]]:
    """What ``--tracker`` gives: names, or TOML tables with a name and options.

    Raises:
        FedsimError: a table without a name, or no such tracker.
    """
    if not given:
        return []
    from fedsim import registry
    from fedsim.scenario import toml_value

    found = [value if isinstance(value, dict) else text for text in given for value in [toml_value(text)]]
    for text, each in zip(given, found, strict=True):
        name = str(each.get("name", "")) if isinstance(each, dict) else each
        try:
            registry.get("tracker", name)
        except FedsimError as error:
            raise FedsimError(f"--tracker: given '{text}'; {error}") from error
    return found


def setting(option: str, given: Sequence[str]) -> str:
    """``KEY=VALUE`` of the scenario for an option that spells its key (``--rounds 3``); empty where none is so called.

    Args:
        option: as it was typed, without a value.
        given: the whole call.
    """
    from fedsim.scenario import Scenario
    from fedsim.scenario_check import SECTIONS

    wanted = option.lstrip("-").replace("-", "_")
    unset = (f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields)
    keys = [*_keys(Scenario().table()), *unset]
    fitting = [key for key in keys if key == wanted or key.endswith(f".{wanted}")]
    if not fitting:
        return ""
    key, value = min(fitting, key=lambda each: each.count(".")), "…"
    for word, following in zip(given, (*given[1:], "-"), strict=True):
        if word.startswith(f"{option}="):
            value = word.partition("=")[2]
        elif word == option and not following.startswith("-"):
            value = following
    return f"{key}={shlex.quote(value) if value != '…' else value}"


def _keys(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield f"{above}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{above}{name}.")


def complete_scenario(incomplete: str) -> list[str]:
    """Shipped scenarios that begin so; where there are none, the shell completes files."""
    from fedsim import registry

    return [name for name in registry.shipped_scenarios() if name.startswith(incomplete)]


def complete_kind(incomplete: str) -> list[str]:
    """Kinds of parts that begin so."""
    from fedsim import registry

    return [kind for kind in registry.HOMES if kind.startswith(incomplete)]


__all__ = ["add", "check", "complete_kind", "complete_scenario", "doctor", "new", "noise", "trackers"]
