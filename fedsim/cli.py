"""The command line: ``fedsim run``, ``bench``, ``report``, ``list``, ``schema``, ``data``.

Each command imports what it needs when it is called, so that ``fedsim --help`` answers at once. The exit status is 0
only if all went well: 1 for what went wrong on the way, 2 for a bad scenario or a bad call, 130 after Ctrl-C.
"""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperGroup

from fedsim.errors import FedsimError, ScenarioError

if TYPE_CHECKING:
    from rich.table import Table

    from fedsim.scenario import Scenario

FAILED, BAD_SCENARIO, INTERRUPTED = 1, 2, 130
SHOWN_CLIENTS = 40


class _Commands(TyperGroup):
    """Turns fedsim's errors into lines and exit statuses, for every command alike."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ScenarioError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(BAD_SCENARIO) from error
        except FedsimError as error:
            typer.echo(f"fedsim: {error}", err=True)
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as error:
            typer.echo("fedsim: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=_Commands,
    help="Federated learning under attack, simulated on Flower: run a scenario, plug in an attack, benchmark defenses.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[
    str, typer.Argument(metavar="FILE", help="A scenario file, or the name of one that ships with fedsim.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key, e.g. server.defenses='[\"krum\"]'; VALUE is TOML."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]


def main() -> None:
    """The entry point ``fedsim``."""
    app(prog_name="fedsim")


def _version(asked: bool) -> None:
    if asked:
        import fedsim

        typer.echo(f"fedsim {fedsim.__version__}")
        raise typer.Exit()


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the command."""


