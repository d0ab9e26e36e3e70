"""The report shows what observers found out; the page's own observer runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fedsim.launch import run
from fedsim.report.folder import RunFolder
from fedsim.report.observations import observed
from fedsim.scenario import Scenario

PAGE = Path(__file__).parents[2] / "docs" / "privacy-attacks.md"
TABLES: dict[str, Any] = {
    "rounds": 1,
    "data": {"dataset": "digits", "clients": 6},
    "model": {"name": "mlp", "hidden": [8]},
    "client": {"per_round": 3, "steps": 1, "batch_size": 2},
}


def test_findings_stand_on_the_page(tmp_path: Path) -> None:
    observers = [{"name": "gradient_inversion", "iterations": 16}, {"name": "membership_inference", "shadows": 4}]
    run(Scenario(**TABLES, observe={"observers": observers}), tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    section = page[page.index("What observers found out") :]
    assert "no guarantee covers this section." in section[: section.index("<h3>")]
    assert page.count("what the observer rebuilt of it") == 2
    inversion, membership = observed(RunFolder.read(tmp_path))
    assert len(inversion.pictures) == 2
    assert dict(inversion.facts)["labels right"]
    assert [row[0][:3] for row in membership.rates] == ["1.0", "0.1"]
    assert membership.chart is not None


def test_a_run_without_observers_has_no_such_section(tmp_path: Path) -> None:
    run(Scenario(**TABLES), tmp_path)
    assert "What observers found out" not in (tmp_path / "report.html").read_text("utf-8")
    assert not (tmp_path / "observations.json").exists()


def test_the_pages_observer_works(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_observer.py").write_text(code, "utf-8")
    name = f"{tmp_path / 'my_observer.py'}:Norms"
    (found,) = run(Scenario(**TABLES, observe={"observers": [name]})).observations
    assert len(found["norms"]) == 3
    assert all(norm > 0 for norm in found["norms"])
