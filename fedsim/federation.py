"""Builds what a scenario names: data and who holds it, the model, the clients, the adversary, the server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor

import fedsim
from attacks.adversary import Adversary
from fedsim import flower, registry, rng, runtime
from fedsim.client.app import TRAIN, FederatedClient
from fedsim.client.workload import Workload
from fedsim.data.examples import Dataset, Examples, Shares
from fedsim.data.partition import Partition
from fedsim.errors import Fault, PrivacyError, Said, ScenarioError
from fedsim.grids.adversarial import AdversarialGrid
from fedsim.measures import Evaluator
from fedsim.models.build import build_model
from fedsim.observers.observer import Watched
from fedsim.observers.watch import Watch
from fedsim.scenario import Part, Scenario
from fedsim.scenario_privacy import apart, claims, hides_counts, mechanisms
from fedsim.updates import Layout, share
from strategies.client_statistics import ClientStatistics
from strategies.estimator import Estimator, Setting
from strategies.gns import MOST
from strategies.reference_sample import ReferenceSample
from strategies.strategy import DefendedStrategy

if TYPE_CHECKING:
    from fedsim.privacy.guarantee import Guarantee

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
"""What is exchanged in a run of each precision."""

LEAST_LIMIT = 1e30
"""Numbers up to here are valid in rows that hold raw gradients behind a claim of privacy."""


def make(kind: str, part: Part) -> Any:
    """The part that a scenario names."""
    return registry.make(kind, part.name, **part.options)


@dataclass
class Federation:
    """All parts of a run, built once a process.

    Args:
        scenario: what it was built from.
        dataset: without the server's root data.
        shares: who holds which training examples.
        root: the server's own clean examples, or None.
        layout: the model's parameters and buffers.
        initial: (d + b,) vector before the first round.
        adversary: who attacks when.
        app: the ClientApp.
        estimator: set up; None where clients train.
        guarantee: what privacy the run guarantees; None where no part adds noise.
        deployed: whether the nodes are others' machines.
    """

    scenario: Scenario
    dataset: Dataset
    shares: Shares
    root: Examples | None
    layout: Layout
    initial: Tensor
    module: torch.nn.Module
    adversary: Adversary
    app: FederatedClient
    estimator: Estimator | None = None
    guarantee: Guarantee | None = None
    deployed: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.scenario.engine.precision]

    @property
    def source(self) -> Any:
        """The data set part; one that knows the truth behind its data measures models against it (``measure``)."""
        return make("dataset", self.scenario.data.dataset)

    def engine(self) -> Grid:
        """The grid that the scenario names, with the clients on it."""
        table = self.scenario.engine
        part = registry.make("engine", table.name, **table.options)
        nodes, seed = self.scenario.data.clients, self.scenario.seed
        return part.grid(self.app, num_clients=nodes, seed=seed)  # type: ignore[no-any-return]

    def scale(self, server_round: int) -> float:
        """Factor on the clients' learning rate in a round."""
        schedule = make("lr_schedule", self.scenario.client.lr_schedule)
        return float(schedule.factor(server_round, self.scenario.rounds))

    def evaluator(self) -> Evaluator:
        workers = self.scenario.engine.options.get("workers") or runtime.cores()
        return Evaluator(
            self._fresh_module(),
            self.layout,
            self.scenario.evaluate.batch_size,
            min(int(workers), runtime.cores()),
            runtime.prepare_device(self.scenario.engine.device),
            self.dtype,
            self.dataset.info.num_classes,
        )

    def strategy(self, evaluator: Evaluator) -> Strategy:
        """The server: our strategy with the scenario's defenses, or a stock Flower strategy."""
        scenario = self.scenario
        defenses = [make("defense", part) for part in scenario.server.defenses]
        if scenario.guest:
            defenses[0].set_up(
                self.layout,
                num_clients=scenario.data.clients,
                per_round=scenario.cohort,
                seed=scenario.seed,
                limit=scenario.server.limit,
                dtype=self.dtype,
            )
            return defenses[0]  # type: ignore[no-any-return]
        for each in defenses:
            each.fit(self.dataset.info.num_classes)
            if hasattr(each, "publications"):
                each.set_up(setting_of(scenario, self.shares.sizes, self.deployed).of("defense"))
        analyses = [make("analysis", part) for part in scenario.server.analysis]
        for each in analyses:
            each.fit(self.dataset.info.num_classes)
            each.set_up(scenario, self.dataset.info, self.shares.sizes)
        defenses += references(scenario) + statistics(scenario)
        fixed: list[int] = []
        if scenario.evaluate.clients:
            generator = rng.stream(scenario.seed, "evaluate.clients")
            count = min(scenario.evaluate.clients, scenario.data.clients)
            fixed = sorted(int(c) for c in generator.choice(scenario.data.clients, count, replace=False))
        return DefendedStrategy(
            defenses,
            make("server_optimizer", scenario.server.optimizer),
            make("sampler", scenario.server.sampler),
            estimator=self.estimator,
            analyses=analyses,
            layout=self.layout,
            sizes=self.shares.sizes,
            per_round=scenario.cohort,
            seed=scenario.seed,
            limit=self._limit,
            timeout=scenario.server.timeout,
            scale=self.scale,
            force=self.adversary.force if scenario.adversary.selection == "forced" and scenario.attackers else None,
            root=self.root,
            predict=evaluator.logits,
            evaluate_clients=fixed,
            evaluate_every=scenario.evaluate.every if fixed else 0,
            last_round=scenario.rounds,
            secret_cohorts=self.deployed and self._counts_on_hidden_cohorts,
            dtype=self.dtype,
            device=runtime.prepare_device(scenario.engine.device),
        )

    @property
    def _limit(self) -> float:
        """Largest number in a valid row.

        Behind an estimator, the gradients of a client's examples are in its row: where the row is raw, one example
        could decide whether its client is refused, which no noise covers.
        """
        limit, claim = self.scenario.server.limit, self.guarantee
        raw = self.estimator is not None and self.scenario.privacy.trust != "local"
        return max(limit, LEAST_LIMIT) if raw and claim is not None and not claim.none else limit

    @property
    def _counts_on_hidden_cohorts(self) -> bool:
        """Whether an epsilon is claimed that holds only where nobody knows who was drawn."""
        claim = self.guarantee
        return claim is not None and not claim.none and any(each.hidden_cohort for each in claim.publications)

    def adversarial(self, grid: Grid, strategy: Strategy) -> AdversarialGrid:
        """The grid with the adversary's nodes on it."""
        ours = strategy if isinstance(strategy, DefendedStrategy) else None
        preview = None if ours is None else ours.preview
        return AdversarialGrid(
            grid,
            self.adversary,
            self.layout,
            self.scenario.data.clients,
            server_lr=float(self.scenario.server.optimizer.options.get("lr", 1.0)),
            preview=preview if self.scenario.adversary.knows_defense else None,
            estimating=ours if ours is not None and ours.estimator is not None else None,
            dtype=self.dtype,
        )

    def watch(self) -> Watch:
        """The scenario's observers; without any it does nothing."""

        def watched() -> Watched:
            workload, initial = self.app.workload, self.initial.clone()
            return Watched(self.scenario, workload, self.dataset.info, self.dataset.test, initial, self.estimator)

        return Watch(self.scenario, watched, self.guarantee)

    def triggered(self) -> Examples | None:
        """The eligible test examples as the attack shows them; None if no attack has a trigger."""
        return self.adversary.triggered(self.dataset.test)

    def _fresh_module(self) -> torch.nn.Module:
        import copy

        return copy.deepcopy(self.module)


