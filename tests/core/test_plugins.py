"""Files of the user's whose parts are known by name: ``plugins`` in a scenario, ``--plugin`` on the command line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim import registry
from fedsim.cli import app
from fedsim.errors import FedsimError, ScenarioError
from fedsim.federation import key
from fedsim.scenario import Scenario

ATTACK = '''
"""Turned updates."""

from attacks.attack import Attack, attack


@attack("backwards_of_a_test")
class Backwards(Attack):
    """Turns its update around.

    Args:
        strength: factor on the turned update.
    """

    strength: float = 3.0

    def craft(self, rows, ctx):
        return -self.strength * rows
'''
SMALL = """
rounds = 1
[data]
clients = 6
[model]
name = "logistic"
[client]
per_round = 4
[adversary]
count = 2
attacks = ["backwards_of_a_test"]
[engine]
workers = 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plug-in and a scenario that names its attack, in the working directory."""
    for kind in registry.HOMES:
        registry.names(kind)
    monkeypatch.setattr(registry, "_parts", {kind: dict(parts) for kind, parts in registry._parts.items()})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(ATTACK)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_what_a_file_registers_is_known_by_name(folder):
    assert registry.plug_in("mine.py") == [("attack", "backwards_of_a_test")]
    assert "backwards_of_a_test" in registry.names("attack")
    assert registry.make("attack", "backwards_of_a_test", strength=2).strength == 2.0


def test_an_edited_file_is_read_anew_and_is_another_run(folder):
    table = tomllib.loads(SMALL) | {"plugins": ["mine.py"]}
    first = key(Scenario(**table), "data")["key"]
    (folder / "mine.py").write_text(ATTACK.replace("= 3.0", "= 5.0"))
    scenario = Scenario(**table)
    assert scenario.adversary.attacks[0].options == {"strength": 5.0}
    again = key(scenario.changed(**{"adversary.attacks": [{"name": "backwards_of_a_test", "strength": 3.0}]}), "data")
    assert first != again["key"], "the same options, but other code"


def test_the_resolved_scenario_names_the_file_and_loads_again(folder):
    scenario = Scenario(**tomllib.loads(SMALL), plugins=["mine.py"])
    assert scenario.table()["plugins"] == ["mine.py"]
    assert Scenario(**tomllib.loads(scenario.toml())) == scenario
    assert "plugins" not in Scenario().table(), "the keys of runs without plug-ins stay what they were"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nraise RuntimeError('two\\nlines')\n", "importing bad.py raised RuntimeError in line 2 of bad.py: two"),
        ("x = 1\n", 'registers no part: put @attack("NAME")'),
        (
            "from attacks.attack import Attack\nclass Bare(Attack):\n    pass\n",
            "or name a part in the scenario as bad.py:Bare",
        ),
        (ATTACK.replace("backwards_of_a_test", "sign_flip"), "attack 'sign_flip' is registered twice"),
    ],
)
def test_a_file_that_is_no_plug_in_is_one_line(folder, text, said):
    (folder / "bad.py").write_text(text)
    with pytest.raises(ScenarioError) as caught:
        Scenario(plugins=["bad.py"])
    assert str(caught.value).startswith("scenario: plugins[0]: given 'bad.py'; accepted: a file that registers parts; ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(folder):
    with pytest.raises(
        FedsimError, match=rf"^none\.py: there is no file none\.py, seen from {re.escape(str(folder))}$"
    ):
        registry.plug_in("none.py")


def test_plugin_on_the_command_line(folder):
    done = call("run", "small.toml", "--plugin", "mine.py", "--out", "run", "--set", "rounds=2")
    assert done.exit_code == 0, done.stderr
    written = tomllib.loads((folder / "run" / "scenario.toml").read_text())
    assert written["plugins"] == ["mine.py"]
    assert written["adversary"]["attacks"] == [{"name": "backwards_of_a_test", "strength": 3.0}]


def test_plugin_adds_to_those_of_the_file_and_reaches_the_matrix(folder):
    (folder / "more.py").write_text(ATTACK.replace("backwards_of_a_test", "more_of_a_test"))
    matrix = '[matrix]\n"adversary.attacks" = [["backwards_of_a_test"], ["more_of_a_test"]]\n'
    (folder / "small.toml").write_text('plugins = ["more.py"]\n' + SMALL + matrix)
    done = call("bench", "small.toml", "--plugin", "mine.py", "--out", "cells")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("2 finished in") == 1


def test_an_installed_package_adds_its_parts(folder, monkeypatch):
    """What ``pip install`` leaves behind is a module and a dist-info folder with its entry points."""
    site = folder / "site"
    (site / "their_package-1.0.dist-info").mkdir(parents=True)
    (site / "their_package.py").write_text(ATTACK.replace('@attack("backwards_of_a_test")\n', ""))
    info = site / "their_package-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fedsim.attacks]\ntheirs_of_a_test = their_package:Backwards\n")
    monkeypatch.setattr(registry, "_plugins", {kind: {} for kind in registry._plugins})
    monkeypatch.setattr(registry, "_loaded", registry._loaded - {"attack"})
    monkeypatch.syspath_prepend(str(site))
    assert "theirs_of_a_test" in registry.names("attack")
    assert registry.make("attack", "theirs_of_a_test", strength=2).strength == 2.0
    assert "theirs_of_a_test" in call("list", "attack").stdout
    from fedsim import doctor

    assert doctor.plugins().said == "attack theirs_of_a_test"


def test_without_the_plug_in_the_name_is_unknown(folder):
    done = call("run", "small.toml", "--set", "adversary.attacks=['backwards_of_nobody']")
    assert done.exit_code == 2
    assert "backwards_of_nobody" in done.stderr
