"""The leaderboard of a benchmark: a static site, each page one HTML file that asks nothing of a network.

``index.html`` ranks the defenses by their worst attack and shows every attack against every defense; a page a defense
and a page an attack show the cells, with their scenario, their curves and the command that runs them again. The
scenarios lie beside as files, ``results.json`` holds all the numbers.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsim.analysis.statistics import Interval
from fedsim.errors import FedsimError
from fedsim.report import words
from fedsim.report.leaderboard_charts import CURVES, overlay, progress
from fedsim.report.page import write
from fedsim.report.scatter import scatter
from fedsim.report.standings import NAME, Setting, Standings

MEASURES = {
    "harm": "Harm",
    "asr": "Attack success rate",
    "accuracy": "Main accuracy",
    "utility_lost": "Accuracy lost",
    "kept": "Attackers kept",
}
"""What the heat map can show."""
TITLE = "Which defense holds?"
MARKS = {
    "a": "in some seed no attack took place",
    "d": "in some seed the defense never changed an aggregate: the result is that of plain averaging",
    "1": "a single seed: no interval, and no order",
}


def write_leaderboard(source: str | Path, out: Path | None = None, title: str = TITLE) -> Path:
    """Write the site.

    Args:
        source: folder of a benchmark (or its scenario file), or of a leaderboard.
        out: the site's folder; None: ``leaderboard`` in the benchmark's, or the leaderboard's own.
        title: heading of the first page.

    Returns:
        The first page.

    Raises:
        FedsimError: no finished cell there.
        RecordError: the pages cannot be written.
    """
    from fedsim.record import make_folder, write_bytes

    standings = Standings.read(source)
    if not any(cell["state"] == "finished" for cell in standings.cells):
        raise FedsimError(f"{source}: no cell is finished yet; accepted: results with at least one")
    folder = out or _default(source)
    for each in (folder, folder / "scenarios"):
        make_folder(each)
    named = ["--title", title] if title != TITLE else []
    standings.command = shlex.join(["fedsim", "leaderboard", str(folder), *named])
    site = _Site(standings, folder, title)
    write_bytes(folder / NAME, standings.json().encode())
    for setting in site.settings:
        write_bytes(folder / "scenarios" / site.scenario_file(setting), _toml(standings, setting).encode())
    for defense in standings.defenses:
        site.page(site.defense_file(defense), "leaderboard_defense.html.j2", **site.of_defense(defense))
    for attack in standings.attacks:
        site.page(site.attack_file(attack), "leaderboard_attack.html.j2", **site.of_attack(attack))
    return site.page("index.html", "leaderboard.html.j2", **site.first())


class _Site:
    """What the pages share: names of files, order of the defenses."""

    def __init__(self, standings: Standings, folder: Path, title: str) -> None:
        self.standings, self.folder, self.title = standings, folder, title
        self.settings = [setting for setting in standings.settings if setting.cells]
        self.rankings: dict[str | None, list[dict[str, Any]]] = {None: standings.ranking()}
        places = list(dict.fromkeys(setting.place for setting in self.settings))
        self.places = places if len(places) > 1 else []
        self.rankings |= {place: standings.ranking(place) for place in self.places}
        ranked = [row["defense"] for row in self.rankings[None]]
        self.order = [*ranked, *(name for name in standings.defenses if name not in ranked)]
        self.files: dict[tuple[str, str], str] = {}
        self.base = _cheapest(self.settings)

    def page(self, file: str, template: str, **values: Any) -> Path:
        return write(self.folder / file, template, script=script(), script_hash=script_hash(), **values)

    def defense_file(self, defense: str) -> str:
        return self._file("defense", defense)

    def attack_file(self, attack: str) -> str:
        return self._file("attack", attack)

    def scenario_file(self, setting: Setting) -> str:
        return f"{slug(setting.defense)}--{slug(setting.attack)}-{setting.key[:8]}.toml"

    def _file(self, kind: str, name: str) -> str:
        if (kind, name) not in self.files:
            wanted, number = f"{kind}-{slug(name)}", 2
            free = wanted
            while f"{free}.html" in self.files.values():
                free, number = f"{wanted}-{number}", number + 1
            self.files[kind, name] = f"{free}.html"
        return self.files[kind, name]

    def link(self, setting: Setting) -> str:
        return f"{self.defense_file(setting.defense)}#{anchor(setting)}"

    def first(self) -> dict[str, Any]:
        """What ``leaderboard.html.j2`` shows."""
        views = [self._view(place) for place in (None, *self.places)]
        seeds = sorted({int(cell["seed"]) for setting in self.settings for cell in setting.cells})
        cells = sum(len(setting.cells) for setting in self.settings)
        last = sorted({int(cell["last_rounds"]) for setting in self.settings for cell in setting.cells})
        lead = (
            f"{words.plural(len(self.standings.defenses), 'defense')} against "
            f"{words.plural(len(self.standings.attacks), 'attack')}, {words.plural(len(seeds), 'seed')}: "
            f"{words.plural(cells, 'run')}. A defense is as good as the attack that hurts it most."
        )
        return {
            "title": self.title,
            "lead": lead,
            "subject": self.standings.title,
            "views": views,
            "heats": [self._heat(place) for place in (self.places or [self.settings[0].place])],
            "measures": MEASURES,
            "places": self.places,
            "failed": sum(setting.failed for setting in self.standings.settings),
            "last": " to ".join(str(each) for each in dict.fromkeys((last[0], last[-1]))),
            "marks": self._marks(self.settings),
            "machines": machines(self.standings),
            "attacks": [(attack, self.attack_file(attack)) for attack in self.standings.attacks],
            "command": self.standings.command,
        }

    def of_defense(self, defense: str) -> dict[str, Any]:
        """What ``leaderboard_defense.html.j2`` shows."""
        mine = [setting for setting in self.settings if setting.defense == defense]
        ranks = [
            (
                place or ("everywhere" if self.places else ""),
                len(ranking),
                row,
                words.percent(row["worst"]),
                _range(row),
            )
            for place, ranking in self.rankings.items()
            for row in ranking
            if row["defense"] == defense
        ]
        parts = self.standings.scenarios[mine[0].key]["server"]["defenses"] if mine else []
        return {
            "title": defense,
            "parts": [(words.part(part), *described("defense", part["name"])) for part in parts],
            "ranks": ranks,
            "cells": [self._cell(setting) for setting in mine],
            "marks": self._marks(mine),
            "places": self.places,
        }

    def of_attack(self, attack: str) -> dict[str, Any]:
        """What ``leaderboard_attack.html.j2`` shows."""
        mine = [setting for setting in self.settings if setting.attack == attack and setting.attacked]
        parts = self.standings.scenarios[mine[0].key]["adversary"]["attacks"] if mine else []
        groups = []
        for place in dict.fromkeys(setting.place for setting in mine):
            here = sorted(
                (setting for setting in mine if setting.place == place),
                key=lambda setting: (_known(setting.measures["harm"].mean, 2.0), setting.defense),
            )
            charts = [overlay(self.standings, here, name, title) for name, title in CURVES]
            groups.append((place if self.places else "", [self._cell(each) for each in here], [c for c in charts if c]))
        return {
            "title": attack,
            "parts": [(words.part(part), *described("attack", part["name"])) for part in parts],
            "groups": groups,
            "marks": self._marks(mine),
        }

    def _view(self, place: str | None) -> dict[str, Any]:
        """A ranking with its scatter, over all places or in one."""
        here = [setting for setting in self.settings if place is None or setting.place == place]
        rows, claimed = [], []
        for number, ranked in enumerate(self.rankings[place], start=1):
            mine = [setting for setting in here if setting.defense == ranked["defense"]]
            calm = _mean(setting.measures["calm_accuracy"].mean for setting in mine)
            seconds = _mean(setting.seconds for setting in mine)
            spent: dict[str, float] = {}
            for setting in mine:
                if not math.isnan(setting.epsilon):
                    spent[setting.claim] = max(setting.epsilon, spent.get(setting.claim, 0.0))
            claimed.append(spent)
            rows.append(
                {
                    **ranked,
                    "number": number,
                    "file": self.defense_file(ranked["defense"]),
                    "calm": calm,
                    "seconds": seconds,
                    "times": seconds / self.base if self.base else math.nan,
                    "range": _range(ranked),
                }
            )
        claims = sorted({claim for spent in claimed for claim in spent})
        for row, spent in zip(rows, claimed, strict=True):
            row["epsilons"] = [spent.get(claim, math.nan) for claim in claims]
        missing = [name for name in self.standings.defenses if name not in {row["defense"] for row in rows}]
        return {
            "place": place or "",
            "rows": rows,
            "claims": claims,
            "missing": [(name, self.defense_file(name)) for name in missing],
            "scatter": scatter(
                [(row["number"], row["defense"], row["file"], row["calm"], row["worst"]) for row in rows]
            ),
        }

    def _heat(self, place: str) -> dict[str, Any]:
        """Defenses × attacks in one place."""
        here = {(each.defense, each.attack): each for each in self.settings if each.place == place}
        attacks = [attack for attack in self.standings.attacks if any(key[1] == attack for key in here)]
        lines = []
        for defense in self.order:
            if any(key[0] == defense for key in here):
                squares = [here.get((defense, attack)) for attack in attacks]
                lines.append((defense, self.defense_file(defense), [each and self._square(each) for each in squares]))
        return {
            "place": place if self.places else "",
            "attacks": [(attack, self.attack_file(attack)) for attack in attacks],
            "lines": lines,
        }

    def _square(self, setting: Setting) -> dict[str, Any]:
        values = {name: setting.measures[name] for name in MEASURES}
        return {
            "values": {name: (each.mean, short(each.mean), spread(each)) for name, each in values.items()},
            "paint": "; ".join(
                f"--{name.replace('_', '-')}: {min(max(_known(each.mean, 0.0), 0.0), 1.0):.3f}"
                for name, each in values.items()
            ),
            "link": self.link(setting),
            "attack": setting.attack,
            "label": f"{setting.defense} under {setting.attack}, in per cent: {_said(values, setting.marks)}",
            "marks": setting.marks,
        }

    def _cell(self, setting: Setting) -> dict[str, Any]:
        """A square of the matrix in full."""
        file = f"scenarios/{self.scenario_file(setting)}"
        floor = "" if math.isnan(setting.floor) else " --floor"
        runs = [
            (
                str(cell["seed"]),
                *(short(cell.get(name)) for name in ("accuracy", "asr", "utility_lost", "asr_gain")),
                str(cell["digest"])[:16],
                f"fedsim run {file} --seed {cell['seed']}{floor} --out runs/{Path(file).stem}-{cell['seed']}",
            )
            for cell in setting.cells
        ]
        measures = setting.measures
        return {
            "setting": setting,
            "anchor": anchor(setting),
            "link": self.link(setting),
            "defense_file": self.defense_file(setting.defense),
            "attack_file": self.attack_file(setting.attack) if setting.attacked else "",
            "attack": setting.attack if setting.attacked else "no attack",
            "place": setting.place if self.places else "",
            "numbers": {name: (each.mean, short(each.mean), spread(each)) for name, each in measures.items()},
            "floor": short(setting.floor),
            "chance": short(setting.chance),
            "seconds": setting.seconds,
            "chart": progress(self.standings, setting),
            "sentences": words.sentences(self.standings.scenarios[setting.key]),
            "runs": runs,
            "file": file,
            "toml": _toml(self.standings, setting),
            "notes": MARKS,
        }

    def _marks(self, settings: Sequence[Setting]) -> list[tuple[str, str]]:
        used = {mark for setting in settings for mark in setting.marks}
        return [(mark, meaning) for mark, meaning in MARKS.items() if mark in used]


def machines(standings: Standings) -> list[tuple[str, str, int]]:
    """(fedsim and what it ran on, versions of libraries, cells) of each kind of machine."""
    found = []
    for key, told in standings.versions.items():
        runtime = told["runtime"]
        where = [str(runtime[name]) for name in ("processor", "system") if runtime.get(name)]
        cores = f"{runtime['cores']} cores" if runtime.get("cores") else ""
        libraries = {"python": runtime.get("python"), **(runtime.get("versions") or {})}
        text = ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
        count = sum(cell.get("versions") == key for cell in standings.cells)
        found.append((", ".join([f"fedsim {told['fedsim']}", *where, *([cores] if cores else [])]), text, count))
    return found


def described(kind: str, name: str) -> tuple[str, str]:
    """What a part is, and its source; nothing where it is not installed here."""
    from fedsim import registry

    try:
        part = registry.get(kind, name)
    except FedsimError:
        return "", ""
    return registry.summary(part), registry.source(part)


def anchor(setting: Setting) -> str:
    return f"cell-{setting.key[:8]}"


def slug(name: str) -> str:
    """A name as a piece of a file's name."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:80] or "none"


