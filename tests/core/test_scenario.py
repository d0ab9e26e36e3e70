"""A scenario is read whole or not at all: every fault is one readable line, and what is resolved loads again."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import registry
from fedsim.errors import ScenarioError
from fedsim.scenario import Part, Scenario, cells, override, read, toml_value


def faults(text: str, folder: Path, *sets: str) -> list[tuple[str, str]]:
    """(key, the rest of the line) of every fault of a file."""
    file = folder / "s.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        Scenario.load(file, None, sets)
    lines = str(caught.value).split("\n")
    assert len(lines) == len(set(lines)) == len(caught.value.faults)
    found = []
    for line, fault in zip(lines, caught.value.faults, strict=True):
        assert line.startswith(f"{file}: {fault.key}: given ")
        assert "; accepted: " in line
        assert line == " ".join(line.split("\n"))
        found.append((fault.key, line.split(f"{file}: {fault.key}: ", 1)[1]))
    return found


ONE = [
    ("rounds = 'ten'", "rounds", "given 'ten'; accepted: int ≥ 1"),
    ("rounds = 3.0", "rounds", "given 3.0; accepted: int ≥ 1"),
    (
        "[observe]\nobservers = [{ name = 'membership_inference', shadows = 5 }]",
        "observe.observers[0].shadows",
        "given 5; accepted: int ≥ 4, a multiple of 2",
    ),
    ("rounds = true", "rounds", "given True; accepted: int ≥ 1"),
    ("rounds = 0", "rounds", "given 0; accepted: int ≥ 1"),
    ("rounds = nan", "rounds", "given nan; accepted: int ≥ 1"),
    ("rounds = 99999999999999999999999999", "rounds", "given a number of 87 bits; accepted: a number of 64 bits"),
    (f"rounds = 0x{'f' * 5000}", "rounds", "given a number of 20000 bits; accepted: a number of 64 bits"),
    (f"rounds = {'9' * 5000}", "FILE", "TOML with numbers of 64 bits"),
    ("title = 3", "title", "given 3; accepted: a string"),
    ("title = 2024-01-01", "title", "accepted: a string"),
    ("seed = -1", "seed", "given -1; accepted: int ≥ 0"),
    ("roundz = 3", "roundz", "no such key (did you mean 'rounds'?); keys here: title, rounds"),
    ("clients = 3", "clients", "no such key (did you mean 'data.clients'?)"),
    ("[data]\nclient = 3", "data.client", "no such key (did you mean 'clients'?)"),
    ("[client]\nclients = 3", "client.clients", "no such key (did you mean 'data.clients'?)"),
    ('"a\\nb" = 1', '"a\\nb"', "no such key"),
    ('"ü.x" = 1', '"ü.x"', "no such key"),
    ('"" = 1', '""', "no such key"),
    ("self = 1", "self", "no such key"),
    ("server = 3", "server", "given 3; accepted: a table with the keys defenses"),
    ("[[server]]\nlimit = 1", "server", "accepted: a table with the keys"),
    ("[server]\nlimit = inf", "server.limit", "given inf; accepted: float > 0"),
    ("[server]\nlimit = '1'", "server.limit", "given '1'; accepted: float > 0"),
    ("[server]\nlimits = 1", "server.limits", "no such key (did you mean 'limit'?); keys here: defenses"),
    ("[server]\ndefenses = []", "server.defenses", "at least one"),
    ("[server]\ndefenses = 'krum'", "server.defenses", "given 'krum'; accepted: a list of parts"),
    ("[server]\ndefenses = { name = 'krum' }", "server.defenses", "accepted: a list of parts"),
    ("[server]\ndefenses = [3]", "server.defenses[0]", "given 3; accepted: a name, or a table with a 'name' ("),
    ("[server]\ndefenses = [[]]", "server.defenses[0]", "given []; accepted: a name"),
    ("[server]\ndefenses = [{ keep = 3 }]", "server.defenses[0]", "accepted: a name, or a table with a 'name'"),
    ("[server]\ndefenses = ['krumm']", "server.defenses[0].name", "(did you mean 'krum'?)"),
    ("[server]\ndefenses = [{ name = 3 }]", "server.defenses[0].name", "given 3; accepted: a string ("),
    (
        "[server]\ndefenses = [{ name = 'krum', malicius = 1 }]",
        "server.defenses[0].malicius",
        "no such option (did you mean 'malicious'?); options: malicious",
    ),
    ("[server]\ndefenses = ['fedavg', 'flwr:FedMedian']", "server.defenses[1]", "stands alone in the list"),
    ("[server]\ndefenses = ['flwr:FedMedia']", "server.defenses[0].name", "FedMedian"),
    (
        "[server]\ndefenses = ['flwr:FedMedian']\nsampler = { name = 'fixed', clients = [1] }",
        "server.sampler",
        "'flwr:FedMedian' draws the cohort itself",
    ),
    (
        "[server]\ndefenses = ['flwr:FedMedian']\noptimizer = 'adam'",
        "server.optimizer",
        "makes the server's step itself",
    ),
    (
        "[server]\ndefenses = [{ name = 'krum', malicious = 4 }]",
        "server.defenses[0].malicious",
        "n > 2f + 2 with n = 10",
    ),
    ("[data]\ndataset = 'digit'", "data.dataset.name", "(did you mean 'digits'?)"),
    ("[data]\ndataset = ['digits']", "data.dataset", "given ['digits']; accepted: a name"),
    ("[data]\ndataset = 'idx'", "data.dataset.folder", "given nothing; accepted: a string (it has no default)"),
    ("[data]\nclients = 100000", "data.clients", "there are 1438 training examples"),
    ("[model]\nname = ''", "model.name", "one of: char_transformer, cnn, "),
    ("[model]\nname = 3", "model.name", "given 3; accepted: a string"),
    ("model = 3", "model", "given 3; accepted: a table with the keys name, init"),
    ("model = 'mpl'", "model.name", "(did you mean 'mlp'?)"),
    ("[model]\nhidden = 3", "model.hidden", "given 3; accepted: a list of int ≥ 1"),
    ("[model]\nhidden = [64, -1]", "model.hidden[1]", "given -1; accepted: int ≥ 1"),
    ("[model]\nactivation = 'rellu'", "model.activation", "(did you mean 'relu'?)"),
    ("[model]\nself = 1", "model.self", "no such option"),
    ("[model]\nmodel_config = 1", "model.model_config", "no such option"),
    ("[engine]\ndevise = 'cpu'", "engine.devise", "(did you mean 'device'?)"),
    ("[engine]\ndevice = 'gpu'", "engine.device", "given 'gpu'; accepted: cpu, cuda, cuda:N or mps"),
    ("[engine]\nname = 'Ray'", "engine.name", "(did you mean 'ray'?)"),
    ("[engine]\nprecision = 'float64'\ndevice = 'mps'", "engine.precision", "float32 or bfloat16 on mps"),
    ("[client]\nper_round = 1.5", "client.per_round", "given 1.5; accepted: int ≥ 1 or float > 0, ≤ 1"),
    ("[client]\nper_round = true", "client.per_round", "given True; accepted: int ≥ 1 or float > 0, ≤ 1"),
    ("[client]\nper_round = 11", "client.per_round", "given 11; accepted: at most data.clients = 10"),
    ("[client]\nepochs = 1\nsteps = 2", "client.steps", "not both"),
    ("[client.optimizer]\nname = 'adam'\nbetas = [0.9]", "client.optimizer.betas", "given [0.9]; accepted: a list ["),
    (
        "[client.optimizer]\nname = 'adam'\nbetas = [0.9, 2]",
        "client.optimizer.betas[1]",
        "given 2; accepted: float ≥ 0, < 1",
    ),
    ("[evaluate]\nclients = 300", "evaluate.clients", "accepted: int ≥ 0, ≤ 200"),
    ("[adversary]\nfraction = 0.1\ncount = 1\nattacks = ['sign_flip']", "adversary.count", "not both"),
    ("[adversary]\nattacks = ['sign_flip']", "adversary.fraction", "given nothing; accepted: a share of the clients"),
    ("[adversary]\nfraction = 0.01\nattacks = ['sign_flip']", "adversary.fraction", "makes one client or more of 10"),
    ("[adversary]\nfraction = 0.5", "adversary.attacks", "at least one attack"),
    ("[adversary]\ncount = 11\nattacks = ['sign_flip']", "adversary.count", "at most data.clients = 10"),
    ("[adversary]\ncount = 1\nattacks = ['sign_flip']\nforced = 2", "adversary.forced", "selection = 'forced'"),
    (
        "[adversary]\ncount = 1\nattacks = ['sign_flip']\nselection = 'forced'\nforced = 2",
        "adversary.forced",
        "at most 1: the adversary holds 1 clients, 10 are asked",
    ),
    ("[adversary]\nselection = 'force'", "adversary.selection", "'pool', 'forced' (did you mean 'forced'?)"),
    ("[adversary]\nknows_defense = true", "adversary.knows_defense", "omniscient"),
    (
        "[adversary]\ncount = 1\nattacks = [{ name = 'badnets', target = 1.0 }]",
        "adversary.attacks[0].target",
        "given 1.0; accepted: int ≥ 0",
    ),
    (
        "[adversary]\ncount = 1\nattacks = [{ name = 'badnets', size = 20 }]",
        "adversary.attacks[0].size",
        "given 20; accepted: pixels inside of the image, 8 rows by 8 columns",
    ),
    (
        "[adversary]\ncount = 1\nattacks = [{ name = 'badnets', position = [6, 0] }]",
        "adversary.attacks[0].position",
        "given [6, 0]; accepted: pixels inside of the image, 8 rows by 8 columns; [8, 0] is not",
    ),
    (
        "[adversary]\ncount = 1\nattacks = [{ name = 'badnets', trigger = { name = 'patch', sise = 3 } }]",
        "adversary.attacks[0].trigger.sise",
        "(did you mean 'size'?)",
    ),
    (
        "[adversary]\ncount = 1\nattacks = [{ name = 'badnets', value = nan }]",
        "adversary.attacks[0].value",
        "given nan; accepted: float or a list of float",
    ),
    (
        "[adversary]\ncount = 1\nattacks = [{ name = 'label_flip', map = { 1 = 'x' } }]",
        "adversary.attacks[0].map.1",
        "given 'x'; accepted: int",
    ),
    ("matrix = 3", "matrix", "a table: key → list of values"),
    ("[matrix]\nseed = 3", "matrix.seed", "given 3; accepted: a list of one value or more"),
    ("[matrix]\nserver.limit = []", 'matrix."server.limit"', "a list of one value or more"),
    ("x", "FILE", "TOML; "),
    ("a = 1\na = 2", "FILE", "TOML; "),
    (f"a = {'[' * 20000}", "FILE", "less deep in each other"),
    (f"[model]\nhidden = {'[' * 40}{']' * 40}", f"model.hidden{'[0]' * 30}", "at most 30 deep"),
]


@pytest.mark.parametrize(("text", "key", "said"), ONE, ids=[text[:60] for text, *_ in ONE])
def test_one_mistake_is_one_line(tmp_path: Path, text: str, key: str, said: str) -> None:
    ((found, line),) = faults(text, tmp_path)
    assert found == key
    assert said in line


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    text = """
    rounds = "x"
    [data]
    partition = { name = "dirichlet", alpha = -1 }
    [client]
    per_round = 1.5
    [server]
    defenses = ["krumm", 3, { name = "krum", malicious = 9 }, { name = "krum", malicious = 1.0, keep = 2 }]
    [engine]
    devise = "cpu"
    """
    found = dict(faults(text, tmp_path, "server..x=1", "nonsense", "adversary.attacks[7]=1", "evaluate.every=0"))
    assert set(found) == {
        "server..x",
        "--set",
        "adversary.attacks[7]",
        "evaluate.every",
        "rounds",
        "data.partition.alpha",
        "client.per_round",
        "server.defenses[0].name",
        "server.defenses[1]",
        "server.defenses[3].malicious",
        "server.defenses[3].keep",
        "engine.devise",
    }


def test_positions_in_a_list_stay_right_beside_faults(tmp_path: Path) -> None:
    text = "[server]\ndefenses = [3, 'krum', { name = 'krum', malicious = 9 }]"
    assert [key for key, _ in faults(text, tmp_path)] == ["server.defenses[0]", "server.defenses[2].malicious"]


KRUM = "[server]\ndefenses = [{ name = 'krum', malicious = 4 }]"
BIG_PATCH = "[adversary]\ncount = 1\nattacks = [{ name = 'badnets', size = 99 }]"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[data]\nclients = 'x'\n[client]\nper_round = 50", "data.clients"),
        (f"[data]\nclients = 'x'\n[client]\nper_round = 0.5\n{KRUM}", "data.clients"),
        (f"[client]\nper_round = 'x'\n{KRUM}", "client.per_round"),
        ("[client]\nper_round = 2\n[data]\nclients = 1\n[server]\ndefenses = ['krum']", "client.per_round"),
        (f"[data]\ndataset = 'digit'\n{BIG_PATCH}", "data.dataset.name"),
        ("[adversary]\nfraction = 2\nattacks = ['badnets']", "adversary.fraction"),
        ("[adversary]\ncount = 1\nattacks = 'badnets'", "adversary.attacks"),
        ("[adversary]\nknowledge = 'all'\nknows_defense = true", "adversary.knowledge"),
    ],
)
def test_what_follows_from_a_fault_is_not_told(tmp_path: Path, text: str, key: str) -> None:
    assert [found for found, _ in faults(text, tmp_path)] == [key]


@pytest.mark.parametrize("name", ["nofile.toml", "", ".", "/dev/null/x", "a" * 5000, "quikstart", "a\0b"])
def test_a_file_that_is_none_is_one_line(name: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        Scenario.load(name)
    assert len(str(caught.value).split("\n")) == 1
    if name == "quikstart":
        assert "(did you mean 'quickstart'?)" in str(caught.value)
    if name == ".":
        assert "(a folder)" in str(caught.value)


def test_files_of_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfrounds = 3")
    (tmp_path / "bad.toml").write_bytes(b"title = '\xff'")
    assert Scenario.load(tmp_path / "bom.toml").rounds == 3
    with pytest.raises(ScenarioError, match="TOML in UTF-8; byte 9 is none"):
        Scenario.load(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("krum", "krum"),
        ("'krum'", "krum"),
        ("['krum']", ["krum"]),
        ("{name='krum'}", {"name": "krum"}),
        ("", ""),
        ("1\nb = 2", "1\nb = 2"),
        ("[1", "[1"),
        ("flwr:FedMedian", "flwr:FedMedian"),
        ("ünïcode", "ünïcode"),
    ],
)
def test_values_on_the_command_line_are_toml_or_a_word(text: str, value: Any) -> None:
    assert toml_value(text) == value
    assert type(toml_value(text)) is type(value)


BASE = {
    "data": {"dataset": "digits"},
    "server": {"defenses": ["fedavg", {"name": "krum", "malicious": 1}]},
    "model": "mlp",
}


@pytest.mark.parametrize(
    ("changes", "path", "value"),
    [
        ({"server.defenses[1].malicious": 2}, ("server", "defenses", 1), {"name": "krum", "malicious": 2}),
        ({"server.defenses.1.malicious": 2}, ("server", "defenses", 1), {"name": "krum", "malicious": 2}),
        ({"server.defenses[0].x": 2}, ("server", "defenses", 0), {"name": "fedavg", "x": 2}),
        ({"server.defenses[0]": "median"}, ("server", "defenses", 0), "median"),
        ({"data.dataset.x": 1}, ("data", "dataset"), {"name": "digits", "x": 1}),
        ({"model.hidden": [1]}, ("model",), {"name": "mlp", "hidden": [1]}),
        ({"a.b.c": 1}, ("a",), {"b": {"c": 1}}),
        ({"server": {"limit": 1}}, ("server", "defenses", 0), "fedavg"),
        ({"server": {"limit": 1}}, ("server", "limit"), 1),
        ({"server.defenses[1]": {"name": "median"}}, ("server", "defenses", 1), {"name": "median"}),
    ],
)
def test_overrides(changes: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    before = repr(BASE)
    here: Any = override(BASE, changes)
    for piece in path:
        here = here[piece]
    assert here == value
    assert repr(BASE) == before


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", "a key with dots"),
        (".", "a key with dots"),
        ("a..b", "a key with dots"),
        ("a.", "a key with dots"),
        ("server.defenses[x].keep", "a key with dots"),
        ("server.defenses.x.keep", "a position from 0 to 1 in place of 'x' in 'server.defenses'"),
        ("server.defenses[2]", "a position from 0 to 1 in place of '2'"),
        ("server.defenses[1].malicious.x", "'server.defenses.1.malicious' is none"),
    ],
)
def test_overrides_that_lead_nowhere(key: str, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        override(BASE, {key: 3})
    assert said in str(caught.value)


def test_overrides_of_what_the_file_does_not_mention(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("")

    def load(*sets: str) -> Scenario:
        return Scenario.load(tmp_path / "s.toml", None, sets)

    assert load("server.optimizer.lr=0.5").server.optimizer == Part(name="sgd", options={"lr": 0.5, "momentum": 0.0})
    assert load("client.optimizer.momentum=0.9").client.optimizer.options["lr"] == 0.05
    adam = load("client.optimizer.name=adam").client.optimizer
    assert adam == load("client.optimizer=adam").client.optimizer
    assert adam.options["lr"] == 0.001
    assert load("server.defenses[0]=median").server.defenses == [Part(name="median")]
    assert load("model.hidden=[8]").model.options["hidden"] == [8]
    assert load("model=logistic").model.name == "logistic"


def test_defaults_are_written_out_and_load_again() -> None:
    scenario = Scenario(
        client={"optimizer": "adam"},
        adversary={"count": 2, "attacks": ["badnets"]},
        server={"defenses": ["multi_krum"]},
    )
    table = tomllib.loads(scenario.toml())
    assert table["client"]["optimizer"]["betas"] == [0.9, 0.999]
    assert table["adversary"]["attacks"][0]["corner"] == "bottom_right"
    assert table["model"]["hidden"] == [64]
    assert Scenario(**table) == scenario
    assert Scenario(**table).toml() == scenario.toml()
    assert Scenario(**scenario.table()) == scenario
    assert pickle.loads(pickle.dumps(scenario)) == scenario


PLACES = {
    "dataset": ("data", "dataset", False),
    "partition": ("data", "partition", False),
    "optimizer": ("client", "optimizer", False),
    "lr_schedule": ("client", "lr_schedule", False),
    "augmentation": ("client", "augmentation", True),
    "attack": ("adversary", "attacks", True),
    "schedule": ("adversary", "schedule", False),
    "defense": ("server", "defenses", True),
    "server_optimizer": ("server", "optimizer", False),
    "sampler": ("server", "sampler", False),
}
LOADABLE = [
    (kind, name)
    for kind in [*PLACES, "model", "engine"]
    for name, part in registry.iterate(kind)
    if not any(option.required for option in registry.options(part))
]
CALM = {"epsilon": "inf"}
EVEN = {
    "data.dataset": {"name": "planted", "exponent": 4},
    "model": {"name": "single_index", "exponent": 4},
    "client.loss": "correlation",
}
BESIDE: dict[str, dict[str, Any]] = {
    "edge_case": {"data.dataset": "fashion_mnist"},  # its foreign tail is the digits
    "cnn": {"data.dataset": "cifar10"},
    "lenet": {"data.dataset": "cifar10"},
    "char_transformer": {"data.dataset": "python_library"},
    "python_library": {"model": "char_transformer"},
    "vgg9": {"data.dataset": "cifar10"},
    "fltrust": {"data.root": 100},
    "softmax_radius": {"data.root": 100},
    "dp_sgd": {"privacy": {**CALM, "trust": "local"}},
    "dp_fedavg": {"privacy": {**CALM, "unit": "client"}},
    "even_sgd": EVEN,
    "even_spherical_langevin": EVEN,
    "sam_gs": {"client.loss": "with_reconstruction"},  # the optimizer combines two objectives
}
"""What a part needs beside its defaults."""
ATTACKED = {"fraction": 0.3, "knowledge": "omniscient", "knows_defense": True, "attacks": ["sign_flip"]}


@pytest.mark.parametrize(("kind", "name"), LOADABLE)
def test_every_part_with_its_defaults_loads_again_to_an_equal_scenario(kind: str, name: str) -> None:
    tables: dict[str, Any] = {"rounds": 40, "data": {"clients": 30}, "client": {"per_round": 20}, "adversary": ATTACKED}
    if kind in PLACES:
        section, field, listed = PLACES[kind]
        tables[section] = {**tables.get(section, {}), field: [name] if listed else name}
    else:
        tables[kind] = name
    scenario = Scenario(**override(tables, BESIDE.get(name, {})))
    again = Scenario(**tomllib.loads(scenario.toml()))
    assert again == scenario
    assert again.toml() == scenario.toml()


@pytest.mark.parametrize("name", registry.shipped_scenarios())
def test_shipped_scenarios_load_and_load_again(name: str) -> None:
    for _, scenario in cells(read(name), name):
        assert Scenario(**tomllib.loads(scenario.toml())) == scenario


def test_python_values_are_taken_as_toml_would_say_them() -> None:
    scenario = Scenario(
        rounds=np.int64(3),
        title=None,
        data={"clients": 20},
        model={"hidden": (8, np.int64(4)), "init": Path(__file__)},
        client={"epochs": None, "per_round": np.float64(0.5)},
        server={"defenses": [Part(name="median")]},
    )
    assert (scenario.rounds, scenario.cohort, scenario.model.options["hidden"]) == (3, 10, [8, 4])
    assert Scenario(**tomllib.loads(scenario.toml())) == scenario
    assert Scenario(data=scenario.data, server=scenario.server).data == scenario.data
    with pytest.raises(ScenarioError, match=r"server\.limit: given .*; accepted: what TOML can say"):
        Scenario(server={"limit": {1, 2}})
    with pytest.raises(ScenarioError, match=r"scenario: server\.1: given 2; accepted: no such key"):
        Scenario(server={1: 2})


def test_changed_gives_another_scenario() -> None:
    scenario = Scenario()
    other = scenario.changed(rounds=5, **{"server.limit": 1e6})
    assert (other.rounds, other.server.limit, scenario.rounds) == (5, 1e6, 10)


@pytest.mark.parametrize(
    ("per_round", "clients", "cohort"), [(3, 10, 3), (0.29, 100, 29), (0.3, 10, 3), (1.0, 7, 7), (0.01, 10, 1)]
)
def test_a_share_or_a_count_of_clients(per_round: float, clients: int, cohort: int) -> None:
    assert Scenario(data={"clients": clients}, client={"per_round": per_round}).cohort == cohort


@pytest.mark.parametrize(
    ("table", "attackers"), [({"fraction": 0.29}, 29), ({"count": 4}, 4), ({"fraction": 1.0}, 100)]
)
def test_how_many_attack(table: dict[str, Any], attackers: int) -> None:
    adversary = {**table, "attacks": ["sign_flip"]}
    assert Scenario(data={"clients": 100}, adversary=adversary).attackers == attackers


def test_cells_are_the_product_in_order() -> None:
    data = tomllib.loads(
        "[matrix]\nseed = [0, 1]\nserver.limit = [1.0, 2.0]\n'server.defenses' = [['fedavg'], ['median']]"
    )
    found = cells(data, "f.toml")
    assert [tuple(values) for values, _ in found] == [("seed", "server.limit", "server.defenses")] * 8
    assert [(s.seed, s.server.limit, s.server.defenses[0].name) for _, s in found] == [
        (seed, limit, name) for seed in (0, 1) for limit in (1.0, 2.0) for name in ("fedavg", "median")
    ]
    assert all(not scenario.matrix for _, scenario in found)
    assert [values for values, _ in cells({}, "f.toml")] == [{}]
    whole = Scenario(**data)
    assert Scenario(**tomllib.loads(whole.toml())) == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed = [0, 1]", ["f.toml: sed: given 0; accepted: no such key (did you mean 'seed'?)"]),
        ("seed = [-1, 'x', 3]", ["f.toml: seed: given -1; accepted", "f.toml: seed: given 'x'; accepted"]),
        ("'a..b' = [1]", ["f.toml: a..b: given 1; accepted: a key with dots"]),
        ("'rounds.x' = [1]\nseed = [0]", ["f.toml: rounds: given {'x': 1}; accepted: int"]),
        ("seed = 3", ["f.toml: matrix.seed: given 3; accepted: a list of one value or more"]),
        ("'data.clients' = [5, 20]", ["f.toml: client.per_round: given 10; accepted: at most data.clients = 5"]),
    ],
)
def test_faults_of_all_cells_at_once(text: str, said: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        cells(tomllib.loads(f"[matrix]\n{text}"), "f.toml")
    lines = str(caught.value).split("\n")
    assert len(lines) == len(said)
    for line, start in zip(lines, said, strict=True):
        assert line.startswith(start)
