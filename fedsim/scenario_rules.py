"""What must fit each other in any scenario, whatever its parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim import registry, scenario_privacy
from fedsim.errors import NOTHING, Fault, FedsimError, ScenarioError
from fedsim.tables import AdversaryTable, Part, Tables, grants_others

KNOWLEDGE = ("own", "colluding", "omniscient")


def rules(scenario: Tables) -> Iterator[Fault]:
    """The faults of a scenario whose keys are right one by one."""
    yield from _clients(scenario)
    yield from _training(scenario)
    yield from _unread_steps(scenario)
    yield from _targets(scenario)
    yield from _inputs(scenario)
    yield from _buffers(scenario)
    yield from _adversary(scenario)
    yield from _needs_of_attacks(scenario)
    yield from _untrained(scenario)
    yield from _stock_strategy(scenario)
    init = scenario.model.init
    if init is not None and not Path(init).expanduser().is_file():
        yield Fault("model.init", init, "a .safetensors file of parameters; there is no such file")
    yield from scenario_privacy.faults(scenario)
    if scenario.engine.precision == "float64" and scenario.engine.device == "mps":
        yield Fault("engine.precision", "float64", "float32 or bfloat16 on mps", ("engine.device",))


def _clients(scenario: Tables) -> Iterator[Fault]:
    clients, client = scenario.data.clients, scenario.client
    if scenario.cohort > clients:
        yield Fault("client.per_round", client.per_round, f"at most data.clients = {clients}", ("data.clients",))
    if client.epochs is not None and client.steps is not None:
        yield Fault("client.steps", client.steps, "either client.epochs or client.steps, not both", ("client.epochs",))


def _unread_steps(scenario: Tables) -> Iterator[Fault]:
    """A count of local steps where diff2 makes none."""
    part = scenario.server.estimator
    if part is None or part.name != "diff2" or part.options.get("subroutine") != "gd":
        return
    default = registry.get("estimator", part.name).local_steps_count
    given = part.options.get("local_steps_count")
    if given != default:
        accepted = f"{default}, the default: 'gd' makes no local steps; or subroutine = 'bvr_l_sgd'"
        yield Fault("server.estimator.local_steps_count", given, accepted, ("server.estimator.subroutine",))


HEADS = ("hessian_alignment", "fishr", "irm")
"""Regularizers that look at the last layer's gradient in closed form: that of the plain cross-entropy."""
LENGTHLESS = ("normalized_sgd", "spherical_langevin", "spherical_sgd", "even_sgd", "even_spherical_langevin", "asgd")
"""Optimizers that a gradient divided by a large λ leaves with noise, or with nothing at all."""


def _training(scenario: Tables) -> Iterator[Fault]:
    client = scenario.client
    changed = [name for name in ("label_smoothing", "mask_absent") if client.loss and client.loss.options.get(name)]
    for i, part in enumerate(client.regularizers):
        if changed and part.name in HEADS:
            accepted = (
                f"none with client.loss.{changed[0]}: it takes the last layer's gradient for that of the plain loss"
            )
            yield Fault(f"client.regularizers[{i}]", part.name, accepted, ("client.loss",))
        noisy = client.optimizer.name == "langevin" and client.optimizer.options.get("temperature")
        if part.options.get("rescale") and (noisy or client.optimizer.name in LENGTHLESS):
            accepted = f"false with client.optimizer = '{client.optimizer.name}', which minds how long a gradient is"
            yield Fault(f"client.regularizers[{i}].rescale", True, accepted, ("client.optimizer",))
        if part.name == "irm":
            for name, default in (("references", "fresh"), ("average", "equal")):
                if (given := part.options.get(name, default)) != default:
                    accepted = f"'{default}', the default: irm asks the clients for no statistics"
                    yield Fault(f"client.regularizers[{i}].{name}", given, accepted)


def _targets(scenario: Tables) -> Iterator[Fault]:
    """Parts that are not for such targets (``fit``), wherever it is known what these are."""
    client, info = scenario.client, _info(scenario)
    if info is None:
        return
    named: list[tuple[str, str, Part | None]] = [
        ("client.loss", "loss", client.loss),
        ("client.step_control", "step_control", client.step_control),
    ]
    named += [(f"client.regularizers[{i}]", "regularizer", part) for i, part in enumerate(client.regularizers)]
    named += [(f"server.defenses[{i}]", "defense", part) for i, part in enumerate(scenario.server.defenses)]
    named += [(f"server.analysis[{i}]", "analysis", part) for i, part in enumerate(scenario.server.analysis)]
    named += [(f"observe.observers[{i}]", "observer", part) for i, part in enumerate(scenario.observe.observers)]
    for key, kind, part in named:
        if part is None:
            continue
        try:
            fit = getattr(registry.make(kind, part.name, **part.options), "fit", None)
            if fit is not None:
                fit(info.num_classes)
        except ScenarioError:
            continue
        except FedsimError as error:
            accepted = str(error).partition("accepted: ")[2] or str(error)
            yield Fault(key, part.name, accepted, ("data.dataset",))


