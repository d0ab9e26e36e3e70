"""What a claim of privacy forbids: stages that nothing bounds, and numbers that leave without noise.

A defense declares what one client's row can do to what comes out of it (``Defense.privacy_stage``):

=============  ====================================================================================================
``released``   nothing: it works on the new model alone, after the noise
``sum``        rows are added with weights that depend on no row
``row clip``   each row by itself is shortened to a fixed radius; this moves no two rows further apart
``reclip``     whatever came in, the aggregate is shortened to a fixed radius C: sensitivity 2C
``exchange``   it asks the clients for messages of its own, which carry no noise
``unbounded``  anything: the default
=============  ====================================================================================================

Other parts declare what a stage of theirs reads by ``reads``, which no subclass inherits (``reads_of``):

====================  =============  ===============================================================================
``client.loss``       ``example``    of each example's loss, that example alone; without it refused where single
                                     examples are protected by a clip of each
``server.optimizer``  ``released``   the new model's step alone, as its interface gives it; without it named in the
                                     proof, since what is behind the noise is post-processing
``server.analysis``   ``released``   the models before and after a round alone; ``rows``, which only ``local`` noise
                                     makes private. Without it refused
====================  =============  ===============================================================================

Which of them may stand where is a matter of who draws the noise: ``central``: rows are raw until the server adds it;
``distributed``: nobody may see a row, only their sum; ``local``: rows are private, and all that follows is
post-processing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fedsim import registry
from fedsim.errors import NOTHING, Fault, FedsimError
from fedsim.tables import Part, Privacy, Tables

LOCAL = "privacy.trust = 'local' makes it valid, where every message is private before the server sees it"
LOCAL_ROWS = ("rows", "local")
NO_CLAIM = "privacy.claim = 'none' runs it all the same, and promises nothing"


def mechanisms(scenario: Tables) -> list[tuple[str, str, Part]]:
    """(key, kind, part) of the parts that add noise and read ``[privacy]``."""
    server = scenario.server
    named = [("client.optimizer", "optimizer", scenario.client.optimizer)]
    named += [(f"server.defenses[{i}]", "defense", part) for i, part in enumerate(server.defenses)]
    if server.estimator is not None:
        named = [("server.estimator", "estimator", server.estimator), *named[1:]]
    return [each for each in named if hasattr(_found(each[1], each[2].name), "publications")]


def claims(scenario: Tables) -> bool:
    """Whether the scenario promises anything to anybody."""
    privacy = scenario.privacy
    if privacy.claim == "none" or not mechanisms(scenario):
        return False
    if privacy.noise is not None:
        return all(noise_read(scenario))
    return privacy.epsilon not in (None, "inf")


def noise_read(scenario: Tables) -> list[float]:
    """Those numbers of ``privacy.noise`` that are used: of an estimator that restarts in every round, the first."""
    noise, part = list(scenario.privacy.noise or ()), scenario.server.estimator
    if part is None:
        return noise
    try:
        interval = getattr(registry.make("estimator", part.name, **part.options), "interval", None)
        return noise[:1] if interval is not None and interval(scenario.rounds) == 1 else noise
    except FedsimError:  # options that are told elsewhere
        return noise


def stage_of(part: Part) -> str:
    """What one row can do in a defense, see above."""
    ask = getattr(_found("defense", part.name), "privacy_stage", None)
    return "unbounded" if ask is None else str(ask())


def reads_of(kind: str, name: str) -> str:
    """What a part declares that it reads, see above; empty where its own class declares nothing."""
    return str(getattr(_found(kind, name), "__dict__", {}).get("reads", ""))


def apart(scenario: Tables) -> bool:
    """Whether single examples are protected, so that each one's loss must be its own."""
    _, kind, part = mechanisms(scenario)[0]
    return scenario.privacy.unit == "example" and not getattr(_found(kind, part.name), "bounds_aggregate", False)


def hides_counts(scenario: Tables) -> bool:
    """Whether clients are protected with their example counts, which weigh nothing behind the claim and stay at home.

    Where the aggregate is clipped, rules in front may weigh by the counts, and the server is trusted with them.
    """
    if not claims(scenario) or scenario.privacy.unit != "client":
        return False
    _, kind, part = mechanisms(scenario)[0]
    return not getattr(_found(kind, part.name), "bounds_aggregate", False)


