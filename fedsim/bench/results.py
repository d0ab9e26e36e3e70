"""Results of a benchmark as tables: cells, rounds, and folders of other machines merged into one."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import platform
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedsim.bench.cell import finished
from fedsim.bench.locks import free, held
from fedsim.bench.store import MEASURES, NAME, Store
from fedsim.errors import FedsimError, nearest
from fedsim.report import words
from fedsim.scenario import Scenario, toml_value

if TYPE_CHECKING:
    import pandas as pd

ALIASES = {
    "defense": "server.defenses",
    "attack": "adversary.attacks",
    "dataset": "data.dataset",
    "partition": "data.partition",
}
"""Short names of the keys that benchmarks vary."""
NUMBERS = (
    "accuracy", "loss", "asr", "floor", "calm_accuracy", "malicious_weight", "chance", "attacker_rows",
    "attacker_rows_kept", "last_rounds", "worst10", "recovery", "survival", "seconds",
)  # fmt: skip
COUNTS = ("attacker_rows", "attacker_rows_kept", "last_rounds")
"""Those of the numbers that are whole."""
_SYMBOLS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


def results(
    source: str | Path, where: Sequence[str] | str = (), level: Literal["cells", "rounds"] = "cells"
) -> pd.DataFrame:
    """The results of a benchmark.

    Args:
        source: folder of a benchmark, or the scenario file whose cells lie in ``runs/NAME``.
        where: conditions that all must hold, each ``NAME OP VALUE`` with OP one of = != < <= > >=; NAME is a column, or
            a dotted key of the scenario. ``defense=krum`` is true of a list of parts that holds a krum.
        level: a row a cell, or a row a round and cell.

    Returns:
        Columns ``defense``, ``attack``, ``dataset``, ``partition`` and ``seed`` (parts in short), the other keys of the
        matrix by their full names, ``state`` (``waiting``, ``running``, ``finished``, ``failed``; ``stopped`` where a
        cell's process is gone, ``running or stopped`` where that is another machine's), the means of the last rounds,
        ``utility_lost``, ``asr_gain`` (ASR above its floor), ``marks`` (see :func:`marks`), ``error``, ``digest``,
        ``folder``, ``key``, ``setting``, ``fedsim``; with ``rounds``, what each round measured in place of the means.

    Raises:
        FedsimError: no results there, or a condition that names nothing.
    """
    import pandas as pd

    folder = find(source)
    with Store.reading(folder) as store:
        cells = store.rows(
            "SELECT c.*, v.fedsim FROM cells c LEFT JOIN versions v ON v.id = c.versions ORDER BY c.rowid"
        )
        _tell_stopped(cells, store)
        rounds = store.rows("SELECT * FROM rounds ORDER BY key, round") if level == "rounds" else []
    tables = {cell["key"]: json.loads(cell["scenario"]) for cell in cells}
    rows = [_row(cell, tables[cell["key"]]) for cell in cells]
    _fill(rows, tables)
    _tell_apart(rows, tables, folder)
    _add_losses(rows, tables)
    for row in rows:
        row.pop("_defenses"), row.pop("_rest")
    columns = dict.fromkeys(name for row in rows for name in row)
    conditions = [condition(text) for text in ([where] if isinstance(where, str) else where)]
    for each in conditions:
        _check_named(each, columns, tables.values())
    rows = [row for row in rows if all(_holds(each, row, tables[row["key"]]) for each in conditions)]
    if level == "cells":
        return pd.DataFrame(rows, columns=list(columns)).astype({name: "Int64" for name in COUNTS if name in columns})
    named = [*keys(columns), "seed", "setting", "folder"]
    shown = {row["key"]: {name: row[name] for name in named} for row in rows}
    found = pd.DataFrame(
        [
            shown[each["key"]] | {name: value for name, value in each.items() if name != "line"}
            for each in rounds
            if each["key"] in shown
        ],
        columns=[*named, "key", "round", *MEASURES],
    )
    return found.astype(dict.fromkeys(MEASURES, float))


def keys(columns: Iterable[str]) -> list[str]:
    """The columns that say what a cell is, its seed aside: the aliases, then keys of the scenario that are there."""
    more = (name for name in columns if "." in name or name in Scenario.model_fields)
    return [*ALIASES, *(name for name in dict.fromkeys(more) if name != "seed")]


def find(source: str | Path) -> Path:
    """The folder of a benchmark.

    Raises:
        FedsimError: there is none.
    """
    given = Path(source)
    tried = [given, Path("runs") / given.stem]
    for folder in tried:
        if (folder / NAME).is_file():
            return folder
    single = "" if not (given / "run.json").is_file() else f" (a single run: fedsim report {shlex.quote(str(given))})"
    raise FedsimError(
        f"{source}: holds no results{single}; accepted: the folder of a `fedsim bench`, "
        f"or its scenario file where the cells lie in {tried[1]}"
    )


def marks(row: Mapping[str, Any]) -> str:
    """What keeps a cell from being evidence: ``a`` no attack took place, ``d`` the defense changed no aggregate."""
    found = ""
    if row.get("attacked") and row.get("attack_acted") is False:
        found += "a"
    if row.get("defended") and row.get("defense_acted") is False:
        found += "d"
    return found


def _row(cell: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    said = json.loads(cell["summary"]) if cell["summary"] and cell["state"] == "finished" else {}
    defenses = [part["name"] for part in table["server"]["defenses"]]
    adversary = table["adversary"]
    values = json.loads(cell["matrix"])
    # As the matrix writes a part, without the defaults that the resolved scenario spells out.
    row: dict[str, Any] = {
        name: short(values[key]) if key in values else plain(lookup(table, key)) for name, key in ALIASES.items()
    }
    row["seed"], row["state"] = table["seed"], cell["state"]
    row |= {key: short(value) for key, value in values.items() if key not in ("seed", *ALIASES.values())}
    row |= {name: _number(said.get(name)) for name in NUMBERS}
    row["attack_acted"], row["defense_acted"] = said.get("attack_acted"), said.get("defense_acted")
    row["attacked"] = bool(adversary["attacks"]) and bool(adversary.get("count") or adversary.get("fraction"))
    row["defended"] = defenses != ["fedavg"] and not defenses[0].startswith("flwr:")
    row["marks"] = marks(row)
    row |= {name: cell[name] for name in ("error", "digest", "folder", "key", "setting", "fedsim")}
    row["_defenses"] = json.dumps(table["server"]["defenses"], sort_keys=True)
    row["_rest"] = _without(table, "adversary", "defenses")
    return row


def _tell_stopped(cells: list[dict[str, Any]], store: Store) -> None:
    """Cells whose process was killed say ``running`` in the store until they are played again."""
    running = [cell for cell in cells if cell["state"] == "running"]
    hosts = {}
    if running:
        hosts = {row["key"]: row["host"] for row in store.rows("SELECT key, host FROM plays WHERE ended IS NULL")}
    for cell in running:
        if hosts.get(cell["key"], platform.node()) != platform.node():
            cell["state"] = "running or stopped"
        elif free(store.out / "locks" / cell["folder"]):
            cell["state"] = "stopped"


def _fill(rows: list[dict[str, Any]], tables: Mapping[str, Any]) -> None:
    """Cells of several matrices: what one of them varies, the scenarios of the others' cells say as well."""
    names = sorted({name for row in rows for name in keys(row)})
    for row in rows:
        for name in names:
            if name not in row:
                value = lookup(tables[row["key"]], name)
                row[name] = "–" if value is None else plain(value)


