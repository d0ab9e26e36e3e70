"""``fedsim check`` says in words what a plug-in gets wrong: one deliberately wrong plug-in for each message."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.attack import Attack
from fedsim import registry, skeletons
from fedsim.errors import FedsimError
from fedsim.testing import conforms, pace
from fedsim.testing.plugin import Finding, Subject, findings, subjects

ATTACK_HEAD = (
    "import random\nimport numpy as np\nimport torch\nfrom attacks.attack import Attack\n\n\nclass Mine(Attack):\n"
)
DEFENSE_HEAD = (
    "import random\nimport numpy as np\nimport torch\nfrom fedsim.updates import Aggregate, Selection\n"
    "from strategies.defense import Defense\n\n\nclass Mine(Defense):\n"
)


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What these files register is gone afterwards."""
    for kind in registry.HOMES:
        registry.names(kind)
    monkeypatch.setattr(registry, "_parts", {kind: dict(parts) for kind, parts in registry._parts.items()})
    monkeypatch.chdir(tmp_path)


def found(head: str, body: str) -> list[Finding]:
    Path("mine.py").write_text(head + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n")
    (subject,) = subjects("mine.py")
    return findings(subject)


CRAFT = "def craft(self, rows, ctx):\n    "


@pytest.mark.parametrize(
    ("body", "head", "said"),
    [
        ("def crafft(self, rows, ctx):\n    return -rows", "does nothing", "only 'crafft' (did you mean 'craft'?)"),
        (
            f'knowledge = "omnicient"\n{CRAFT}return -rows',
            "says wrongly what it has to know",
            "'omnicient' (did you mean",
        ),
        (f"{CRAFT}return rows.long()", "gives rows of a wrong shape", "craft gave torch.int64, whole numbers"),
        (
            f"{CRAFT}self.calls = getattr(self, 'calls', 0) + 1\n    return rows * self.calls",
            "gives not the same bits twice",
            "craft gave other bits for the same seed in round 2",
        ),
        (f"{CRAFT}return rows[:1]", "gives rows of a wrong shape", "craft gave (1, 60) for (3, 60)"),
        (f"{CRAFT}return rows.tolist()", "gives rows of a wrong shape", "craft gave a list, a tensor is needed"),
        (f"{CRAFT}return rows.neg_()", "changes its input", "craft changed the malicious rows in place"),
        (
            f"seen = []\n{CRAFT}if ctx.knowledge != 'own':\n        return -rows\n"
            "    if self.seen and ctx.clients[0] <= self.seen[-1][0]:\n        self.seen.clear()\n"
            "    self.seen.append((ctx.clients[0], rows))\n    return rows + self.seen[0][1]",
            "reads what the threat model hides",
            "another attacker's row changed the result under knowledge = 'own'",
        ),
        (
            f"{CRAFT}return rows + torch.randn_like(rows)",
            "uses the global random state",
            "a hook used torch's global generator",
        ),
        (
            "def poison(self, examples, node):\n    np.random.seed(0)\n    return examples",
            "uses the global random state",
            "a hook used NumPy's global generator",
        ),
        (
            f"{CRAFT}return rows * random.random()",
            "uses the global random state",
            "a hook used Python's global generator",
        ),
        (
            "calls = 0\n" + CRAFT + "Mine.calls += 1\n    return rows * Mine.calls",
            "gives not the same bits twice",
            "craft gave other bits for the same seed in round 1",
        ),
        (
            f"{CRAFT}return -ctx.honest_rows.mean(0).expand_as(rows)",
            "reads what the threat model hides",
            "craft reached for hidden rows; the class says knowledge = 'own'",
        ),
        (
            f'knowledge = "colluding"\n{CRAFT}return -ctx.honest_rows.mean(0).expand_as(rows) '
            "if ctx.round > 3 else rows",
            "reads what the threat model hides",
            "craft reached for hidden rows; the class says knowledge = 'colluding'",
        ),
        (
            "def claimed_examples(self, num_examples, ctx):\n    return num_examples.mul_(10)",
            "changes its input",
            "claimed_examples changed the example counts so far in place",
        ),
        (
            f"{CRAFT}return rows.neg_() if ctx.round == 5 else rows",
            "changes its input",
            "craft changed the malicious rows in place",
        ),
        (
            f"{CRAFT}return rows * (2.0 if ctx.preview(rows).norm() > 0 else 1.0)",
            "reads what the threat model hides",
            "craft reached for hidden rows",
        ),
        (
            f'knowledge = "colluding"\n{CRAFT}out = rows.clone()\n    out[0] *= -1\n    return out',
            "depends on the clients' order",
            "craft depends on the order of the clients",
        ),
        (
            f"{CRAFT}return rows / rows.norm(dim=1, keepdim=True)",
            "gives numbers that are not finite",
            "from rows of size 0.0",
        ),
        (f"{CRAFT}return rows * self.missing", "raises an error", "AttributeError in line 9 of mine.py, in craft"),
        (
            "def after_step(self, parameters, step):\n    parameters.div_(parameters.norm())",
            "mixes clients in after_step",
            "other bits for clients in one chunk",
        ),
        (
            f'{CRAFT}ctx.state["me"] = self\n    return rows.clone()',
            "remembers what no checkpoint can hold",
            "holds a Mine",
        ),
        (
            "def poison(self, examples, node):\n    return type(examples)(examples.inputs, examples.targets + 5)",
            "poisons its data into what no client can train on",
            "labels that are no class",
        ),
        (
            "def triggered(self, test):\n    return type(test)(test.inputs, torch.zeros_like(test.targets))",
            "counts test images that prove nothing",
            "the target already",
        ),
    ],
)
def test_what_an_attack_gets_wrong(body: str, head: str, said: str) -> None:
    told = found(ATTACK_HEAD, body)
    assert any(each.head == head and said in each.said for each in told), [str(each) for each in told]
    assert all("\n" not in str(each) and str(each).startswith("attack 'mine.py:Mine' ") for each in told)
    assert all(each.advice for each in told)


def test_an_attack_may_wait_before_it_looks_at_honest_rows() -> None:
    body = (
        f'knowledge = "omniscient"\n{CRAFT}return -ctx.honest_rows.mean(0).expand_as(rows) if ctx.round > 1 else rows'
    )
    assert found(ATTACK_HEAD, body) == []


def test_a_setting_without_a_type_is_a_remark() -> None:
    (told,) = found(ATTACK_HEAD, f"strength = 3.0\n_table = 5\nsize: float = 1.0\n{CRAFT}return -self.strength * rows")
    assert (told.head, told.fault) == ("has a setting that is no option", False)
    assert told.said.startswith("strength = 3.0 has no type")


def test_one_fault_is_told_once() -> None:
    (told,) = [each for each in found(ATTACK_HEAD, f"{CRAFT}return rows.neg_()") if each.fault]
    assert told.head == "changes its input"


COMBINE = "def combine(self, updates, ctx):\n    result = super().combine(updates, ctx)\n    "
MEAN = "weights = updates.num_examples / updates.num_examples.sum()\n    "


@pytest.mark.parametrize(
    ("body", "head", "said"),
    [
        ("def agregate(self, updates, ctx):\n    return updates", "does nothing", "only 'agregate'"),
        (
            f"{COMBINE}return Aggregate(result.update, result.weights.float())",
            "gives something of a wrong shape",
            "combine gave weights of torch.float32, float64 is needed",
        ),
        (
            f"{COMBINE}return Aggregate(result.update[:5], result.weights)",
            "gives something of a wrong shape",
            "combine gave an update of shape (5,) for 60 parameters",
        ),
        (
            f"{COMBINE}return result.update",
            "gives something of a wrong shape",
            "combine gave a Tensor, an Aggregate is needed",
        ),
        (
            "def select(self, updates, ctx):\n    return Selection(updates.num_examples[:3])",
            "gives something of a wrong shape",
            "select gave weights of shape (3,) for 15 rows",
        ),
        (
            "def transform(self, updates, ctx):\n    updates.values.mul_(0.5)\n    return updates",
            "changes its input",
            "the defense changed values in place",
        ),
        (
            f"{COMBINE}result.update += 1e-3 * torch.randn(updates.d)\n    return result",
            "uses the global random state",
            "a stage used torch's global generator",
        ),
        (
            f"{COMBINE}np.random.seed(1)\n    return result",
            "uses the global random state",
            "a stage used NumPy's global generator",
        ),
        (
            f"calls = 0\n{COMBINE}Mine.calls += 1\n    result.update = result.update + Mine.calls\n    return result",
            "gives not the same bits twice",
            "the same seed and state gave other bits",
        ),
        (
            f"{COMBINE}{MEAN}return Aggregate(updates.values[0].clone(), weights)",
            "is not equal under permutation",
            "the update depends on the order of the clients",
        ),
        (
            f'{COMBINE}last = ctx.state.get("last", updates.values)\n    ctx.state["last"] = updates.values.clone()\n'
            "    result.update = result.update + 0.1 * (updates.values - last).mean(0)\n    return result",
            "does not survive a client that sends what is not finite",
            "in round 2, with 13 of 15 clients left, it raised RuntimeError",
        ),
        (
            f"{COMBINE}result.update = result.update / updates.values.std(dim=0).sum()\n    return result",
            "does not withstand what a client may send",
            "the update is not finite",
        ),
        (
            f"{COMBINE}{MEAN}return Aggregate(updates.values.sort(dim=0).values[2:-2].mean(0), weights * float('nan'))",
            "breaks on too few clients",
            "",
        ),
        (
            f"scale_equivariant = True\n{COMBINE}result.update = result.update.clamp(-0.1, 0.1)\n    return result",
            "does not scale with the updates",
            "",
        ),
        (f"{COMBINE}return result.missing", "raises an error", "AttributeError in line 11 of mine.py, in combine"),
    ],
)
def test_what_a_defense_gets_wrong(body: str, head: str, said: str) -> None:
    told = found(DEFENSE_HEAD, body)
    assert any(each.head == head and said in each.said for each in told), [str(each) for each in told]
    assert all("\n" not in str(each) and each.advice for each in told)


@pytest.mark.parametrize(
    ("step", "head"),
    [
        ("parameter.sub_(0.1 * parameter.grad / parameter.grad.norm())", "mixes clients"),
        ("parameter.sub_(0.1 * torch.rand_like(parameter) * parameter.grad)", "uses the global random state"),
        ("parameter.sub_(0.1 * torch.rand_like(parameter) * parameter.grad)", "gives not the same steps twice"),
    ],
)
def test_what_an_optimizer_gets_wrong(step: str, head: str) -> None:
    skeletons.write("optimizer", "mine")
    text = Path("mine.py").read_text()
    Path("mine.py").write_text(text.replace('parameter.sub_(group["lr"] * parameter.grad)', step))
    (subject,) = subjects("mine.py")
    assert head in [each.head for each in findings(subject)]


@pytest.mark.parametrize(
    ("old", "new", "head", "said"),
    [
        ("    row_wise = True\n", "", "cannot be built", "the class does not say whether it is row_wise"),
        ("def build(", "def built(", "cannot be built", "the class has no build"),
        (", scale: float = 1.0)", ")", "cannot be built", "does not take (parameters, scale)"),
        ("return Steps(", "Steps(", "cannot be built", "build gave a NoneType"),
        ("closure: None = None)", "closure: None)", "cannot be built", "step needs closure"),
        ("self.lr * scale", "self.lr", "does not heed schedules of the learning rate", "build(parameters, 0.5)"),
    ],
)
def test_what_an_optimizers_class_gets_wrong(old: str, new: str, head: str, said: str) -> None:
    skeletons.write("optimizer", "mine")
    text = Path("mine.py").read_text()
    assert text.count(old) == 1
    Path("mine.py").write_text(text.replace(old, new))
    (subject,) = subjects("mine.py")
    (told,) = findings(subject)
    assert told.head == head
    assert said in told.said


OBSERVER_HEAD = (
    "import random\nimport numpy as np\nimport torch\nfrom fedsim.observers.observer import Observation, Observer\n\n\n"
    "class Mine(Observer):\n"
)
LOOKS = 'standpoint: str = "server"\ndef observe(self, seen, state):\n    '


@pytest.mark.parametrize(
    ("body", "head", "said"),
    [
        ("def observe(self, seen, state):\n    return None", "has no standpoint", "its standpoint is None"),
        (
            f"{LOOKS}return None\ndef set_up(self, watched):\n    yield from super().set_up(watched)\n"
            "    from fedsim.errors import Fault\n    yield Fault('/data.clients', 6, 'more clients')",
            "does not fit a plain run",
            "given 6; accepted: more clients",
        ),
        (f"{LOOKS}return 1.0", "finds what no run can keep", "observe gave a float"),
        (
            f"{LOOKS}return Observation({{'model': seen.before}})",
            "finds what no run can keep",
            "measures hold what no JSON file can",
        ),
        (
            f"{LOOKS}return Observation({{}}, {{'images': np.zeros((3, 8, 8))}})",
            "finds what no run can keep",
            "picture 'images' has the shape (3, 8, 8)",
        ),
        (
            f"calls = 0\n{LOOKS}Mine.calls += 1\n    return Observation({{'calls': Mine.calls}})",
            "finds not the same twice",
            "observe found something else in the same run",
        ),
        (
            f"{LOOKS}self.heard = getattr(self, 'heard', 0) + 1\n    return Observation({{'heard': self.heard}})",
            "finds something else after a resume",
            "made anew after a round",
        ),
        (
            f"{LOOKS}return Observation({{'norm': float(seen.before.mul_(2).norm())}})",
            "changes its input",
            "observe changed what it was shown in place",
        ),
        (
            f"{LOOKS}(None if seen.total is None else seen.total.zero_())\n    return None",
            "changes its input",
            "observe changed what it was shown in place",
        ),
        (
            f"{LOOKS}seen.before.zero_() if seen.round == 6 else None\n    return None",
            "changes its input",
            "observe changed what it was shown in place",
        ),
        (
            f"{LOOKS}self.watched.test.inputs.zero_()\n    return None",
            "changes its input",
            "observe changed the test examples in place",
        ),
        (
            f"{LOOKS}self.watched.workload.train.targets.zero_()\n    return None",
            "changes its input",
            "observe changed the clients' labels in place",
        ),
        (
            f"{LOOKS}return Observation({{'drawn': float(torch.rand(()))}})",
            "uses the global random state",
            "it used torch's global generator",
        ),
        (
            f"{LOOKS}state['seen'] = {{1, 2}}\n    return None",
            "remembers what no checkpoint can hold",
            "state['seen'] holds a set",
        ),
        (
            f"{LOOKS}return Observation({{'first': min(seen.messages)}})",
            "needs what its standpoint hides",
            "observe broke where the sum of the messages alone is shown: ValueError",
        ),
        (f"{LOOKS}return seen.missing", "raises an error", "AttributeError in line 10 of mine.py, in observe"),
    ],
)
def test_what_an_observer_gets_wrong(body: str, head: str, said: str) -> None:
    told = found(OBSERVER_HEAD, body)
    assert any(each.head == head and said in each.said for each in told), [str(each) for each in told]
    assert all("\n" not in str(each) and each.advice for each in told)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gradient_inversion", {"iterations": 8}),
        ("gradient_inversion", {"iterations": 8, "standpoint": "client"}),
        ("membership_inference", {"shadows": 4}),
        ("membership_inference", {"shadows": 4, "round": 2, "standpoint": "client"}),
    ],
)
def test_the_observers_that_come_with_it_conform(name: str, options: dict[str, object]) -> None:
    assert [str(each) for each in findings(Subject("observer", name), **options)] == []


