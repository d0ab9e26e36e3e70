"""Settings of the process, made before numpy and torch are imported: threads, BLAS, malloc, numba's layer.

``fedsim/__init__.py`` imports this module first, in every process; each run's folder records :func:`describe`.

- OpenBLAS: one thread. After one call its threads spin and take the cores from the clients' training.
- malloc (glibc): big blocks stay with the process. By default they are given back and faulted in again,
  80,000 page faults a round with a CNN.
- numba: threading layer ``omp`` where present; ``workqueue`` aborts when two threads call it.
- torch: the thread count is per thread; every worker thread calls :func:`worker_thread` itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_BYTES, _TRIM_BYTES = 32 * 2**20, 2**30
VARIABLES = {
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_THREADING_LAYER_PRIORITY": "omp tbb workqueue",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Set in every process, workers' included, where the user has not set them."""
_done = False
malloc_tuned = False
verbose = False
"""Whether Flower, Ray and PyTorch say all that they have to say; see :func:`noise`."""


def set_up() -> None:
    """Make the settings, once a process. An environment variable that the user has set stays as it is."""
    global _done, malloc_tuned
    if _done:
        return
    _done = True
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            malloc_tuned = bool(libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)) and bool(
                libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
            )
        except (OSError, AttributeError):
            malloc_tuned = False


def worker_thread() -> None:
    """Called by every thread that trains or sums: torch uses one thread there."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch uses one thread in this thread until the block ends: sums come out in one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def noise(wanted: bool) -> Iterator[None]:
    """Until the block ends, Flower, Ray and PyTorch warn as they like, or only a user's own files do.

    Errors, and what fedsim itself has to say, are shown either way. Python's own ``-W`` and ``PYTHONWARNINGS`` hold.
    """
    import logging
    import warnings

    global verbose
    before, verbose = verbose, wanted
    flower, ours = logging.getLogger("flwr"), logging.getLogger("fedsim")
    level = ours.level

    def matters(record: logging.LogRecord) -> bool:
        return wanted or record.levelno >= logging.ERROR

    flower.addFilter(matters)  # its level is set anew where flwr is imported later
    if wanted:
        ours.setLevel(logging.INFO)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("default" if wanted else "ignore")
            warnings.filterwarnings("default", module="fedsim_plugin_")
        try:
            yield
        finally:
            verbose = before
            flower.removeFilter(matters)
            ours.setLevel(level)


def prepare_device(name: str) -> torch.device:
    """The torch device by its name (``cpu``, ``cuda``, ``cuda:1``, ``mps``), set to repeatable numerics.

    Raises:
        ScenarioError: this machine has no such device.
    """
    import torch

    from fedsim.errors import Fault, ScenarioError

    device = torch.device(name)
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    here += ["mps"] if torch.backends.mps.is_available() else []
    if name not in here and not (name == "cuda" and "cuda:0" in here):
        raise ScenarioError([Fault("engine.device", name, f"what PyTorch finds on this machine: {', '.join(here)}")])
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    return device


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as the operating system gives it, with the generation that it leaves out.

    Virtual machines call every generation "AMD EPYC", and BLAS and oneDNN choose their kernels, and with them the bits,
    by family, model and vector instructions.
    """
    try:
        with open("/proc/cpuinfo") as file:
            return described_by(file.read())
    except OSError:
        return platform.processor() or platform.machine()


def described_by(cpuinfo: str) -> str:
    """``AMD EPYC, family 25, model 1, avx2``, of the first processor in the text of Linux' /proc/cpuinfo."""
    first = cpuinfo.split("\n\n", 1)[0]
    told = {
        key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())
    }
    flags = told.get("flags", "").split()
    words = [told.get("model name", "")]
    words += [f"{word} {told[key]}" for key, word in (("cpu family", "family"), ("model", "model")) if told.get(key)]
    words += [next((each for each in ("avx512f", "avx2", "avx") if each in flags), "")]
    return ", ".join(word for word in words if word) or platform.processor() or platform.machine()


def _torch_threads() -> int | None:
    """Threads that torch would take outside of workers and the server's sums; None before it is imported."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def describe() -> dict[str, object]:
    """What a run's bits depend on beside its scenario: versions, processor, settings."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("fedsim-flwr", "flwr", "torch", "numpy", "numba", "scipy", "scikit-learn", "ray"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": cores(),
        "versions": versions,
        "malloc_tuned": malloc_tuned,
        "threads": {"torch": _torch_threads(), "worker": 1, "server": 1},
        "environment": {
            name: os.environ.get(name, "")
            for name in ("OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "NUMBA_THREADING_LAYER_PRIORITY")
        },
    }
