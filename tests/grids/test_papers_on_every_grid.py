"""One digest for every paper's part: on threads, on Ray, over Flower's wire, killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.common.serde import message_from_proto, message_to_proto

from fedsim import registry
from fedsim.federation import build
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from tests.simulation.test_exchanges import Foreign
from tests.simulation.test_same_bits import cluster, interrupted

__all__ = ["cluster"]

TABLES: dict[str, Any] = {
    "rounds": 2,
    "data": {
        "dataset": {"name": "synthetic_classification", "features": 6, "classes": 3, "examples": 160, "test": 40},
        "partition": {"name": "dirichlet", "alpha": 1.0, "min_examples": 4},
        "clients": 6,
        "root": 24,
    },
    "model": {"name": "mlp", "hidden": [8]},
    "client": {"per_round": 5, "steps": 3, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
    "evaluate": {"every": 1},
}
PERSIST = {"client.optimizer_state": "persist"}
NUMBERS = {
    "data.dataset": {"name": "teacher_student", "inputs": 8, "examples": 60, "test": 30},
    "data.partition": {"name": "iid"},
    "model": {"name": "linear"},
}
PLANTED = {
    "data.dataset": {"name": "planted", "dimensions": 6, "examples": 60, "test": 30},
    "data.partition": {"name": "iid"},
    "model": {"name": "single_index"},
    "client.loss": "correlation",
}
ALIGNED = {"name": "hessian_alignment", "alpha": 1.0, "beta": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "hgp": {"client.regularizers": [ALIGNED]},
    "hgp, exact": {"client.regularizers": [{**ALIGNED, "reference": "exact"}]},
    "diagonal, lagged": {"client.regularizers": [{**ALIGNED, "method": "diagonal", "references": "lagged"}]},
    "hgp, lagged": {"client.regularizers": [{**ALIGNED, "references": "lagged"}]},
    "hutchinson": {"client.regularizers": [{**ALIGNED, "method": "diagonal", "hutchinson_samples": 3}]},
    **{name: {"client.regularizers": [{"name": name, "weight": 1.0}]} for name in ("coral", "irm", "vrex", "fishr")},
    "diffgrad": {"client.optimizer": {"name": "diffgrad"}, **PERSIST},
    "diffgrad, its friction told": {"client.optimizer": {"name": "diffgrad", "log_friction": True}},
    "diffgrad on the server": {"server.optimizer": {"name": "diffgrad"}},
    "langevin": {"client.optimizer": {"name": "langevin", "temperature": 1e-4}},
    "spherical_langevin": {"client.optimizer": {"name": "spherical_langevin"}},
    **{
        f"planted, {name}": {**PLANTED, "client.optimizer": {"name": name, "lr": 0.1}}
        for name in ("normalized_sgd", "spherical_sgd", "spherical_langevin")
    },
    **{
        f"planted, {name}": {
            **PLANTED,
            "data.dataset": {**PLANTED["data.dataset"], "exponent": 4},
            "model": {"name": "single_index", "exponent": 4},
            "client.optimizer": {"name": name, "lr": 0.1},
        }
        for name in ("even_sgd", "even_spherical_langevin")
    },
    "two objectives": {"client.loss": "with_reconstruction"},
    "two objectives, sam_gs": {"client.loss": "with_reconstruction", "client.optimizer": "sam_gs"},
    "normalized_sgd": {"client.optimizer": {"name": "normalized_sgd"}},
    **{
        name: {"server.defenses": [name]}
        for name in ("sam_gs", "pcgrad", "cagrad", "softmax_cap", "softmax_radius", "prototype_average")
    },
    **{
        f"gns, {curvature}": {
            "client": {"per_round": 5},
            "model": {"name": "logistic"},
            "server.estimator": {"name": "gns", "curvature": curvature, "l2": 1e-3},
            "engine.precision": "float64",
        }
        for curvature in ("gauss_newton", "empirical_fisher", "exact", "zero")
    },
    "gns on the clients": {"client.optimizer": {"name": "gns"}, **PERSIST, "engine.precision": "float64"},
    "step control": {"client.step_control": {"name": "softmax_radius", "quantile": 0.9}},
    "harmonic": {"client.loss": {"name": "harmonic", "mask_absent": True}},
    "harmonic, cosine": {"client.loss": {"name": "harmonic", "distance": "cosine"}},
    "monge_gap": {"client.adapter": {"name": "monge_gap", "steps": 2, "hidden": [4], "batch_size": 8}},
    **{name: {"client.optimizer": {"name": name, "lr": 0.05}, **PERSIST} for name in ("rm3", "m3", "ra3")},
    "winsorized": {"client.optimizer": {"name": "winsorized", "momentum": 0.9}, **PERSIST},
    "rm3 on the server": {"rounds": 4, "server.defenses": ["rm3"]},
    "winsorized_mean": {"server.defenses": ["winsorized_mean"]},
    "multi_metrics": {"server.defenses": [{"name": "multi_metrics", "keep": 0.6}]},
    "coherence": {"server.analysis": [{"name": "coherence", "examples": True}]},
    "generalization": {**NUMBERS, "server.analysis": ["generalization"]},
}


def scenario(name: str, **more: Any) -> Scenario:
    case = {**CASES[name], **more}
    tables = {**TABLES, **{key: value for key, value in case.items() if "." not in key}}
    return Scenario(**tables).changed(**{key: value for key, value in case.items() if "." in key})


BY_VMAP = {"gns on the clients"}
"""Takes products with the Hessian, which the stacked path does not give."""


@pytest.mark.parametrize("name", CASES)
def test_many_clients_train_at_once(name: str) -> None:
    path = build(scenario(name)).app.path
    assert path.name == ("vmap" if name in BY_VMAP else "stacked"), path.reason


@pytest.mark.parametrize("penalty", ["hgp", "diagonal, lagged", "coral", "fishr"])
def test_a_second_order_step_takes_penalties_on_either_path(penalty: str) -> None:
    """Solved to 1e-9: stopped at 1e-3, conjugate gradients enlarge rounding to 2e-5, on one path as between two."""

    def parameters(path: str) -> torch.Tensor:
        step = {"client.optimizer": {"name": "gns", "accuracy": 1e-9}, "engine.precision": "float64"}
        found = simulate(scenario(penalty, **step, **{"engine.path": path}))
        assert not any(line["faults"] for line in found.lines)
        return torch.cat([each.flatten() for each in found.parameters.values()])

    torch.testing.assert_close(parameters("vmap"), parameters("reference"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_gives_the_bits_of_the_whole(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = simulate(scenario(name))
    assert not any(line["faults"] for line in found.lines)
    assert "one by one" not in caplog.text, "a chunk of clients that failed was trained a client at a time"
    assert interrupted(scenario(name, **{"engine.workers": 1}), tmp_path) == found.digest


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ray_gives_the_digest_of_threads(name: str, cluster: None) -> None:
    ray = scenario(name, **{"engine.name": "ray", "engine.workers": 2})
    assert simulate(ray).digest == simulate(scenario(name)).digest


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["hgp, lagged", "gns, exact", "gns on the clients", "sam_gs", "diffgrad", "rm3", "monge_gap"]
)
def test_killed_and_resumed_on_ray_gives_the_bits_of_threads(name: str, cluster: None, tmp_path: Path) -> None:
    ray = scenario(name, **{"engine.name": "ray", "engine.workers": 2})
    assert interrupted(ray, tmp_path) == simulate(scenario(name)).digest


def wire(message: Any) -> Any:
    """The message that arrives: written as the bytes of Flower's protocol, and read from them."""
    proto = message_to_proto(message)
    return message_from_proto(type(proto).FromString(proto.SerializeToString()))


