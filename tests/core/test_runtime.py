"""Settings of the process: made before anything is computed, and told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress

import torch

from fedsim import runtime


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