def _tell_apart(rows: list[dict[str, Any]], tables: Mapping[str, Any], folder: Path) -> None:
    """Give cells that look alike and are not (an edited scenario, plug-in or fedsim) columns and settings of their own.

    Two cells with the same seed and the same name in every column would be taken for one measured twice: a mean over
    both mixes what was run, and a seed that counts twice makes intervals too short.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[name]) for name in ("seed", *sorted(keys(row)))), []).append(row)
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return
    flat = {row["key"]: dict(_flat(tables[row["key"]])) | _origin(row, folder) for row in rows}
    for group in alike:
        cells = [flat[row["key"]] for row in group]
        names = dict.fromkeys(name for cell in cells for name in cell)
        for name in (n for n in names if len({json.dumps(cell.get(n), default=str) for cell in cells}) > 1):
            alias = next((each for each, key in ALIASES.items() if key == name), "")
            for row in group if alias else rows:
                row[alias or name] = short(flat[row["key"]].get(name))
    for row in rows:
        origin = flat[row["key"]]
        told = _told(row, folder)
        # What an attack costs is told by a run without it by the same fedsim on the same data.
        row["_rest"] = json.dumps([row["_rest"], told.get("fedsim"), told.get("data")])
        row["setting"] = hashlib.sha256(
            json.dumps([row["setting"], *(origin[name] for name in ("run.fedsim", "run.files"))]).encode()
        ).hexdigest()[:16]


def _origin(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a cell's key says beside its scenario: fedsim's version, and the content of its files and data."""
    told = _told(row, folder)
    if not told:
        return {"run.fedsim": "", "run.files": ""}
    content = json.dumps([told.get("files"), told.get("data")], sort_keys=True)
    return {"run.fedsim": told.get("fedsim", ""), "run.files": hashlib.sha256(content.encode()).hexdigest()[:6]}