def build(scenario: Scenario, deployed: bool = False) -> Federation:
    """Read the data, divide it, build the model, the attacks and the clients.

    Args:
        scenario: what to build.
        deployed: whether the nodes are others' machines, where noise comes from the operating system's entropy.

    Raises:
        ScenarioError: what does not fit these clients and this model, a claim of privacy among it.
        DataMissing: the data set is not on this machine.
        FedsimError: a part cannot be built.
    """
    runtime.prepare_device(scenario.engine.device)
    flower.set_identity()
    dataset, root = _with_root(make("dataset", scenario.data.dataset).load(), scenario)
    partition = make("partition", scenario.data.partition)
    shares = partition.assign(dataset, scenario.data.clients, scenario.seed)
    loss = None if scenario.client.loss is None else make("loss", scenario.client.loss)
    if loss is not None:
        loss.fit(dataset.info.num_classes)
        if hasattr(loss, "set_up"):
            loss.set_up(dataset.info.shape)
    control = None if scenario.client.step_control is None else make("step_control", scenario.client.step_control)
    if control is not None:
        control.fit(dataset.info.num_classes)
    regularizers = [make("regularizer", part) for part in scenario.client.regularizers]
    for part in regularizers:
        part.fit(dataset.info.num_classes)
    head = None if loss is None else loss.head
    module = build_model(scenario.model, dataset.info, scenario.seed, scenario.engine.precision, head)
    layout = Layout.of(module)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    adversary = Adversary.of(scenario)
    adversary.prepare(dataset.train, dataset.test, num_classes=dataset.info.num_classes)
    faults = [*_unmapped(scenario, shares), *_too_large(scenario, layout)]
    if faults:
        raise ScenarioError(faults)
    estimator = make_estimator(scenario, shares.sizes, deployed)
    guarantee = protected(scenario, estimator, shares, layout, module, deployed)
    check_apart(scenario, dataset, module, loss, partition)
    client = scenario.client
    optimizer = make("optimizer", client.optimizer)
    if hasattr(optimizer, "publications"):
        optimizer.set_up(setting_of(scenario, shares.sizes, deployed))
    workload = Workload(
        train=dataset.train,
        shares=shares,
        model=_Template(module),
        layout=layout,
        num_classes=dataset.info.num_classes,
        optimizer=optimizer,
        seed=scenario.seed,
        batch_size=client.batch_size,
        epochs=(client.epochs or 1) if client.steps is None else None,
        steps=client.steps,
        proximal=client.proximal,
        clip_norm=client.clip_norm,
        augmentations=[make("augmentation", each) for each in client.augmentation],
        holdout=scenario.data.holdout,
        dropout=client.dropout,
        straggler=client.straggler,
        view=partition.view if type(partition).view is not Partition.view else None,
        precision=scenario.engine.precision,
        device=scenario.engine.device,
        path=scenario.engine.path,
        loss=None if loss is None or loss.is_default(dataset.info.num_classes) else loss,
        regularizers=regularizers,
        adapter=None if client.adapter is None else make("adapter", client.adapter),
        step_control=control,
        optimizer_state=client.optimizer_state,
        secrecy="none" if not claims(scenario) else "public" if scenario.privacy.trust == "central" else "server",
        tells_counts=not hides_counts(scenario),
    )
    # Whom the server is not trusted with answers nothing but what the noise is on.
    noiseless = ("evaluate", "evaluate.default", *(() if estimator is None else TRAIN))
    unasked = noiseless if workload.secrecy == "server" else ()
    releases = scenario.rounds if deployed and workload.secrecy == "server" else None
    drawn = None if releases is None else _drawn(scenario, optimizer, shares.sizes)
    asked = handlers(scenario, estimator)
    app = FederatedClient(workload, adversary.attacks, asked, unasked, releases, drawn, adversary.knowledge)
    initial = layout.flatten(named, DTYPES[scenario.engine.precision])
    return Federation(
        scenario, dataset, shares, root, layout, initial, module, adversary, app, estimator, guarantee, deployed
    )


