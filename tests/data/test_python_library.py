"""Python's standard library as text: windows and labels as the files have them, a hash that is of the text."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import make
from fedsim.data import mapped, reading
from fedsim.data.examples import Dataset
from fedsim.data.reading import dataset_of
from fedsim.errors import FedsimError, ScenarioError
from fedsim.scenario import Scenario
from fedsim.simulation import simulate

SMALL: dict[str, Any] = {"packages": ["json", "html"], "characters": 1600, "context": 8, "stride": 3}
TEXT: dict[str, Any] = {
    "rounds": 1,
    "data": {
        "dataset": {"name": "python_library", **SMALL},
        "partition": {"name": "natural", "column": "package"},
        "clients": 2,
    },
    "model": {"name": "char_transformer", "width": 8, "depth": 1, "heads": 2},
    "client": {"per_round": 2, "steps": 1},
}


def text(package: str, characters: int) -> bytes:
    root = Path(sysconfig.get_paths()["stdlib"]) / package
    return b"".join(file.read_bytes() for file in sorted(root.rglob("*.py")))[:characters]


def code(byte: int) -> int:
    if byte == ord("\n"):
        return 96
    return byte - 32 if 32 <= byte <= 126 else 95


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_read", OrderedDict())
    monkeypatch.setattr(reading, "_kept", {})


def same(one: Dataset, other: Dataset) -> bool:
    pairs = zip((one.train, one.test), (other.train, other.test), strict=True)
    equal = all(torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) for a, b in pairs)
    return equal and (one.fingerprint, one.facts, one.info) == (other.fingerprint, other.facts, other.info)


def test_labels_are_the_characters_behind_windows_that_cross_no_border() -> None:
    data = make("dataset", "python_library", **SMALL).load()
    windows: dict[str, list[list[int]]] = {"train": [], "test": []}
    held = []
    for package in ("json", "html"):
        codes = [code(byte) for byte in text(package, 1600)]
        for name, part in (("train", codes[:1440]), ("test", codes[1440:])):
            found = [part[start : start + 9] for start in range(0, len(part), 3) if len(part[start : start + 9]) == 9]
            windows[name] += found
            held += [package] * len(found) if name == "train" else []
    for name, examples in (("train", data.train), ("test", data.test)):
        wanted = torch.tensor(windows[name])
        assert torch.equal(examples.inputs.long(), wanted[:, :-1])
        assert torch.equal(examples.targets, wanted[:, -1])
    assert data.train.inputs.dtype == torch.int32
    assert data.columns["package"].tolist() == held


def test_what_is_said_before_reading_is_what_is_read() -> None:
    part = make("dataset", "python_library", **SMALL)
    info = part.load().info
    assert part.info() == info
    assert (info.shape, info.num_classes, info.vocabulary) == ((8,), 97, 97)
    assert make("dataset", "python_library").info().train > 50_000


def test_the_same_twice_and_its_hash_is_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("dataset", "python_library", **SMALL).load()
    forget(monkeypatch)
    again = make("dataset", "python_library", **SMALL).load()
    assert first is not again
    assert same(first, again)
    digest = hashlib.sha256(b"".join(name.encode() + text(name, 1600) for name in ("json", "html"))).hexdigest()
    assert first.facts["text"].endswith(f"sha256 {digest}")
    other = make("dataset", "python_library", **{**SMALL, "characters": 1700}).load()
    assert other.facts != first.facts
    assert other.fingerprint != first.fingerprint


def test_mapped_it_has_the_same_codes_and_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = make("dataset", "python_library", **SMALL).load()
    monkeypatch.setenv("FEDSIM_MAPPED", str(tmp_path))
    monkeypatch.setattr(mapped, "LEAST", 0)
    for _ in range(2):
        forget(monkeypatch)
        found = make("dataset", "python_library", **SMALL).load()
        assert same(found, plain)
        assert found.train.inputs.dtype == torch.int32
    assert list(tmp_path.glob("*.data"))


def test_the_hash_stands_in_the_record_of_a_run(tmp_path: Path) -> None:
    scenario = Scenario(**TEXT)
    simulate(scenario, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["facts"] == make("dataset", "python_library", **SMALL).load().facts
    simulate(Scenario(rounds=1), tmp_path / "digits")
    assert "facts" not in json.loads((tmp_path / "digits" / "run.json").read_text())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"packages": ["json", "jsn"]}, "packages: given .* standard library, of which .* has no 'jsn'"),
        ({"packages": ["../.."]}, r"packages: given .* has no '\.\./\.\.'"),
        ({"packages": ["json", "json"]}, "packages: given .*packages that differ"),
        ({"characters": 80}, "context: given 8; accepted: less than a tenth of each package: 'json' has 80"),
    ],
)
def test_what_is_no_text_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=rf"data\.dataset\.{said}"):
        Scenario(data={"dataset": {"name": "python_library", **SMALL, **options}}, model=TEXT["model"])
    with pytest.raises(FedsimError, match=said):
        make("dataset", "python_library", **{**SMALL, **options}).load()


def test_codes_beyond_the_vocabulary_are_refused() -> None:
    inputs, targets = np.array([[0, 4]]), np.array([0])
    assert dataset_of(inputs, targets, inputs, targets, vocabulary=5).train.inputs.dtype == torch.int32
    with pytest.raises(FedsimError, match="codes 0 to 4; accepted: 0 to 3"):
        dataset_of(inputs, targets, inputs, targets, vocabulary=4)
