"""The command line: ``fedsim run``, ``bench``, ``report``, ``list``, ``schema``, ``data``, ``privacy``, ``audit``.

Each command imports what it needs when it is called, so that ``fedsim --help`` answers at once. The exit status is 0
only if all went well: 1 for what went wrong on the way, 2 for a bad scenario or a bad call, 130 after Ctrl-C.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import click
import typer
from typer.core import TyperCommand, TyperGroup

from fedsim import cli_bench, cli_redteam, cli_tools, terminal
from fedsim.errors import Fault, FedsimError, ScenarioError, one_line

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

FAILED, BAD_SCENARIO, INTERRUPTED = 1, 2, 130
SHOWN_CLIENTS = 40
Command = TypeVar("Command", bound=Callable[..., Any])


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
        except Exception as error:
            from fedsim import registry

            place = registry.where(error)
            said = cli_tools.said_of_file(error) if isinstance(error, OSError) and error.strerror else ""
            if ctx.meta.get(cli_tools.VERBOSE) or not (place or said):
                raise
            if place:
                said = f"{type(error).__name__}{place}: {one_line(error)} (--verbose: all of it)"
            typer.echo(f"fedsim: {said}", err=True)
            raise typer.Exit(FAILED) from error


class _Command(TyperCommand):
    """typer escapes brackets for rich's markup, which this help does not have; a key is no option, and is told so."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            sets = any(each.name == "sets" and each.metavar == "KEY=VALUE" for each in self.params)
            setting = cli_tools.setting(error.option_name, given) if sets else ""
            if not setting:
                raise
            said = f"No such option '{error.option_name}'; accepted: a key of the scenario by --set {setting}"
            raise click.UsageError(said, ctx) from error

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help(ctx, formatter)
        formatter.buffer = [text.replace(r"\[", "[") for text in formatter.buffer]


class _Typer(typer.Typer):
    """Every command has our help."""

    def command(self, *given: Any, **options: Any) -> Callable[[Command], Command]:
        return super().command(*given, **{"cls": _Command, **options})


app = _Typer(
    cls=_Commands,
    help="Federated learning under attack, simulated on Flower: run a scenario, plug in an attack, benchmark defenses.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A scenario file, or the name of one that ships with fedsim.",
        autocompletion=cli_tools.complete_scenario,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key, e.g. server.defenses='[\"krum\"]'; VALUE is TOML."),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE", help="A Python file whose registered parts are known by name."),
]
Tracker = Annotated[
    list[str] | None,
    typer.Option("--tracker", metavar="NAME", help="tensorboard or mlflow; with options as a TOML table."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", callback=cli_tools.noise, help="Show what Flower, Ray and PyTorch warn of, and tracebacks."
    ),
]