def _drawn(scenario: Scenario, optimizer: Any, sizes: NDArray[Any]) -> list[int] | None:
    """Rounds of each client that its own noisy steps are accounted for, whatever a server asks; None: all rounds."""
    if not hasattr(optimizer, "publications") or scenario.adversary.selection == "forced":
        return None  # whom the adversary forces into cohorts is asked beyond its draws
    from fedsim.privacy.local_steps import participation

    return [int(count) for count in participation(setting_of(scenario, sizes))[0]]


def handlers(scenario: Scenario, estimator: Estimator | None) -> dict[str, Any]:
    """The handlers that the scenario's server parts want on the clients: message type → callable(node, content)."""
    if scenario.guest:
        return {}
    parts: list[Any] = [make("defense", part) for part in scenario.server.defenses]
    parts += [make("analysis", part) for part in scenario.server.analysis]
    parts += [] if estimator is None else [estimator]
    return {kind: getattr(part, method) for part in parts for kind, method in part.handlers.items()} | {
        kind: getattr(part, method) for part in statistics(scenario) for kind, method in part.own_handlers.items()
    }


def references(scenario: Scenario) -> list[ReferenceSample]:
    """The server's side of the clients' adapter."""
    part = scenario.client.adapter
    return [] if part is None else [ReferenceSample(make("adapter", part).sample)]


