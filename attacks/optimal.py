"""The optimal variant of another attack: one scalar of it, searched through the actual server.

Every round the adversary crafts with each candidate value of ``option``, runs the server on the rows (its own memory,
pre-aggregators, filters, aggregator and optimizer, on copied state: ``preview``) and sends the rows that did best:

    damage:   the largest ‖w(rows) − w(honest)‖, w(rows) the parameters after the round with these rows, w(honest)
              with the malicious clients' rows as they trained
    success:  the smallest ‖w(rows) − w*‖, w* = w_received + the mean malicious row as trained: the backdoored model,
              whose place the new one is to take; a stand-in for the ASR, which no candidate is evaluated for

As ByzFL's Optimal_* attacks, but for a goal of choice and through the server's step and memory as well. The search is
a scan of ``steps`` values between ``low`` and ``high``, then a golden-section refinement around the best, ties to the
smaller value (ByzFL doubles its step from ``start`` on while that helps, and may end before a higher peak). Rows that
make the server fail count as worst.

Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", AISTATS 2023,
arXiv:2302.01772 (line search over the attack's factor); Shejwalkar and Houmansadr, NDSS 2021.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from attacks.attack import Attack, Craft, attack, overrides
from fedsim import registry
from fedsim.blocks import exact
from fedsim.errors import Fault, FedsimError, ScenarioError, UpdatesError

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

GOLDEN = (5**0.5 - 1) / 2
SCALARS = {"alie": "z", "ipm": "epsilon", "sign_flip": "scale", "model_replacement": "scale", "gaussian": "scale"}
"""The scalar of each of our attacks that has one."""


@attack("optimal")
class Optimal(Attack):
    """Another attack with its scalar at the best value for this round and this defense.

    Args:
        attack: the attack, by name or as a table with its other options.
        option: its scalar; known for alie, ipm, sign_flip, model_replacement and gaussian.
        low: smallest value tried.
        high: largest value tried.
        steps: values of the scan.
        refine: golden-section steps around the best of them.
        goal: ``damage``, or ``success`` of what the malicious clients trained: the new model's distance to the mean of
            theirs is a stand-in for ASR, which is not evaluated.
    """

    cost = "(steps + refine) runs of the server"
    knowledge = "omniscient"
    knows_defense = True

    attack: str | dict[str, Any] = "ipm"
    option: str = ""
    low: Annotated[float, Field(ge=0)] = 0.1
    high: Annotated[float, Field(gt=0)] = 10.0
    steps: Annotated[int, Field(ge=2)] = 12
    refine: Annotated[int, Field(ge=0)] = 6
    goal: Literal["damage", "success"] = "damage"

    def check(self, scenario: Scenario) -> Iterable[Fault]:
        name, options, option = self.table()
        if self.low >= self.high:
            yield Fault("low", self.low, f"less than high = {self.high}")
        for end in (self.high, self.low):
            try:
                inner = registry.make("attack", name, **options | ({option: end} if option else {}))
            except ScenarioError as error:
                yield from (Fault(f"attack.{fault.key}", fault.given, fault.accepted) for fault in error.faults)
                return
            except FedsimError as error:
                yield Fault("attack", self.attack, str(error))
                return
        if not overrides(inner, "craft"):
            yield Fault("attack", self.attack, "an attack that crafts rows")
        if not option:
            known = [each.name for each in registry.options(type(inner))]
            yield Fault("option", self.option, f"the scalar of '{name}' to search, one of: {', '.join(known)}")

    def craft(self, rows: Tensor, ctx: Craft) -> Tensor:
        honest_outcome = exact(ctx.preview(rows))
        wanted = exact(ctx.reference) + exact(rows).mean(dim=0)
        tried: dict[float, tuple[float, Tensor, dict[str, Any]]] = {}

        def gain(value: float) -> float:
            if value not in tried:
                state: dict[str, Any] = copy.deepcopy(ctx.state.get("inner", {}))
                crafted = self.with_value(value).craft(rows, ctx.with_state(state))
                try:
                    outcome = exact(ctx.preview(crafted))
                except UpdatesError:
                    tried[value] = (-math.inf, rows, state)
                else:
                    away = outcome - (honest_outcome if self.goal == "damage" else wanted)
                    length = float(torch.linalg.vector_norm(away))
                    tried[value] = (length if self.goal == "damage" else -length, crafted, state)
            return tried[value][0]

        values = torch.linspace(self.low, self.high, self.steps, dtype=torch.float64).tolist()
        best = max(range(len(values)), key=lambda i: (gain(values[i]), -i))
        left, right = values[max(best - 1, 0)], values[min(best + 1, len(values) - 1)]
        for _ in range(self.refine):
            inner = right - GOLDEN * (right - left), left + GOLDEN * (right - left)
            left, right = (left, inner[1]) if gain(inner[0]) >= gain(inner[1]) else (inner[0], right)
        value = max(sorted(tried), key=gain)
        ctx.state["value"], ctx.state["gain"], ctx.state["inner"] = value, tried[value][0], tried[value][2]
        return tried[value][1].clone()

    def table(self) -> tuple[str, dict[str, Any], str]:
        """Name and options of the inner attack, and the scalar that is searched."""
        options = {"name": self.attack} if isinstance(self.attack, str) else dict(self.attack)
        name = str(options.pop("name", ""))
        return name, options, self.option or SCALARS.get(name, "")

    def with_value(self, value: float) -> Attack:
        """The inner attack with its scalar at this value."""
        name, options, option = self.table()
        built: Attack = registry.make("attack", name, **options | {option: value})
        return built
