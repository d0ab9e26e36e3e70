"""Claims of five papers as a user's federation has them: the cells of their scenarios, one seed a call.

The papers' own claims, in their own settings, are in the papers' modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedsim.scenario import Scenario, read
from fedsim.simulation import simulate
from fedsim.verify.claim import Expected, Measured, claim


def _last_rounds(name: str, seed: int, axis: str, called: Callable[[Any], str]) -> dict[str, dict[str, Any]]:
    """The last round of each cell of the scenario's matrix along an axis, by the name of what stands there."""
    tables = read(name)
    found = {}
    for each in tables.pop("matrix")[axis]:
        scenario = Scenario(**tables).changed(seed=seed, **{axis: each, "engine.workers": 1})
        found[called(each)] = simulate(scenario).lines[-1]
    return found


REGULARIZERS = {
    "coral": "CORAL",
    "irm": "IRM",
    "vrex": "V-REx",
    "fishr": "Fishr",
    "hgp": "HGP",
    "diagonal": "exact diagonal",
    "hutchinson": "Hutchinson, 300 draws",
}


@claim(
    {"erm": Expected("rotated MNIST, 75° left out, client = angle: test accuracy on it, ERM", "–")}
    | {name: Expected(f"the same, {text} less ERM", "–") for name, text in REGULARIZERS.items()},
    source="papers/hessian_alignment: 1000 images an angle, MLP 128-64, five local steps of Adam, 100 rounds; ours",
    seeds=3,
    quick=False,
    paper="hessian_alignment",
    parts=tuple(f"fedsim.losses.{name}" for name in ("coral", "irm", "vrex", "fishr")),
)
def rotated_domains(seed: int) -> Measured:
    """The regularizers of the scenario's matrix."""

    def called(regularizers: Any) -> str:
        if not regularizers:
            return "erm"
        part = regularizers[0] if isinstance(regularizers[0], dict) else {"name": regularizers[0]}
        if part["name"] != "hessian_alignment":
            return str(part["name"])
        return "hutchinson" if "hutchinson_samples" in part else str(part.get("method", "hgp"))

    found = _last_rounds("papers/hessian_alignment", seed, "client.regularizers", called)
    return Measured(_less({name: float(line["accuracy"]) for name, line in found.items()}, "erm"))


_agree = (
    "as good as the mean, no better: half of the clients, all with the same labels turned, agree among themselves as "
    "the other half does, and nothing tells which of the two directions is the shared one; wrong labels at random are "
    "another matter (`wrong_labels`)"
)


@claim(
    {
        "plain": Expected("rate 10 on every client, no control: test accuracy", "chance", high=0.2),
        "controlled": Expected("the same, steps cut by the softmax's radius: test accuracy", "trains", 0.9),
    },
    source="papers/softmax_radius_control: digits, ten clients, 15 rounds; ours",
    seeds=3,
    paper="softmax_radius",
)
def control_on_clients(seed: int) -> Measured:
    """Both clients of the scenario's matrix."""

    def called(client: Any) -> str:
        return "controlled" if "step_control" in client else "plain"

    found = _last_rounds("papers/softmax_radius_control", seed, "client", called)
    return Measured({name: float(line["accuracy"]) for name, line in found.items()})


@claim(
    {
        "fedavg": Expected("the mean: test accuracy", "–"),
        "rm3": Expected("RM3 of the clients' updates less the mean", "above 0", -0.05, 0.05, differs=_agree),
        "winsorized_mean": Expected("their winsorized mean less the mean", "above 0", -0.1, 0.15, differs=_agree),
        "median": Expected("their median less the mean", "–"),
    },
    source="papers/coherence: labels turned on half of twenty clients, digits, Dirichlet .5, 40 rounds; ours",
    seeds=3,
    quick=False,
    paper="coherence",
)
def turned_labels(seed: int) -> Measured:
    """The defenses of the scenario's matrix."""
    found = _last_rounds("papers/coherence", seed, "server.defenses", lambda defenses: str(defenses[0]))
    return Measured(_less({name: float(line["accuracy"]) for name, line in found.items()}, "fedavg"))


