"""The tables of a scenario: every key with its type, its default and what it does.

Parts (data set, attack, defense, …) are tables with a registry ``name`` and options of their own, a string being
short for a table with a name alone; :class:`Kind` says of which kind the parts of a key are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_serializer

from fedsim.errors import KnowledgeError


@dataclass(frozen=True)
class Kind:
    """Marks a field that holds parts of one registry kind."""

    name: str


class Part(BaseModel):
    """A part of the experiment: its registry name and its options."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_serializer
    def _to_toml(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


class Section(BaseModel):
    """A table of the scenario with keys of its own."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
    _hidden: dict[str, str] = PrivateAttr(default_factory=dict)

    def without(self, hidden: Mapping[str, str]) -> Self:
        """A copy in which some keys cannot be read: key → what a KnowledgeError says to who reads it."""
        other = self.model_copy()
        for name in hidden:
            del vars(other)[name]
        other._hidden = dict(hidden)
        return other

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Called for what is not there: hidden, or misspelt."""
            if not name.startswith("_") and name in self._hidden:
                raise KnowledgeError(self._hidden[name])
            return super().__getattr__(name)


class PartSection(Section):
    """A table that is a part (a name and the part's options) and has keys of its own beside."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    name: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """The options that belong to the part."""
        return dict(self.model_extra or {})


class Data(Section):
    """Which data, and who holds what of it."""

    dataset: Annotated[Part, Kind("dataset")] = Part(name="digits")
    """The data set."""
    partition: Annotated[Part, Kind("partition")] = Part(name="iid")
    """How the training examples are divided among the clients."""
    clients: Annotated[int, Field(ge=1)] = 10
    """Clients in the population."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each client's examples that it keeps for its own evaluation and never trains on."""
    root: Annotated[int, Field(ge=0)] = 0
    """Training examples that the server holds as clean root data, drawn by the seed and given to no client."""


class Model(PartSection):
    """The model: ``name`` and its options."""

    name: str = "mlp"
    """Registry name, or ``module:function`` that returns an nn.Module."""
    init: str | None = None
    """A .safetensors file of named parameters to start from; a run's checkpoint is one."""
    standardize: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Mean and standard deviation with which the model itself standardises its inputs; pixels stay in [0, 1]."""


class Client(Section):
    """What an honest client does in a round."""

    per_round: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 10
    """Clients in a round: a count, or a share of the population."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Local epochs (1 where neither epochs nor steps is given)."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Local steps, in place of epochs."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples in a mini-batch; the last of an epoch may be smaller and counts by its true size."""
    optimizer: Annotated[Part, Kind("optimizer")] = Part(name="sgd", options={"lr": 0.05})
    """The local optimizer."""
    optimizer_state: Literal["reset", "persist"] = "reset"
    """Whether each client keeps its optimizer's state over the rounds in which it trains."""
    loss: Annotated[Part | None, Kind("loss")] = None
    """The loss, with the head that goes with it; None: cross-entropy, or squared error for a regression."""
    regularizers: list[Annotated[Part, Kind("regularizer")]] = Field(default_factory=list)
    """What is added to the loss so that the clients' models agree in what they lean on."""
    adapter: Annotated[Part | None, Kind("adapter")] = None
    """What maps each client's own inputs, learned and kept by the client."""
    step_control: Annotated[Part | None, Kind("step_control")] = None
    """What scales each local step."""
    lr_schedule: Annotated[Part, Kind("lr_schedule")] = Part(name="constant")
    """Factor on the learning rate over rounds."""
    proximal: Annotated[float, Field(ge=0)] = 0.0
    """FedProx's mu: mu/2·|w - w_received|² is added to the loss (Li et al. 2020)."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Norm to which each step's gradient is clipped."""
    augmentation: list[Annotated[Part, Kind("augmentation")]] = Field(default_factory=list)
    """Train-time augmentation, in order."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a client answers nothing in a round."""
    straggler: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a client does only a part of its steps in a round (a seeded uniform share)."""


class AdversaryTable(Section):
    """Who attacks, when, with what knowledge, and how."""

    attacks: list[Annotated[Part, Kind("attack")]] = Field(default_factory=list)
    """The attacks, in order: each works on what the ones before left."""
    fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the population that the adversary holds (⌊fraction·clients⌋)."""
    count: Annotated[int, Field(ge=0)] | None = None
    """Clients that the adversary holds, in place of a fraction."""
    selection: Literal["pool", "forced"] = "pool"
    """``pool``: its clients are sampled like everyone; ``forced``: in attack rounds they replace named draws."""
    forced: Annotated[int, Field(ge=1)] = 1
    """With ``forced``: how many attackers there are at least in an attack round."""
    schedule: Annotated[Part, Kind("schedule")] = Part(name="every_round")
    """In which rounds it attacks."""
    knowledge: Literal["own", "colluding", "omniscient"] = "colluding"
    """What it sees when it crafts: each client its own update, those of all its clients, or everybody's."""
    examples: Literal["own", "population"] | None = None
    """Whose examples its attacks may have: ``own``, those of its clients; ``population``, everybody's and the test
    set. None: everybody's if ``omniscient``, and for ``edge_case`` and ``semantic``, whose papers give them."""
    knows_defense: bool = False
    """Whether it may run the server's defense on rows of its own (needs ``omniscient``)."""
    claim: Annotated[int, Field(ge=0)] | None = None
    """Example count that its clients claim; None: the true one."""


WITH_SOURCES = ("attacks.edge_case", "attacks.semantic")
"""Where the attacks stand whose papers give them images of the whole population."""


def grants_others(examples: str | None, knowledge: str, attack: type) -> bool:
    """Whether an adversary's rights show this attack the examples of other clients, and the test set."""
    if examples is None:
        return knowledge == "omniscient" or attack.__module__ in WITH_SOURCES
    return examples == "population"


class Server(Section):
    """What the server does with the updates."""

    defenses: list[Annotated[Part, Kind("defense")]] = Field(
        default_factory=lambda: [Part(name="fedavg")], min_length=1
    )
    """The defenses, from the clients to the model."""
    optimizer: Annotated[Part, Kind("server_optimizer")] = Part(name="sgd")
    """The server's optimizer on the aggregated update."""
    estimator: Annotated[Part | None, Kind("estimator")] = None
    """What the clients estimate in place of training, and the step that the server makes of it; None: they train."""
    sampler: Annotated[Part, Kind("sampler")] = Part(name="uniform")
    """How the cohort of a round is drawn."""
    analysis: list[Annotated[Part, Kind("analysis")]] = Field(default_factory=list)
    """What is measured of each round's rows beside accuracy; it changes nothing."""
    limit: Annotated[float, Field(gt=0)] = 1e8
    """A reply with a number of larger magnitude is invalid, as one that is not finite is."""
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds that the server waits for replies."""


class Privacy(Section):
    """What privacy is asked for; nothing is claimed where neither ``epsilon`` nor ``noise`` is given."""

    epsilon: Annotated[float, Field(gt=0)] | Literal["inf"] | None = None
    """The target ε, for which the noise is calibrated; ``inf``: clipped, but free of noise."""
    noise: list[Annotated[float, Field(ge=0)]] | None = None
    """The noise itself, in place of ``epsilon``: for diff2 (σ1, σ2), for others one noise multiplier (sd / clip)."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The δ at which ε is told."""
    unit: Literal["example", "client"] = "example"
    """Whose privacy: one example of one client, or a client with all that it holds."""
    trust: Literal["central", "distributed", "local"] = "central"
    """Who draws the noise: the server, once; all clients, a share each, behind secure summation; each for itself."""
    neighbours: Literal["replace_one", "add_or_remove"] = "replace_one"
    """Which data sets are neighbours; under diff2 add_or_remove means that one example's contribution is zero."""
    colluding: Annotated[int, Field(ge=0)] = 0
    """With ``distributed``: clients whose share of the noise may be missing, or known to the observer."""
    calibration: Literal["paper", "tight"] = "tight"
    """The noise of the estimator's paper, or the least that meets ε by the accountant."""
    accountant: Literal["pld", "rdp", "gdp"] = "pld"
    """Privacy loss distributions, Rényi DP, or the closed form (unsampled Gaussian releases)."""
    claim: Literal["derived", "none"] = "derived"
    """``none`` runs a pipeline that guarantees nothing, and the report says so."""

    @field_validator("epsilon", mode="before")
    @classmethod
    def _infinite(cls, given: Any) -> Any:
        """TOML's own ``inf`` is the word in quotes."""
        return "inf" if isinstance(given, float) and given == math.inf else given


class Observe(Section):
    """Who is honest but curious; it changes nothing."""

    observers: list[Annotated[Part, Kind("observer")]] = Field(default_factory=list)
    """What tries to learn of the clients' data from what it is shown; see docs/privacy-attacks.md."""


class Evaluate(Section):
    """What is measured, and how often."""

    every: Annotated[int, Field(ge=1)] = 1
    """Rounds between evaluations; the last round is always evaluated."""
    clients: Annotated[int, Field(ge=0, le=200)] = 0
    """Fixed clients on whose own data the worst-10 % accuracy is measured; 0 measures none."""
    gradient_norm: bool = False
    """Whether the norm of the gradient of the clients' mean loss, over all training examples, is measured."""
    batch_size: Annotated[int, Field(ge=1)] = 1000
    """Test examples in a block, whose losses are added at once."""


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError("cpu, cuda, cuda:N or mps")
    return name


class Engine(PartSection):
    """Where the nodes run: ``name`` and the engine's options. Changes no result, but for precision, device and path."""

    name: str = "local"
    """``local`` (threads) or ``ray`` (a Ray cluster)."""
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    """cpu, cuda, cuda:N or mps."""
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    """Precision of local training; bfloat16 runs exchange float32."""
    path: Literal["auto", "stacked", "vmap", "reference"] = "auto"
    """How a chunk of clients is trained; auto picks by the model."""


class Tables(Section):
    """All tables of a scenario, each key of the right type."""

    title: str = ""
    """What the experiment is, for people."""
    rounds: Annotated[int, Field(ge=1)] = 10
    """Rounds."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every random stream."""
    plugins: list[str] = Field(default_factory=list)
    """Files whose registered parts are known by name: ``["my_attack.py"]``."""
    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    client: Client = Field(default_factory=Client)
    adversary: AdversaryTable = Field(default_factory=AdversaryTable)
    server: Server = Field(default_factory=Server)
    privacy: Privacy = Field(default_factory=Privacy)
    observe: Observe = Field(default_factory=Observe)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    engine: Engine = Field(default_factory=Engine)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    """Key → list of values: ``fedsim bench`` runs the product."""

    @property
    def cohort(self) -> int:
        """Clients asked in a round."""
        named = self.server.sampler.options.get("clients") if self.server.sampler.name == "fixed" else None
        if isinstance(named, list):
            return len(named)
        if self.server.sampler.name == "poisson":  # whose rate alone counts
            return min(self.per_round, self.data.clients)
        return self.per_round

    @property
    def per_round(self) -> int:
        """``client.per_round`` as a count."""
        if isinstance(self.client.per_round, float):
            return max(1, int(self.client.per_round * self.data.clients + 1e-9))
        return self.client.per_round

    @property
    def attackers(self) -> int:
        """Clients that the adversary holds."""
        if self.adversary.count is not None:
            return self.adversary.count
        return int((self.adversary.fraction or 0.0) * self.data.clients + 1e-9)

    @property
    def guest(self) -> bool:
        """Whether a stock Flower strategy aggregates."""
        return self.server.defenses[0].name.startswith("flwr:")


def part_fields(section: type[BaseModel]) -> Iterator[tuple[str, str, bool]]:
    """(field, kind, whether it is a list) of a table's fields that hold parts."""
    for field, info in section.model_fields.items():
        listed = get_origin(info.annotation) is list
        marks = getattr(get_args(info.annotation)[0], "__metadata__", ()) if listed else info.metadata
        for mark in marks:
            if isinstance(mark, Kind):
                yield field, mark.name, listed
