"""``fedsim doctor``: what this machine offers a run, what is missing, and whether fedsim works on it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from fedsim import registry, runtime
from fedsim.errors import FedsimError

GOOD, NOTE, FAULT = "ok", "note", "FAULT"
CLUSTER = Path("/tmp/ray/ray_current_cluster")
"""Where ``ray start`` leaves the address of the cluster on this machine."""
SELF_TEST = {
    "title": "self test",
    "rounds": 3,
    "data": {"clients": 8},
    "model": {"name": "logistic"},
    "client": {"per_round": 6},
    "adversary": {"count": 2, "attacks": ["sign_flip"]},
    "server": {"defenses": [{"name": "krum", "malicious": 1}]},
}


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Args:
        subject: what.
        said: what was found, and where it is not good, what to do.
        state: ``ok``, ``note`` (something optional is not there) or ``FAULT``.
    """

    subject: str
    said: str
    state: str = GOOD


def examine(address: str | None = None) -> Iterator[Line]:
    """Look at this machine, a line for each thing.

    Args:
        address: a Ray cluster to reach; None: the one that runs on this machine, if any.
    """
    described = runtime.describe()
    yield Line("python", f"{described['python']} on {described['system']}")
    yield from versions()
    yield Line("processor", f"{described['processor']}, {runtime.cores()} cores that this process may use")
    yield threads()
    yield plugins()
    yield from datasets()
    yield ray(address)
    yield self_test()


def versions() -> Iterator[Line]:
    """The packages that fedsim needs: their versions, and those that its metadata refuses."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in requires("fedsim-flwr") or ()]
    except PackageNotFoundError:
        yield Line("packages", "fedsim is not installed here: pip install -e .", FAULT)
        return
    found, wrong = [], []
    for each in needed:
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        try:
            has = version(each.name)
        except PackageNotFoundError:
            wrong.append(f"{each.name} is missing")
            continue
        found.append(f"{each.name} {has}")
        if not each.specifier.contains(has, prereleases=True):
            wrong.append(f"{each.name} {has}, accepted: {each.specifier}")
    yield Line("packages", ", ".join(found))
    if wrong:
        yield Line("packages", f"{'; '.join(wrong)}: pip install -c constraints.txt fedsim-flwr", FAULT)


def threads() -> Line:
    """Settings that take cores from the clients' training."""
    other = [
        f"{name} is {os.environ[name]} (fedsim's: {value})"
        for name, value in runtime.VARIABLES.items()
        if name.startswith("OPENBLAS") and os.environ.get(name, value) != value
    ]
    if other:
        return Line("threads", f"{'; '.join(other)}: its threads take cores from the clients; unset it", NOTE)
    tuned = "tuned" if runtime.malloc_tuned else "as it is"
    return Line("threads", f"one for each worker and for the server's sums; BLAS one, malloc {tuned}")


def plugins() -> Line:
    """Parts of installed plug-ins, each imported."""
    from importlib.metadata import entry_points

    found, wrong = [], []
    for kind in registry.HOMES:
        for entry in entry_points(group=registry.group(kind)):
            try:
                registry.get(kind, entry.name)
                found.append(f"{kind} {entry.name}")
            except FedsimError as error:
                wrong.append(str(error))
    if wrong:
        return Line("plug-ins", "; ".join(wrong), FAULT)
    return Line("plug-ins", ", ".join(found) or "none installed (a file does as well: --plugin my_attack.py)")


def datasets() -> Iterator[Line]:
    """Data sets that lie on this machine."""
    from fedsim.data import cifar10, fashion_mnist, idx
    from fedsim.data.reading import home

    yield Line("data: digits", "comes with scikit-learn")
    for name, places in (("fashion_mnist", [fashion_mnist.DEBIAN, home("fashion_mnist")]), ("mnist", [home("mnist")])):
        place = next((place for place in places if idx.find(place)), None)
        if place is not None:
            yield Line(f"data: {name}", str(place))
        else:
            where = " or ".join(map(str, places))
            yield Line(f"data: {name}", f"not in {where}: `make data`, or the hub at the first use", NOTE)
    folder = home("cifar10")
    files = (cifar10.ARCHIVE, "cifar10.npz", cifar10.BATCHES[0], f"{cifar10.INNER}/{cifar10.BATCHES[0]}")
    if any((folder / file).is_file() for file in files):
        yield Line("data: cifar10", str(folder))
    else:
        yield Line("data: cifar10", f"not in {folder}: the hub at the first use, or a folder", NOTE)
    yield memory()


def memory() -> Line:
    """Where large data sets lie decoded, for all processes to map."""
    from fedsim.data import mapped

    place = mapped.folder()
    if place is None:
        return Line("data: mapped", "off (FEDSIM_MAPPED): each process has a data set in memory for itself", NOTE)
    sizes = [file.stat().st_size for file in place.glob("*.data")]
    above = next(each for each in (place, *place.parents) if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        said = f"{place} cannot be written, so that each process reads for itself: FEDSIM_MAPPED names another folder"
        return Line("data: mapped", said, NOTE)
    holds = f"{len(sizes)} of them, {sum(sizes) / 1e6:.0f} MB" if sizes else "none so far"
    return Line("data: mapped", f"large data sets lie decoded in {place}, once for all processes: {holds}")


def ray(address: str | None = None) -> Line:
    """Whether Ray is there, and the cluster answers."""
    from fedsim.grids.ray import ADDRESSES, host_and_port

    try:
        has = version("ray")
    except PackageNotFoundError:
        return Line("ray", "not installed: pip install ray; engine.name = 'local' needs none", NOTE)
    given = address or os.environ.get("RAY_ADDRESS")
    if given in (None, "auto"):
        here = CLUSTER.read_text().strip() if CLUSTER.is_file() else None
        if here is None and given == "auto":
            return Line("ray", "given the address 'auto', but no cluster runs on this machine: ray start --head", FAULT)
        if here is None:
            return Line("ray", f"{has}; no cluster runs here, engine.name = 'ray' starts one of its own")
        given = here
    assert given is not None
    state = NOTE if address is None else FAULT
    found = host_and_port(given)
    if found is None:
        name = "RAY_ADDRESS" if address is None else "--address"
        return Line("ray", f"{has}; {name}: given '{given}'; accepted: {ADDRESSES}", state)
    try:
        socket.create_connection(found, timeout=5.0).close()
    except OSError as error:
        return Line("ray", f"{has}; the cluster at {given} does not answer: {error}", state)
    return Line("ray", f"{has}; the cluster at {given} answers: engine.address = '{given}'")


def self_test() -> Line:
    """Three rounds with an attack and a defense, once with one worker and once with two: the same bits."""
    start = time.monotonic()
    try:
        from fedsim.launch import run

        digests = {run({**SELF_TEST, "engine": {"name": "local", "workers": n}}).digest for n in (1, 2)}
    except Exception as error:
        return Line("self test", f"raised {type(error).__name__}: {error}", FAULT)
    took = f"{time.monotonic() - start:.1f} s"
    if len(digests) > 1:
        return Line("self test", f"one worker and two gave other bits ({took}): please report this", FAULT)
    return Line("self test", f"three rounds under attack, twice, the same bits ({took})")


__all__ = ["FAULT", "GOOD", "NOTE", "Line", "examine"]