def statistics(scenario: Scenario) -> list[ClientStatistics]:
    """The server's sides of the clients' regularizers."""
    parts = [make("regularizer", part) for part in scenario.client.regularizers]
    return [ClientStatistics(part, position) for position, part in enumerate(parts)]


def _unmapped(scenario: Scenario, shares: Shares) -> Iterator[Fault]:
    """Clients that train, and hold too little for the adapter to be learned."""
    if scenario.client.adapter is None:
        return
    single = [
        client for client, n in enumerate(shares.sizes) if int(n) - share(float(scenario.data.holdout), int(n)) == 1
    ]
    if single:
        accepted = (
            f"a partition that gives each client 2 examples to train on, or none: client {single[0]} holds 1, of which "
            f"'{scenario.client.adapter.name}' learns no map"
        )
        yield Fault("data.partition", scenario.data.partition.name, accepted)


def _too_large(scenario: Scenario, layout: Layout) -> Iterator[Fault]:
    """A model for whose parameters there is no matrix."""
    part = scenario.server.estimator
    if part is not None and part.name == "gns" and part.options["curvature"] != "zero" and layout.d > MOST:
        accepted = (
            f"a model of {MOST} parameters or fewer with the curvature '{part.options['curvature']}', or curvature = "
            f"'zero': it has {layout.d}"
        )
        yield Fault("model.name", scenario.model.name, accepted)


def make_estimator(scenario: Scenario, sizes: NDArray[Any], deployed: bool = False) -> Estimator | None:
    """The scenario's estimator, its noise calibrated.

    Raises:
        ScenarioError: no noise keeps what is promised.
    """
    if scenario.server.estimator is None:
        return None
    part: Estimator = make("estimator", scenario.server.estimator)
    try:
        part.set_up(setting_of(scenario, sizes, deployed).of("estimator"))
    except PrivacyError as error:
        raise _not_private(error) from error
    return part


def setting_of(scenario: Scenario, sizes: NDArray[Any], deployed: bool = False) -> Setting:
    """What the part that adds noise knows of the run; what clients hold out is not among their examples."""
    trained = [int(n) - share(float(scenario.data.holdout), int(n)) for n in sizes]
    return Setting(
        scenario.rounds,
        scenario.seed,
        trained,
        scenario.privacy,
        None if scenario.guest else scenario.cohort,  # a stock strategy draws cohorts that nobody can draw again here
        scenario.attackers,
        deployed,
        scenario.server.sampler,
        scenario.client,
    )


