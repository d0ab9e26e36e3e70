"""What of a scenario a part's ``check`` is shown: an attack sees no defense, unless it may, a defense no attack.

Neither is shown the seed, from which the other's dice follow, the ``[matrix]``, which may hold all of it, the title,
which may say it, nor the ``plugins``, whose files' names may.
"""

from __future__ import annotations

from fedsim.tables import Tables

ATTACKING = ("attack", "schedule")
"""Kinds of the parts of ``[adversary]``."""
DEFENDING = ("defense", "estimator", "sampler", "server_optimizer")
"""Kinds of the parts of ``[server]`` that move the model."""
RIGHT = "adversary.knows_defense = true with adversary.knowledge = 'omniscient'"


def shown(scenario: Tables, kind: str) -> Tables:
    """The scenario as a part of this kind may read it; what is hidden raises a KnowledgeError that names its right."""
    if kind not in (*ATTACKING, *DEFENDING):
        return scenario
    who = f"every {kind}"
    hidden = {
        "seed": f"seed: hidden from {who}; accepted: in a run ctx.stream('purpose'), whose numbers stand on it",
        "matrix": f"matrix: hidden from {who}; accepted: the keys themselves, as they are in each of its cells",
        "title": f"title: hidden from {who}; accepted: the tables, of which the title tells people",
        "plugins": f"plugins: hidden from {who}; accepted: the parts that they register, by name",
    }
    if kind in DEFENDING:
        return scenario.without({**hidden, "adversary": f"adversary: hidden from {who}, with all that it says"})
    server = scenario.server
    if not scenario.adversary.knows_defense:
        told = {key: f"server.{key}: hidden from {who}; accepted: {RIGHT}" for key in ("defenses", "estimator")}
        server = server.without(told)
    return scenario.model_copy(update={"server": server}).without(hidden)