def defines(part: Part, stage: str) -> bool:
    """Whether a defense defines this stage itself."""
    ask = getattr(_found("defense", part.name), "defines", None)
    return bool(ask is not None and ask(stage))


def faults(scenario: Tables) -> Iterator[Fault]:
    """What is wrong with ``[privacy]``, and what stands against the privacy that it claims."""
    privacy, found = scenario.privacy, mechanisms(scenario)
    if not found and privacy != Privacy():
        accepted = (
            "no [privacy] table where no part reads it: one that adds noise is server.estimator = "
            "{ name = 'diff2', … } or 'dp_gd', the defense 'dp_fedavg', 'reclip' behind any defense, or "
            "client.optimizer = 'dp_sgd'"
        )
        changed = next(name for name in Privacy.model_fields if getattr(privacy, name) != getattr(Privacy(), name))
        parts = ("server.estimator", "server.defenses", "client.optimizer")
        yield Fault(f"privacy.{changed}", getattr(privacy, changed), accepted, parts)
    if len(found) > 1:
        key, _, part = found[1]
        yield Fault(
            key, part.name, f"one part that adds noise; '{found[0][2].name}' ({found[0][0]}) does", (found[0][0],)
        )
        return
    if found:
        if privacy.epsilon == "inf" and any(privacy.noise or ()):
            accepted = 'none with privacy.epsilon = "inf", which is free of noise; or no privacy.epsilon'
            yield Fault("privacy.noise", privacy.noise, accepted, ("privacy.epsilon",))
        yield from _shares(scenario)
        if claims(scenario):
            yield from unprotected(scenario)


def unprotected(scenario: Tables) -> Iterator[Fault]:
    """Why a scenario guarantees nothing, though it has a part that adds noise."""
    key, kind, part = mechanisms(scenario)[0]
    mechanism = _found(kind, part.name)
    owner = next(each for each in mechanism.__mro__ if "publications" in vars(each))
    if owner.__module__ != mechanism.__module__:
        accepted = (
            f"a part whose own file says what it releases (publications): '{owner.__name__}' says it of itself, and "
            f"what a class of another file changes is not in it; {NO_CLAIM}"
        )
        yield Fault(key, part.name, accepted, ("privacy.claim",))
    for fault in _unclaimed(kind, part):
        yield Fault(f"{key}.{fault.key}", fault.given, f"{fault.accepted}; {NO_CLAIM}", ("privacy.claim",))
    yield from _defenses(scenario, mechanism, kind, part.name)
    yield from _clients(scenario, mechanism, kind, part.name)
    yield from _participation(scenario, mechanism, part.name)
    yield from _measurements(scenario)
    yield from _adversary(scenario, kind, getattr(mechanism, "bounds_aggregate", False))


def _unclaimed(kind: str, part: Part) -> Iterable[Fault]:
    """What the part that adds the noise says itself of options for which nothing can be claimed."""
    if not hasattr(_found(kind, part.name), "unclaimed"):
        return ()
    try:
        return list(registry.make(kind, part.name, **part.options).unclaimed())
    except FedsimError:  # options that are told elsewhere
        return ()


def _local(kind: str) -> str:
    """The way out by the clients' own noise, where the part that adds it has such: an estimator."""
    return f"; {LOCAL}" if kind == "estimator" else ""


def _shares(scenario: Tables) -> Iterator[Fault]:
    privacy = scenario.privacy
    if privacy.trust != "distributed":
        if privacy.colluding:
            accepted = f"0 with privacy.trust = '{privacy.trust}', whose noise has no shares; or trust = 'distributed'"
            yield Fault("privacy.colluding", privacy.colluding, accepted, ("privacy.trust",))
    elif privacy.colluding >= scenario.data.clients:
        accepted = f"0 to {scenario.data.clients - 1}, one less than the clients"
        yield Fault("privacy.colluding", privacy.colluding, accepted, ("data.clients",))


