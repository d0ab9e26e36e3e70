"""The catalogue: every attack, trigger, defense, observer and partition, as a page in Markdown, from the registry.

``python -m fedsim.report.catalogue docs/catalogue.md`` writes the page anew; a test holds the two equal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attacks import attack as attacks
from attacks import trigger as triggers
from fedsim import registry
from strategies import defense as defenses

HOOKS = {
    "poison": "data",
    "objective": "objective",
    "after_step": "after each step",
    "learn": "learned",
    "craft": "craft",
    "observe": "observer",
}
STAGES = {
    "transform": "pre-aggregator",
    "select": "filter",
    "combine": "aggregator",
    "bound": "clip of the aggregate",
    "finish": "model",
}
KNOWN = {
    "own": "its own update",
    "colluding": "the updates of all attackers",
    "omniscient": "all updates",
}
COLUMNS = ("name", "what", "kind", "sees", "skew", "options", "cost", "source")
OBSERVED = "what its standpoint shows: messages, their sum, or the models"
INTRODUCTION = """\
# Catalogue

Every attack, trigger, defense, observer and partition of fedsim, written by `python -m fedsim.report.catalogue` from
the registry. `fedsim list attack NAME` prints the options of one with their meanings. Costs are in n clients of a
round, f malicious ones and d parameters, beside local training and the mean; a trigger's in the C channels of an image
of H · W pixels. The partitions of flwr-datasets go by `flwr:NAME`, and `fedsim data FILE` draws the one of a scenario.
"""


def markdown() -> str:
    """The page."""
    pieces = [INTRODUCTION]
    for title, kind, columns in (
        ("Attacks", "attack", _attack),
        ("Triggers", "trigger", _trigger),
        ("Defenses", "defense", _defense),
        ("Observers", "observer", _observer),
        ("Partitions", "partition", _partition),
    ):
        rows = [_ordered(columns(name, part) | _choices(part)) for name, part in _own(kind)]
        pieces.append(f"## {title}\n\n{_table(rows)}\n\n{_details(kind)}")
    return "\n".join(pieces).rstrip() + "\n"


def _own(kind: str) -> Iterator[tuple[str, Any]]:
    """The parts of a kind that come with fedsim, not those of installed plug-ins."""
    homes = tuple(registry.HOMES[kind])
    for name, part in registry.iterate(kind):
        if part.__module__.startswith(tuple(f"{home}." for home in homes)):
            yield name, part


def _ordered(row: dict[str, str]) -> dict[str, str]:
    return {column: row[column] for column in COLUMNS if column in row}


def _choices(part: Any) -> dict[str, str]:
    """The column of options, whose meanings stand below the table."""
    return {"options": ", ".join(f"`{option.name}`" for option in registry.options(part)) or "none"}


def _attack(name: str, part: Any) -> dict[str, str]:
    hooks = [word for hook, word in HOOKS.items() if attacks.overrides(part, hook)]
    sees = KNOWN[part.knowledge] if "craft" in hooks else "its own data and model"
    if part.learned_trigger:
        sees = "its own data and model, shared by the attackers"
    if part.wants_previous:
        sees += ", the model of the round before"
    if attacks.overrides(part, "trains_on_others"):
        sees += ", all clients' training images"
    return {
        "name": f"`{name}`",
        "what": registry.summary(part),
        "kind": f"{'untargeted' if part.untargeted else 'backdoor'}: {', '.join(hooks)}",
        "sees": f"{sees}, the defense" if part.knows_defense else sees,
        "cost": part.cost,
        "source": registry.source(part),
    }


def _trigger(name: str, part: Any) -> dict[str, str]:
    if issubclass(part, triggers.WholeImage):
        kind = "every pixel"
    else:
        kind = "some pixels" if part.stamp is triggers.Trigger.stamp else "some pixels, with values of their own"
    return {
        "name": f"`{name}`",
        "what": registry.summary(part),
        "kind": kind,
        "sees": part.sees,
        "cost": part.cost,
        "source": registry.source(part),
    }


def _defense(name: str, part: Any) -> dict[str, str]:
    stages = [word for stage, word in STAGES.items() if _defines(part, stage)]
    return {
        "name": f"`{name}`",
        "what": registry.summary(part),
        "kind": ", ".join(stages),
        "sees": part.sees,
        "cost": part.cost,
        "source": registry.source(part),
    }


def _observer(name: str, part: Any) -> dict[str, str]:
    return {
        "name": f"`{name}`",
        "what": registry.summary(part),
        "kind": part.goal,
        "sees": OBSERVED,
        "cost": part.cost,
        "source": registry.source(part),
    }


def _partition(name: str, part: Any) -> dict[str, str]:
    return {
        "name": f"`{name}`",
        "what": registry.summary(part),
        "skew": part.skew,
        "source": registry.source(part),
    }


def _defines(part: type[defenses.Defense], stage: str) -> bool:
    return getattr(part, stage) is not getattr(defenses.Defense, stage)


def _table(rows: list[dict[str, str]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _details(kind: str) -> str:
    """The options of each part, as a list."""
    lines = []
    for name, part in _own(kind):
        options = registry.options(part)
        if not options:
            continue
        lines.append(f"- `{name}`")
        for option in options:
            shown = f"`{option.name}` ({option.shown_type}, default {option.shown_default})"
            lines.append(f"    - {shown}: {option.meaning}")
    return f"### Options of {kind}s\n\n" + "\n".join(lines) + "\n"


def main(arguments: list[str], write: Callable[[str], Any] = sys.stdout.write) -> None:
    """Write the page to the file that is named, or to the screen."""
    if arguments:
        Path(arguments[0]).write_text(markdown(), "utf-8")
    else:
        write(markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