def _inputs(scenario: Tables) -> Iterator[Fault]:
    """Parts that calculate with inputs (``takes = "numbers"``) where these are codes, or the other way round."""
    client, dataset, info = scenario.client, scenario.data.dataset.name, _info(scenario)
    if info is None:
        return
    there, other = ("codes", "numbers") if info.vocabulary else ("numbers", "codes")
    if info.vocabulary and scenario.model.standardize is not None:
        accepted = f"none: inputs of '{dataset}' are codes of a vocabulary, which have no mean"
        yield Fault("model.standardize", scenario.model.standardize, accepted, ("data.dataset",))
    named: list[tuple[str, str, str]] = [("model", "model", scenario.model.name)]
    single = {"loss": client.loss, "adapter": client.adapter}
    named += [(f"client.{kind}", kind, part.name) for kind, part in single.items() if part is not None]
    named += [(f"server.defenses[{i}]", "defense", part.name) for i, part in enumerate(scenario.server.defenses)]
    named += [(f"adversary.attacks[{i}]", "attack", part.name) for i, part in enumerate(scenario.adversary.attacks)]
    named += [(f"observe.observers[{i}]", "observer", part.name) for i, part in enumerate(scenario.observe.observers)]
    for key, kind, name in named:
        try:
            takes = getattr(registry.get(kind, name), "takes", there)
        except FedsimError:
            continue
        if takes == other:
            accepted = f"one for {_WORDS[there]}, as inputs of '{dataset}' are; this one takes {_WORDS[other]}"
            yield Fault(f"{key}.name", name, accepted, ("data.dataset",))


def _buffers(scenario: Tables) -> Iterator[Fault]:
    """An optimizer that evaluates a batch several times, beside a model that says it keeps statistics of each."""
    model, optimizer = scenario.model, scenario.client.optimizer
    try:
        has_buffers = getattr(registry.get("model", model.name), "has_buffers", None)
        evaluates = getattr(registry.get("optimizer", optimizer.name), "evaluates", False)
    except FedsimError:
        return
    if evaluates and has_buffers is not None and has_buffers(model.options):
        accepted = f"one without buffers with client.optimizer = '{optimizer.name}', whose evaluations of a batch move "
        accepted += "no statistics"
        yield Fault("model", {"name": model.name, **model.options}, accepted, ("client.optimizer",))


def _info(scenario: Tables) -> Any:
    """What the data set says of itself before it is read; None where it cannot."""
    try:
        return registry.make("dataset", scenario.data.dataset.name, **scenario.data.dataset.options).info()
    except FedsimError:
        return None


_WORDS = {"numbers": "numbers", "codes": "codes of a vocabulary"}


def _adversary(scenario: Tables) -> Iterator[Fault]:
    adversary, clients = scenario.adversary, scenario.data.clients
    if adversary.fraction is not None and adversary.count is not None:
        accepted = "either adversary.fraction or adversary.count, not both"
        yield Fault("adversary.count", adversary.count, accepted, ("adversary.fraction",))
        return
    who = ("adversary.fraction", "adversary.count", "data.clients")
    if scenario.attackers > clients:
        yield Fault("adversary.count", adversary.count, f"at most data.clients = {clients}", ("data.clients",))
    if scenario.attackers and not adversary.attacks:
        yield Fault("adversary.attacks", [], "at least one attack where the adversary holds clients", who)
    if adversary.attacks and adversary.fraction is None and adversary.count is None:
        accepted = "a share of the clients, or adversary.count, where there are attacks (0: only measure the trigger)"
        yield Fault("adversary.fraction", NOTHING, accepted, who)
    if adversary.fraction and not scenario.attackers:
        accepted = f"0, or a share that makes one client or more of {clients}"
        yield Fault("adversary.fraction", adversary.fraction, accepted, ("data.clients",))
    if adversary.selection == "forced" and scenario.attackers:
        most = min(scenario.attackers, scenario.cohort)
        if adversary.forced > most:
            accepted = f"at most {most}: the adversary holds {scenario.attackers} clients, {scenario.cohort} are asked"
            yield Fault("adversary.forced", adversary.forced, accepted, (*who, "client.per_round"))
    if adversary.selection == "pool" and adversary.forced != 1:
        accepted = "none without adversary.selection = 'forced'"
        yield Fault("adversary.forced", adversary.forced, accepted, ("adversary.selection",))
    if adversary.knows_defense and adversary.knowledge != "omniscient":
        accepted = "true only with adversary.knowledge = 'omniscient'"
        yield Fault("adversary.knows_defense", True, accepted, ("adversary.knowledge",))