@claim(
    {
        "sgd": Expected("SGD on the clients: clean test accuracy", "–"),
        "winsorized": Expected("winsorized gradients, 4 %, less SGD: three seeds cannot tell it from 0", "above 0"),
        "rm3": Expected("RM3 less SGD", "above 0", 0.0),
        "m3": Expected("M3 less SGD", "above 0", 0.0),
        "ra3": Expected("RA3, the control of RM3 with means in place of medians, less SGD", "–"),
    },
    source="papers/coherence_noise: half of all labels wrong, ten clients, 40 rounds; ours",
    seeds=3,
    quick=False,
    paper="coherence",
)
def wrong_labels(seed: int) -> Measured:
    """The client optimizers of the scenario's matrix."""
    found = _last_rounds("papers/coherence_noise", seed, "client.optimizer", lambda optimizer: str(optimizer["name"]))
    return Measured(_less({name: float(line["accuracy"]) for name, line in found.items()}, "sgd"))


@claim(
    {
        "worst": Expected("worst tenth of the clients: accuracy with maps less without", "above 0", 0.05),
        "gap": Expected("the same with the gap, less by the divergence alone, from the identity", "–"),
        "plain": Expected("worst tenth, maps with the gap from a random start, less without maps", "–"),
        "plain_gap": Expected("the same with the gap, less by the divergence alone, from a random start", "–"),
        "plain_shared": Expected("the shared model on the server's images, by the same two", "–"),
        "identity": Expected("no map: the shared model on the server's images, as they are", "–"),
        "adapted": Expected("the same with maps, less without", "–"),
    },
    source="papers/monge_gap: digits in each client's own contrast and brightness, eight clients, 20 rounds; ours",
    seeds=3,
    quick=False,
    paper="monge_gap",
    parts=("fedsim.losses.monge_adapter", "fedsim.losses.monge_maps"),
)
def personal_maps(seed: int) -> Measured:
    """The adapters of the scenario's matrix."""

    def called(adapter: Any) -> str:
        if adapter["steps"] == 1:
            return "identity"
        form = "adapted" if adapter.get("residual", True) else "plain"
        return form if adapter.get("gap_weight", 1.0) else f"{form}_alone"

    found = _last_rounds("papers/monge_gap", seed, "client.adapter", called)
    worst = {name: float(line["worst10"]) for name, line in found.items()}
    shared = {name: float(line["accuracy"]) for name, line in found.items()}
    return Measured(
        {
            "identity": shared["identity"],
            "adapted": shared["adapted"] - shared["identity"],
            "worst": worst["adapted"] - worst["identity"],
            "gap": worst["adapted"] - worst["adapted_alone"],
            "plain": worst["plain"] - worst["identity"],
            "plain_gap": worst["plain"] - worst["plain_alone"],
            "plain_shared": shared["plain"] - shared["plain_alone"],
        }
    )


@claim(
    {
        "average": Expected(
            "overlap of the clients' averages, k = 3, d = 50, n = 25,000", "≥ .95 (.964 in one run)", 0.95
        ),
        "langevin": Expected("the same by Langevin dynamics, h = .2/d, ε = 25", "–", 0.9),
        "last": Expected("overlap of the last iterates of SGD, sign left out", ".309", high=0.4),
    },
    source="papers/langevin_planted: walks on the sphere, an example a step, ten clients, one round",
    seeds=3,
    quick=False,
    paper="langevin",
)
def planted(seed: int) -> Measured:
    """The client optimizers of the scenario's matrix. Of an odd exponent the average's sign is known, and counts."""
    found = _last_rounds("papers/langevin_planted", seed, "client.optimizer", lambda optimizer: str(optimizer["name"]))
    overlaps = {name: float(line["overlap"]) for name, line in found.items()}
    averages = {"average": overlaps["normalized_sgd"], "langevin": overlaps["spherical_langevin"]}
    return Measured({**averages, "last": abs(overlaps["spherical_sgd"])})


@claim(
    {
        "eigenvectors": Expected("overlap of the clients' top eigenvectors, k = 4, d = 30, n = 9,000", "≥ .99", 0.99),
        "last": Expected("overlap of their last iterates", "far below", high=0.6),
    },
    source="papers/langevin_planted_even: the same walks for an even exponent, ten clients, one round",
    seeds=3,
    quick=False,
    paper="langevin",
)
def planted_even(seed: int) -> Measured:
    """Both client optimizers of the scenario's matrix."""
    name = "papers/langevin_planted_even"
    found = _last_rounds(name, seed, "client.optimizer", lambda optimizer: str(optimizer["name"]))
    overlaps = {name: abs(float(line["overlap"])) for name, line in found.items()}
    return Measured({"eigenvectors": overlaps["even_sgd"], "last": overlaps["spherical_sgd"]})


def _less(values: dict[str, float], control: str) -> dict[str, float]:
    """The control's value, and what the others have beyond it."""
    return {name: value if name == control else value - values[control] for name, value in values.items()}
