"""Losses, step controls, optimizers with memory: one meaning on all paths, the one of a plain PyTorch loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedsim import registry
from fedsim.client.app import FederatedClient
from fedsim.client.job import make_job
from fedsim.errors import FedsimError
from fedsim.losses import HarmonicHead
from fedsim.optim import DiffGrad, RadiusControl
from fedsim.optim.robust_gradients import winsorized
from fedsim.testing.federation import CLASSES, deltas, initial, messages, mlp, replies, workload

SIZES = (10, 7, 0, 1, 12, 8)
PATHS = ["stacked", "vmap"]


def part(kind, name, **options):
    return registry.make(kind, name, **options)


def with_head(loss):
    return lambda: loss.head(mlp())


def trained(path, loss=None, **more):
    if loss is not None:
        more |= {"loss": loss, "model": with_head(loss)}
    load = workload(SIZES, path=path, precision="float64", **more)
    app = FederatedClient(load)
    assert app.path.name == path
    return deltas(app, initial(load), range(len(SIZES)))


LOSSES = {
    "harmonic": ("harmonic", {}),
    "cosine": ("harmonic", {"distance": "cosine", "exponent": 4.0}),
    "mahalanobis": ("harmonic", {"distance": "mahalanobis"}),
    "masked harmonic": ("harmonic", {"mask_absent": True, "distance": "manhattan"}),
    "masked": ("cross_entropy", {"mask_absent": True}),
    "smoothed": ("cross_entropy", {"label_smoothing": 0.1}),
    "squared": ("squared_error", {}),
}
OPTIMIZERS = ["sgd", "diffgrad", "langevin", "rm3", "m3", "ra3"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("loss", LOSSES)
def test_paths_agree_on_every_loss(loss, path):
    name, options = LOSSES[loss]
    ours, reference = (trained(each, part("loss", name, **options)) for each in (path, "reference"))
    assert reference.abs().max() > 1e-3
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_paths_agree_under_a_step_control(optimizer, path):
    def run(path, control=None):
        step = part("optimizer", optimizer, **({"temperature": 0.01} if optimizer == "langevin" else {}), lr=20.0)
        return trained(path, optimizer=step, step_control=control)

    control = part("step_control", "softmax_radius", quantile=0.9)
    ours, reference = run(path, control), run("reference", control)
    torch.testing.assert_close(ours, reference, rtol=1e-7, atol=1e-9)
    assert not torch.allclose(reference, run("reference"), rtol=0.1)


@pytest.mark.parametrize("name", ["cross_entropy", "harmonic"])
@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_a_masked_class_keeps_its_row(path, name):
    def moved(masked):
        loss = part("loss", name, mask_absent=masked)
        load = workload((30,), path=path, epochs=1, loss=loss, model=with_head(loss))
        load.train.targets[load.train.targets == 2] = 1
        module = loss.head(mlp())
        load.layout.load(module, deltas(FederatedClient(load), initial(load), [0])[0])
        return module[3].weight.abs().sum(1)

    assert moved(masked=False).min() > 0
    rows = moved(masked=True)
    assert rows[2] == 0
    assert (rows[[0, 1, 3]] > 0).all()


def test_the_harmonic_head_takes_the_place_of_the_last_linear_layer():
    model = part("loss", "harmonic", distance="cosine", exponent=3.0).head(mlp())
    assert isinstance(model[3], HarmonicHead)
    assert (model[3].weight.shape, model[3].exponent, model[3].distance) == ((CLASSES, 9), 3.0, "cosine")
    assert part("loss", "harmonic").head(nn.Linear(16, 3)).exponent == math.sqrt(16)
    with pytest.raises(FedsimError, match="no linear layer"):
        part("loss", "harmonic").head(nn.Flatten())


def test_a_step_control_is_the_one_of_a_plain_loop():
    control, step = part("step_control", "softmax_radius"), part("optimizer", "adam", lr=3.0)
    load = workload((14,), path="reference", precision="float64", optimizer=step, step_control=control)
    vector = initial(load)
    ours = deltas(FederatedClient(load), vector, [0])[0]
    module = mlp().double()
    load.layout.load(module, vector)
    optimizer = RadiusControl(torch.optim.Adam(module.parameters(), lr=3.0), module)
    job, position, radii = make_job(load, 0, 3, None, ()), 0, []
    for size in job.sizes:
        batch = load.train.take(job.order[position : position + size])
        position += size
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(batch.inputs.double()), batch.targets).backward()
        optimizer.step(inputs=batch.inputs.double())
        radii.append(float(optimizer.radius))
    assert max(radii) > 1
    theirs = load.layout.flatten(dict(module.named_parameters()), torch.float64) - vector
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_a_client_tells_the_friction_of_its_last_step(path):
    sizes = (14, 30, 0, 3)
    step = part("optimizer", "diffgrad", lr=0.05, log_friction=True)
    load = workload(sizes, path=path, precision="float64", optimizer=step)
    vector = initial(load)
    told = [reply.content["metrics"].get("friction") for reply in replies(FederatedClient(load), vector, range(4))]
    assert told[2] is None
    for client in (0, 1, 3):
        module = mlp().double()
        load.layout.load(module, vector)
        optimizer = DiffGrad(module.parameters(), lr=0.05)
        job, position, gradients = make_job(load, client, 3, None, ()), 0, [torch.zeros(load.layout.d)]
        for size in job.sizes:
            batch = load.train.take(job.order[position : position + size])
            position += size
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(batch.inputs.double()), batch.targets).backward()
            gradients.append(torch.cat([each.grad.flatten() for each in module.parameters()]))
            optimizer.step()
        assert told[client] == pytest.approx(float((gradients[-1] - gradients[-2]).abs().sigmoid().mean()), abs=1e-9)


MEMORIES = {"adam": {}, "diffgrad": {}, "rm3": {}, "sgd": {"momentum": 0.9}, "nadam": {}, "rprop": {}}


def rounds(path, optimizer, state, sizes=SIZES, asked=((0, 1, 2, 3, 4, 5), (0, 4), (0, 1, 3, 4, 5))):
    """Vectors of each round, the last client's delta added; clients differ in how often they were asked."""
    step = part("optimizer", optimizer, lr=0.01, **MEMORIES[optimizer])
    load = workload(sizes, path=path, precision="float64", optimizer=step, optimizer_state=state)
    app, vector, found, states = FederatedClient(load), initial(load), [], {}
    for number, clients in enumerate(asked, start=1):
        sent, contexts = messages(load, vector, clients, round=number)
        for client, context in zip(clients, contexts, strict=True):
            context.state.update(states.get(client, {}))
        answers = {}
        for chunk in app.plan(sent, contexts):
            replies = app.many([sent[i] for i in chunk], [contexts[i] for i in chunk])
            answers |= dict(zip(chunk, replies, strict=True))
        assert not any(reply.has_error() for reply in answers.values())
        states |= {client: context.state for client, context in zip(clients, contexts, strict=True)}
        rows = torch.stack([answers[i].content["arrays"].vector for i in range(len(clients))])
        found.append(rows)
        vector = vector + rows[0]
    return found


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer", MEMORIES)
def test_memory_over_rounds_is_the_same_on_all_paths(optimizer, path):
    ours, reference = rounds(path, optimizer, "persist"), rounds("reference", optimizer, "persist")
    fresh = rounds("reference", optimizer, "reset")
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(reference[1], fresh[1], rtol=1e-3)


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_a_client_alone_that_keeps_its_memory_is_one_long_run(path):
    """Batches of all examples: rounds of two steps each are one run of six steps, moments and bias corrections."""
    step = part("optimizer", "adam", lr=0.01)
    load = workload((6,), path=path, precision="float64", optimizer=step, optimizer_state="persist", batch_size=6)
    app, vector = FederatedClient(load), initial(load)
    module = mlp().double()
    load.layout.load(module, vector)
    adam = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(6):
        adam.zero_grad()
        nn.functional.cross_entropy(module(load.train.inputs.double()), load.train.targets).backward()
        adam.step()
    state = {}
    for number in (1, 2, 3):
        sent, contexts = messages(load, vector, [0], round=number)
        contexts[0].state.update(state)
        (reply,) = app.many(sent, contexts)
        state, vector = contexts[0].state, vector + reply.content["arrays"].vector
    torch.testing.assert_close(
        vector, load.layout.flatten(dict(module.named_parameters()), torch.float64), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("path", ["reference", *PATHS])
@pytest.mark.parametrize("percent", [0.0, 25.0])
def test_winsorized_gradients_are_those_of_the_examples(percent, path):
    step = part("optimizer", "winsorized", lr=0.5, percent=percent)
    load = workload((8,), path=path, precision="float64", optimizer=step, batch_size=8, epochs=1)
    vector = initial(load)
    app = FederatedClient(load)
    assert app.path.name == path
    module = mlp().double()
    load.layout.load(module, vector)
    rows = []
    for x, y in zip(load.train.inputs.double(), load.train.targets, strict=True):
        module.zero_grad()
        nn.functional.cross_entropy(module(x[None]), y[None]).backward()
        rows.append(torch.cat([each.grad.flatten() for each in module.parameters()]))
    expected = -0.5 * winsorized(torch.stack(rows), percent)
    torch.testing.assert_close(deltas(app, vector, [0])[0], expected, rtol=1e-9, atol=1e-12)
    if not percent:
        plain = workload((8,), precision="float64", batch_size=8, epochs=1, optimizer=part("optimizer", "sgd", lr=0.5))
        torch.testing.assert_close(deltas(FederatedClient(plain), vector, [0])[0], expected, rtol=1e-9, atol=1e-12)


def test_winsorized_gradients_pass_dropout_as_a_batch_does():
    def dropping():
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Dropout(0.5), nn.Linear(6, CLASSES))

    moved = [
        deltas(FederatedClient(load), initial(load), [0])[0]
        for load in (
            workload((8,), precision="float64", model=dropping, batch_size=8, epochs=1, optimizer=step)
            for step in (part("optimizer", "winsorized", lr=0.5, percent=0.0), part("optimizer", "sgd", lr=0.5))
        )
    ]
    torch.testing.assert_close(*moved, rtol=1e-9, atol=1e-12)


def test_langevin_uploads_the_mean_of_its_iterates():
    step = part("optimizer", "langevin", lr=0.1, temperature=0.0)
    load = workload((6,), precision="float64", optimizer=step, batch_size=6, epochs=5)
    vector = initial(load)
    module = mlp().double()
    load.layout.load(module, vector)
    sgd, iterates = torch.optim.SGD(module.parameters(), lr=0.1), []
    for _ in range(5):
        sgd.zero_grad()
        nn.functional.cross_entropy(module(load.train.inputs.double()), load.train.targets).backward()
        sgd.step()
        iterates.append(load.layout.flatten(dict(module.named_parameters()), torch.float64))
    mean = torch.stack(iterates).mean(0) - vector
    torch.testing.assert_close(deltas(FederatedClient(load), vector, [0])[0], mean, rtol=1e-9, atol=1e-12)
