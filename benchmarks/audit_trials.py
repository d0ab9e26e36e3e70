"""What an audit costs: ``python audit_trials.py TRIALS [KEY=VALUE …]``, in seconds, as ``fedsim audit`` plays it.

100 rounds of ``scenarios/private.toml``, a linear model at ten clients, changed by the given keys; as many processes as
there are cores.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    from fedsim.audit import prepare
    from fedsim.scenario import Scenario

    begin = time.perf_counter()
    test = prepare(Scenario.load("private", sets=("rounds=100", *sys.argv[2:])))
    verdict = test.run(int(sys.argv[1]), 0)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "bound": verdict.bound, "claim": verdict.claim.epsilon}))


if __name__ == "__main__":
    main()
