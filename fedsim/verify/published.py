"""The published table as data, ``verify/PAPER.json`` beside the page.

Results of runs lie where they were made, in ``runs/verify``; a clone has none of them. A row that another machine has
run stays on the page, as long as the claim's code is what gave it and no more seeds are here than it had. Its curves
stay, too: the figures are drawn from what the table shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from fedsim.record import plain, write_bytes
from fedsim.verify.claim import Measured

OLD = "rows.json"
"""One file for all papers, without curves: what an older version wrote is read, and replaced."""


@dataclass(frozen=True)
class Published:
    """A claim's rows as they were published.

    Args:
        fingerprint: of the code that gave them.
        seeds: how many were run.
        means: mean over the seeds, by the row's name.
        ours: the mean with its interval as it is shown, by the row's name.
        facts: what else the page says of the claim, in words by name.
        values: numbers by name, of each seed; none if they were published by an older version.
        series: curves by name to five digits, of each seed, or, beside an older version's means, of the first.
        seconds: that each seed took; likewise.
        processor: seconds of the processor that each seed took; likewise.
    """

    fingerprint: str
    seeds: int
    means: Mapping[str, float]
    ours: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)
    values: Sequence[Mapping[str, float]] = ()
    series: Sequence[Mapping[str, Sequence[float]]] = ()
    seconds: Sequence[float] = ()
    processor: Sequence[float] = ()

    @property
    def results(self) -> list[Measured]:
        """What the figure shows: each seed's numbers and curves, or the means alone if no more was kept."""
        if not self.values:
            return [Measured(dict(self.means), rounded(self.series[0]) if self.series else {})]
        return [
            Measured(dict(values), rounded(series)) for values, series in zip(self.values, self.series, strict=True)
        ]


def rounded(series: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    """Curves to five digits, which is more than a figure shows; JSON's null, for what is not finite, becomes NaN."""
    return {
        name: [math.nan if value is None else float(f"{value:.5g}") for value in curve]
        for name, curve in series.items()
    }


def load_published(folder: Path) -> dict[str, Published]:
    """Published claims by ``paper.claim``; none if nothing was published there.

    Raises:
        FedsimError: a file is there and can't be read.
    """
    found: dict[str, Published] = {}
    for file in (folder / OLD, *sorted(each for each in folder.glob("*.json") if each.name != OLD)):
        try:
            found |= {key: Published(**each) for key, each in json.loads(file.read_text()).items()}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, AttributeError) as error:
            accepted = "what fedsim verify wrote there; without the file, rows that are not run here are 'not run'"
            raise FedsimError(f"verify: {file} can't be read ({error}); accepted: {accepted}") from error
    return found


def save_published(folder: Path, claims: Iterable[tuple[str, Published]]) -> None:
    """Write the claims, by ``paper.claim``, a file for each paper and a line for each claim."""
    papers: dict[str, dict[str, Any]] = {}
    for key, each in claims:
        papers.setdefault(key.partition(".")[0], {})[key] = plain(asdict(each))
    for paper, known in papers.items():
        lines = [f"{json.dumps(key)}: {json.dumps(each, ensure_ascii=False)}" for key, each in known.items()]
        write_bytes(folder / f"{paper}.json", ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    (folder / OLD).unlink(missing_ok=True)