class Wire(Foreign):
    """A grid whose messages, both ways, are bytes in between."""

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        return [wire(reply) for reply in super().send_and_receive([wire(each) for each in messages], timeout=timeout)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_message_passes_flowers_wire(name: str) -> None:
    at = scenario(name, **{"engine.workers": 1})
    with build(at).engine() as grid:  # type: ignore[attr-defined]
        assert simulate(at, grid=Wire(grid)).digest == simulate(at).digest


OTHERS = {
    "estimator": {"diff2", "dp_gd"},
    "loss": {"cross_entropy", "squared_error"},
    "optimizer": {
        *("adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "dp_sgd", "nadam", "radam", "rmsprop", "rprop"),
        "sgd",
    },
    "server_optimizer": {"adagrad", "adam", "sgd", "yogi"},
    "defense": {
        *(
            "bucketing",
            "bulyan",
            "caf",
            "centered_clipping",
            "crfl",
            "deepsight",
            "dnc",
            "dp_fedavg",
            "fedavg",
            "fedid",
        ),
        *("flame", "fldetector", "fltrust", "flwr:NAME", "foolsgold", "geometric_median", "krum", "mda"),
        *(
            "meamed",
            "median",
            "multi_krum",
            "nnm",
            "norm_bound",
            "reclip",
            "rflbat",
            "robust_learning_rate",
            "signguard",
        ),
        *("smea", "trimmed_mean", "weak_dp"),
    },
}
"""Parts of no paper of this table: classic ones, and those of the catalogue and of privacy, tried elsewhere."""


def test_every_part_of_a_paper_is_tried_here() -> None:
    named = {"regularizer": "client.regularizers", "analysis": "server.analysis", "adapter": "client.adapter"}
    named |= {"step_control": "client.step_control", "loss": "client.loss", "optimizer": "client.optimizer"}
    named |= {"defense": "server.defenses", "server_optimizer": "server.optimizer", "estimator": "server.estimator"}
    tried: dict[str, set[str]] = {kind: set() for kind in named}
    for name in CASES:
        table = scenario(name)
        for kind, key in named.items():
            section, field = key.split(".")
            found = getattr(getattr(table, section), field)
            parts = found if isinstance(found, list) else [found] if found is not None else []
            tried[kind] |= {part.name for part in parts}
    for kind, names in tried.items():
        ours = ("fedsim.", "strategies.")  # other tests register parts of their own
        known = {name for name, part in registry.iterate(kind) if part.__module__.startswith(ours)}
        assert OTHERS.get(kind, set()) <= set(registry.names(kind)), kind
        assert known - OTHERS.get(kind, set()) <= names, kind
