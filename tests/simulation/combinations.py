"""Draws scenarios whose parts nobody chose to fit each other, from all that is registered."""

from __future__ import annotations

import copy
import re
import struct
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim import registry
from fedsim.errors import ScenarioError
from fedsim.options import options
from fedsim.scenario import Scenario

CLIENTS = 8
NEEDED: dict[tuple[str, str], dict[str, Any]] = {
    ("estimator", "diff2"): {"restart": 2, "c1": 1.0, "c2": 1.0, "lr": 0.1},
    ("estimator", "dp_gd"): {"c1": 1.0, "lr": 0.1},
    ("sampler", "fixed"): {"clients": [0, 1, 3, 4, 6, 7]},
    ("sampler", "poisson"): {"rate": 0.7},
    ("partition", "natural"): {"column": "target"},
    ("schedule", "rounds"): {"rounds": [2]},
}
"""Options that have no default; those of data sets and of the partition ``file`` are files, see :class:`Files`."""
SMALL: dict[tuple[str, str], dict[str, Any]] = {
    ("adapter", "monge_gap"): {"steps": 1, "hidden": [8], "batch_size": 8},
    ("attack", "a3fl"): {"steps": 3, "unlearning": 1},
    ("attack", "edge_case"): {"dataset": "digits", "clean": 10, "examples": 5, "test": 10, "source": 2},
    ("attack", "iba"): {"steps": 3},
    ("attack", "optimal"): {"steps": 3, "refine": 1},
    ("attack", "semantic"): {"source": 1, "clusters": 2, "examples": 5},
    ("attack", "sign_flip"): {},
    ("augmentation", "crop"): {"pad": 1},
    ("defense", "deepsight"): {"samples": 40, "seeds": 1},
    ("model", "char_transformer"): {"width": 8, "depth": 1, "heads": 2},
    ("model", "cnn"): {"width": 4, "hidden": 8},
    ("model", "mlp"): {"hidden": [8]},
    ("model", "single_index"): {"exponent": 1},  # a cubic one diverges by any plain step
    ("observer", "gradient_inversion"): {"images": 2, "iterations": 8},
    ("observer", "membership_inference"): {"shadows": 4, "steps": 2},
    ("optimizer", "adadelta"): {"lr": 0.1},
    ("optimizer", "sgd"): {"lr": 0.05},
    ("regularizer", "fishr"): {"weight": 1.0},
    ("regularizer", "irm"): {"weight": 1.0},
    ("server_optimizer", "adagrad"): {"lr": 0.01},
    ("server_optimizer", "adam"): {"lr": 0.01},
    ("server_optimizer", "yogi"): {"lr": 0.01},
}
"""Options that keep a part within seconds on a few examples, or the model within the numbers' range."""
UNTRIED: dict[str, set[str]] = {
    "dataset": {"blog_feedback", "california_housing", "cifar10", "gas_turbine", "huggingface", "python_library"},
    "model": {"char_transformer", "resnet18", "vgg9"},
    "engine": {"ray"},
}
"""Not drawn: data that must be fetched, models of millions of parameters, a cluster; text, see :class:`Text`."""
SYNTHETIC = ["planted", "synthetic_classification", "synthetic_regression", "teacher_student"]
KEPT = {"model.name", "data.dataset.name", "client.optimizer", "client.per_round", "data.clients"}
"""Taken away only where that alone helps."""
OPTIONAL = [
    *("server.analysis", "server.estimator", "server.defenses", "server.sampler", "server.optimizer", "observe"),
    *("privacy", "adversary", "client.regularizers", "client.adapter", "client.step_control", "client.optimizer"),
]
BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length")
COLUMNS = {"cmnist": "domain", "rotated_mnist": "domain", "python_library": "package"}
"""Of a natural partition."""
SIZES = ("examples", "test", "dimensions", "inputs", "features")
"""Options of data sets that make runs long."""
GUESTS = ["flwr:FedAvg", "flwr:FedAdam", "flwr:FedMedian", "flwr:Krum"]
DIVISIONS = ["flwr:IidPartitioner", "flwr:LinearPartitioner"]


