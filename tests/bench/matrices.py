"""A matrix of short cells that several tests run."""

from __future__ import annotations

HEAD = """
rounds = {rounds}
[data]
clients = 6
partition = {{ name = "dirichlet", alpha = 0.5 }}
[client]
per_round = 4
steps = 2
[model]
name = "logistic"
[adversary]
count = 1
selection = "forced"
[evaluate]
every = 2
[engine]
workers = 1
[matrix]
"""


def matrix(rounds: int = 4, seeds: int = 2, attacks: str = "", defenses: str = "") -> str:
    """The file's text."""
    attacks = attacks or '["sign_flip"], [{ name = "badnets", target = 0 }]'
    defenses = defenses or '["fedavg"], ["median"]'
    return HEAD.format(rounds=rounds) + (
        f'"server.defenses" = [{defenses}]\n"adversary.attacks" = [{attacks}]\nseed = {list(range(seeds))}\n'
    )
