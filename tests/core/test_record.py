"""A run's folder: whatever happens while it is written, the last whole round is there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedsim import record
from fedsim.errors import RecordError, ResumeError
from fedsim.packing import pack, unpack
from fedsim.record import Recorder, write_json

NUMPY = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "<f2", "<f4", "<f8", ">f4"]
ARRAYS = st.sampled_from(NUMPY).flatmap(
    lambda dtype: arrays(np.dtype(dtype), array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
TENSORS = ARRAYS.filter(lambda a: a.dtype.byteorder != ">").map(torch.from_numpy)
FLOATS = st.floats(width=64)
KEYS = st.one_of(st.text(max_size=4), st.integers(-(2**70), 2**70), st.tuples(st.integers(0, 3), st.text(max_size=2)))
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), FLOATS, st.text(max_size=6), st.binary(max_size=6)
)
TREES = st.recursive(
    LEAVES | ARRAYS | TENSORS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal in type, content, order, dtype, shape and bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and same(_bits(a), _bits(b))
    if isinstance(a, np.ndarray):
        native = a.astype(a.dtype.newbyteorder("="))
        return native.dtype == b.dtype and a.shape == b.shape and native.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return same(list(a), list(b)) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b) if isinstance(a, float) else bool(a == b)


def _bits(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def through_json(tree: Any) -> Any:
    from safetensors.numpy import load, save

    tensors: dict[str, np.ndarray] = {}
    packed = json.dumps(pack(tree, tensors))
    return unpack(json.loads(packed), load(save(tensors)))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TREES)
def test_state_survives_packing(tree: Any) -> None:
    assert same(tree, through_json(tree))


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_bfloat16_tensors_survive_packing(shape: tuple[int, ...]) -> None:
    tensor = torch.full(shape, 1.7, dtype=torch.bfloat16)
    assert same({"a": tensor}, through_json({"a": tensor}))


def test_paths_that_read_alike_do_not_overwrite_each_other() -> None:
    one, two, three = (torch.tensor(float(i)) for i in range(3))
    tree = {"a.b": one, "a": {"b": two}, 1: one, "1": three}
    assert same(tree, through_json(tree))


def test_flower_records_survive_packing() -> None:
    arrays = ArrayRecord()
    arrays["w"], arrays["scalar"] = Array(np.arange(6.0).reshape(2, 3)), Array(np.array(3, dtype=np.int64))
    config = ConfigRecord({"n": 3, "x": float("inf"), "s": "ü", "b": b"\x00\xff", "list": [1.5, 2.5], "yes": True})
    tree = {0: RecordDict({"arrays": arrays, "config": config, "metrics": MetricRecord({"loss": 0.25, "n": 7})})}
    (found,) = through_json(tree).values()
    assert list(found) == ["arrays", "config", "metrics"]
    assert dict(found["config"]) == dict(config)
    assert dict(found["metrics"]) == {"loss": 0.25, "n": 7}
    for name, array in arrays.items():
        assert same(array.numpy(), found["arrays"][name].numpy())


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, 1j, torch.zeros(2, dtype=torch.complex64), np.array(["a"]), torch.eye(2).to_sparse()]
)
def test_what_cannot_be_packed_is_refused_by_name(value: Any) -> None:
    with pytest.raises(RecordError, match=r"^state 'state\.momentum\.3': given .*; accepted: ") as caught:
        pack({"momentum": {3: value}}, {})
    assert "\n" not in str(caught.value)


def model(round: int) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 3), round, dtype=np.float32), "steps": np.array(round)}


def play(recorder: Recorder, round: int) -> None:
    line = {"round": round, "accuracy": round / 7, "loss": float("nan"), "seconds": {"train": 0.1}}
    clients = [{"round": round, "client": client, "scores": {"krum": 0.5}} for client in range(3)]
    recorder.write(line, clients, model(round), {"strategy": {round: torch.tensor(float(round))}})


def check_whole(folder: Path, rounds: range) -> int:
    """Resume; the folder must hold a whole round of these. Returns the round."""
    recorder, done, found, state = Recorder.resume(folder)
    assert done in rounds
    assert [line["round"] for line in recorder.rounds] == list(range(done + 1))
    assert [line["round"] for line in recorder.clients] == [r for r in range(done + 1) for _ in range(3)]
    assert same(dict(sorted(found.items())), dict(sorted(model(done).items())))
    assert same(state, {"strategy": {done: torch.tensor(float(done))}})
    whole = Recorder(None)
    for round in range(done + 1):
        play(whole, round)
    assert recorder.digest(found) == whole.digest(model(done))
    files = {"rounds.jsonl", "clients.jsonl", "state.json", f"checkpoint-{done}.safetensors"}
    assert {path.name for path in folder.iterdir()} == files
    return done


class Killed(BaseException):
    """The process ends here; no handler may clean up."""


class Disk:
    """Counts the operations on files that record.py makes, and ends the process at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, stop: int, error: Callable[[], BaseException], torn: bool) -> None:
        self.count, self.stop, self.error, self.torn = 0, stop, error, torn
        real_open, disk = open, self

        class File:
            def __init__(self, file: Any) -> None:
                self.file = file

            def __enter__(self) -> File:
                return self

            def __exit__(self, *_: object) -> None:
                self.file.close()

            def seek(self, *where: int) -> None:
                self.file.seek(*where)

            def truncate(self) -> None:
                disk.step()
                self.file.truncate()

            def write(self, content: bytes) -> None:
                disk.step(lambda: self.file.write(content[: len(content) // 2]))
                self.file.write(content)

        def opened(path: Path, mode: str) -> File:
            disk.step()
            return File(real_open(path, mode, buffering=0))

        def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **options: Any) -> Any:
                half = None
                if name == "write_bytes":
                    half = lambda: real(args[0], args[1][: len(args[1]) // 2])  # noqa: E731
                disk.step(half)
                return real(*args, **options)

            return wrapped

        patch.setattr(record, "open", opened, raising=False)
        patch.setattr(os, "replace", wrap("replace", os.replace))
        patch.setattr(os, "truncate", wrap("truncate", os.truncate))
        patch.setattr(Path, "write_bytes", wrap("write_bytes", Path.write_bytes))
        patch.setattr(Path, "unlink", wrap("unlink", Path.unlink))

    def step(self, half: Callable[[], Any] | None = None) -> None:
        self.count += 1
        if self.count == self.stop:
            if self.torn and half is not None:
                half()
            raise self.error()


@pytest.mark.parametrize("torn", [False, True])
def test_killed_between_any_two_operations_a_whole_round_is_found(tmp_path: Path, torn: bool) -> None:
    found, stop = [], 0
    while True:
        stop += 1
        folder = tmp_path / str(stop)
        recorder = Recorder.start(folder)
        play(recorder, 0)
        play(recorder, 1)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, stop, Killed, torn)
            with suppress(Killed):
                play(recorder, 2)
        found.append(check_whole(folder, range(1, 3)))
        recorder, done, *_ = Recorder.resume(folder)
        for round in range(done + 1, 5):
            play(recorder, round)
        assert check_whole(folder, range(4, 5)) == 4
        if disk.count < stop:
            break
    assert found == sorted(found)
    assert found[0] == 1
    assert found[-1] == 2
    assert len(found) >= 10


def test_killed_while_it_resumes_it_resumes_again(tmp_path: Path) -> None:
    for stop in range(1, 6):
        folder = tmp_path / str(stop)
        recorder = Recorder.start(folder)
        play(recorder, 0)
        for name in record.LINES:
            with open(folder / name, "ab") as file:
                file.write(b'{"round": 1, "half of a li')
        (folder / "checkpoint-1.safetensors").write_bytes(b"half")
        (folder / ".state.json.part").write_bytes(b"half")
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, stop, Killed, False)
            with suppress(Killed):
                Recorder.resume(folder)
        assert check_whole(folder, range(1)) == 0


def test_a_full_disk_at_any_write_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    while len(told) < 50:
        folder = tmp_path / str(len(told))
        recorder = Recorder.start(folder)
        play(recorder, 0)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, len(told) + 1, lambda: OSError(errno.ENOSPC, "No space left on device"), True)
            if not (said := failure(recorder)):
                break
        told.append(said)
        assert str(folder) in said
        check_whole(folder, range(2))
    assert disk.count == len(told) >= 8
    for said in told:
        assert "\n" not in said
        assert "No space left on device" in said
        assert "--resume" in said


def test_two_processes_put_the_same_file_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two benches on one folder do with its summary: the other comes between the writing and the placing."""
    file, replace, others = tmp_path / "summary.json", os.replace, []

    def disturbed(*where: Path) -> None:
        if not others:
            others.append(os.fork())
            if others[0] == 0:
                try:
                    write_json(file, {"from": "the other"})
                finally:
                    os._exit(0)
            os.waitpid(others[0], 0)
            assert "the other" in file.read_text()
        replace(*where)

    monkeypatch.setattr(os, "replace", disturbed)
    write_json(file, {"from": "this one"})
    assert "this one" in file.read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]


def failure(recorder: Recorder) -> str:
    """What goes wrong in round 1."""
    try:
        play(recorder, 1)
    except RecordError as error:
        return str(error)
    return ""


def started(folder: Path) -> Path:
    recorder = Recorder.start(folder)
    play(recorder, 0)
    play(recorder, 1)
    return folder


@pytest.mark.parametrize("name", ["state.json", "rounds.jsonl", "clients.jsonl", "checkpoint-1.safetensors"])
@pytest.mark.parametrize("harm", ["missing", "empty", "half", "garbled", "folder"])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str, harm: str) -> None:
    folder = started(tmp_path / "run")
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm != "missing":
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "garbled": b"\xff{" * len(content)}[harm])
    before = {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}
    with pytest.raises(ResumeError) as caught:
        Recorder.resume(folder)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()} == before


@pytest.mark.parametrize(
    "change",
    [
        {"round": "1"},
        {"lengths": {"rounds.jsonl": 3}},
        {"lengths": {"rounds.jsonl": 1.5, "clients.jsonl": 2}},
        {"checkpoint": None},
        {"sha256": 3},
        {"state": {"$pickle": "x"}},
        {"state": {"$tensor": "nowhere"}},
        {"state": {"$items": 3}},
        {"state": {"$tuple": [1], "$array": "x"}},
    ],
)
def test_a_state_that_fedsim_did_not_write_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = started(tmp_path)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(ResumeError) as caught:
        Recorder.resume(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        Recorder.start(tmp_path / "file" / "run")


def test_the_digest_knows_everything_but_timings() -> None:
    def digest(line: dict[str, Any] | None = None, arrays: dict[str, np.ndarray] | None = None) -> str:
        recorder = Recorder(None)
        base = {"round": 0, "accuracy": 0.5, "kept": [1, 2], "seconds": {"train": 1.0}}
        recorder.write(base | (line or {}), [], model(1), None)
        return recorder.digest(model(1) if arrays is None else arrays)

    assert digest() == digest({"seconds": {"train": 2.0, "record": 3.0}})
    w, steps = model(1)["w"], model(1)["steps"]
    others = [
        digest({"accuracy": np.nextafter(0.5, 1)}),
        digest({"kept": [2, 1]}),
        digest({"new": None}),
        digest(arrays={"w": w, "steps": steps + 1}),
        digest(arrays={"w": w.reshape(3, 2), "steps": steps}),
        digest(arrays={"w": w.astype(np.float64), "steps": steps}),
        digest(arrays={"v": w, "steps": steps}),
        digest(arrays={"w": w}),
    ]
    assert len({digest(), *others}) == len(others) + 1
    assert digest(arrays={"steps": steps, "w": w}) == digest()


def test_lines_hold_what_json_knows() -> None:
    given = {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": float("nan"), "e": (1, float("inf"))}
    assert record.plain(given) == {"a": 0.5, "b": 3, "c": True, "d": None, "e": [1, None]}
