"""The scenario: one file that tells the whole experiment.

Pydantic models for the tables of the TOML file; parts (data set, attack, defense, …) are tables with a registry
``name`` and options of their own, a string being short for a table with a name alone. Loading finds all faults at
once and reports each as one line.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from fedsim import registry
from fedsim.errors import Fault, FedsimError, ScenarioError, nearest


@dataclass(frozen=True)
class Kind:
    """Marks a field that holds parts of one registry kind."""

    name: str


class Part(BaseModel):
    """A part of the experiment: its registry name and its options."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_toml(cls, value: Any) -> Any:
        if isinstance(value, Part):
            return {"name": value.name, "options": dict(value.options)}
        if isinstance(value, str):
            return {"name": value, "options": {}}
        if isinstance(value, Mapping) and "name" in value and set(value) != {"name", "options"}:
            return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
        return value

    @model_serializer
    def _to_toml(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class _PartSection(_Section):
    """A table that is a part (a name and the part's options) and has keys of its own beside."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    @property
    def options(self) -> dict[str, Any]:
        """The options that belong to the part."""
        return dict(self.model_extra or {})


class Data(_Section):
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


class Model(_PartSection):
    """The model: ``name`` and its options."""

    name: str = "mlp"
    """Registry name, or ``module:function`` that returns an nn.Module."""
    init: str | None = None
    """A .safetensors file of named parameters to start from."""


class Client(_Section):
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
    """The local optimizer, fresh in every round."""
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


class AdversaryTable(_Section):
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
    knows_defense: bool = False
    """Whether it may run the server's defense on rows of its own (needs ``omniscient``)."""
    claim: Annotated[int, Field(ge=0)] | None = None
    """Example count that its clients claim; None: the true one."""


class Server(_Section):
    """What the server does with the updates."""

    defenses: list[Annotated[Part, Kind("defense")]] = Field(default_factory=lambda: [Part(name="fedavg")], min_length=1)
    """The defenses, from the clients to the model."""
    optimizer: Annotated[Part, Kind("server_optimizer")] = Part(name="sgd")
    """The server's optimizer on the aggregated update."""
    sampler: Annotated[Part, Kind("sampler")] = Part(name="uniform")
    """How the cohort of a round is drawn."""
    limit: Annotated[float, Field(gt=0)] = 1e8
    """A reply with a number of larger magnitude is invalid, as one that is not finite is."""
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds that the server waits for replies."""


class Evaluate(_Section):
    """What is measured, and how often."""

    every: Annotated[int, Field(ge=1)] = 1
    """Rounds between evaluations; the last round is always evaluated."""
    clients: Annotated[int, Field(ge=0, le=200)] = 0
    """Fixed clients on whose own data the worst-10 % accuracy is measured; 0 measures none."""
    batch_size: Annotated[int, Field(ge=1)] = 1000
    """Test examples in one forward pass."""


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError("cpu, cuda, cuda:N or mps")
    return name


class Engine(_PartSection):
    """Where the nodes run: ``name`` and the engine's options. Changes no result, but for precision, device and path."""

    name: str = "local"
    """``local`` (threads) or ``ray`` (a Ray cluster)."""
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    """cpu, cuda, cuda:N or mps."""
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    """Precision of local training; bfloat16 runs exchange float32."""
    path: Literal["auto", "stacked", "vmap", "reference"] = "auto"
    """How a chunk of clients is trained; auto picks by the model."""


class _Fields(_Section):
    title: str = ""
    """What the experiment is, for people."""
    rounds: Annotated[int, Field(ge=1)] = 10
    """Rounds."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every random stream."""
    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    client: Client = Field(default_factory=Client)
    adversary: AdversaryTable = Field(default_factory=AdversaryTable)
    server: Server = Field(default_factory=Server)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    engine: Engine = Field(default_factory=Engine)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    """Key → list of values: ``fedsim bench`` runs the product."""


class Scenario(_Fields):
    """A whole experiment, checked: every part exists, every option is valid, the parts fit each other.

    Raises:
        ScenarioError: all faults at once, one line each.
    """

    def __init__(self, **data: Any) -> None:
        where = data.pop("_where", "scenario")
        clean, faults = _examine(data)
        if faults:
            raise ScenarioError(faults, where)
        super().__init__(**clean)

    @classmethod
    def load(cls, file: str | Path, overrides: Mapping[str, Any] | None = None, sets: Sequence[str] = ()) -> Scenario:
        """Read a TOML file, or a scenario that ships with fedsim by its name.

        Args:
            file: path, or a name out of ``fedsim list scenario``.
            overrides: dotted key (or nested table) → value.
            sets: ``key=VALUE`` as on the command line; VALUE is TOML, a bare word is a string.

        Raises:
            ScenarioError: the file is missing, not TOML, or at fault.
        """
        return cls(**read(file, overrides, sets), _where=str(file))

    @property
    def cohort(self) -> int:
        """Clients asked in a round."""
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

    def table(self) -> dict[str, Any]:
        """The resolved scenario as nested tables, every default written out; what is None is left out."""
        return cast("dict[str, Any]", _without_none(self.model_dump(exclude={"matrix"} if not self.matrix else set())))

    def toml(self) -> str:
        """The resolved scenario as TOML."""
        import tomli_w

        return tomli_w.dumps(self.table())

    def changed(self, **tables: Any) -> Scenario:
        """The same scenario with other values: ``scenario.changed(rounds=5, **{"server.limit": 1e6})``."""
        return Scenario(**override(self.table(), tables))


def read(file: str | Path, overrides: Mapping[str, Any] | None = None, sets: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a scenario file with overrides applied, unchecked."""
    path = Path(file)
    if not path.is_file():
        shipped = registry.shipped_scenarios()
        if str(file).removesuffix(".toml") in shipped:
            path = shipped[str(file).removesuffix(".toml")]
        else:
            hint = nearest(file, shipped)
            raise ScenarioError(
                [Fault("FILE", str(file), f"a TOML file, or one of: {', '.join(shipped)}{hint}")], where=str(file)
            )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError([Fault("FILE", str(file), f"TOML; {error}")], where=str(file)) from error
    data = override(data, overrides or {})
    for text in sets:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise ScenarioError([Fault("--set", text, "KEY=VALUE, e.g. server.optimizer.lr=0.5")], where=str(file))
        data = override(data, {key.strip(): toml_value(value.strip())})
    return data


def toml_value(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def override(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested tables with dotted keys set; ``server.defenses.0.keep`` and ``server.defenses[0].keep`` reach into lists."""
    result = copy.deepcopy(dict(data))
    for key, value in changes.items():
        pieces = key.replace("[", ".").replace("]", "").split(".")
        _set(result, pieces, value, key)
    return result


def _set(table: dict[str, Any], pieces: list[str], value: Any, key: str) -> None:
    here: Any = table
    for position, piece in enumerate(pieces):
        last = position == len(pieces) - 1
        if isinstance(here, list):
            if not piece.isdigit() or int(piece) >= len(here):
                raise ScenarioError([Fault(key, value, f"a position from 0 to {len(here) - 1} in place of '{piece}'")])
            index: Any = int(piece)
        else:
            index = piece
        if last:
            if isinstance(value, Mapping) and isinstance(here, dict) and isinstance(here.get(index), dict) and "name" not in value:
                for inner, inner_value in value.items():
                    _set(here[index], [inner], inner_value, f"{key}.{inner}")
            else:
                here[index] = copy.deepcopy(value)
            return
        if isinstance(here, dict) and index not in here:
            here[index] = {}
        if isinstance(here[index], str):
            here[index] = {"name": here[index]}
        if not isinstance(here[index], (dict, list)):
            raise ScenarioError([Fault(key, value, f"a key below a table; '{'.'.join(pieces[: position + 1])}' is none")])
        here = here[index]


def json_schema() -> dict[str, Any]:
    """JSON Schema of scenario files: tables, keys and, for every part, the registered names with their options."""
    schema = _Fields.model_json_schema(by_alias=True)
    schema["title"] = "fedsim scenario"
    definitions = schema.setdefault("$defs", {})
    for model in (Data, Client, AdversaryTable, Server):
        properties = definitions[model.__name__]["properties"]
        for field, kind, many in _part_fields(model):
            reference = {"$ref": f"#/$defs/{kind}"}
            description = properties[field].get("description", "")
            shape: dict[str, Any] = {"type": "array", "items": reference} if many else {"allOf": [reference]}
            properties[field] = shape | ({"description": description} if description else {})
            if kind not in definitions:
                definitions[kind] = _kind_schema(kind)
    for section, kind in (("Model", "model"), ("Engine", "engine")):
        own = definitions[section]
        own["properties"]["name"] = {"type": "string", "anyOf": [{"enum": registry.names(kind)}, {"pattern": ":"}]}
        own["allOf"] = [_when(name, part) for name, part in registry.iterate(kind)]
    definitions.pop("Part", None)
    return schema


def _kind_schema(kind: str) -> dict[str, Any]:
    names = [name for name, _ in registry.iterate(kind)]
    return {
        "anyOf": [
            {"type": "string", "anyOf": [{"enum": names}, {"pattern": ":"}]},
            {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string", "anyOf": [{"enum": names}, {"pattern": ":"}]}},
                "allOf": [_when(name, part) for name, part in registry.iterate(kind)],
            },
        ]
    }


def _when(name: str, part: Any) -> dict[str, Any]:
    inner = registry.options_schema(part)
    then = {"properties": inner.get("properties", {})} | ({"required": inner["required"]} if "required" in inner else {})
    return {"if": {"properties": {"name": {"const": name}}, "required": ["name"]}, "then": then}


def _part_fields(model: type[BaseModel]) -> Iterator[tuple[str, str, bool]]:
    """(field, kind, whether it is a list) of the fields that hold parts."""
    for field, info in model.model_fields.items():
        for mark in info.metadata:
            if isinstance(mark, Kind):
                yield field, mark.name, False
        arguments = getattr(info.annotation, "__args__", ())
        for mark in getattr(arguments[0], "__metadata__", ()) if arguments else ():
            if isinstance(mark, Kind):
                yield field, mark.name, True


_SECTIONS: dict[str, type[_Section]] = {
    "data": Data,
    "client": Client,
    "adversary": AdversaryTable,
    "server": Server,
}


def _examine(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """The tables with every part's defaults filled in, and all that is wrong with them."""
    raw = copy.deepcopy(dict(data))
    faults = _structure(raw)
    faulty = {_plain_key(fault.key) for fault in faults}
    for fault in faults:
        _prune(raw, fault.key)
    try:
        fields = _Fields.model_validate(raw)
    except ValidationError:
        return dict(data), faults
    clean = fields.model_dump()
    for key, kind, place, index in _parts(clean):
        part = place[index]
        filled, wrong = registry.check_options(kind, part["name"], {k: v for k, v in part.items() if k != "name"}, key)
        faults += wrong
        faulty |= {_plain_key(fault.key) for fault in wrong}
        if not wrong:
            place[index] = {"name": part["name"], **filled}
    for section, kind, model in (("model", "model", Model), ("engine", "engine", Engine)):
        table = clean[section]
        own = {k: v for k, v in table.items() if k in model.model_fields}
        filled, wrong = registry.check_options(kind, table["name"], {k: v for k, v in table.items() if k not in own}, section)
        faults += wrong
        faulty |= {_plain_key(fault.key) for fault in wrong}
        if not wrong:
            clean[section] = own | filled
    for fault in _semantics(clean, faulty):
        involved = {_plain_key(key) for key in (fault.key, *fault.involves)}
        if not any(key == bad or key.startswith(bad + ".") for key in involved for bad in faulty):
            faults.append(fault)
    return clean, faults


def _structure(raw: dict[str, Any]) -> list[Fault]:
    try:
        _Fields.model_validate(raw)
    except ValidationError as error:
        problems = error.errors()
    else:
        return []
    faults: dict[str, Fault] = {}
    for problem in problems:
        location = [piece for piece in problem["loc"] if not str(piece).startswith(("constrained", "function-"))]
        key = _key(location)
        if problem["type"] == "extra_forbidden":
            if any(other["type"] == "missing" and other["loc"][:-1] == problem["loc"][:-1] for other in problems):
                continue
            known = _fields_at(location[:-1])
            faults[key] = Fault(key, problem["input"], f"no such key{nearest(location[-1], known)}; keys here: {', '.join(known)}")
            continue
        while location and str(location[-1]) in ("int", "float", "str", "bool", "none"):
            location = location[:-1]
        key = _key(location)
        accepted = registry.plain(problem)
        if problem["type"] == "missing":
            key, accepted = _key(location[:-1]) or key, f"a table with a '{location[-1]}', or a name"
        if key in faults and accepted not in faults[key].accepted:
            accepted = f"{faults[key].accepted}, or {accepted}"
        faults[key] = Fault(key, problem["input"], accepted)
    return list(faults.values())


def _key(location: Sequence[Any]) -> str:
    key = ""
    for piece in location:
        key += f"[{piece}]" if isinstance(piece, int) else (f".{piece}" if key else str(piece))
    return key


def _plain_key(key: str) -> str:
    return key.replace("[", ".").replace("]", "")


def _fields_at(location: Sequence[Any]) -> list[str]:
    model: Any = _Fields
    for piece in location:
        info = getattr(model, "model_fields", {}).get(piece)
        if info is None:
            return []
        model = info.annotation
    return [name for name in getattr(model, "model_fields", {})]


def _prune(raw: dict[str, Any], key: str) -> None:
    here: Any = raw
    pieces = _plain_key(key).split(".")
    for piece in pieces[:-1]:
        here = here[int(piece)] if isinstance(here, list) and piece.isdigit() else here.get(piece) if isinstance(here, dict) else None
        if here is None:
            return
    if isinstance(here, dict):
        here.pop(pieces[-1], None)
    elif isinstance(here, list) and pieces[-1].isdigit() and int(pieces[-1]) < len(here):
        here[int(pieces[-1])] = {"name": "fedavg"} if "defenses" in pieces else None
        while None in here:
            here.remove(None)


def _parts(clean: dict[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """(key, kind, container, index) of every part in the tables."""
    for section, model in _SECTIONS.items():
        for field, kind, many in _part_fields(model):
            if many:
                for position in range(len(clean[section][field])):
                    yield f"{section}.{field}[{position}]", kind, clean[section][field], position
            else:
                yield f"{section}.{field}", kind, clean[section], field


def _semantics(clean: dict[str, Any], faulty: set[str]) -> Iterator[Fault]:
    """What does not fit together, each part asked by its ``check`` hook."""
    try:
        scenario = Scenario.model_construct(**{k: v for k, v in _Fields.model_validate(clean)})
    except ValidationError:
        return
    yield from _core_checks(scenario)
    sections = [*_parts(clean), ("model", "model", clean, "model"), ("engine", "engine", clean, "engine")]
    for key, kind, place, index in sections:
        part = place[index]
        if any(bad == _plain_key(key) or bad.startswith(_plain_key(key) + ".") for bad in faulty):
            continue
        own = {"name", "init", "device", "precision", "path"} if key in ("model", "engine") else {"name"}
        try:
            built = registry.make(kind, part["name"], **{k: v for k, v in part.items() if k not in own})
        except FedsimError as error:
            yield Fault(key, part, str(error))
            continue
        check = getattr(built, "check", None)
        for fault in check(scenario) if check is not None else ():
            where = fault.key[1:] if fault.key.startswith("/") else f"{key}.{fault.key}" if fault.key else key
            yield Fault(where, fault.given, fault.accepted, fault.involves)


def _below(part: str, key: str) -> str:
    """A part's fault key, relative to the part, or from the root with a slash before it."""
    if key.startswith("/"):
        return key[1:]
    return f"{part}.{key}" if key else part


def _core_checks(scenario: Scenario) -> Iterator[Fault]:
    clients, client, adversary, server = scenario.data.clients, scenario.client, scenario.adversary, scenario.server
    if scenario.cohort > clients:
        yield Fault("client.per_round", client.per_round, f"at most data.clients = {clients}", ("data.clients",))
    if client.epochs is not None and client.steps is not None:
        yield Fault("client.steps", client.steps, "either client.epochs or client.steps, not both", ("client.epochs",))
    if adversary.fraction is not None and adversary.count is not None:
        yield Fault("adversary.count", adversary.count, "either adversary.fraction or adversary.count, not both")
    if scenario.attackers > clients:
        yield Fault("adversary.count", scenario.attackers, f"at most data.clients = {clients}", ("data.clients",))
    if scenario.attackers and not adversary.attacks:
        yield Fault("adversary.attacks", [], "at least one attack where the adversary holds clients")
    if adversary.knows_defense and adversary.knowledge != "omniscient":
        yield Fault("adversary.knows_defense", True, "true only with adversary.knowledge = 'omniscient'")
    if scenario.guest and len(server.defenses) > 1:
        yield Fault(
            "server.defenses",
            [part.name for part in server.defenses],
            f"a stock Flower strategy stands alone in the list: [\"{server.defenses[0].name}\"]",
        )
    for position, part in enumerate(server.defenses[1:], start=1):
        if part.name.startswith("flwr:") and not scenario.guest:
            yield Fault(f"server.defenses[{position}].name", part.name, "a stock Flower strategy stands alone in the list")
    if adversary.knows_defense and scenario.guest:
        yield Fault("adversary.knows_defense", True, "false in front of a stock Flower strategy, which cannot be run twice")
    if scenario.engine.precision == "float64" and scenario.engine.device == "mps":
        yield Fault("engine.precision", "float64", "float32 or bfloat16 on mps", ("engine.device",))
    rank = ("own", "colluding", "omniscient")
    for position, part in enumerate(adversary.attacks):
        try:
            needs = registry.get("attack", part.name)
        except FedsimError:
            continue
        if rank.index(getattr(needs, "knowledge", "own")) > rank.index(adversary.knowledge):
            yield Fault(
                "adversary.knowledge",
                adversary.knowledge,
                f"'{needs.knowledge}', which the attack '{part.name}' (adversary.attacks[{position}]) needs",
            )
        if getattr(needs, "knows_defense", False) and not adversary.knows_defense:
            yield Fault("adversary.knows_defense", False, f"true, which the attack '{part.name}' needs")


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(v) for v in value]
    return value


def cells(data: Mapping[str, Any], where: str) -> list[tuple[dict[str, Any], Scenario]]:
    """The product of a ``[matrix]``: (the cell's keys and values, its scenario).

    Raises:
        ScenarioError: the faults of all cells at once.
    """
    import itertools

    base = {k: v for k, v in data.items() if k != "matrix"}
    matrix: Any = data.get("matrix", {})
    if not isinstance(matrix, Mapping) or not all(isinstance(v, list) and v for v in matrix.values()):
        raise ScenarioError([Fault("matrix", matrix, "key → list of at least one value")], where)
    flat = dict(_flat_matrix(matrix))
    found, faults = [], dict[str, Fault]()
    for values in itertools.product(*flat.values()):
        cell = dict(zip(flat, values, strict=True))
        try:
            found.append((cell, Scenario(**override(base, cell), _where=where)))
        except ScenarioError as error:
            for fault in error.faults:
                faults.setdefault(fault.line(where), fault)
    if faults:
        raise ScenarioError(list(faults.values()), where)
    return found


def _flat_matrix(matrix: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for key, value in matrix.items():
        if isinstance(value, Mapping):
            yield from _flat_matrix(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


__all__: Iterable[str] = ["Part", "Scenario", "cells", "json_schema", "override", "read", "toml_value"]