def main() -> None:
    """The entry point ``fedsim``."""
    import signal

    def end(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    # Schedulers and `timeout` end a job by SIGTERM: as with Ctrl-C, the round is finished and what goes on is said. A
    # shell's background job ignores SIGINT, and is ended by SIGTERM all the same.
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN):
        signal.signal(signal.SIGTERM, end)
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
    plugins: Plugins = None,
    trackers: Tracker = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run one scenario and write its folder and report."""
    sets = _plugged(file, sets, plugins)
    scenario = _load(file, sets, seed)
    from fedsim.launch import run as launch

    folder = out or _folder(file, resume)
    again = ["fedsim", "run", file, *_as_options(sets), *([] if seed is None else ["--seed", str(seed)])]
    again += [part for tracker in trackers or () for part in ("--tracker", tracker)]
    again += [*(["--floor"] if floor else []), "--out", str(folder), "--resume"]
    if resume and not (folder / "state.json").exists():
        typer.echo(f"{folder}: no round of a run is there to resume; starts at round 1", err=True)
    try:
        with terminal.progress(quiet) as bar:
            result = launch(
                scenario,
                out=folder,
                resume=resume,
                progress=lambda line: bar.show(line, scenario.rounds),
                floor=floor,
                trackers=cli_tools.trackers(trackers),
            )
    except ScenarioError as error:
        raise ScenarioError(error.faults, file) from error
    except KeyboardInterrupt:
        _interrupted("stopped at once", again)
    if not result.finished:
        _interrupted(f"stopped after round {result.lines[-1]['round']} of {scenario.rounds}", again)
    if quiet:
        return
    from fedsim.report import console

    terminal.show(console.last_round_table(result.lines, result.client_lines, result.scenario))
    for note in result.notes:
        typer.echo(f"note    {note}")
    typer.echo(f"digest  {result.digest}")
    typer.echo(f"report  {folder / 'report.html'}")


@app.command()
def bench(
    file: File,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the cells; by default runs/NAME.")] = None,
    jobs: Annotated[
        int, typer.Option(min=0, help="Processes that play cells, each with its share of the cores; 0: one a core.")
    ] = 0,
    runner: Annotated[
        str, typer.Option(help="local (processes of this machine), or ray (tasks on a cluster).")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="With --runner ray: HOST:PORT of the cluster, or auto; none starts one.")
    ] = None,
    plugins: Plugins = None,
    trackers: Tracker = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the product of a scenario's [matrix].

    Each cell has a folder of its own; cells that are finished are skipped, and several calls may share a folder.
    """
    sets = _plugged(file, sets, plugins)
    from fedsim.bench import results
    from fedsim.bench.runner import run_matrix
    from fedsim.board import board

    if runner not in ("local", "ray"):
        raise typer.BadParameter(f"--runner: given '{runner}'; accepted: local, ray")
    if address is not None and runner != "ray":
        raise typer.BadParameter(f"--address: given '{address}' without a cluster; accepted: with --runner ray")
    folder = out or Path("runs") / Path(file).stem
    again = ["fedsim", "bench", file, *_as_options(sets), "--out", str(folder)]
    again += ["--jobs", str(jobs)] if jobs else []
    again += ["--runner", runner] if runner != "local" else []
    again += ["--address", address] if address else []
    again += [part for tracker in trackers or () for part in ("--tracker", tracker)]
    try:
        with board(quiet) as shown:
            cells = run_matrix(
                file,
                folder,
                list(sets or ()),
                shown.show,
                jobs=jobs,
                runner=runner,  # type: ignore[arg-type]
                address=address,
                begun=shown.begin,
                trackers=cli_tools.trackers(trackers),
            )
    except KeyboardInterrupt:
        _interrupted("stopped at once", again)
    states = [cell.state for cell in cells]
    if not quiet:
        here = {cell.key for cell in cells}
        frame = results(folder)
        frame = frame[frame["key"].isin(here)]
        if "finished" in states or "skipped" in states:
            cli_bench.show(frame)
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        typer.echo(f"cells   {counted} in {folder}")
    if any(state in ("interrupted", "waiting") for state in states):
        _interrupted("stopped after a round", again)
    failed = [cell for cell in cells if cell.state == "failed"]
    for cell in failed:
        typer.echo(f"fedsim: cell {cell.number} ({terminal.short(cell.values)}): {cell.error}", err=True)
    if failed:
        raise typer.Exit(FAILED)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(help="The page that compares several; by default compare.html.")] = None,
) -> None:
    """Write a run's report, or a page that compares several."""
    from fedsim.report import compare_report, write_report

    given = [run for folder in folders for run in _runs_in(folder)]
    if len(given) == 1 and out is None:
        typer.echo(write_report(given[0]))
    else:
        typer.echo(compare_report(given, out or Path("compare.html")))


def _runs_in(folder: Path) -> list[Path]:
    """The folder, or, where it holds the cells of a matrix, theirs."""
    if (folder / "run.json").exists() or not (folder / "summary.json").exists():
        return [folder]
    return sorted(found.parent for found in folder.glob("*/run.json") if (found.parent / "rounds.jsonl").exists())


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run.")],
    second: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of its rerun.")],
    tolerance: Annotated[float, typer.Option(help="Accepted difference where the machines are of two kinds.")] = 1e-3,
) -> None:
    """Compare a run with its rerun: bits on one kind of machine, numbers to tolerance on two."""
    from fedsim.rerun import compare as compared

    found = compared(first, second, tolerance)
    for key, one, two in found.differs:
        typer.echo(f"differs   {key}: {one} | {two}")
    shown = ", ".join(f"{name} {value:.3g}" for name, value in found.measures.items())
    typer.echo(f"model     relative difference {found.parameters:.3g}")
    typer.echo(f"measures  largest difference: {shown}")
    how = "bit for bit" if found.exact else f"to a tolerance of {tolerance:g}, since the machines are of two kinds"
    typer.echo(f"{'same' if found.same else 'DIFFERENT'}, compared {how}")
    if not found.same:
        raise typer.Exit(FAILED)


