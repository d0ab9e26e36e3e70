"""A run in words: numbers as people write them, a scenario as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = "unknown"
_QUIET: dict[str, dict[str, Any]] = {
    "client": {"proximal": 0.0, "dropout": 0.0, "straggler": 0.0},
    "server": {"limit": 1e8, "timeout": 3600.0},
    "data": {"holdout": 0.0, "root": 0},
    "engine": {"path": "auto", "workers": 0},
}
"""Values that change nothing and are not worth a word, by table."""
_IDLE = {"dampening": 0.0, "weight_decay": 0.0, "dropout": 0.0, "nesterov": False, "amsgrad": False, "maximize": False}
"""The same for options of parts."""


def percent(share: float | None, digits: int = 1) -> str:
    """``0.123`` → ``12.3 %`` (with a narrow space that does not break); unknown where there is no number."""
    if share is None or math.isnan(share):
        return UNKNOWN
    return f"{100 * share:.{digits}f}\u202f%"


def points(difference: float) -> str:
    """A difference of shares, an ASR against its floor: ``12.1 points above it``."""
    rounded = round(100 * difference, 1)
    if rounded == 0:
        return "the attack adds nothing to it"
    return f"the attack is {abs(rounded):.1f} points {'above' if rounded > 0 else 'below'} it"


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where people would not use one."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """``95`` → ``1 min 35 s``."""
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}".replace(",", "\u202f")


def cut(text: str, most: int) -> str:
    """A text of at most ``most`` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def value(given: Any) -> str:
    """An option's value as in a scenario file."""
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, float):
        return f"{given:g}"
    if isinstance(given, Mapping):
        return part(given) if "name" in given else "{" + _pairs(given) + "}"
    if isinstance(given, Sequence) and not isinstance(given, str):
        return "[" + ", ".join(value(each) for each in given) + "]"
    return str(given)


def part(given: Any) -> str:
    """A part with its options: ``dirichlet (alpha 0.5)``."""
    if not isinstance(given, Mapping):
        return str(given)
    options = _pairs({k: v for k, v in given.items() if k != "name" and (k not in _IDLE or v != _IDLE[k])})
    return f"{given.get('name', UNKNOWN)} ({options})" if options else str(given.get("name", UNKNOWN))


def sentences(scenario: Mapping[str, Any], attackers: int | None = None) -> list[tuple[str, str]]:
    """What was run, as (subject, sentence) pairs.

    Args:
        scenario: the resolved scenario as nested tables.
        attackers: how many clients were seen to attack, for the sentence on the adversary.
    """
    table = {
        name: dict(scenario.get(name) or {}) for name in ("data", "model", "client", "adversary", "server", "engine")
    }
    if table["server"].get("estimator"):
        _leave_training_out(table)
    found = [
        ("Data", _data(table["data"])),
        ("Clients", _clients(table["client"])),
        ("Model", _model(table["model"])),
        ("Adversary", _adversary(table["adversary"], attackers)),
        ("Defenses", _defenses(table["server"])),
        ("Server", _server(table["server"])),
        ("Engine", _engine(table["engine"])),
    ]
    if "rounds" in scenario:
        found.insert(0, ("Length", f"{plural(int(scenario['rounds']), 'round')}, seed {scenario.get('seed', 0)}"))
    return [(subject, text) for subject, text in found if text]


def _data(table: dict[str, Any]) -> str:
    if not table:
        return ""
    text = part(table.pop("dataset", "a data set"))
    clients = table.pop("clients", None)
    split = part(table.pop("partition", "iid"))
    text += f", split {split}" + (f" over {plural(int(clients), 'client')}" if clients is not None else "")
    return _with_rest(text, table, "data")


def _leave_training_out(table: dict[str, dict[str, Any]]) -> None:
    """Clients answer the estimator in place of training, and it makes the server's step: their defaults say nothing."""
    from fedsim.tables import Client, Server
    from strategies.estimator import TRAINING

    for name, idle, keys in (("client", Client(), TRAINING), ("server", Server(), ("optimizer",))):
        shown = idle.model_dump(mode="json")
        for key in keys:
            given, default = table[name].get(key), shown.get(key)
            if given == default or (isinstance(given, Mapping) and _name(given) == _name(default)):
                table[name].pop(key, None)