def _told(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A cell's ``run.json``; empty where it has none yet."""
    path = folder / str(row["folder"]) / "run.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a scenario, without what makes no other result; lists of parts are one value."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if name in ("seed", "title", "engine"):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _add_losses(rows: list[dict[str, Any]], tables: Mapping[str, Any]) -> None:
    """Utility lost and ASR above its floor, seed by seed."""
    calm: dict[tuple[str, str], float] = {}
    for row in rows:
        seen = row["calm_accuracy"] if row["attacked"] else row["accuracy"]
        if not math.isnan(seen):
            calm.setdefault((row["_rest"], row["_defenses"]), seen)
    averaged = {
        rest: value
        for (rest, defenses), value in calm.items()
        if [p["name"] for p in json.loads(defenses)] == ["fedavg"]
    }
    # Where the matrix has plain averaging, nothing else stands in for a run of it that is not there (yet).
    plain_is_there = any([p["name"] for p in json.loads(row["_defenses"])] == ["fedavg"] for row in rows)
    for row in rows:
        own = calm.get((row["_rest"], row["_defenses"]), math.nan)
        row["calm_accuracy"] = own
        row["utility_lost"] = averaged.get(row["_rest"], math.nan if plain_is_there else own) - row["accuracy"]
        floor = 0.0 if math.isnan(row["floor"]) else row["floor"]
        row["asr_gain"] = row["asr"] - floor


def _without(table: Mapping[str, Any], *names: str) -> str:
    """What cells share that differ by attack and defense alone (the seed is shared)."""
    rest = {key: value for key, value in table.items() if key not in ("title", "engine", "adversary", "server")}
    server = {key: value for key, value in table["server"].items() if key not in names}
    return json.dumps([rest, server], sort_keys=True)


@dataclass(frozen=True)
class Condition:
    """One condition on a cell."""

    name: str
    holds: Callable[[Any, Any], bool]
    symbol: str
    value: Any


def condition(text: str) -> Condition:
    """``defense!=krum`` taken apart.

    Raises:
        FedsimError: no condition.
    """
    found = re.fullmatch(r"\s*([\w.\[\]:-]+?)\s*(!=|<=|>=|=|<|>)=?\s*(.*?)\s*", text, re.S)
    if found is None:
        raise FedsimError(f"--where: given '{text}'; accepted: NAME OP VALUE, OP one of {' '.join(_SYMBOLS)}")
    return Condition(found[1], _SYMBOLS[found[2]], found[2], toml_value(found[3]))


def _check_named(given: Condition, columns: Iterable[str], tables: Collection[Mapping[str, Any]]) -> None:
    """A condition on what no cell has would find no cell, and say nothing of its spelling.

    Raises:
        FedsimError: the name is neither a column nor a key of any cell's scenario, or it is that of a table.
    """
    if given.name in columns or not tables:
        return
    missing = object()
    found = [value for table in tables if (value := lookup(table, given.name, missing)) is not missing]
    inner = sorted({f"{given.name}.{key}" for value in found if isinstance(value, Mapping) for key in value})
    table = bool(inner) and all(isinstance(value, Mapping) and "name" not in value for value in found)
    if not table and (found or _is_key(given.name)):
        return
    known = sorted({*columns, *(name for table in tables for name in _paths(table))})
    hint = f", one of {', '.join(inner)}" if table else nearest(given.name, known)
    raise FedsimError(f"--where: given '{given.name}'; accepted: a column or a key{hint}")


def _is_key(name: str) -> bool:
    """Whether scenarios have this key; what is not set stands in no table."""
    fields: Mapping[str, Any] = Scenario.model_fields
    for piece in name.split("."):
        if piece not in fields:
            return False
        fields = getattr(fields[piece].annotation, "model_fields", {})
    return True


def _paths(value: Any, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a scenario, those of lists by position."""
    pieces = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pieces:
        name = f"{prefix}[{key}]" if isinstance(key, int) else f"{prefix}.{key}" if prefix else str(key)
        yield name
        yield from _paths(each, name)


def _holds(given: Condition, row: Mapping[str, Any], table: Mapping[str, Any]) -> bool:
    dotted = ALIASES.get(given.name, given.name)
    there, value = lookup(table, dotted, None), row.get(given.name)
    if given.name not in row and there is None:
        return given.symbol == "!="
    if given.symbol in ("=", "!=") and there is not None:
        equal = value == given.value or there == given.value or _names(there, given.value)
        return equal == (given.symbol == "=")
    actual = value if there is None else there
    if given.symbol not in ("=", "!=") and isinstance(given.value, str):
        raise FedsimError(f"--where: given {given.name} {given.symbol} '{given.value}'; accepted: a number after it")
    try:
        return bool(given.holds(actual, given.value))
    except TypeError:
        return False


def _names(there: Any, wanted: Any) -> bool:
    """Whether a part, or a list that holds a part, has this name or reads like this."""
    parts = there if isinstance(there, list) else [there]
    return any(isinstance(part, Mapping) and part.get("name") == wanted for part in parts) or short(there) == wanted


def lookup(table: Any, key: str, missing: Any = None) -> Any:
    """The value under a dotted key."""
    for piece in re.findall(r"[^.\[\]]+", key):
        if isinstance(table, Mapping) and piece in table:
            table = table[piece]
        elif isinstance(table, list) and piece.isdecimal() and int(piece) < len(table):
            table = table[int(piece)]
        else:
            return missing
    return table


def short(value: Any) -> str:
    """A value of a matrix as a table shows it: parts by name and options."""
    if isinstance(value, Mapping) and "name" in value:
        options = ", ".join(f"{key} {short(each)}" for key, each in value.items() if key != "name")
        return f"{value['name']} ({options})" if options else str(value["name"])
    if isinstance(value, list):
        return " + ".join(map(short, value)) or "none"
    return words.value(value)


def plain(value: Any) -> str:
    """Parts by their names alone."""
    if isinstance(value, list):
        return " + ".join(map(plain, value)) or "none"
    return str(value["name"]) if isinstance(value, Mapping) and "name" in value else short(value)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


@dataclass
class Merged:
    """What a merge did.

    Args:
        added: cells that came in.
        known: cells that were there already, with the same digest.
        differ: folders of cells that were there with another digest; what was there stays.
        unfinished: folders that hold no finished run.
    """

    added: int = 0
    known: int = 0
    differ: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)


def merge(sources: Sequence[str | Path], out: str | Path) -> Merged:
    """Bring the finished cells of other folders (of other machines) into one.

    Args:
        sources: folders of benchmarks.
        out: the folder that takes them, new or not.

    Raises:
        FedsimError: a source without results.
        RecordError: ``out`` cannot be written.
    """
    folders = [find(source) for source in sources]
    into, done = Path(out), Merged()
    store = Store(into)
    try:
        for folder in folders:
            if folder.resolve() != into.resolve():
                _merge_one(folder, store, done)
    finally:
        store.close()
    return done


def _merge_one(folder: Path, store: Store, done: Merged) -> None:
    with Store.reading(folder) as theirs:
        cells = theirs.rows("SELECT key, folder, matrix, state, digest FROM cells ORDER BY rowid")
    for cell in cells:
        if cell["state"] != "finished" or not _whole(folder / cell["folder"]):
            done.unfinished.append(cell["folder"])
            continue
        # Whoever plays it here may finish it while we wait.
        with held(store.out / "locks" / cell["folder"], wait=True):
            here = store.rows("SELECT digest FROM cells WHERE key = ? AND state = 'finished'", (cell["key"],))
            if here and here[0]["digest"] != cell["digest"]:
                done.differ.append(cell["folder"])
            elif here:
                done.known += 1
            else:
                _copy(folder / cell["folder"], store.out / cell["folder"])
                done.added += store.adopt(store.out / cell["folder"], json.loads(cell["matrix"]))


def _whole(folder: Path) -> bool:
    """Whether a cell's folder holds all that the store is made from."""
    return finished(folder) and all((folder / name).is_file() for name in ("run.json", "scenario.toml", "rounds.jsonl"))


def _copy(source: Path, target: Path) -> None:
    """A whole folder, put in place at once; a run that was begun there gives way to the finished one."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


__all__ = ["Merged", "find", "keys", "lookup", "marks", "merge", "results", "short"]
