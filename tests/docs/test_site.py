"""The site is built with every link checked, loads nothing from elsewhere, and shows files of the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


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
    assert 'id="fedsim.launch.run"' in (tmp_path / "api" / "index.html").read_text("utf-8")
