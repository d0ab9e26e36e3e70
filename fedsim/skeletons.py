"""The first file of a plug-in: what ``fedsim new attack NAME`` writes runs, and passes ``fedsim check``, at once."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shlex
from pathlib import Path

from fedsim import registry
from fedsim.errors import FedsimError, nearest

ATTACK = '''"""In one sentence: what the malicious clients do, and why it harms.

    row_i ← -strength · mean of the rows that the adversary knows

Author, "Title", venue year, arXiv number.
"""

from __future__ import annotations

from torch import Tensor

from attacks.attack import Attack, Craft, attack


@attack("{name}")
class {class_name}(Attack):
    """Sends the mean of what it knows, turned around and stretched.

    Args:
        strength: factor on the turned mean.
    """

    knowledge = "colluding"  # "own": each client sees its own row; "omniscient": the honest rows as well

    strength: float = 3.0

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        """The (f, d) rows to send in place of ``rows``; other hooks: see attacks/attack.py."""
        return (-self.strength * ctx.seen().mean(dim=0)).expand_as(rows).clone()
'''

DEFENSE = '''"""In one sentence: what the server does with the updates, and against what.

    score_i = ‖row_i - coordinate-wise median‖; the rows with the highest scores are dropped

Author, "Title", venue year, arXiv number.
"""

from __future__ import annotations

import torch

from fedsim.updates import Selection, Updates
from strategies.defense import Defense, Round, defense


@defense("{name}")
class {class_name}(Defense):
    """Keeps the updates that are nearest to the median.

    Args:
        keep: share of the clients that is kept.
    """

    keep: float = 0.7

    def select(self, updates: Updates, ctx: Round) -> Selection:
        """Weights of the rows, 0 drops one; other stages: see strategies/defense.py."""
        rows = updates.values.double()
        distances = (rows - rows.median(dim=0).values).norm(dim=1)
        kept = distances <= distances.quantile(self.keep)
        return Selection(torch.where(kept, updates.num_examples, 0.0), distances)
'''

OPTIMIZER = '''"""In one sentence: what is new about the step.

    x ← x - lr · g

Author, "Title", venue year, arXiv number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.optim.elementwise import optimizer


class Steps(torch.optim.Optimizer):
    """Acts on each number alone (``row_wise``): a parameter may be (k, d), k clients at once."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad)


@optimizer("{name}")
class {class_name}:
    """Gradient descent.

    Args:
        lr: learning rate.
    """

    row_wise = True
    lr: float = 0.05

    def build(self, parameters: Sequence[Tensor], scale: float = 1.0) -> torch.optim.Optimizer:
        return Steps(list(parameters), {{"lr": self.lr * scale}})
'''

OBSERVER = '''"""In one sentence: what somebody who only watches learns of the clients' data, and from what.

    size_i = ‖what client i sent‖, held against the number of its examples

Author, "Title", venue year, arXiv number.
"""

from __future__ import annotations

from typing import Any

from fedsim.observers.observer import Observation, Observer, Seen, Standpoint, observer


@observer("{name}")
class {class_name}(Observer):
    """How long each client's message is.

    Args:
        standpoint: server or client; see fedsim/observers/observer.py for what each sees.
    """

    standpoint: Standpoint = "server"

    def observe(self, seen: Seen, state: dict[str, Any]) -> Observation | None:
        """Numbers for observations.json; memory belongs into state, random numbers come from self.watched.stream."""
        if not seen.messages:
            state["why"] = "no single message is shown to it"
            return None
        return Observation({{"lengths": {{str(i): float(sent.vector.norm()) for i, sent in seen.messages.items()}}}})
'''

TEXTS = {"attack": ATTACK, "defense": DEFENSE, "observer": OBSERVER, "optimizer": OPTIMIZER}
KEYS = {
    "attack": 'adversary.attacks=["{name}"]',
    "defense": 'server.defenses=["{name}"]',
    "observer": 'observe.observers=["{name}"]',
    "optimizer": "client.optimizer={name}",
}
"""How a scenario names a part of the kind."""


def write(kind: str, name: str, folder: str | Path = ".") -> Path:
    """Write ``NAME.py``, a part of this kind and name that runs.

    Raises:
        FedsimError: no skeleton of this kind; a name that cannot be one, or is taken; a file that is there already.
    """
    if kind not in TEXTS:
        raise FedsimError(f"kind: given '{kind}'; accepted: {', '.join(TEXTS)}{nearest(kind, TEXTS)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise FedsimError(f"name: given '{name}'; accepted: small letters, digits and _, e.g. my_{kind}")
    if name in registry.names(kind):
        raise FedsimError(f"name: given '{name}', which is the name of {_article(kind)} already; accepted: another one")
    file = Path(folder) / f"{name}.py"
    if not file.exists() and importlib.util.find_spec(name) is not None:
        raise FedsimError(
            f"name: given '{name}', which is the name of a module that others import and that {name}.py would hide; "
            f"accepted: another one, e.g. my_{name}"
        )
    class_name = "".join(word.capitalize() for word in name.split("_"))
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(TEXTS[kind].format(name=name, class_name=class_name))
    except FileExistsError as error:
        raise FedsimError(f"{file}: is there already; accepted: a new name, or --out with another folder") from error
    except OSError as error:
        accepted = "a folder that exists and that you may write to"
        raise FedsimError(f"{file}: cannot be written: {error.strerror}; accepted: {accepted}") from error
    return file


def next_steps(kind: str, name: str, file: Path) -> list[str]:
    """The commands that run the new part and check it."""
    key = KEYS[kind].format(name=name)
    path = shlex.quote(str(file))
    return [f"fedsim run quickstart --plugin {path} --set '{key}'", f"fedsim check {path}"]


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeio" else f"a {kind}"


__all__ = ["next_steps", "write"]
