"""Scenarios of the papers hold a method beside its control, in one file or in two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fedsim.scenario import cells, read
from fedsim.simulation import simulate

WALKS = ("normalized_sgd", "spherical_langevin")
PAPERS: dict[str, tuple[tuple[str, ...], str, set[str]]] = {
    "Hessian alignment": (("hessian_alignment",), "hessian_alignment", set()),
    "diffGrad": (("diffgrad",), "diffgrad", {"adam"}),
    "Langevin": (("langevin",), "langevin", {"sgd"}),
    "SAM-GS": (("sam_gs",), "sam_gs", {"fedavg"}),
    "gradient-normalized smoothness": (("gns", "gns_controls"), "gns", {"sgd"}),
    "softmax radius, the server's": (("softmax_radius",), "softmax_cap", {"fedavg"}),
    "softmax radius, the clients'": (("softmax_radius_control",), "softmax_radius", {"sgd"}),
    "harmonic": (("harmonic",), "harmonic", {"cross_entropy"}),
    "prototypes by class": (("harmonic_average",), "prototype_average", {"fedavg"}),
    "language": (("harmonic_language",), "harmonic", {"cross_entropy"}),
    "coherence, the server's": (("coherence",), "rm3", {"fedavg"}),
    **{f"planted, {name}": (("langevin_planted",), name, {"spherical_sgd"}) for name in WALKS},
    "planted, even": (("langevin_planted_even",), "even_sgd", {"spherical_sgd"}),
    "two objectives": (("sam_gs_two_objectives",), "sam_gs", {"adam"}),
    **{name: ((name,), "hessian_alignment", set()) for name in ("cmnist", "cmnist_fedavg")},
    **{f"coherence, {name}": (("coherence_noise",), name, {"sgd"}) for name in ("winsorized", "rm3", "m3", "ra3")},
}
"""Files; the method; parts of the control, which is without the method."""


def names(value: Any) -> Iterator[str]:
    """Of all parts in a scenario's tables."""
    if isinstance(value, dict):
        if "name" in value:
            yield value["name"]
        for each in value.values():
            yield from names(each)
    elif isinstance(value, list):
        for each in value:
            yield from names(each)


@pytest.mark.parametrize("name", PAPERS)
def test_a_method_stands_beside_its_control(name: str) -> None:
    files, method, control = PAPERS[name]
    found = [set(names(scenario.table())) for file in files for _, scenario in cells(read(f"papers/{file}"), file)]
    assert any(method in parts for parts in found)
    assert any(method not in parts and control <= parts for parts in found)


def test_gns_controls_are_gradient_descent_and_fedavg_on_the_same_shards() -> None:
    method, controls = read("papers/gns"), cells(read("papers/gns_controls"), "gns_controls")
    assert [scenario.client.steps for _, scenario in controls] == [1, 5]
    assert controls[0][1].client.batch_size >= method["data"]["dataset"]["examples"]
    for key in ("data", "model", "engine", "evaluate"):
        assert read("papers/gns_controls")[key] == method[key]


def test_monge_gaps_map_stands_beside_the_identity_and_the_divergence_alone() -> None:
    """In either form of the map, since from the identity the gap may have nothing to do."""
    found = [scenario for _, scenario in cells(read("papers/monge_gap"), "monge_gap")]
    options = [each.client.adapter.options for each in found if each.client.adapter is not None]
    assert [each.seed for each in found] == [0, 1, 2] * 5
    learned = [each for each in options if each["steps"] > 1]
    assert {(each["residual"], each["gap_weight"]) for each in learned} == {
        (residual, weight) for residual in (True, False) for weight in (1.0, 0.0)
    }
    assert {each["steps"] for each in learned} == {150}
    assert [each["lr"] for each in options if each["steps"] == 1] == [1e-12] * 3


def test_generalization_is_seen_at_one_local_step_and_at_more_and_beyond_the_stop() -> None:
    found = [scenario for _, scenario in cells(read("papers/generalization"), "generalization")]
    assert [each.client.steps for each in found] == [1, 5, 20]
    assert all([part.name for part in each.server.analysis] == ["generalization"] for each in found)
    first = found[0].changed(rounds=1)
    rounds_of_one = simulate(first.changed(**{"engine.workers": 1})).lines[-1]["generalization.stopping_round"]
    assert 100 < rounds_of_one < found[0].rounds
