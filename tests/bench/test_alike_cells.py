"""Cells that look alike and are not: other rounds, an edited plug-in, a run without attack that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsim.bench import differences, over_seeds, ranking, results, run_matrix
from fedsim.bench.store import Store
from fedsim.testing.plugin import findings, subjects

SCENARIO = """
rounds = 2
[data]
dataset = "digits"
partition = { name = "dirichlet", alpha = 0.5 }
clients = 10
[model]
name = "logistic"
[client]
per_round = 5
steps = 1
optimizer = { name = "sgd", lr = 0.1 }
[adversary]
fraction = 0.2
knowledge = "omniscient"
[matrix]
seed = [0, 1]
"adversary.attacks" = ATTACKS
"server.defenses" = DEFENSES
"""
PLUGIN = """
from fedsim.updates import Selection
from strategies.defense import Defense, defense


@defense("mine")
class Mine(Defense):
    \"\"\"Weighs by the examples.\"\"\"

    def select(self, updates, ctx):
        return Selection(updates.num_examples.double())
"""


def written(folder: Path, defenses: str, attacks: str = '[["sign_flip"]]') -> Path:
    file = folder / "m.toml"
    file.write_text(SCENARIO.replace("DEFENSES", defenses).replace("ATTACKS", attacks))
    return file


def test_rounds_of_the_matrix_are_other_settings(tmp_path: Path) -> None:
    file = written(tmp_path, '[["fedavg"], ["median"]]')
    run_matrix(file, tmp_path / "out", ["matrix.rounds=[1, 2]"], jobs=1)
    frame = results(tmp_path / "out")
    assert list(differences(frame)["pairs"]) == [2, 2]


def test_a_file_that_was_edited_makes_other_settings(tmp_path: Path) -> None:
    file = written(tmp_path, '[["fedavg"], ["median"]]', '[[], ["sign_flip"]]')
    for rounds in (1, 2):
        run_matrix(file, tmp_path / "out", [f"rounds={rounds}"], jobs=1)
    frame = results(tmp_path / "out")
    assert set(differences(frame)["pairs"]) == {2}
    assert set(ranking(frame)["under"]) <= {"1", "2"}


def test_an_edited_plug_in_counts_no_seed_twice(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    file = written(tmp_path, '[["fedavg"], ["mine"]]')
    for edit in ("", "\n# edited\n"):
        plugin.write_text(PLUGIN + edit)
        run_matrix(file, tmp_path / "out", [f'plugins=["{plugin}"]'], jobs=1)
    frame = results(tmp_path / "out")
    assert len(frame) == 8
    assert set(over_seeds(frame)["seeds"]) == {2}
    assert set(differences(frame)["pairs"]) == {2}


def test_an_empty_list_of_attacks_is_the_run_without(tmp_path: Path) -> None:
    file = written(tmp_path, '[["fedavg"], ["median"]]', '[[], ["sign_flip"]]')
    cells = run_matrix(file, tmp_path / "out", jobs=1)
    assert [cell.state for cell in cells] == ["finished"] * 8
    assert len(ranking(results(tmp_path / "out"))) == 2


def test_no_other_run_stands_in_for_plain_averaging(tmp_path: Path) -> None:
    file = written(tmp_path, '[["fedavg"], ["median"]]', '[[], ["sign_flip"]]')
    run_matrix(file, tmp_path / "out", jobs=1)
    store = Store(tmp_path / "out")
    with store._writing() as connection:
        connection.execute("UPDATE cells SET state = 'failed' WHERE seed = 1 AND folder LIKE 'fedavg-%'")
    store.close()
    frame = results(tmp_path / "out")
    lost = frame[(frame["defense"] == "median") & frame["attacked"]].set_index("seed")["utility_lost"]
    assert lost.notna().to_dict() == {0: True, 1: False}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_part_that_ends_its_process_fails_its_cell_alone(tmp_path: Path, jobs: int) -> None:
    plugin = tmp_path / "mine.py"
    broken = PLUGIN.replace("return Selection", "raise SystemExit('bye')\n        return Selection")
    plugin.write_text(broken.replace('"mine"', f'"ends_{jobs}"'))
    file = written(tmp_path, f'[["fedavg"], ["ends_{jobs}"]]')
    cells = run_matrix(file, tmp_path / "out", ["matrix.seed=[0]", f'plugins=["{plugin}"]'], jobs=jobs)
    assert [cell.state for cell in cells] == ["finished", "failed"]
    assert cells[1].error == "SystemExit in line 11 of mine.py, in select: bye"
    assert json.loads((tmp_path / "out" / "summary.json").read_text())[1]["state"] == "failed"


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("    def objective(self, loss, parameters, step):\n        return loss + torch.rand(())", "global random"),
        ("    def learn(self, examples, node):\n        torch.rand(3)\n        return {}", "global random"),
        (
            "    def prepare(self, train, test, **_):\n        self._scale = 2.0\n\n"
            "    def craft(self, rows, ctx):\n        return rows * self._scale",
            "",
        ),
    ],
)
def test_check_calls_all_hooks_after_prepare(tmp_path: Path, body: str, head: str) -> None:
    file = tmp_path / "part.py"
    file.write_text(f"import torch\nfrom attacks.attack import Attack\n\n\nclass Part(Attack):\n{body}\n")
    heads = [each.head for subject in subjects(str(file)) for each in findings(subject)]
    assert any(head in each for each in heads) if head else not heads


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (
            "        far = (updates.values.double() - updates.values.double().mean(0)).norm(dim=1)\n"
            "        weights = updates.num_examples.double().clone()\n"
            "        if ctx.state.get('k', 99) < len(updates):\n"
            "            weights[ctx.state['k']] = 0\n"
            "        ctx.state['k'] = int(far.argmax())\n"
            "        return Selection(weights)",
            "is not equal under permutation",
        ),
        (
            "        return Selection(updates.num_examples / torch.ones(20)[torch.arange(len(updates))])",
            "raises an error",
        ),
    ],
)
def test_check_finds_memory_by_place_and_breaks_on_no_part(tmp_path: Path, body: str, head: str) -> None:
    file = tmp_path / "rule.py"
    file.write_text(
        "import torch\nfrom fedsim.updates import Selection\nfrom strategies.defense import Defense\n\n\n"
        f"class Rule(Defense):\n    def select(self, updates, ctx):\n{body}\n"
    )
    assert head in [each.head for subject in subjects(str(file)) for each in findings(subject)]


def test_defenses_are_ranked_on_the_seeds_that_all_have() -> None:
    import pandas as pd

    rows = [("p", 0, 0.1), ("q", 0, 0.1), ("q", 1, 0.3), ("q", 2, 0.3)]
    alike = {"attack": "x", "dataset": "d", "partition": "i", "state": "finished", "attacked": True, "marks": ""}
    frame = pd.DataFrame(
        [alike | {"defense": d, "seed": s, "utility_lost": lost, "asr_gain": float("nan")} for d, s, lost in rows]
    )
    found = ranking(frame)
    assert list(found["worst"]) == [0.1, 0.1]
    assert list(found["seeds"]) == [1, 1]
    assert found["ahead"].iloc[0] == 0.5


def test_who_observes_changes_nothing_and_may_clear_what_it_was_shown(tmp_path: Path) -> None:
    import fedsim

    digests = []
    for body in ("pass", "record.vector.fill_(0.5)", "record.clear()"):
        file = tmp_path / f"watch{len(digests)}.py"
        file.write_text(
            "from attacks.attack import Attack\n\n\nclass Watch(Attack):\n    def observe(self, message, reply):\n"
            f"        for record in reply.content.array_records.values():\n            {body}\n"
        )
        scenario = {
            "rounds": 2,
            "data": {"dataset": "digits", "partition": "iid", "clients": 6},
            "model": {"name": "logistic"},
            "client": {"per_round": 3, "steps": 1},
            "adversary": {"count": 2, "knowledge": "omniscient", "attacks": [f"{file}:Watch"]},
        }
        digests.append(fedsim.run(scenario).digest)
    assert len(set(digests)) == 1
