"""For all tests: one thread, no network, no cache, skips for what this machine has not."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["FEDSIM_MAPPED"] = "off"  # nothing is left in the home of who tests

import pytest

import fedsim  # noqa: F401  (sets the process up before torch is imported)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    for item in items:
        if "gpu" in item.keywords and not gpu:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
