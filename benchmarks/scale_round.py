"""What one round costs: ``python scale_round.py SCENARIO``, the scenario's tables as JSON.

Rounds as a user gets them, records and checkpoint written; only the evaluation is left out. The first round and the
last one, which evaluates, are not counted. Says seconds of a round and of its parts (medians), seconds until the first
round began, and the process' peak memory.
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

import fedsim


def main() -> None:
    tables = json.loads(sys.argv[1])
    scenario = fedsim.Scenario(**tables, evaluate={"every": tables["rounds"]})
    lines: list[dict[str, Any]] = []
    ends: list[float] = []

    def note(line: dict[str, Any]) -> None:
        ends.append(time.perf_counter())
        lines.append(line)

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = fedsim.run(scenario, out=f"{folder}/run", progress=note)
    counted = [after - before for before, after in itertools.pairwise(ends)][1:-1]
    unit = 1 if sys.platform == "darwin" else 1024
    found = {
        "seconds": statistics.median(counted),
        "train": statistics.median(line["seconds"]["train"] for line in lines[2:-1]),
        "aggregate": statistics.median(line["seconds"]["aggregate"] for line in lines[2:-1]),
        "start": ends[0] - began,
        "parameters": sum(each.numel() for each in result.parameters.values()),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20,
        "rounds": len(counted),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