def _clients(table: dict[str, Any]) -> str:
    if not table:
        return ""
    pieces = []
    per_round = table.pop("per_round", None)
    if per_round is not None:
        pieces.append(f"{percent(per_round, 0)} a round" if isinstance(per_round, float) else f"{per_round} a round")
    for unit in ("epochs", "steps"):
        amount = table.pop(unit, None)
        if amount is not None:
            pieces.append(f"{amount} local {unit if amount != 1 else unit[:-1]}")
    if "batch_size" in table:
        pieces.append(f"batches of {table.pop('batch_size')}")
    if "optimizer" in table:
        pieces.append(part(table.pop("optimizer")))
    if _name(table.get("lr_schedule")) == "constant":
        table.pop("lr_schedule")
    return _with_rest(", ".join(pieces), table, "client")


def _model(table: dict[str, Any]) -> str:
    start = table.pop("init", None)
    return (part(table) + (f", from {start}" if start else "")) if table else ""


def _adversary(table: dict[str, Any], attackers: int | None) -> str:
    attacks = table.pop("attacks", None) or []
    fraction, count = table.pop("fraction", None), table.pop("count", None)
    if not attacks or (fraction or 0) == 0 == (count or 0):
        return "none"
    text = plural(int(count), "client") if count is not None else f"{percent(fraction, 0)} of the clients"
    if count is None and attackers:
        text += f" ({attackers} seen)"
    text += ": " + ", then ".join(part(attack) for attack in attacks)
    schedule = table.pop("schedule", "every_round")
    text += "; " + ("every round" if _name(schedule) == "every_round" else part(schedule))
    if table.pop("selection", "pool") == "forced":
        text += f", {table.pop('forced', 1)} forced into each attack round"
    table.pop("forced", None)
    knowledge = table.pop("knowledge", None)
    if knowledge:
        text += {
            "own": "; each knows its own data only",
            "colluding": "; the attackers know each other's data",
            "omniscient": "; they see every client's update",
        }.get(knowledge, f"; knowledge {knowledge}")
    if table.pop("knows_defense", False):
        text += " and know the defense"
    return _with_rest(text, table, "adversary")


def _defenses(table: dict[str, Any]) -> str:
    return ", then ".join(part(each) for each in table.get("defenses") or [])


def _server(table: dict[str, Any]) -> str:
    if any(_name(each).startswith("flwr:") for each in table.pop("defenses", None) or []):
        return ""
    pieces = []
    if "optimizer" in table:
        pieces.append(part(table.pop("optimizer")))
    if _name(table.get("sampler")) == "uniform":
        table.pop("sampler")
        pieces.append("clients drawn uniformly")
    return _with_rest(", ".join(pieces), table, "server")


def _engine(table: dict[str, Any]) -> str:
    if not table:
        return ""
    table = {k: v for k, v in table.items() if _QUIET["engine"].get(k) != v}
    device, precision = table.pop("device", None), table.pop("precision", None)
    return ", ".join([part(table), *(str(each) for each in (device, precision) if each)])


def _with_rest(text: str, table: dict[str, Any], name: str) -> str:
    quiet = _QUIET.get(name, {})
    rest = {k: v for k, v in table.items() if v not in (None, [], {}, "") and quiet.get(k, ...) != v}
    return "; ".join(piece for piece in (text, _pairs(rest)) if piece)


def _pairs(options: Mapping[str, Any]) -> str:
    shown = ((k, v) for k, v in options.items() if v is not None and v != {})
    return ", ".join(f"{k.replace('_', ' ')} {value(v)}" for k, v in shown)


def _name(given: Any) -> str:
    return str(given.get("name", "")) if isinstance(given, Mapping) else str(given or "")
