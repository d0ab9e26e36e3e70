"""The papers' claims, run: what each says, what is seen here, and whether it holds.

>>> from fedsim.verify import verify
>>> rows = verify(["gns"], runs="runs/verify")

One file a paper; a claim is a function of a seed that measures named numbers, with what is expected of each. Results
are kept claim by claim and seed by seed, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

from fedsim.verify.claim import Claim, Expected, Measured, Row, claim
from fedsim.verify.runner import PAPERS, verify

__all__ = ["PAPERS", "Claim", "Expected", "Measured", "Row", "claim", "verify"]
