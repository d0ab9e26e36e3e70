"""Data sets in memory once a machine: mapped from one file, in the same bits, and nobody writes into another's."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fedsim import registry
from fedsim.data import idx, mapped, reading
from fedsim.data.examples import Dataset
from fedsim.scenario import Scenario
from fedsim.simulation import simulate

PROCESS = """
import sys
from fedsim import registry
from fedsim.data import idx, mapped
mapped.LEAST = 0
if sys.argv[2] == "no reading":
    idx.read_idx = None
data = registry.make("dataset", "idx", folder=sys.argv[1]).load()
print(data.fingerprint, float(data.train.inputs.double().sum()))
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ".data"
print(".data" in maps)
"""


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """A cache of the test's own that takes the smallest data set; no data set is in memory."""
    monkeypatch.setenv("FEDSIM_MAPPED", str(tmp_path / "mapped"))
    monkeypatch.setattr(mapped, "LEAST", 0)
    forget(monkeypatch)
    return tmp_path / "mapped"


def forget(monkeypatch) -> None:
    """As in a process that has read nothing."""
    monkeypatch.setattr(reading, "_read", OrderedDict())
    monkeypatch.setattr(reading, "_kept", {})


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    place = tmp_path / "set"
    place.mkdir()
    for split, n in (("train", 40), ("t10k", 13)):
        idx.write_idx(place / f"{split}-images-idx3-ubyte", draw.integers(0, 256, (n, 7, 5), dtype=np.uint8))
        idx.write_idx(place / f"{split}-labels-idx1-ubyte", draw.integers(0, 3, n, dtype=np.uint8))
    return place


def load(folder) -> Dataset:
    return registry.make("dataset", "idx", folder=str(folder)).load()


def read_anew(monkeypatch, folder) -> Dataset:
    forget(monkeypatch)
    return load(folder)


def same(one: Dataset, other: Dataset) -> bool:
    tensors = [
        [each for part in (data.train, data.test) for each in (part.inputs, part.targets)] for data in (one, other)
    ]
    equal = all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*tensors, strict=True))
    return equal and one.info == other.info and one.fingerprint == other.fingerprint


def no_reading(monkeypatch) -> None:
    monkeypatch.setattr(idx, "read_idx", None)


def test_what_is_mapped_is_what_was_read(monkeypatch, place, folder):
    monkeypatch.setenv("FEDSIM_MAPPED", "off")
    plain = load(folder)
    assert not place.exists()
    monkeypatch.setenv("FEDSIM_MAPPED", str(place))
    first = read_anew(monkeypatch, folder)
    no_reading(monkeypatch)
    second = read_anew(monkeypatch, folder)
    assert same(plain, first)
    assert same(plain, second)
    assert len(list(place.iterdir())) == 1


def test_a_run_on_it_has_the_same_bits(monkeypatch, place, folder):
    tables = {"data": {"dataset": {"name": "idx", "folder": str(folder)}, "clients": 3}, "model": {"name": "logistic"}}
    scenario = Scenario(rounds=2, **tables, client={"per_round": 3, "batch_size": 5})
    digests = set()
    for where in ("off", str(place), str(place)):
        monkeypatch.setenv("FEDSIM_MAPPED", where)
        forget(monkeypatch)
        digests.add(simulate(scenario).digest)
    assert len(digests) == 1
    assert len(list(place.iterdir())) == 1


def test_tensors_lie_where_malloc_would_place_them(folder):
    data = load(folder)
    for part in (data.train, data.test):
        assert part.inputs.data_ptr() % 64 == part.targets.data_ptr() % 64 == 16


