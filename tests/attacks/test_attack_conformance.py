"""Every registered attack passes the suite that plug-ins are given, and the suite finds attacks that are at fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks.attack import Attack
from fedsim import registry
from fedsim.testing import attacks as suite


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names("attack"))
def test_registered_attack(name, check):
    check(lambda: registry.make("attack", name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sign_flip", {"of": "mean"}),
        ("gaussian", {"mode": "added"}),
        ("min_max", {"direction": "unit"}),
        ("min_sum", {"direction": "sign"}),
        ("non_finite", {"value": "inf"}),
        ("free_rider", {"mode": "previous", "noise": 0.1}),
        ("label_flip", {"map": {"1": 7}}),
        ("badnets", {"trigger": {"name": "pixels"}, "ratio": 20}),
        ("edge_case", {"mode": "lowest_density", "examples": 30}),
        ("badnets", {"trigger": {"name": "sinusoid"}}),
        ("dba", {"trigger": {"name": "blend"}}),
        ("constrain_and_scale", {"anomaly": "cosine"}),
        ("sinusoidal", {"labels": "flipped"}),
        ("neurotoxin", {"top": 0.5}),
        ("optimal", {"attack": {"name": "sign_flip", "of": "mean"}, "goal": "success"}),
    ],
)
def test_options_change_nothing_of_it(name, options):
    make = lambda: registry.make("attack", name, **options)  # noqa: E731
    for check in suite.CHECKS:
        if (name, check) != ("sign_flip", suite.keeps_to_its_knowledge):
            check(make)


class First(Attack):
    def craft(self, rows, ctx):
        crafted = rows.clone()
        crafted[0] = -crafted[0]
        return crafted


class InPlace(Attack):
    def craft(self, rows, ctx):
        return rows.neg_()


class GlobalNoise(Attack):
    def craft(self, rows, ctx):
        return rows + torch.randn_like(rows)


class Reseeds(Attack):
    def poison(self, examples, node):
        np.random.seed(0)
        return examples


class Peeks(Attack):
    def craft(self, rows, ctx):
        return -ctx.honest().mean(0).expand_as(rows)


class Divides(Attack):
    def craft(self, rows, ctx):
        return rows / rows.norm(dim=1, keepdim=True)


class WholeTestSet(Attack):
    def triggered(self, test):
        from fedsim.data.examples import Examples

        return Examples(test.inputs, torch.zeros_like(test.targets))


class Shrinks(Attack):
    def craft(self, rows, ctx):
        return rows[:1]


class ChunkNorm(Attack):
    def after_step(self, parameters, step):
        parameters.div_(parameters.norm())


class RemembersItself(Attack):
    def craft(self, rows, ctx):
        ctx.state["me"] = self
        return rows


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (First, suite.permutes),
        (InPlace, suite.leaves_input),
        (GlobalNoise, suite.repeats),
        (GlobalNoise, suite.leaves_global_randomness),
        (Reseeds, suite.leaves_global_randomness),
        (Peeks, suite.keeps_to_its_knowledge),
        (Divides, suite.stays_finite),
        (WholeTestSet, suite.excludes_the_target),
        (ChunkNorm, suite.steps_row_by_row),
        (RemembersItself, suite.remembers_plainly),
    ],
)
def test_suite_finds_faults(wrong, check):
    with pytest.raises(AssertionError):
        check(wrong)


def test_rows_of_another_shape_are_refused():
    from fedsim.errors import FedsimError

    rows, honest = suite.federation()
    with pytest.raises(FedsimError, match=r"accepted: \(3, 60\)"):
        suite.play(Shrinks(), rows, honest)