@dataclass(frozen=True)
class Files:
    """Data sets small enough for hundreds of runs."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Files:
        """Write pictures of 28 × 28 pixels as idx files, of 16 × 16 as npz, and a division of their first half."""
        draw = np.random.default_rng(0)
        for name, count in (("train", 240), ("t10k", 60)):
            labels = (np.arange(count) % 10).astype(np.uint8)
            centers = np.random.default_rng(1).integers(0, 255, (10, 28, 28))
            images = np.clip(centers[labels] + draw.integers(-60, 60, (count, 28, 28)), 0, 255).astype(np.uint8)
            head = struct.pack(">HBBIII", 0, 8, 3, *images.shape)
            (folder / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
            head = struct.pack(">HBBI", 0, 8, 1, count)
            (folder / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
        labels = draw.integers(0, 4, 220)
        pictures = np.clip(draw.normal(0.5, 0.3, (4, 3, 16, 16))[labels] + draw.normal(0, 0.1, (220, 3, 16, 16)), 0, 1)
        parts = {"x_train": pictures[:160], "x_test": pictures[160:]}
        parts = {name: array.astype(np.float32) for name, array in parts.items()}
        np.savez(folder / "pictures.npz", **parts, y_train=labels[:160], y_test=labels[160:])
        shares = {str(client): np.arange(client * 10, client * 10 + 10) for client in range(CLIENTS)}
        np.savez(folder / "shares.npz", **shares)  # type: ignore[arg-type]
        return cls(folder)

    def needed(self, kind: str, name: str) -> dict[str, Any]:
        """Options that name a file."""
        if (kind, name) == ("partition", "file"):
            return {"path": str(self.folder / "shares.npz"), "partial": True}
        if kind != "dataset":
            return {}
        folder = {"folder": str(self.folder)}
        sizes = {"synthetic_classification": {"examples": 160, "test": 40, "features": 6, "classes": 3}}
        sizes |= {"synthetic_regression": {"examples": 160, "test": 40}}
        sizes |= {"planted": {"dimensions": 8, "examples": 160, "test": 40}}
        sizes |= {"teacher_student": {"inputs": 12, "examples": 80, "test": 40}}
        own: dict[str, dict[str, Any]] = {
            **sizes,
            "npz": {"path": str(self.folder / "pictures.npz")},
            **dict.fromkeys(("idx", "mnist", "fashion_mnist", "cmnist"), folder),
            "rotated_mnist": {**folder, "examples": 40},
            "python_library": {"packages": ["html", "json"], "characters": 1600, "context": 8, "stride": 8},
        }
        return own.get(name, {})


class Draw:
    """One scenario's dice."""

    def __init__(self, seed: int, files: Files) -> None:
        self.dice, self.files = np.random.default_rng([5, seed]), files

    def chance(self, probability: float) -> bool:
        return bool(self.dice.random() < probability)

    def one(self, choices: typing.Sequence[Any]) -> Any:
        return choices[int(self.dice.integers(len(choices)))]

    def part(self, kind: str, among: typing.Sequence[str] = ()) -> dict[str, Any]:
        """A part of a kind with options: what it needs, what keeps it small, now and then another of its choices."""
        untried = UNTRIED.get(kind, set())
        known = [each for each, part in registry.iterate(kind) if not hasattr(part, "publications") or self.chance(0.1)]
        name = self.one(list(among) or [each for each in known if each not in untried])
        table = {"name": name}
        if ":" in name:
            return table
        needed = {**SMALL.get((kind, name), {}), **NEEDED.get((kind, name), {}), **self.files.needed(kind, name)}
        for option in options(registry.get(kind, name)):
            if option.name in needed:
                table[option.name] = needed[option.name]
            elif typing.get_origin(option.annotation) is Literal and self.chance(0.3):
                table[option.name] = self.one(typing.get_args(option.annotation))
            elif option.annotation is bool and self.chance(0.2):
                table[option.name] = not option.default
            else:
                assert not option.required, f"{kind} '{name}': say in NEEDED what its option '{option.name}' is to be"
        return table

    def parts(self, kind: str, most: int, among: typing.Sequence[str] = ()) -> list[dict[str, Any]]:
        return [self.part(kind, among) for _ in range(int(self.dice.integers(most + 1)))]

    def scenario(self) -> dict[str, Any]:
        """Tables of a scenario; in most cases without what its check complains of, so that most of them run."""
        tables = self.tables()
        return self.fitted(tables) if self.chance(0.85) else tables

    def tables(self) -> dict[str, Any]:
        """A scenario of two rounds, as the dice fall."""
        dataset = self.part("dataset")
        tables: dict[str, Any] = {
            "rounds": 2,
            "seed": int(self.dice.integers(1000)),
            "data": self.data(dataset),
            "model": self.model(dataset["name"]),
            "client": self.client(),
            "server": self.server(),
            "evaluate": {"every": self.one([1, 2]), "clients": self.one([0, 0, 3])},
            "engine": self.engine(),
        }
        if self.chance(0.5):
            tables["adversary"] = self.adversary()
        if self.chance(0.15):
            self.make_private(tables)
        elif self.chance(0.1):
            self.estimate(tables)
        if self.chance(0.05):
            tables["observe"] = {"observers": [self.part("observer")]}
        if self.chance(0.1):
            tables["evaluate"]["gradient_norm"] = True
        return tables

    def data(self, dataset: dict[str, Any]) -> dict[str, Any]:
        partition = self.part("partition") if self.chance(0.6) else self.part("partition", ["iid", "dirichlet"])
        if self.chance(0.1):
            partition = self.part("partition", DIVISIONS)
        if partition["name"] == "natural":
            partition["column"] = COLUMNS.get(dataset["name"], partition["column"])
        table = {"dataset": dataset, "partition": partition, "clients": CLIENTS, "root": self.one([0, 20, 20])}
        if partition["name"] == "natural":
            table["clients"] = 2
        if self.chance(0.2):
            table["holdout"] = 0.25
        return table

    def model(self, dataset: str) -> dict[str, Any]:
        plain = ["mlp", "logistic", "linear"]
        model = self.part("model", plain) if self.chance(0.6) else self.part("model")
        if dataset in ("idx", "mnist", "fashion_mnist", "npz") and self.chance(0.3):
            model = self.part("model", ["cnn", "lenet"])
        return model

    def client(self) -> dict[str, Any]:
        client: dict[str, Any] = {"per_round": self.one([1.0, 1.0, 0.8]), "batch_size": 16, "steps": 2}
        client["optimizer"] = self.part("optimizer")
        if self.chance(0.25):
            client["optimizer_state"] = "persist"
        if self.chance(0.5):
            client["loss"] = self.part("loss")
        if self.chance(0.3):
            client["regularizers"] = self.parts("regularizer", 2)
        if self.chance(0.2):
            client["adapter"] = self.part("adapter")
        if self.chance(0.25):
            client["step_control"] = self.part("step_control")
        if self.chance(0.3):
            client["lr_schedule"] = self.part("lr_schedule")
        if self.chance(0.2):
            client["augmentation"] = self.parts("augmentation", 2)
        for key, value in (("proximal", 0.1), ("clip_norm", 1.0), ("dropout", 0.2), ("straggler", 0.3)):
            if self.chance(0.15):
                client[key] = value
        return client

    def server(self) -> dict[str, Any]:
        server: dict[str, Any] = {"defenses": self.parts("defense", 3) or ["fedavg"]}
        if self.chance(0.05):
            server["defenses"] = [self.one(GUESTS)]
        if self.chance(0.4):
            server["optimizer"] = self.part("server_optimizer")
        if self.chance(0.3):
            server["sampler"] = self.part("sampler")
        if self.chance(0.3):
            server["analysis"] = self.parts("analysis", 2)
        return server

    def engine(self) -> dict[str, Any]:
        return {
            "workers": 1,
            "path": self.one(["auto", "auto", "auto", "stacked", "vmap", "reference"]),
            "precision": self.one(["float32", "float32", "float64", "bfloat16"]),
        }

    def adversary(self) -> dict[str, Any]:
        table: dict[str, Any] = {"count": self.one([1, 2]), "attacks": [self.part("attack")]}
        if self.chance(0.3):
            table["attacks"].append(self.part("attack"))
        table["knowledge"] = self.one(["own", "colluding", "omniscient", "omniscient"])
        table["knows_defense"] = table["knowledge"] == "omniscient" and self.chance(0.7)
        if self.chance(0.3):
            table["schedule"] = self.part("schedule")
        if self.chance(0.2):
            table |= {"selection": "forced"}
        if self.chance(0.1):
            table["claim"] = 7
        return table

    def make_private(self, tables: dict[str, Any]) -> None:
        """A part that adds noise, and what goes with it more often than not."""
        part = self.one(["diff2", "dp_gd", "dp_fedavg", "reclip", "dp_sgd"])
        unit = "client" if part in ("dp_fedavg", "reclip") else "example"
        tables["privacy"] = {"unit": unit, "trust": self.one(["central", "local", "local"])}
        tables["privacy"] |= {"noise": [1.0, 1.0] if part == "diff2" else [1.0]}
        if part in ("diff2", "dp_gd"):
            self.estimate(tables, part)
        elif part == "dp_sgd":
            tables["client"]["optimizer"] = self.part("optimizer", [part])
            tables["privacy"]["trust"] = "local"
        elif self.chance(0.6):
            tables["server"]["defenses"] = [self.part("defense", [part])]
        else:
            tables["server"]["defenses"] += [self.part("defense", [part])]

    def estimate(self, tables: dict[str, Any], name: str = "gns") -> None:
        """An estimator in place of training."""
        tables["server"]["estimator"] = self.part("estimator", [name])
        if name == "gns":
            tables["data"]["dataset"] = self.part("dataset", SYNTHETIC)

    def fitted(self, tables: dict[str, Any], changes: int = 12) -> dict[str, Any]:
        """The scenario without the keys that its check complains of, one at a time; else without any one of them."""
        for _ in range(changes):
            try:
                Scenario(**tables)
            except ScenarioError as refused:
                keys = [fault.key for fault in refused.faults if _holds(tables, fault.key)]
                keys = [key for key in keys if key not in KEPT] or keys or [k for k in OPTIONAL if _holds(tables, k)]
                if not keys:
                    break
                tables = _without(tables, self.one(keys))
            else:
                break
        return tables


