"""Settings of the process: made before anything is computed, and told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

from fedsim import runtime
from fedsim.errors import ScenarioError


def child(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in runtime.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_fedsim_makes_the_settings_and_leaves_the_users() -> None:
    code = "import fedsim, os, json; print(json.dumps(dict(os.environ)))"
    found = json.loads(child(code, OPENBLAS_NUM_THREADS="3"))
    assert {name: found[name] for name in runtime.VARIABLES} == runtime.VARIABLES | {"OPENBLAS_NUM_THREADS": "3"}


def test_importing_fedsim_imports_nothing_heavy() -> None:
    code = (
        "import fedsim, sys; print([n for n in ('torch', 'numpy', 'flwr', 'pandas', 'pydantic') if n in sys.modules])"
    )
    assert child(code) == "[]"


def test_one_thread_is_used_in_the_block_and_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with suppress(RuntimeError), runtime.one_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_run_can_tell_what_its_bits_depend_on() -> None:
    told = runtime.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["versions"]["torch"].startswith(torch.__version__.split("+")[0])  # type: ignore[index]
    assert told["cores"] == runtime.cores() >= 1
    assert told["processor"]


def test_devices_by_name() -> None:
    assert runtime.prepare_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ScenarioError, match=f"engine.device: given '{name}'; accepted: .*: cpu$"):
        runtime.prepare_device(name)


def test_devices_that_are_there_have_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [runtime.prepare_device(name).index for name in ("cuda", "cuda:1")] == [None, 1]
    with pytest.raises(ScenarioError, match="cpu, cuda:0, cuda:1"):
        runtime.prepare_device("cuda:2")


def test_a_processor_is_told_with_its_generation() -> None:
    """The trap: virtual machines of two generations have one name, and give different bits."""
    told = (
        "processor\t: 0\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\nflags\t\t: fpu {}\n\nprocessor\t: 1\n"
    )
    assert runtime.described_by(told.format(1, "avx2")) == "AMD EPYC, family 25, model 1, avx2"
    assert runtime.described_by(told.format(17, "avx2 avx512f")) == "AMD EPYC, family 25, model 17, avx512f"
    assert runtime.described_by("Hardware\t: a board") == runtime.described_by("")
