"""The guarantee of a run as a short proof: every stage with what it reads and releases, then epsilon by accountant.

``lines`` is what ``fedsim privacy`` prints, ``record`` what lies in the run's folder as ``privacy.json`` and stands in
its report.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fedsim import registry
from fedsim.privacy.guarantee import Guarantee, Reader
from fedsim.privacy.mechanism import Publication
from fedsim.scenario_privacy import apart, claims, defines, hides_counts, mechanisms, reads_of, stage_of
from fedsim.tables import Tables

NONE = "NONE"
HEADS = ("stage", "reads", "sensitivity", "noise multiplier", "releases")
EPSILON_HEADS = ("against", "relation", "ε by pld", "ε by rdp", "ε by gdp", "")
WIDTH = 110
UNCHANGED, UNBOUNDED, AFTER = "not enlarged", "unbounded", "post-processing"
EXCHANGE = "unbounded: asks the clients without noise"
LOOSE = (UNBOUNDED, EXCHANGE)
RAW, PRIVATE, RELEASED, NOTHING = "raw messages", "private messages", "what is released", "nothing of any client"
SECRET = "outside the guarantee: not to be published"
ROWS = {"central": RAW, "distributed": "their sum alone", "local": PRIVATE}

SEED_NOTE = (
    "In simulation the noise comes from the scenario's seed, so that runs repeat: the proof is of the mechanism, and "
    "holds for data only if that seed stays secret and makes one run. In a deployment (flower-supernode) it comes from "
    "the operating system's entropy."
)


class Stage(NamedTuple):
    """One line of the proof."""

    stage: str
    reads: str
    sensitivity: str = "–"
    noise: str = "–"
    releases: str = "–"


def stages(scenario: Tables, guarantee: Guarantee, diagnostics: Sequence[str] = ()) -> list[Stage]:
    """The run from the clients' data to what is published, in order."""
    trust = guarantee.privacy.trust
    middle = list(_server(scenario, trust))
    loose = trust != "local" and not _recut(guarantee) and any(each.sensitivity in LOOSE for each in middle)
    clips = [_clip(each, loose) for each in guarantee.publications]
    noises = [_noise(each, trust, loose) for each in guarantee.publications]
    drawn = {
        "central": "the server's",
        "distributed": "a share of each client's",
        "local": "each client's own",
    }[trust]
    noises = [each._replace(stage=f"{each.stage}: {drawn}") for each in noises]
    after = [each for each in middle if each.reads == RELEASED]
    middle = [each for each in middle if each.reads != RELEASED]
    found = [*clips, *middle, *noises] if trust == "central" else [*clips, *noises, *middle]
    if _recut(guarantee) or any(kind == "defense" for _, kind, _ in mechanisms(scenario)):
        found = [*middle, *clips, *noises]  # who clips is the rule that makes one row of what the others left
    if guarantee.dropped:
        reads = NOTHING if scenario.server.estimator is not None else ROWS[trust]
        after = [
            Stage("buffers (batch normalisation's statistics)", reads, "0: dropped, they stay as at first"),
            *after,
        ]
    return [_objective(scenario), *found, *after, *_afterwards(scenario, diagnostics, trust)]


def _objective(scenario: Tables) -> Stage:
    """What clients minimise, and how far they go."""
    client, estimator = scenario.client, scenario.server.estimator
    loss = "the task's own loss" if client.loss is None else client.loss.name
    epochs = client.epochs or 1
    steps = f"{client.steps} steps" if client.steps is not None else f"{epochs} epoch{'s'[: epochs > 1]}"
    made = f"{steps} of {client.optimizer.name}, batches of {client.batch_size}"
    if estimator is not None:
        many = estimator.options.get("subroutine", "gd") != "gd"
        made = f"local steps of {estimator.options['subroutine']}" if many else "no local steps"
    bound = "an example's loss reads it alone" if apart(scenario) else "what comes of it is clipped as a whole"
    if apart(scenario) and client.loss is not None and reads_of("loss", client.loss.name) != "example":
        bound = "not declared"
    return Stage(f"client objective: {loss}, {made}", "each client's own data", bound)


def _recut(guarantee: Guarantee) -> bool:
    """Whether what the rules made of the rows is clipped, so that they themselves need bound nothing."""
    return any(each.reads == RAW for each in guarantee.publications)


def _clip(each: Publication, loose: bool) -> Stage:
    return Stage(f"clip: {each.clip}", each.reads, f"{each.sensitivity}, if summed" if loose else each.sensitivity)