class Text(Draw):
    """Dice for a data set of codes, in most cases with the model that takes them."""

    def part(self, kind: str, among: typing.Sequence[str] = ()) -> dict[str, Any]:
        if kind == "dataset" and not among:
            among = ["python_library"]
        if kind == "model" and self.chance(0.9):
            among = ["char_transformer"]
        return super().part(kind, among)


class Raw(Draw):
    """Dice that also fall on options: any value that an option's type has, its bounds more often than others."""

    def part(self, kind: str, among: typing.Sequence[str] = ()) -> dict[str, Any]:
        table = super().part(kind, among)
        if ":" in table["name"]:
            return table
        kept = {**NEEDED.get((kind, table["name"]), {}), **SMALL.get((kind, table["name"]), {})}
        kept |= dict.fromkeys(SIZES if kind == "dataset" else ()) | self.files.needed(kind, table["name"])
        for option in options(registry.get(kind, table["name"])):
            value = self.value(option.annotation) if self.chance(0.45) else None
            if value is not None and option.name not in kept:
                table[option.name] = value
        return table

    def value(self, annotation: Any, bounds: typing.Mapping[str, Any] = types.MappingProxyType({})) -> Any:
        """One that the type has; None where it has none but files and parts."""
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            marks = [mark for each in arguments[1:] for mark in getattr(each, "metadata", [each])]
            found = {name: getattr(mark, name) for mark in marks for name in BOUNDS if hasattr(mark, name)}
            return self.value(arguments[0], {name: each for name, each in found.items() if each is not None})
        if origin is Literal:
            return self.one(arguments)
        if origin in (typing.Union, types.UnionType):
            return self.value(self.one([each for each in arguments if each is not type(None)]))
        if origin in (tuple, list):
            fixed = origin is tuple and ... not in arguments
            count = int(self.dice.integers(bounds.get("min_length", 0), bounds.get("max_length", 3) + 1))
            values = [self.value(each) for each in (arguments if fixed else arguments[:1] * count)]
            return None if None in values else values
        if annotation is bool:
            return self.chance(0.5)
        if annotation is int:
            least = bounds.get("ge", bounds.get("gt", -1) + 1)
            most = min(bounds.get("le", bounds.get("lt", least + 13) - 1), least + 12)
            return self.one([least, min(least + 1, most), most, int(self.dice.integers(least, most + 1))])
        return self.number(bounds) if annotation is float else None

    def number(self, bounds: typing.Mapping[str, Any]) -> float:
        """Over several orders of magnitude where there is no upper bound."""
        least, most = bounds.get("ge", bounds.get("gt", 0.0)), bounds.get("le", bounds.get("lt"))
        inside = [10 ** self.dice.uniform(-4, 1) if most is None else self.dice.uniform(0, most - least)] * 2
        ends = [each for each in (bounds.get("ge"), bounds.get("le")) if each is not None]
        return float(self.one([*(least + each for each in inside), *ends]))


def _path(key: str) -> list[str | int]:
    """``server.defenses[0].name`` → server, defenses, 0; a part goes with its name."""
    steps: list[str | int] = [int(each) if each.isdigit() else each for each in re.findall(r"\w+", key)]
    return steps[:-1] if steps[-1] == "name" else steps


def _holds(tables: Any, key: str) -> bool:
    for step in _path(key):
        there = step < len(tables) if isinstance(step, int) and isinstance(tables, list) else step in tables
        if not there:
            return False
        tables = tables[step]
    return True


def _without(tables: dict[str, Any], key: str) -> dict[str, Any]:
    changed = copy.deepcopy(tables)
    inner: Any = changed
    *steps, last = _path(key)
    for step in steps:
        inner = inner[step]
    del inner[last]
    if isinstance(inner, list) and not inner:
        return _without(tables, ".".join(map(str, steps)))
    if "attacks" not in changed.get("adversary", {"attacks": []}):
        del changed["adversary"]
    return changed
