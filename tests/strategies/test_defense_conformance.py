"""Every registered defense, with its options varied, keeps to the conformance suite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.registry import make, names
from fedsim.testing import defenses
from strategies.defense import Defense, Round

NAMES = [name for name in names("defense") if not name.startswith("flwr:")]
VARIANTS = [
    *[(name, {}) for name in NAMES],
    ("trimmed_mean", {"trim": 2}),
    ("trimmed_mean", {"trim": 0.25}),
    ("krum", {"malicious": 3}),
    ("multi_krum", {"malicious": 2, "keep": 3}),
    ("multi_krum", {"keep": 0.5}),
    ("bulyan", {"malicious": 0}),
    ("bulyan", {"malicious": 2}),
    ("nnm", {"malicious": 4}),
    ("centered_clipping", {"radius": 1.0, "iterations": 3}),
    ("norm_bound", {"radius": 0.5}),
    ("reclip", {"radius": 0.5}),
    ("multi_metrics", {"variant": "paper"}),
    ("multi_metrics", {"weighting": "max"}),
    ("multi_metrics", {"metrics": ["manhattan"], "keep": 5}),
    ("caf", {"malicious": 5}),
    ("mda", {"malicious": 4}),
    ("smea", {"malicious": 3}),
    ("dnc", {"malicious": 3, "coordinates": 20, "iterations": 3}),
    ("bucketing", {"size": 4}),
    ("meamed", {"malicious": 4}),
    ("foolsgold", {"features": "output"}),
    ("flame", {"of": "updates"}),
    ("signguard", {"similarity": True}),
    ("robust_learning_rate", {"threshold": 6}),
    ("winsorized_mean", {"percent": 25.0}),
    ("deepsight", {"shape": [14], "samples": 50}),
    ("sam_gs", {"gamma": 0.99}),
]


@pytest.mark.parametrize("check", defenses.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: str(value))
def test_conforms(name, options, check):
    check(lambda: make("defense", name, **options))


EQUIVARIANT = [name for name in NAMES if type(make("defense", name)).translation_equivariant]


@pytest.mark.parametrize("name", EQUIVARIANT)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shift=st.lists(st.floats(-1e3, 1e3), min_size=defenses.DIMENSION, max_size=defenses.DIMENSION),
    factor=st.floats(1e-6, 1e6),
)
def test_moves_and_scales_with_the_updates(name, shift, factor):
    defenses.translates(lambda: make("defense", name), torch.tensor(shift, dtype=torch.float64))
    defenses.scales(lambda: make("defense", name), factor)


def test_the_classics_declare_what_they_are():
    both = {"fedavg", "median", "trimmed_mean", "geometric_median", "krum", "multi_krum", "bulyan", "nnm"}
    assert both <= set(EQUIVARIANT)
    assert not type(make("defense", "norm_bound")).translation_equivariant


class FirstClient(Defense):
    def select(self, updates, ctx):
        return type(super().select(updates, ctx)).of(0, updates)


class Forgetful(Defense):
    calls = 0

    def combine(self, updates, ctx):
        Forgetful.calls += 1
        result = super().combine(updates, ctx)
        result.update = result.update + Forgetful.calls
        return result


class InPlace(Defense):
    def transform(self, updates, ctx):
        updates.values.mul_(0.5)
        return updates


class Fragile(Defense):
    def combine(self, updates, ctx):
        result = super().combine(updates, ctx)
        result.update = result.update / updates.values.std(dim=0).sum()
        return result


class Translating(Defense):
    translation_equivariant = True
    scale_equivariant = True

    def combine(self, updates, ctx):
        result = super().combine(updates, ctx)
        result.update = result.update.clamp(-0.1, 0.1)
        return result


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (FirstClient, defenses.ignores_order),
        (Forgetful, defenses.repeats),
        (InPlace, defenses.leaves_input),
        (Fragile, defenses.withstands),
        (Translating, defenses.translates),
        (Translating, defenses.scales),
    ],
    ids=lambda value: value.__name__,
)
def test_the_suite_finds_what_it_looks_for(broken, check):
    with pytest.raises(AssertionError):
        check(broken)


def test_aggregate_without_a_context_is_a_round_of_its_own():
    rows = defenses.updates()
    alone = make("defense", "krum").aggregate(rows)
    assert torch.equal(alone.update, make("defense", "krum").aggregate(rows, Round(part="krum")).update)