def _noise(each: Publication, trust: str, loose: bool) -> Stage:
    """``loose``: what a part in front makes of the rows has no bound that the noise could be held against."""
    sampled = f", {each.sampled} sampled at {each.sampling_rate:.4g}" if each.sampling_rate < 1 else ""
    reads = RAW if trust == "central" else "its own message"
    multiplier = "unknown" if loose else f"{each.noise_multiplier:.4g}{sampled}"
    return Stage(f"noise on {each.name}", reads, UNBOUNDED if loose else UNCHANGED, multiplier, str(each.count))


def _server(scenario: Tables, trust: str) -> Iterator[Stage]:
    rows = ROWS[trust]
    own = {key for key, kind, _ in mechanisms(scenario) if kind == "defense"}
    words = {
        "sum": UNCHANGED,
        "row clip": "not enlarged: shortening moves no two rows apart",
        "reclip": "twice its own radius",
        "unbounded": UNBOUNDED,
        "exchange": EXCHANGE,
        "released": AFTER,
    }
    rule = _rule(scenario)
    for i, part in enumerate(scenario.server.defenses):
        if f"server.defenses[{i}]" in own:
            continue
        stage = stage_of(part)
        bound = AFTER if trust == "local" and stage != "exchange" else words[stage]
        if i == rule and bound == UNCHANGED:
            bound = UNBOUNDED  # weights are example counts, and no row of a trained model has a bound of its own
        kind = "aggregator" if i == rule else "defense"
        yield Stage(f"{kind}: {part.name}", RELEASED if stage == "released" else rows, bound)
    if rule is None:
        yield from _mean(scenario, trust, rows)


def _rule(scenario: Tables) -> int | None:
    """Place of the defense that makes one row of all; None where a mean does."""
    equal = scenario.server.estimator is not None  # whose rows 'fedavg' leaves to it
    for i, part in enumerate(scenario.server.defenses):
        if scenario.guest or (defines(part, "combine") and not (equal and part.name == "fedavg")):
            return i
    return None


def _mean(scenario: Tables, trust: str, rows: str) -> Iterator[Stage]:
    chosen = any(defines(part, "select") for part in scenario.server.defenses)
    counts = scenario.server.estimator is None
    name = "mean weighted by example counts" if counts else "sum over P, weights 1/P"
    if chosen:
        name = f"mean of what is kept, {'weighted by example counts' if counts else 'equal weights'}"
    bound = AFTER if trust == "local" else UNBOUNDED if chosen or counts else UNCHANGED
    yield Stage(f"aggregator: {name}", rows, bound)


def _afterwards(scenario: Tables, diagnostics: Sequence[str], trust: str) -> Iterator[Stage]:
    optimizer = scenario.server.optimizer.name
    declared = reads_of("server_optimizer", optimizer) == "released"
    yield Stage(f"server optimizer: {optimizer}", RELEASED, AFTER if declared else f"{AFTER}, not declared")
    yield Stage("evaluation: the server's test set", NOTHING, "0")
    yield Stage(f"early stopping: none, {scenario.rounds} rounds are fixed", NOTHING, "0")
    if scenario.client.dropout:
        yield Stage("drop-outs: by chance, whatever the data", NOTHING, "0")
    if scenario.attackers:
        sees = {"omniscient": f"{PRIVATE if trust == 'local' else RAW} of all"}.get(
            scenario.adversary.knowledge, "its own clients, and what is released"
        )
        yield Stage(f"adversary: {scenario.attackers} clients", sees, "0" if trust == "local" else _of_others(scenario))
    if scenario.evaluate.clients:
        yield Stage("accuracy of single clients", "their data, without noise", "unbounded")
    if scenario.evaluate.gradient_norm:
        yield Stage("evaluation: gradient norm on all training data", "all clients' data", "outside the guarantee")
    for part in getattr(scenario.server, "analysis", ()):
        rows = PRIVATE if trust == "local" else RAW
        reads = {"rows": rows, "released": RELEASED}.get(reads_of("analysis", part.name), f"not declared: {rows}")
        private = reads in (RELEASED, PRIVATE)
        yield Stage(f"analysis: {part.name}", reads, AFTER if private else "outside the guarantee")
    for part in scenario.observe.observers:
        yield Stage(f"observer: {part.name}", "the truth, by which it is judged", SECRET)
    if scenario.observe.observers:
        for where in ("observations.json, observations.npz", "checkpoint: observations, observers' memory"):
            yield Stage(where, "the truth, training images among it", SECRET)
    told = [*diagnostics, *(["training loss"] if scenario.server.estimator is None else [])]
    told += ["mean friction of the last step"] if scenario.client.optimizer.options.get("log_friction") else []
    if told and trust == "central":
        yield Stage(f"metrics: {', '.join(told)}", "each client's own data", "outside the guarantee")
    if claims(scenario) and scenario.privacy.unit == "client":
        kept = "kept on the client" if hides_counts(scenario) else "to the trusted server and its folder alone"
        yield Stage("example counts", "each client's own data", kept)
    yield Stage("text of a client's error", "its data", "kept on the client")
    if getattr(registry.get("dataset", scenario.data.dataset.name), "standardised", False):
        yield Stage("inputs and targets: standardised by all training examples", "all clients' data", "not protected")
    if scenario.data.root:
        yield Stage(f"the server's {scenario.data.root} root examples", "its own data", "not protected")
    if scenario.model.init:
        yield Stage(f"initial model: {scenario.model.init}", "what it was trained on", "not protected")
    yield Stage("checkpoint: model, estimate, iterates", RELEASED, AFTER)
    if scenario.client.optimizer_state == "persist" and trust != "local":
        bound = "outside the guarantee"
        yield Stage("checkpoint: what the clients' optimizers remember", "each client's own data", bound)
    own = {key for key, _, _ in mechanisms(scenario)}
    others = [part for i, part in enumerate(scenario.server.defenses) if f"server.defenses[{i}]" not in own]
    if trust != "local" and any(stage_of(part) in ("unbounded", "exchange") for part in others):
        yield Stage("checkpoint: what defenses remember of the rows", RAW, "outside the guarantee")


