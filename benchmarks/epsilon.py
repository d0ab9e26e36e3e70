"""What accounting costs: ``python epsilon.py``, seconds of ``epsilon`` of 2,000 releases no two of which are alike.

By PLD, each of a Poisson sample with a noise multiplier and a rate of its own.
"""

from __future__ import annotations

import json
import time

import fedsim

RELEASES = 2_000


def main() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    multipliers, rates = generator.uniform(0.8, 2, RELEASES), generator.uniform(0.005, 0.02, RELEASES)
    releases = [(float(z), 1, float(q)) for z, q in zip(multipliers, rates, strict=True)]
    fedsim.privacy.epsilon([(1.0, 1, 0.01)], 1e-5)
    begin = time.perf_counter()
    spent = fedsim.privacy.epsilon(releases, 1e-5)
    print(json.dumps({"seconds": time.perf_counter() - begin, "epsilon": spent}))


if __name__ == "__main__":
    main()