def short(value: float | None) -> str:
    """A share in percent, without the sign: ``42.1``."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}".replace("-", "−")


def spread(each: Interval) -> str:
    """``38.0 to 46.2``; nothing where there is no interval."""
    return "" if math.isnan(each.low) else f"{short(each.low)} to {short(each.high)}"


@lru_cache(maxsize=1)
def script() -> str:
    """What the pages do: sort, filter, choose."""
    return (Path(__file__).parent / "templates" / "leaderboard.js").read_text("utf-8")


def script_hash() -> str:
    """The only script that the pages' policy lets run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()


def _toml(standings: Standings, setting: Setting) -> str:
    import tomli_w

    return tomli_w.dumps(standings.scenarios[setting.key])


def _default(source: str | Path) -> Path:
    from fedsim.bench.results import find

    given = Path(source)
    return given if (given / NAME).is_file() else find(source) / "leaderboard"


def _cheapest(settings: Sequence[Setting]) -> float:
    """Seconds a round of plain averaging; 0 where it was not run."""
    plain = [setting.seconds for setting in settings if setting.defense == "fedavg"]
    return _mean(plain) if plain else 0.0


def _range(row: dict[str, Any]) -> str:
    return spread(Interval(row["worst"], row["low"], row["high"], 0))


def _mean(values: Any) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _said(values: Mapping[str, Interval], marks: str) -> str:
    """A square in words, whichever measure it shows: all of them with their intervals, and what its marks mean."""
    told = [
        f"{MEASURES[name].lower()} {short(each.mean)}" + (f" ({spread(each)})" if spread(each) else "")
        for name, each in values.items()
    ]
    return "; ".join([", ".join(told), *(MARKS[mark] for mark in marks)])


def _known(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value


__all__ = ["MEASURES", "script", "script_hash", "slug", "write_leaderboard"]