@app.command("list")
def list_parts(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND", help="E.g. attack, defense, model.", autocompletion=cli_tools.complete_kind),
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]]", help="One part: all its options.")] = None,
) -> None:
    """List kinds, parts of a kind, options of a part."""
    from fedsim import registry

    if kind is None:
        counts = [(each, str(len(registry.names(each)))) for each in registry.HOMES]
        terminal.show(terminal.columns([row for row in counts if row[1] != "0"], ("kind", "parts")))
    elif kind == "scenario":
        _list_scenarios(name)
    elif name is None:
        terminal.show(
            terminal.columns([(each, registry.summary(part)) for each, part in registry.iterate(kind)], (kind, ""))
        )
    else:
        part = registry.get(kind, name)
        typer.echo(f"{kind} {name}: {registry.summary(part)}")
        options = [(o.name, o.shown_type, o.shown_default, o.meaning) for o in registry.options(part)]
        if options:
            terminal.show(terminal.columns(options, ("option", "type", "default", "meaning"), (1, 3)))
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
    scenario = _load(file, sets, None)
    from fedsim.data.describe import labels_of, partition_table
    from fedsim.data.examples import Shares
    from fedsim.federation import build

    federation = build(scenario)
    dataset, shares = federation.dataset, federation.shares
    sizes = sorted(int(size) for size in shares.sizes)
    typer.echo(
        f"{scenario.data.dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test examples; "
        f"{len(sizes)} clients hold {sizes[0]} to {sizes[-1]} of them, median {sizes[len(sizes) // 2]}"
    )
    for name, fact in dataset.facts.items():
        typer.echo(f"{name}: {fact}")
    shown = min(len(sizes), SHOWN_CLIENTS)
    some = Shares(shares.indices[: shares.offsets[shown]], shares.offsets[: shown + 1])
    terminal.show(terminal.partition_table(partition_table(dataset, some).tolist(), labels_of(dataset)))
    if len(sizes) > shown:
        typer.echo(f"… and {len(sizes) - shown} clients more")


@app.command()
def privacy(file: File, sets: Sets = None) -> None:
    """Print what privacy a scenario guarantees: stage by stage, then epsilon by each accountant; cell by cell."""
    scenario = _load(file, sets, None)
    from fedsim.scenario import cells

    for values, cell in cells(scenario.table(), file) if scenario.matrix else [({}, scenario)]:
        if values:
            typer.echo(f"\n== {', '.join(f'{key} = {value}' for key, value in values.items())}")
        _print_proof(file, cell)


def _print_proof(file: str, scenario: Scenario) -> None:
    from fedsim.federation import build
    from fedsim.privacy import proof

    try:
        federation = build(scenario)
    except ScenarioError as error:
        raise ScenarioError(error.faults, file) from error
    if federation.guarantee is None:
        lines = [f"{proof.NONE}: no part of this scenario adds noise, and nothing is promised to anybody"]
    else:
        diagnostics = getattr(federation.estimator, "diagnostics", ())
        lines = proof.lines(scenario, federation.guarantee, diagnostics)
    for line in lines:
        typer.echo(line.replace(proof.NONE, typer.style(proof.NONE, fg=typer.colors.RED, bold=True)))


@app.command()
def audit(
    file: File,
    sets: Sets = None,
    trials: Annotated[
        int, typer.Option(min=2, metavar="N", help="Runs of the mechanism, half with the canary's opposite.")
    ] = 2000,
    seeds: Annotated[int, typer.Option(min=1, metavar="K", help="Audits, each with noise of its own.")] = 1,
) -> None:
    """Attack a scenario's claim of privacy by running its mechanism.

    Exit status 1 if a lower bound on epsilon exceeds the claim.
    """
    scenario = _load(file, sets, None)
    from fedsim import audit

    if scenario.matrix:
        accepted = "none in an audit, which is of one run: a file that gives its keys one value each"
        raise ScenarioError([Fault("matrix", list(scenario.matrix), accepted)], file)
    try:
        test = audit.prepare(scenario)
    except ScenarioError as error:
        raise ScenarioError(error.faults, file) from error
    typer.echo(f"claim    {test.claim}")
    typer.echo(f"canary   {test.subject.canary}; {trials} trials, confidence {audit.CONFIDENCE:g}")
    verdicts = [test.run(trials, scenario.seed + number) for number in range(seeds)]
    rows = [row for verdict in verdicts for row in audit.lines(verdict)]
    terminal.show(terminal.columns(rows, audit.HEADS))
    refuted = [verdict for verdict in verdicts if verdict.refuted]
    best = max(verdict.bound for verdict in verdicts)
    said = "REFUTED, this mechanism is not as private as it claims" if refuted else "not refuted"
    typer.echo(f"verdict  ε ≥ {best:.3f}, claimed {test.claim.epsilon:.3f} ({test.claim.neighbours}): {said}")
    if refuted:
        raise typer.Exit(FAILED)


