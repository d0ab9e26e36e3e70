"""The site is built with every link checked, loads nothing from elsewhere, and shows files of the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fedsim import registry

PROJECT = Path(__file__).resolve().parents[2]
SHOWN = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
INTERFACES = {
    "attack": "attacks.attack.Attack",
    "defense": "strategies.defense.Defense",
    "estimator": "strategies.estimator.Estimator",
    "server_optimizer": "strategies.server_optimizer.SGD",
    "optimizer": "fedsim.optim.elementwise.Elementwise",
    "loss": "fedsim.losses.loss.Loss",
    "regularizer": "fedsim.losses.regularizer.Regularizer",
    "step_control": "fedsim.optim.step_control.StepControl",
    "adapter": "fedsim.losses.monge_adapter.MongeAdapter",
    "analysis": "strategies.analysis.Analysis",
    "task": "fedsim.data.examples.DataInfo",
    "dataset": "fedsim.data.examples.Dataset",
    "augmentation": "fedsim.data.augmentation.Augmentation",
    "model": "fedsim.models.build.build_model",
    "partition": "fedsim.data.partition.Partition",
    "sampler": "strategies.sampler.Uniform",
    "schedule": "attacks.schedule.Schedule",
    "lr_schedule": "fedsim.optim.schedules.Constant",
    "trigger": "attacks.trigger.Trigger",
    "observer": "fedsim.observers.observer.Observer",
    "tracker": "fedsim.report.tracker.Tracker",
    "engine": "fedsim.grids.local.LocalGrid",
    "scenario": "fedsim.scenario.Scenario",
}
"""What each kind of part is written after: its base, or the plainest part of a kind that has none."""
CALLED = [
    "fedsim.launch.run",
    "fedsim.doctor.examine",
    "fedsim.bench.results.merge",
    "fedsim.report.leaderboard.write_leaderboard",
]
"""What stands behind commands."""


def test_every_kind_of_part_and_every_command_has_a_place_in_the_api() -> None:
    pages = [page.read_text("utf-8") for page in (PROJECT / "docs" / "api").glob("*.md")]
    shown = [name for page in pages for name in SHOWN.findall(page)]
    assert len(shown) == len(set(shown))
    assert INTERFACES.keys() == registry.HOMES.keys()
    for name in (*INTERFACES.values(), *CALLED):
        module, _, member = name.rpartition(".")
        assert hasattr(import_module(module), member), name
        assert {name, module} & set(shown), f"{name}: on no page of docs/api"


@pytest.mark.slow
def test_the_site_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    settings = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]+>", page.read_text("utf-8")
        )
        assert not loaded, f"{page.name}: {loaded}"
    assert "source/fedsim/simulation.py.html" in (tmp_path / "how-it-works.html").read_text("utf-8")
    assert "configure_train" in (tmp_path / "source" / "fedsim" / "simulation.py.html").read_text("utf-8")
    api = "".join(page.read_text("utf-8") for page in (tmp_path / "api").glob("*.html"))
    assert [name for name in (*INTERFACES.values(), *CALLED) if f'id="{name}"' not in api] == []
