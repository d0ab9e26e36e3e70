"""A client's share of a DIFF2 round, an epoch of FedAvg: ``python diff2_round.py SIDE ROUNDS``.

SIDE is ours, epoch, bare, norms, rows, vmap_64, vmap_300, cnn or cnn_rows:

``ours`` is the estimator's answer to a round's message, the clipped sum of gradient differences with all around it;
``epoch`` an epoch of SGD in fedsim's stacked path (batches of 32), ``bare`` the same epoch as a plain PyTorch loop.
``norms`` is the clipped sum alone, and ``rows`` the same with every example's gradient formed by fedsim's ``vmap``;
``vmap_64`` and ``vmap_300`` are it as people write it with ``torch.func``, so many examples at a time. All over the
same 6,000 images of Fashion-MNIST, with the MLP, on one thread. ``cnn`` and ``cnn_rows`` are the clipped sum of a
convolutional network over 1,000 of them: with the linear layers by norms and the convolutions' rows, with all rows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import fedsim  # noqa: F401  (sets the process up before torch is imported)

EXAMPLES = 6_000
STEP, CLIP = 1e-2, 3e-2
"""Length of the step between the two points, and the norm above which a difference is clipped."""


def side(what: str) -> Callable[[], object]:
    """One round of a side."""
    import torch
    import workload
    from flwr.app import ConfigRecord, RecordDict
    from torch import Tensor, nn
    from torch.func import functional_call, grad, vmap
    from torch.nn import functional

    from fedsim.client.objective import Objective
    from fedsim.client.stacked import Stacked
    from fedsim.data.examples import Examples
    from fedsim.flower import Flat
    from fedsim.privacy.clipping import clipped_difference_sum, ghost_layers
    from fedsim.privacy.mixed import tapped
    from fedsim.updates import Layout
    from strategies.diff2 import Diff2

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = (each[:EXAMPLES] for each in workload.load())
    net = workload.model("mlp")
    layout = Layout.of(net)
    now = layout.flatten(dict(net.named_parameters()))
    direction = torch.randn(layout.d)
    before = now - STEP * direction / direction.norm()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    estimator = Diff2(restart=2, c1=1.0, c2=CLIP / STEP, lr=0.1)
    privacy = SimpleNamespace(trust="central", unit="example")
    estimator.setting, estimator.sigma = SimpleNamespace(privacy=privacy, rounds=2, clients=10), (1e-3, 1e-3)
    node = SimpleNamespace(
        module=net,
        parameters=now,
        round=2,
        workload=SimpleNamespace(layout=layout, example_loss=loss),
        examples=lambda: Examples(images, labels),
    )

    def ours() -> object:
        message = {"diff2": ConfigRecord({"restart": False}), "previous": Flat(before, layout)}
        return estimator.measure(node, RecordDict(message))

    def norms() -> object:
        return clipped_difference_sum(net, now, before, loss, images, labels, CLIP)

    # A second axis, of one row, keeps the layers from being taken by norms.
    unsuited = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 784)), *net[1:], nn.Flatten())
    assert (ghost_layers(net, images), ghost_layers(unsuited, images)) == (("1.weight", "3.weight"), None)
    cnn = workload.model("cnn").eval()
    cnn_unsuited = nn.Sequential(*cnn[:7], nn.Unflatten(1, (1, 512)), *cnn[7:], nn.Flatten()).eval()
    few, layouts = images[:1000], {id(each): Layout.of(each) for each in (cnn, cnn_unsuited)}
    for each, linear in ((unsuited.eval(), 0), (cnn, 2), (cnn_unsuited, 0)):
        assert len(tapped(each, dict(each.named_parameters()), images[:1])) == linear

    def rows() -> object:
        return clipped_difference_sum(unsuited, now, before, loss, images, labels, CLIP)

    def by_people(chunk: int) -> object:
        def each(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return functional.cross_entropy(functional_call(net, parameters, (image[None],)), label[None])

        gradients = vmap(grad(each), in_dims=(None, 0, 0))
        points = [layout.views(point.detach()) for point in (now, before)]
        total = torch.zeros(layout.d)
        for start in range(0, EXAMPLES, chunk):
            batch = images[start : start + chunk], labels[start : start + chunk]
            after, first = (gradients(parameters, *batch) for parameters in points)
            rows = torch.cat([(after[name] - first[name]).flatten(1) for name in after], 1)
            total += (rows * (CLIP / rows.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0)
        return total

    def convolutional(module: nn.Module) -> object:
        at = layouts[id(module)].flatten(dict(module.named_parameters()))
        return clipped_difference_sum(module, at, at - STEP / len(at) ** 0.5, loss, few, labels[:1000], CLIP)

    def epoch() -> None:
        stacked = Stacked(net, layout, Objective(10))
        weights = stacked.views(now.clone().unsqueeze(0))
        for start in range(0, EXAMPLES, workload.BATCH):
            x, y = (each[None, start : start + workload.BATCH] for each in (images, labels))
            stacked.descend(weights, x, y, workload.LEARNING_RATE)

    def bare() -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=workload.LEARNING_RATE)
        for start in range(0, EXAMPLES, workload.BATCH):
            x, y = (each[start : start + workload.BATCH] for each in (images, labels))
            optimizer.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            optimizer.step()

    return {"ours": ours, "epoch": epoch, "bare": bare, "norms": norms, "rows": rows,
            "vmap_64": lambda: by_people(64), "vmap_300": lambda: by_people(300),
            "cnn": lambda: convolutional(cnn), "cnn_rows": lambda: convolutional(cnn_unsuited)}[what]  # fmt: skip


def main() -> None:
    import workload

    run = side(sys.argv[1])
    ends = [time.perf_counter()]
    for _ in range(int(sys.argv[2]) + workload.WARM_UP):
        run()
        ends.append(time.perf_counter())
    workload.report(ends)


if __name__ == "__main__":
    main()