@app.command()
def run(
    file: File,
    sets: Sets = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random stream, in place of the scenario's.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default a new one in runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what the folder holds.")] = False,
    floor: Annotated[
        bool, typer.Option("--floor", help="Also run without the attack: what ASR is without one.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run one scenario and write its folder and report."""
    scenario = _load(file, sets, seed)
    from fedsim import simulation

    folder = out or _folder(file, resume)
    finished = 0
    try:
        with _stop_after_round() as stop, _progress(scenario.rounds, quiet) as show:

            def progress(record: Mapping[str, Any]) -> None:
                nonlocal finished
                finished = int(record["round"])
                show(record)
                if finished < scenario.rounds:
                    stop()

            result = simulation.run(scenario, out=folder, resume=resume, progress=progress, floor=floor)
    except KeyboardInterrupt:
        again = ["fedsim", "run", file, *(part for text in sets or () for part in ("--set", text))]
        again += [] if seed is None else ["--seed", str(seed)]
        again += [*(["--floor"] if floor else []), "--out", str(folder), "--resume"]
        typer.echo(f"stopped after round {finished} of {scenario.rounds}; go on with: {shlex.join(again)}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    from fedsim.report import console, page

    report_file = page.write([folder])
    if quiet:
        return
    _print(console.last_round_table(result))
    typer.echo(f"digest  {result.digest}")
    typer.echo(f"report  {report_file}")


@app.command()
def bench(
    file: File,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the cells; by default runs/NAME.")] = None,
    quiet: Quiet = False,
) -> None:
    """Run the product of a scenario's [matrix].

    Each cell has a folder of its own; cells that are finished are skipped.
    """
    from fedsim.bench import runner

    folder = out or Path("runs") / Path(file).stem
    try:
        with _stop_after_round() as stop:

            def progress(record: Mapping[str, Any]) -> None:
                if not quiet and "cell" in record:
                    typer.echo(str(record["cell"]), err=True)
                stop()

            rows = runner.run_matrix(file, folder, list(sets or ()), progress)
    except KeyboardInterrupt:
        again = ["fedsim", "bench", file, *(part for text in sets or () for part in ("--set", text))]
        typer.echo(f"stopped; go on with: {shlex.join([*again, '--out', str(folder)])}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not quiet:
        _print(_rows_table(rows))
        typer.echo(f"cells   {folder}")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the first folder.")] = None,
) -> None:
    """Write the report of a run, or one page that compares several."""
    from fedsim.report import page

    typer.echo(page.write(folders, out))


@app.command("list")
def list_parts(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND", help="E.g. attack, defense, model.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]]", help="One part: all its options.")] = None,
) -> None:
    """List kinds, parts of a kind, options of a part."""
    from fedsim import registry

    if kind is None:
        counts = [(each, str(len(registry.names(each)))) for each in registry.HOMES]
        _print(_columns([row for row in counts if row[1] != "0"], ("kind", "parts")))
    elif kind == "scenario":
        _list_scenarios(name)
    elif name is None:
        _print(_columns([(each, registry.summary(part)) for each, part in registry.iterate(kind)], (kind, "")))
    else:
        part = registry.get(kind, name)
        typer.echo(f"{kind} {name}: {registry.summary(part)}")
        options = [(o.name, o.shown_type, o.shown_default, o.meaning) for o in registry.options(part)]
        if options:
            _print(_columns(options, ("option", "type", "default", "meaning")))
        else:
            typer.echo("It has no options.")
        if registry.source(part):
            typer.echo(f"Source: {registry.source(part)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    import json

    from fedsim import scenario

    typer.echo(json.dumps(scenario.json_schema(), indent=2, ensure_ascii=False))


@app.command()
def data(file: File, sets: Sets = None) -> None:
    """Draw a scenario's partition: examples per client and label."""
    import numpy as np

    from fedsim import registry

    scenario = _load(file, sets, None)
    dataset = registry.make("dataset", scenario.data.dataset.name, **scenario.data.dataset.options).load()
    partition = registry.make("partition", scenario.data.partition.name, **scenario.data.partition.options)
    shares = partition.assign(dataset, scenario.data.clients, scenario.seed)
    sizes = np.diff(shares.offsets)
    typer.echo(
        f"{scenario.data.dataset.name}: {dataset.info.train} training, {dataset.info.test} test examples; "
        f"{len(sizes)} clients hold {sizes.min()} to {sizes.max()} of them, median {int(np.median(sizes))}"
    )
    classes = dataset.info.num_classes
    if classes:
        labels = dataset.train.targets.numpy()
        counts = np.stack(
            [np.bincount(labels[shares.of(i)], minlength=classes) for i in range(min(len(sizes), SHOWN_CLIENTS))]
        )
        _print(_partition_table(counts))
    if len(sizes) > SHOWN_CLIENTS:
        typer.echo(f"… and {len(sizes) - SHOWN_CLIENTS} clients more")


def _load(file: str, sets: Sequence[str] | None, seed: int | None) -> Scenario:
    from fedsim.scenario import Scenario

    return Scenario.load(file, None if seed is None else {"seed": seed}, list(sets or ()))


def _folder(file: str, resume: bool) -> Path:
    """``runs/NAME``, or the first of ``runs/NAME-2``, ``-3``, … that is free (to resume: the last that is not)."""
    base = Path("runs") / Path(file).stem
    taken, free, number = base, base, 2
    while free.exists():
        taken, free, number = free, base.with_name(f"{base.name}-{number}"), number + 1
    return taken if resume else free


@contextmanager
def _stop_after_round() -> Iterator[Callable[[], None]]:
    """The first Ctrl-C waits for the end of the round, where the yielded function raises; the second does not wait."""
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        typer.echo("\nstopping after this round; Ctrl-C again stops at once", err=True)

    def stop() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(rounds: int, quiet: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    if quiet:
        yield lambda record: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=rounds)

        def show(record: Mapping[str, Any]) -> None:
            measured = (("accuracy", "accuracy"), ("ASR", "asr"))
            said = "  ".join(f"{word} {record[key]:.3f}" for word, key in measured if record.get(key) is not None)
            bar.update(task, completed=int(record["round"]), description=said or None)

        yield show


def _list_scenarios(name: str | None) -> None:
    import tomllib

    from fedsim import registry

    shipped = registry.shipped_scenarios()
    if name is None:
        titles = [
            (each, str(tomllib.loads(path.read_text("utf-8")).get("title", ""))) for each, path in shipped.items()
        ]
        _print(_columns(titles, ("scenario", "")))
    elif name in shipped:
        typer.echo(shipped[name].read_text("utf-8").rstrip())
    else:
        from fedsim.errors import nearest

        raise FedsimError(f"unknown scenario '{name}'{nearest(name, shipped)}; known: {', '.join(shipped)}")


def _print(content: object) -> None:
    from rich.console import Console

    Console().print(content)


def _columns(rows: Sequence[tuple[str, ...]], heads: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, head in enumerate(heads):
        table.add_column(head, overflow="fold", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    return table


def _plain(text: str) -> Any:
    """Text as it stands: brackets in types and defaults are no markup."""
    from rich.text import Text

    return Text(text)


def _rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    heads = list(dict.fromkeys(key for row in rows for key in row))
    return _columns([tuple(_shown(row.get(head)) for head in heads) for row in rows], tuple(heads))


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _partition_table(counts: Any) -> Table:
    """A row a client: its examples, and a shade a label by the label's share of them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("client", "examples", *(str(label) for label in range(counts.shape[1]))):
        table.add_column(head, justify="right")
    for client, row in enumerate(counts):
        table.add_row(str(client), str(row.sum()), *(str(n) if n else "·" for n in row))
    return table