def _defenses(scenario: Tables, mechanism: Any, kind: str, name: str) -> Iterator[Fault]:
    """Stages that see rows, by who draws the noise; what their own messages carry is never noisy."""
    if scenario.guest:
        return
    trust, bounded = scenario.privacy.trust, getattr(mechanism, "bounds_aggregate", False)
    for i, part in enumerate(scenario.server.defenses):
        key, found, stage = f"server.defenses[{i}]", _found("defense", part.name), stage_of(part)
        if found is mechanism:
            continue
        if stage == "exchange":
            accepted = (
                "a defense without messages of its own to the clients: what the answers carry leaves them without "
                f"noise, whoever draws it; {NO_CLAIM}"
            )
            yield Fault(key, part.name, accepted, ("privacy.trust",))
        elif trust == "distributed" and stage not in ("sum", "released"):
            accepted = (
                "a sum ('fedavg'), or what works on the new model alone: behind secure summation nobody may see a "
                f"single row, without which the shares of noise protect nobody{_local(kind)}; {NO_CLAIM}"
            )
            yield Fault(key, part.name, accepted, ("privacy.trust",))
        elif trust == "central" and stage == "unbounded" and not bounded:
            summed = "a sum ('fedavg'), " if kind == "estimator" else ""
            again = "" if kind == "estimator" or defines(part, "finish") else (
                f"; or this part with its aggregate clipped again ('reclip' behind it in place of '{name}', which adds "
                "the noise to a sensitivity of twice its radius)"
            )  # fmt: skip
            accepted = (
                f"{summed}a clip of each row at a fixed radius ('norm_bound'), or what works on the new model alone: "
                "what this part does with a row depends on the data, so that no sensitivity is bounded in front of "
                f"central noise{again}{_local(kind)}; {NO_CLAIM}"
            )
            yield Fault(key, part.name, accepted, ("privacy.trust",))
        elif trust == "central" and stage == "unbounded" and defines(part, "finish"):
            accepted = (
                f"a defense that only looks at rows in front of '{name}', or only works on the new model behind it: "
                f"what this part does to the model after the noise comes from rows that it saw before it; {NO_CLAIM}"
            )
            yield Fault(key, part.name, accepted, ("privacy.trust",))
        elif trust != "local" and stage == "sum" and kind == "defense" and not bounded:
            accepted = (
                "no averaging by example counts beside a part that clips and averages with equal weights: one "
                "client's weight is not 1 of n"
            )
            yield Fault(key, part.name, accepted, ("privacy.trust",))


def _clients(scenario: Tables, mechanism: Any, kind: str, name: str) -> Iterator[Fault]:
    """What clients are asked beside their rows; also of parts whose own ``check`` forgets to refuse it."""
    for i, part in enumerate(scenario.client.regularizers):
        accepted = "none where privacy is claimed: statistics of the clients' data leave them without noise"
        yield Fault(
            f"client.regularizers[{i}]", part.name, accepted, ("privacy.epsilon", "privacy.noise", "client.optimizer")
        )
    if scenario.client.adapter is not None:
        accepted = "none where privacy is claimed: every example of a client is in the map that moves the others"
        yield Fault("client.adapter", scenario.client.adapter.name, accepted, ("privacy.epsilon", "privacy.noise"))
    loss = scenario.client.loss
    if loss is not None and apart(scenario) and reads_of("loss", loss.name) != "example":
        accepted = (
            "a loss whose class declares that an example's loss reads that example alone (reads = 'example'), or "
            f"privacy.unit = 'client': no clip bounds what one example does to the others' losses; {NO_CLAIM}"
        )
        yield Fault("client.loss", loss.name, accepted, ("privacy.unit",))
    other = scenario.server.estimator
    if other is not None and kind == "defense" and not getattr(mechanism, "bounds_aggregate", False):
        accepted = (
            f"none in front of '{name}', or one that adds noise itself ('diff2', 'dp_gd') in place of both: this one "
            f"asks the clients for more than the rows that '{name}' clips, and reads them as they are; {NO_CLAIM}"
        )
        yield Fault("server.estimator", other.name, accepted, ("server.defenses",))


def _participation(scenario: Tables, mechanism: Any, name: str) -> Iterator[Fault]:
    sampler = scenario.server.sampler
    if getattr(mechanism, "full_participation", True):
        if sampler.name != "uniform":
            accepted = f"'uniform', the default: '{name}' is calibrated to all clients in every round"
            yield Fault("server.sampler", sampler.name, accepted, ("server.estimator",))
    elif sampler.name not in getattr(mechanism, "samplers", (sampler.name,)):
        return  # its own check tells which it takes
    elif scenario.privacy.unit == "client" and getattr(_found("sampler", sampler.name), "reads_sizes", True):
        accepted = (
            "a sampler that reads no example counts ('uniform', 'poisson', or one of your own that declares "
            "reads_sizes = False): how many examples a client holds is what privacy.unit = 'client' protects; "
            f"{NO_CLAIM}"
        )
        yield Fault("server.sampler", sampler.name, accepted, ("privacy.unit",))
    counted = not getattr(mechanism, "full_participation", True) and not getattr(mechanism, "bounds_aggregate", False)
    if counted and scenario.adversary.selection == "forced" and scenario.attackers and not _asks_all(scenario):
        accepted = (
            "'pool': where draws are replaced, clients take part in other rounds than are accounted, and the cohort is "
            f"not the sample that is; {NO_CLAIM}"
        )
        yield Fault("adversary.selection", "forced", accepted, ("server.sampler",))