def _of_others(scenario: Tables) -> str:
    return "unbounded" if scenario.adversary.knowledge == "omniscient" else "0 of others"


def headline(guarantee: Guarantee) -> str:
    """What is guaranteed, in one line."""
    privacy = guarantee.privacy
    if guarantee.none:
        return f"{NONE}: this run guarantees no privacy to anybody"
    whose = {"example": "one example of one client", "client": "one client with all its examples"}[privacy.unit]
    relation = {
        "replace_one": "replaced by another",
        "add_or_remove": "its contribution replaced by zero, sizes fixed and public",
    }[privacy.neighbours]
    return f"protects {whose} ({privacy.neighbours}: {relation}), noise {privacy.trust}, at delta = {privacy.delta:g}"


def epsilons(guarantee: Guarantee) -> list[tuple[str, ...]]:
    """One line a reader: who, relation, epsilon by pld, rdp and gdp, note."""
    return [_epsilons(each, guarantee.privacy.neighbours) for each in guarantee.readers]


def _epsilons(reader: Reader, relation: str) -> tuple[str, ...]:
    if not reader.epsilons:
        return (reader.name, "–", NONE, NONE, NONE, reader.note)
    shown = [_number(reader.epsilons[name]) if name in reader.epsilons else "n/a" for name in ("pld", "rdp", "gdp")]
    return (reader.name, relation, *shown, reader.note)


def _number(epsilon: float) -> str:
    return "∞" if math.isinf(epsilon) else f"{epsilon:.3f}"


def lines(scenario: Tables, guarantee: Guarantee, diagnostics: Sequence[str] = ()) -> list[str]:
    """The proof as text."""
    found = [f"{guarantee.mechanism}: {headline(guarantee)}"]
    found += [f"  because {reason}" for reason in guarantee.reasons]
    found += ["", *_aligned([HEADS, *stages(scenario, guarantee, diagnostics)])]
    if not guarantee.none:
        found += ["", *_aligned([EPSILON_HEADS, *epsilons(guarantee)])]
    for remark in guarantee.remarks:
        found += ["", *textwrap.wrap(f"Remark: {remark}.", WIDTH)]
    return [*found, "", *textwrap.wrap(SEED_NOTE, WIDTH)]


def record(scenario: Tables, guarantee: Guarantee, diagnostics: Sequence[str] = ()) -> dict[str, Any]:
    """The proof as a table for JSON."""
    return {
        "mechanism": guarantee.mechanism,
        "none": guarantee.none,
        "headline": headline(guarantee),
        "reasons": list(guarantee.reasons),
        "remarks": list(guarantee.remarks),
        "delta": guarantee.privacy.delta,
        "neighbours": guarantee.privacy.neighbours,
        "unit": guarantee.privacy.unit,
        "trust": guarantee.privacy.trust,
        "against": guarantee.readers[0].name if guarantee.readers else None,
        "hidden_cohorts": not guarantee.none and any(each.hidden_cohort for each in guarantee.publications),
        "heads": list(HEADS),
        "stages": [list(each) for each in stages(scenario, guarantee, diagnostics)],
        "epsilon_heads": list(EPSILON_HEADS),
        "epsilons": [list(each) for each in epsilons(guarantee)],
        "note": SEED_NOTE,
    }


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


__all__ = ["Stage", "epsilons", "headline", "lines", "record", "stages"]