def test_processes_at_once_write_one_file_and_a_later_one_reads_nothing(place, folder):
    def start(word: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", PROCESS, str(folder), word], stdout=subprocess.PIPE, text=True)

    said = [each.communicate()[0] for each in [start("reading"), start("reading")]]
    said.append(start("no reading").communicate()[0])
    assert len(set(said)) == 1
    assert said[0].endswith("True\n")
    assert [file.suffix for file in place.iterdir()] == [".data"]


def test_who_writes_into_a_tensor_writes_for_itself(monkeypatch, place, folder):
    data = load(folder)
    (file,) = place.iterdir()
    before = file.read_bytes()
    other = read_anew(monkeypatch, folder)
    data.train.inputs.zero_()
    data.test.targets.add_(1)
    assert file.read_bytes() == before
    assert other.train.inputs.sum() > 0
    no_reading(monkeypatch)
    assert same(other, read_anew(monkeypatch, folder))


@pytest.mark.parametrize("harm", ["cut", "empty", "a byte", "a byte of the head", "longer"])
def test_a_damaged_file_is_written_anew(monkeypatch, place, folder, harm):
    first = load(folder)
    kept = same(first, first), first.fingerprint
    (file,) = place.iterdir()
    good = file.read_bytes()
    bad = {
        "cut": good[: len(good) // 2],
        "empty": b"",
        "a byte": good[:-7] + bytes([good[-7] ^ 1]) + good[-6:],
        "a byte of the head": good[:20] + bytes([good[20] ^ 1]) + good[21:],
        "longer": good + b"\0",
    }[harm]
    file.unlink()
    file.write_bytes(bad)
    again = read_anew(monkeypatch, folder)
    assert (same(first, again), again.fingerprint) == kept
    assert file.read_bytes() == good
    assert list(place.iterdir()) == [file]


def test_other_options_and_other_files_are_other_data_sets(monkeypatch, tmp_path, place):
    x, y = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3), np.array([0, 1])
    file = tmp_path / "set.npz"
    np.savez(file, x_train=x, y_train=y, x_test=x, y_test=y, writer=np.array([5, 7]))
    first, last = (
        registry.make("dataset", "npz", path=str(file), channels_last=channels_last).load()
        for channels_last in (False, True)
    )
    assert torch.equal(first.train.inputs.permute(0, 3, 1, 2), last.train.inputs)
    assert first.columns["writer"].tolist() == last.columns["writer"].tolist() == [5, 7]
    assert len(list(place.iterdir())) == 2


def test_a_file_of_the_same_size_and_time_is_another(monkeypatch, place, folder):
    """As archives leave them, whose files all bear one time."""
    labels = folder / "train-labels-idx1-ubyte"
    os.utime(labels, (1, 1))
    first = load(folder)
    idx.write_idx(labels, np.zeros(40, dtype=np.uint8))
    os.utime(labels, (1, 1))
    second = read_anew(monkeypatch, folder)
    assert second.fingerprint != first.fingerprint
    assert not second.train.targets.any()


def test_another_reader_s_code_makes_another_file(monkeypatch, place, folder):
    load(folder)
    monkeypatch.setattr(mapped, "_code", lambda module: "edited")
    read_anew(monkeypatch, folder)
    assert len(list(place.iterdir())) == 2


@contextmanager
def files_of_at_most(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_disk_that_takes_no_more_it_is_read(monkeypatch, caplog, place, folder):
    caplog.set_level("INFO", "fedsim")
    with files_of_at_most(1000):
        data = load(folder)
    assert list(place.iterdir()) == []
    assert [each.getMessage().partition(": ")[2][:11] for each in caplog.records] == ["not written"]
    assert same(data, read_anew(monkeypatch, folder))


def test_where_no_folder_can_be_made_it_is_read(monkeypatch, tmp_path, folder):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("FEDSIM_MAPPED", str(tmp_path / "a file" / "mapped"))
    assert len(load(folder).train) == 40


def test_small_sets_and_sets_without_files_leave_nothing(monkeypatch, place, folder):
    monkeypatch.setattr(mapped, "LEAST", 16 << 20)
    load(folder)
    registry.make("dataset", "digits").load()
    assert not place.exists()


def test_what_nobody_has_read_for_a_month_goes(monkeypatch, place, folder):
    load(folder)
    (old,) = place.iterdir()
    rest = place / ".killed.part"
    rest.write_bytes(b"")
    for file in (old, rest):
        os.utime(file, (1, 1))
    read_anew(monkeypatch, folder)
    assert old.stat().st_mtime > 1
    os.utime(old, (1, 1))
    monkeypatch.setattr(mapped, "_code", lambda module: "edited")
    read_anew(monkeypatch, folder)
    assert not old.exists()
    assert not rest.exists()
    assert len(list(place.iterdir())) == 1


def test_it_lies_beside_the_data_sets_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("FEDSIM_MAPPED")
    assert mapped.folder() == tmp_path / "data" / "mapped"
    monkeypatch.setenv("FEDSIM_MAPPED", "off")
    assert mapped.folder() is None