def _asks_all(scenario: Tables) -> bool:
    """Whether every client takes part in every round."""
    sampler = scenario.server.sampler
    if sampler.name == "poisson":
        return sampler.options.get("rate") == 1
    return scenario.cohort >= scenario.data.clients


def _measurements(scenario: Tables) -> Iterator[Fault]:
    for i, part in enumerate(getattr(scenario.server, "analysis", ())):
        found = _found("analysis", part.name)
        asks = getattr(found, "asks", None)
        if asks() if asks is not None else getattr(found, "handlers", None):
            accepted = f"an analysis that asks the clients for nothing: the answers carry no noise; {NO_CLAIM}"
            yield Fault(f"server.analysis[{i}]", part.name, accepted)
        elif (reads := reads_of("analysis", part.name)) != "released" and (reads, scenario.privacy.trust) != LOCAL_ROWS:
            accepted = (
                "one whose class declares that it reads released models alone (reads = 'released'), or, with "
                "privacy.trust = 'local', the clients' private rows (reads = 'rows'): what it tells of raw rows leaves "
                f"without noise; {NO_CLAIM}"
            )
            yield Fault(f"server.analysis[{i}]", part.name, accepted, ("privacy.trust",))
    if scenario.evaluate.clients:
        accepted = (
            "0: accuracies on the clients' own data, held-out shares included, leave them without noise (the server's "
            f"test set is nobody's); {NO_CLAIM}"
        )
        yield Fault("evaluate.clients", scenario.evaluate.clients, accepted)
    asked = scenario.server.defenses[0].options.get("fraction_evaluate", 0.0) if scenario.guest else 0.0
    if asked:
        accepted = f"0.0: the accuracies with which the clients would answer carry no noise; {NO_CLAIM}"
        yield Fault("server.defenses[0].fraction_evaluate", asked, accepted)


def _adversary(scenario: Tables, kind: str, bounds_aggregate: bool = False) -> Iterator[Fault]:
    privacy, adversary = scenario.privacy, scenario.adversary
    if not scenario.attackers:
        return
    for i, part in enumerate(scenario.adversary.attacks):
        if not bounds_aggregate and _trains_on_others(part):
            accepted = (
                "an attack on the attackers' own examples ('edge_case' with mode = 'foreign' and clean_from = 'own'): "
                "an honest client's example that attackers train on, too, is in more than one message, and moves them "
                f"further than its sensitivity says; {NO_CLAIM}"
            )
            yield Fault(f"adversary.attacks[{i}]", part.name, accepted, ("privacy.epsilon", "privacy.noise"))
    who = ("adversary.count", "adversary.fraction", "data.clients", "privacy.trust")
    if adversary.knowledge == "omniscient" and privacy.trust != "local":
        accepted = (
            "'own' or 'colluding': who sees the others' rows before the noise can write them into its own, which is "
            f"released{_local(kind)}; {NO_CLAIM}"
        )
        yield Fault("adversary.knowledge", "omniscient", accepted, who)
    if privacy.trust == "distributed" and privacy.colluding < scenario.attackers:
        accepted = (
            f"{scenario.attackers} or more: the clients that the adversary holds need not add their share of the "
            f"noise, and know it{_local(kind)}; {NO_CLAIM}"
        )
        yield Fault("privacy.colluding", privacy.colluding if privacy.colluding else NOTHING, accepted, who)


def _trains_on_others(part: Part) -> bool:
    try:
        return bool(registry.make("attack", part.name, **part.options).trains_on_others())
    except FedsimError:
        return False


def _found(kind: str, name: str) -> Any:
    try:
        return registry.get(kind, name)
    except FedsimError:
        return None