def protected(
    scenario: Scenario,
    estimator: Estimator | None,
    shares: Shares,
    layout: Layout,
    module: torch.nn.Module,
    deployed: bool = False,
) -> Guarantee | None:
    """What privacy the run guarantees; None where no part adds noise.

    Raises:
        ScenarioError: the claim does not hold.
    """
    named = mechanisms(scenario)
    if not named:
        return None
    _, kind, part = named[0]
    setting = setting_of(scenario, shares.sizes, deployed).of(kind)
    mechanism: Any = estimator if kind == "estimator" else make(kind, part)
    faults = []
    if claims(scenario) and layout.b and getattr(mechanism, "sends_buffers", True):
        accepted = f"a model without buffers, which would leave the clients without noise behind '{part.name}'"
        faults.append(Fault("model.name", scenario.model.name, accepted))
    mixes = any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in module.modules())
    alone = scenario.privacy.unit == "example" and not getattr(mechanism, "bounds_aggregate", False)
    if claims(scenario) and mixes and alone and not faults:
        accepted = "a model without batch normalisation: it mixes examples, so that no gradient is one example's alone"
        faults.append(Fault("model.name", scenario.model.name, accepted))
    twice = len(np.unique(shares.indices)) < len(shares.indices)
    if claims(scenario) and scenario.privacy.unit == "example" and twice:
        accepted = (
            "a partition that gives each example to one client, or privacy.unit = 'client': what two hold counts twice"
        )
        faults.append(Fault("data.partition", scenario.data.partition.name, accepted))
    if faults:
        raise ScenarioError(faults)
    from fedsim.privacy.guarantee import derive

    try:
        if kind != "estimator":
            mechanism.set_up(setting)
        found = derive(scenario, part.name, mechanism, setting)
        return found if getattr(mechanism, "sends_buffers", True) else replace(found, dropped=layout.b)
    except PrivacyError as error:
        raise _not_private(error) from error


def check_apart(scenario: Scenario, dataset: Dataset, module: torch.nn.Module, loss: Any, partition: Partition) -> None:
    """Raise a ScenarioError where single examples are protected, and the loss or the clients' views mix them."""
    if not claims(scenario) or not apart(scenario):
        return
    from fedsim.privacy import separate

    classes = dataset.info.num_classes
    losses = None if loss is None else lambda outputs, targets: loss.example_losses(outputs, targets, classes)
    view = partition.view if type(partition).view is not Partition.view else None
    faults = list(separate.faults(scenario, dataset.test, module, losses, view))
    if faults:
        raise ScenarioError(faults)


def _not_private(error: PrivacyError) -> ScenarioError:
    key, _, said = str(error).partition(": ")
    given, _, accepted = said.removeprefix("given ").partition("; accepted: ")
    return ScenarioError([Fault(f"privacy ({key})", Said(given), accepted or str(error))])


@dataclass
class _Template:
    """Makes modules: a deep copy of one, so that workers build nothing anew."""

    module: torch.nn.Module

    def __call__(self) -> torch.nn.Module:
        import copy

        return copy.deepcopy(self.module)


def _with_root(dataset: Dataset, scenario: Scenario) -> tuple[Dataset, Examples | None]:
    if not scenario.data.root:
        return dataset, None
    n = len(dataset.train)
    chosen = rng.stream(scenario.seed, "server.root").choice(n, min(scenario.data.root, n), replace=False)
    rest = np.setdiff1d(np.arange(n), chosen)
    columns = {name: values[rest] for name, values in dataset.columns.items()}
    return replace(dataset, train=dataset.train.take(rest), columns=columns), dataset.train.take(np.sort(chosen))


def key(scenario: Scenario, fingerprint: str) -> dict[str, Any]:
    """What a run is keyed by: ``key`` and the parts that it is the hash of.

    The resolved scenario without title and engine (but with precision, device and path), every file, plug-in and
    data set that it names, and fedsim's version.
    """
    table = scenario.table()
    table.pop("title", None)
    engine = table.pop("engine")
    table["engine"] = {name: engine[name] for name in ("precision", "device", "path")}
    files = {name: _sha256(path) for name, path in sorted(set(_files(table)))}
    for part in scenario.adversary.attacks:
        files |= make("attack", part).fingerprints()
    parts = {
        "scenario": table,
        "files": files,
        "data": fingerprint,
        "fedsim": fedsim.__version__,
    }
    return {"key": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(), **parts}


def _files(value: Any) -> Iterator[tuple[str, Path]]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _files(each)
    elif isinstance(value, list):
        for each in value:
            yield from _files(each)
    elif isinstance(value, str):
        plugin = registry.plugin_file(value)
        path = plugin if plugin is not None else Path(value)
        if ("/" in value or "." in value) and path.is_file():
            yield value, path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def named_arrays(vector: Tensor, layout: Layout) -> dict[str, NDArray[Any]]:
    """The (d + b,) vector as named arrays."""
    return {name: view.detach().cpu().numpy() for name, view in layout.views(vector).items()}