SLOW = f"""
{CRAFT}out = rows.clone()
    for column in range(rows.shape[1]):
        out[:, column] = -rows[:, column].sort().values.mean()
    return out
"""


def test_a_slow_part_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time is what is measured; the limit is far below what a loop over 20,000 columns takes."""
    monkeypatch.setattr(pace, "LIMIT", 5.0)
    body = 'knowledge = "colluding"\n' + SLOW.strip("\n")
    (told,) = found(ATTACK_HEAD, body)
    assert (told.head, told.fault) == ("is slow", False)
    assert "times as long as Krum" in told.said
    with pytest.warns(UserWarning, match="is slow"):
        conforms("mine.py")


PRODUCTS = "for _ in range(2000):\n        torch.ones(200, 200) @ torch.ones(200, 200)\n    "
BY_NUMBER = "for row in parameters:\n        for number in row:\n            number.mul_(2).add_(1)"
STEPPED, ROUND = "4 clients and 20,000 parameters", "30 clients and 20,000 parameters"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"def after_step(self, parameters, step):\n    {PRODUCTS}parameters.mul_(2)", f"after_step of {STEPPED}"),
        pytest.param(
            f"def after_step(self, parameters, step):\n    {BY_NUMBER}",
            f"after_step of {STEPPED}",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            f"def objective(self, loss, parameters, step):\n    {PRODUCTS}return -loss",
            f"objective of {STEPPED}",
            marks=pytest.mark.slow,
        ),
        (f"def poison(self, examples, node):\n    {PRODUCTS}return examples", "poison of 600 images"),
    ],
)
def test_a_hook_that_is_slow_in_every_step_is_a_remark_at_the_shipped_limit(body: str, said: str) -> None:
    (told,) = found(ATTACK_HEAD, body)
    assert (told.head, told.fault) == ("is slow", False)
    assert told.said.startswith(f"{said} takes ")
    assert "times as long as" in told.said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("learn", "learn of 600 images"),
        ("triggered", "triggered of 300 images"),
        ("shown", "shown of 300 images"),
        ("claimed_examples", f"claimed_examples of {ROUND}"),
        ("observe", f"observe of {ROUND}"),
    ],
)
def test_a_hook_that_is_slow_in_every_round_is_a_remark_at_the_shipped_limit(hook: str, said: str) -> None:
    def slow(self: Attack, *given: Any) -> None:
        for _ in range(200 if hook == "observe" else 6000):
            torch.ones(200, 200) @ torch.ones(200, 200)

    assert pace.remark("attack", type("Slow", (Attack,), {hook: slow})).startswith(f"{said} takes ")


@pytest.mark.slow
def test_an_optimizer_whose_steps_are_slow_is_a_remark_at_the_shipped_limit() -> None:
    class Heavy(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for _ in range(500):
                torch.ones(200, 200) @ torch.ones(200, 200)
            super().step()

    class Slow:
        row_wise = True

        def build(self, parameters: Any, scale: float = 1.0) -> Heavy:
            return Heavy(parameters, lr=0.1 * scale)

    said = pace.remark("optimizer", Slow)
    assert said.startswith("training of 2 clients takes ")
    assert said.endswith(" times as long as that by plain SGD")
    for name in ("sgd", "adam", "gns", "sam_gs"):
        assert pace.remark("optimizer", lambda name=name: registry.make("optimizer", name)) == ""


@pytest.mark.parametrize("kind", ["attack", "defense", "observer", "optimizer"])
def test_a_skeleton_is_short_and_gets_nothing_wrong(kind: str) -> None:
    file = skeletons.write(kind, f"my_{kind}")
    assert len(file.read_text().splitlines()) <= 40
    assert [str(subject) for subject in subjects(file)] == [f"{kind} 'my_{kind}'"]
    conforms(file)


def test_the_next_steps_can_be_copied_from_a_folder_with_a_space() -> None:
    Path("plug ins").mkdir()
    file = skeletons.write("attack", "mine", Path("plug ins"))
    run, check = skeletons.next_steps("attack", "mine", file)
    assert shlex.split(run)[4] == shlex.split(check)[2] == "plug ins/mine.py"


def test_a_pytest_function_gets_all_lines_at_once() -> None:
    Path("mine.py").write_text(f"{ATTACK_HEAD}    {CRAFT}    return rows.neg_() + torch.randn_like(rows)\n")
    with pytest.raises(AssertionError) as caught:
        conforms("mine.py:Mine")
    lines = str(caught.value).splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("attack 'mine.py:Mine' ") for line in lines)


def test_options_reach_the_part() -> None:
    Path("mine.py").write_text(
        f"{ATTACK_HEAD}    size: int\n    {CRAFT}    return rows[: self.size].clone() if self.size else rows.clone()\n"
    )
    conforms("mine.py", size=0)
    with pytest.raises(AssertionError, match="wrong shape"):
        conforms("mine.py", size=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "mine.py: given no part that can be checked; accepted: a class derived from"),
        ("raise RuntimeError('no')\n", "mine.py: importing mine.py raised RuntimeError in line 1 of mine.py: no"),
    ],
)
def test_a_file_without_parts(text: str, said: str) -> None:
    Path("mine.py").write_text(text)
    with pytest.raises(FedsimError, match=said):
        conforms("mine.py")
    with pytest.raises(FedsimError, match=r"none\.py: there is no file none\.py"):
        conforms("none.py")


def test_names_that_no_skeleton_takes() -> None:
    for kind, name, said in [
        ("attack", "sign_flip", "the name of an attack already"),
        ("defense", "My-Defense", "small letters"),
        ("defense", "torch", "a module that others import"),
        ("attack", "random", "a module that others import"),
        ("model", "mine", "accepted: attack, defense, observer, optimizer"),
    ]:
        with pytest.raises(FedsimError, match=said):
            skeletons.write(kind, name)
    skeletons.write("attack", "mine")
    with pytest.raises(FedsimError, match="is there already"):
        skeletons.write("attack", "mine")
