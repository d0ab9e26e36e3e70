"""No code path assumes the CPU: whole runs on a device of its own give the CPU's bits, and are resumed there."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import runtime
from fedsim.scenario import Scenario
from fedsim.simulation import simulate
from tests.simulation import far_device
from tests.simulation.far_device import Machine
from tests.simulation.test_runs import small
from tests.simulation.test_same_bits import EVERYTHING, small_net

NET = f"{Path(__file__).with_name('test_same_bits.py')}:{small_net.__name__}"


def attacked(*attacks: Any) -> dict[str, Any]:
    return {"adversary": {"count": 4, "knowledge": "omniscient", "attacks": list(attacks)}}


def defended(*defenses: Any) -> dict[str, Any]:
    return {"server": {"defenses": list(defenses)}, **attacked("sign_flip")}


CASES: dict[str, dict[str, Any]] = {
    "filter": {},
    "paper": defended({"name": "multi_metrics", "variant": "paper"}, "median"),
    "clipping": defended("norm_bound", "centered_clipping"),
    "krum": defended("nnm", "krum"),
    "bulyan": defended("bulyan"),
    "means": defended({"name": "multi_krum"}, "geometric_median"),
    "trimmed": defended("trimmed_mean"),
    "adam": {**EVERYTHING, "server": {"optimizer": {"name": "adam", "lr": 0.01}}},
    "momentum": {"server": {"optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.5}}},
    "vmap": {"engine.path": "vmap"},
    "convolutions": {"model": {"name": NET}, **attacked("badnets", {"name": "pgd", "epsilon": 0.5})},
    "guest": {"server": {"defenses": ["flwr:FedAdam"]}, "evaluate": {}, **attacked("min_max", "gaussian")},
    "min_sum": attacked("min_sum", "model_replacement"),
    "alie": attacked("alie", "ipm"),
    "mimic": attacked("mimic"),
    "free_rider": attacked({"name": "free_rider", "mode": "previous", "noise": 0.1}),
    "edge_case": attacked({"name": "edge_case", "mode": "lowest_density"}, "pgd"),
    "labels": attacked("label_flip", {"name": "sign_flip", "of": "mean"}),
    "dba": attacked("dba"),
}


class Stop(Exception):
    pass


def stop(line: dict[str, Any]) -> None:
    if line["round"] == 1:
        raise Stop


def there(name: str) -> Scenario:
    scenario = small(**{"rounds": 2, **CASES[name]})
    object.__setattr__(scenario.engine, "device", far_device.NAME)
    return scenario


def enter(monkeypatch: pytest.MonkeyPatch, float64: bool) -> Machine:
    """A machine with the far device, in all of fedsim's threads."""
    local, make_tensor, use_tensor, autocast = threading.local(), torch.tensor, torch.as_tensor, torch.autocast

    def worker_thread() -> None:
        torch.set_num_threads(1)
        if not hasattr(local, "machine"):
            local.machine = Machine(float64)
            local.machine.__enter__()

    def tensor(*args: Any, device: Any = None, **options: Any) -> torch.Tensor:
        made = make_tensor(*args, **options)
        return made if device is None else made.to(device)

    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        found = data if isinstance(data, torch.Tensor) else use_tensor(data, dtype=dtype)
        return found.to(dtype=dtype or found.dtype, device=device or found.device)

    monkeypatch.setattr(runtime, "worker_thread", worker_thread)
    monkeypatch.setattr(runtime, "prepare_device", torch.device)
    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    monkeypatch.setattr(torch, "autocast", lambda kind, **options: autocast("cpu", **options))
    if not float64:
        for module in list(sys.modules.values()):
            if hasattr(module, "has_float64"):
                monkeypatch.setattr(module, "has_float64", lambda device: torch.device(device).type != far_device.NAME)
    return Machine(float64)


QUICK = ("filter", "clipping", "momentum", "guest")


@pytest.mark.parametrize("float64", [True, False], ids=["cuda", "mps"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_a_device_of_its_own_gives_the_same_run(
    name: str, float64: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = simulate(small(**{"rounds": 2, **CASES[name]}))
    with enter(monkeypatch, float64):
        found = simulate(there(name))
        with pytest.raises(Stop):
            simulate(there(name), tmp_path, progress=stop)
        resumed = simulate(there(name), tmp_path, resume=True)
    assert [line["faults"] for line in found.lines] == [line["faults"] for line in expected.lines]
    for key, tensor in expected.parameters.items():
        torch.testing.assert_close(found.parameters[key], tensor, rtol=1e-4, atol=1e-5)
    assert resumed.digest == found.digest


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    with Machine(float64=False):
        far = torch.ones(3).to(far_device.NAME)
        assert torch.equal((far + far).cpu(), torch.full((3,), 2.0))
        with pytest.raises(RuntimeError, match="same device"):
            far + torch.ones(3)
        with pytest.raises(TypeError, match="no float64"):
            far.double()
        with pytest.raises((RuntimeError, TypeError, NotImplementedError)):
            far.numpy()
