"""The published table as data, ``verify/rows.json`` beside the page.

Results of runs lie where they were made, in ``runs/verify``; a clone has none of them. A row that another machine has
run stays on the page, as long as the claim's code is what gave it and no more seeds are here than it had.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedsim.errors import FedsimError
from fedsim.record import write_json

FILE = "rows.json"


@dataclass(frozen=True)
class Published:
    """A claim's rows as they were published.

    Args:
        fingerprint: of the code that gave them.
        seeds: how many were run.
        means: mean over the seeds, by the row's name.
        ours: the mean with its interval as it is shown, by the row's name.
        facts: what else the page says of the claim, in words by name.
    """

    fingerprint: str
    seeds: int
    means: Mapping[str, float]
    ours: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)


def load_published(folder: Path) -> dict[str, Published]:
    """Published claims by ``paper.claim``; none if nothing was published there.

    Raises:
        FedsimError: the file is there and can't be read.
    """
    file = folder / FILE
    try:
        return {key: Published(**each) for key, each in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        accepted = "what fedsim verify wrote there; without the file, rows that are not run here are 'not run'"
        raise FedsimError(f"verify: {file} can't be read ({error}); accepted: {accepted}") from error


def save_published(folder: Path, claims: Iterable[tuple[str, Published]]) -> None:
    """Write the claims, by ``paper.claim``."""
    write_json(folder / FILE, {key: asdict(each) for key, each in claims})