def _needs_of_attacks(scenario: Tables) -> Iterator[Fault]:
    adversary = scenario.adversary
    for position, part in enumerate(adversary.attacks):
        try:
            attack = registry.get("attack", part.name)
        except FedsimError:
            continue
        needs = getattr(attack, "knowledge", "own")
        if needs == "own" and _defines(attack, "learn"):
            needs = "colluding"
        who = f"which the attack '{part.name}' (adversary.attacks[{position}]) needs"
        if needs in KNOWLEDGE and KNOWLEDGE.index(needs) > KNOWLEDGE.index(adversary.knowledge):
            yield Fault("adversary.knowledge", adversary.knowledge, f"'{needs}', {who}")
        if getattr(attack, "knows_defense", False) and not adversary.knows_defense:
            yield Fault("adversary.knows_defense", False, f"true, {who}")
        if needs_population(part, adversary):
            given = NOTHING if adversary.examples is None else adversary.examples
            yield Fault("adversary.examples", given, f"'population', {who}", ("adversary.knowledge",))


def _untrained(scenario: Tables) -> Iterator[Fault]:
    """Attacks on local training where an estimator asks for something else."""
    if scenario.server.estimator is None or not scenario.attackers:
        return
    for position, part in enumerate(scenario.adversary.attacks):
        try:
            attack = registry.get("attack", part.name)
        except FedsimError:
            continue
        hooks = [hook for hook in ("objective", "after_step") if _defines(attack, hook)]
        if hooks:
            accepted = f"an attack without {' and '.join(hooks)}: clients do not train behind an estimator"
            yield Fault(f"adversary.attacks[{position}]", part.name, accepted, ("server.estimator",))


def _defines(attack: type, hook: str) -> bool:
    """Whether an attack's class defines a hook that its base leaves to do nothing."""
    *_, base, _ = attack.__mro__
    return getattr(attack, hook) is not getattr(base, hook, None)


def needs_population(part: Part, adversary: AdversaryTable) -> bool:
    """Whether an attack, with its options, reads examples to which this adversary has no right."""
    try:
        attack = registry.make("attack", part.name, **part.options)
    except FedsimError:
        return False
    wants = attack.trains_on_others() or attack.reads_tests()
    return wants and not grants_others(adversary.examples, adversary.knowledge, type(attack))


def _stock_strategy(scenario: Tables) -> Iterator[Fault]:
    """A stock Flower strategy is alone, and owns the sampling and the server's step."""
    server, adversary = scenario.server, scenario.adversary
    stock = [(i, part.name) for i, part in enumerate(server.defenses) if part.name.startswith("flwr:")]
    if not stock:
        return
    if len(server.defenses) > 1:
        for position, name in stock:
            accepted = f"a stock Flower strategy stands alone in the list: ['{name}']"
            yield Fault(f"server.defenses[{position}]", name, accepted)
        return
    name = stock[0][1]
    if adversary.knows_defense:
        accepted = f"false in front of '{name}', a stock Flower strategy, which cannot be run twice"
        yield Fault("adversary.knows_defense", True, accepted, ("server.defenses",))
    if adversary.selection == "forced":
        accepted = f"'pool' in front of '{name}', which draws the cohort itself"
        yield Fault("adversary.selection", "forced", accepted, ("server.defenses",))
    if server.sampler.name != "uniform":
        accepted = f"'uniform', the default: '{name}' draws the cohort itself and reads no sampler"
        yield Fault("server.sampler", server.sampler.name, accepted, ("server.defenses",))
    step = server.optimizer
    if (step.name, step.options.get("lr", 1.0), step.options.get("momentum", 0.0)) != ("sgd", 1.0, 0.0):
        accepted = f"'sgd' with lr = 1, the default: '{name}' makes the server's step itself"
        yield Fault("server.optimizer", step.model_dump(), accepted, ("server.defenses",))
