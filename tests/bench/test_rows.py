"""What the rows of benchmarks/run.py tell beside their time."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "run.py"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="needs benchmarks/ (not in an installed fedsim)")


def test_the_audits_rows_tell_the_bound_beside_the_claim() -> None:
    names: dict[str, Any] = runpy.run_path(str(FILE))
    audit = names["audit"]
    audit.__globals__["measured"] = lambda command: {"seconds": 150.0, "bound": 3.17, "claim": 4.0}
    plain, shortened = audit(None)
    assert (plain.ours, plain.value, plain.must) == ("150 s, bound 3.17 of a claim of 4.00", 150.0, 180.0)
    assert (shortened.ours, shortened.must) == (plain.ours, None)
    assert shortened.what.endswith("norm_bound in front")