cli_tools.add(app)
cli_bench.add(app)
cli_redteam.add(app)


@app.command()
def verify(
    papers: Annotated[list[str] | None, typer.Argument(metavar="[PAPER…]", help="E.g. gns; all without.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only claims that take seconds, one seed each.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of each claim, in place of its own number.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of results, which are not run again.")] = Path("runs/verify"),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page; by default docs/results, with --quick that of the results.")
    ] = None,
) -> None:
    """Run the papers' claims, and write what each says and what is seen."""
    from fedsim.verify.page import write_page
    from fedsim.verify.runner import verify as run_claims

    rows = run_claims(papers or (), runs, quick=quick, seeds=seeds, say=typer.echo)
    shown = [
        (
            row.paper,
            row.expected.claim,
            row.source,
            row.expected.expected,
            row.expected.tolerance,
            row.ours,
            row.verdict,
        )
        for row in rows
    ]
    heads = ("paper", "claim", "source", "expected", "accepted", "ours", "verdict")
    terminal.show(terminal.columns(shown, heads, (1, 2, 3, 4, 5)))
    for row in rows:
        if row.expected.differs:
            typer.echo(f"{row.paper} {row.key} {row.verdict}: {row.expected.differs}")
    page = write_page(runs, out or (runs if quick else Path("docs/results")))
    typer.echo(f"page    {page}")
    failed = [row for row in rows if row.verdict == "fails"]
    for row in failed:
        said = f"{row.ours}; accepted: {row.expected.tolerance or row.expected.expected}"
        typer.echo(f"fedsim: {row.paper} {row.key}: {said}", err=True)
    if failed:
        raise typer.Exit(FAILED)


def _load(file: str, sets: Sequence[str] | None, seed: int | None) -> Scenario:
    from fedsim.scenario import Scenario

    return Scenario.load(file, None, [*(sets or ()), *([] if seed is None else [f"seed={seed}"])])


def _plugged(file: str, sets: Sequence[str] | None, plugins: Sequence[str] | None) -> list[str]:
    """The overrides, with the files of ``--plugin`` behind the plug-ins that the scenario names itself."""
    if not plugins:
        return list(sets or ())
    import json

    from fedsim.scenario import read

    own = read(file, None, list(sets or ())).get("plugins", [])
    files = [*(own if isinstance(own, list) else []), *plugins]
    return [*(sets or ()), f"plugins={json.dumps(list(dict.fromkeys(map(str, files))), ensure_ascii=False)}"]


def _as_options(sets: Sequence[str] | None) -> list[str]:
    return [part for text in sets or () for part in ("--set", text)]


def _interrupted(what: str, again: Sequence[str]) -> NoReturn:
    typer.echo(f"{what}; go on with: {shlex.join(again)}", err=True)
    raise typer.Exit(INTERRUPTED)


def _folder(file: str, resume: bool) -> Path:
    """``runs/NAME``, or the first of ``runs/NAME-2``, ``-3``, … that is free (to resume: the last that is not)."""
    base = Path("runs") / Path(file).stem
    taken, free, number = base, base, 2
    while free.exists():
        taken, free, number = free, base.with_name(f"{base.name}-{number}"), number + 1
    return taken if resume else free


def _list_scenarios(name: str | None) -> None:
    import tomllib

    from fedsim import registry

    shipped = registry.shipped_scenarios()
    if name is None:
        titles = [
            (each, str(tomllib.loads(path.read_text("utf-8")).get("title", ""))) for each, path in shipped.items()
        ]
        terminal.show(terminal.columns(titles, ("scenario", "")))
    elif name in shipped:
        typer.echo(shipped[name].read_text("utf-8").rstrip())
    else:
        from fedsim.errors import nearest

        raise FedsimError(f"unknown scenario '{name}'{nearest(name, shipped)}; known: {', '.join(shipped)}")
