"""Three ways to train, one meaning."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from fedsim import registry
from fedsim.client.app import FederatedClient
from fedsim.errors import FedsimError
from fedsim.models.standardize import Standardize
from fedsim.testing.federation import CLASSES, deltas, initial, mlp, replies, workload

SIZES = (10, 7, 0, 1, 12, 8, 3, 16)


def logistic():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))


def normed():
    return nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 6, bias=False), nn.Tanh()),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.LayerNorm(6, bias=False),
        nn.GELU(),
        nn.Linear(6, CLASSES),
    )


def standard():
    return nn.Sequential(nn.Flatten(), Standardize(0.3, 0.4), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, CLASSES))


def by_pixel():
    return nn.Sequential(
        nn.Linear(4, 5), nn.ELU(inplace=True), nn.LayerNorm((3, 5)), nn.Flatten(), nn.Linear(15, CLASSES)
    )


def trained(path, sizes=SIZES, **more):
    load = workload(sizes, path=path, **more)
    app = FederatedClient(load)
    assert app.path.name == path
    return deltas(app, initial(load), range(len(sizes)))


OPTIONS = {
    "plain": {},
    "momentum": {"optimizer": registry.make("optimizer", "sgd", lr=0.1, momentum=0.9, weight_decay=0.01)},
    "adam": {"optimizer": registry.make("optimizer", "adam", lr=0.01)},
    "proximal": {"proximal": 0.5},
    "clip": {"clip_norm": 0.2},
    "steps": {"epochs": None, "steps": 5},
    "straggler": {"straggler": 0.7},
    "holdout": {"holdout": 0.3},
}


@pytest.mark.parametrize("path", ["stacked", "vmap"])
@pytest.mark.parametrize("model", [logistic, mlp, normed, standard, by_pixel])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_paths_agree_in_float64(model, options, path):
    more = {"model": model, "precision": "float64", **options}
    torch.testing.assert_close(trained(path, **more), trained("reference", **more), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["stacked", "vmap"])
@pytest.mark.parametrize("model", [logistic, mlp, normed])
def test_paths_agree_in_float32(model, path):
    torch.testing.assert_close(trained(path, model=model), trained("reference", model=model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", ["stacked", "vmap"])
def test_paths_agree_in_bfloat16(path):
    more = {"precision": "bfloat16", "model": mlp}
    ours, reference = trained(path, **more), trained("reference", **more)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, reference, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("path", ["stacked", "vmap"])
def test_regression(path):
    def regress(path):
        load = workload(SIZES, lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), path=path, precision="float64")
        load.num_classes = 0
        load.train = type(load.train)(load.train.inputs, load.train.targets.double())
        return deltas(FederatedClient(load), initial(load), range(len(SIZES)))

    torch.testing.assert_close(regress(path), regress("reference"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["stacked", "vmap", "reference"])
def test_the_loss_is_the_mean_over_the_examples_seen(path):
    load = workload((10, 7), path=path, epochs=1, optimizer=registry.make("optimizer", "sgd", lr=1e-12))
    vector = initial(load)
    module = mlp()
    load.layout.load(module, vector)
    for client, reply in enumerate(replies(FederatedClient(load), vector, [0, 1])):
        own = load.train.take(load.shares[client])
        expected = nn.functional.cross_entropy(module(own.inputs), own.targets)
        assert reply.content["metrics"]["loss"] == pytest.approx(expected.item(), rel=1e-5)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(12, 12), nn.Linear(12, CLASSES)

    def forward(self, inputs):
        flat = inputs.flatten(1)
        return self.outer(flat + self.inner(flat).relu())


def convolution():
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(12, CLASSES))


def tied():
    layer = nn.Linear(12, 12)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.Linear(12, CLASSES))


def dropping():
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, CLASSES))


class Noisy(Residual):
    def forward(self, inputs):
        return super().forward(inputs + torch.rand_like(inputs))


class Branching(Residual):
    def forward(self, inputs):
        return super().forward(inputs if inputs.sum() > 0 else -inputs)


@pytest.mark.parametrize(
    ("model", "path", "reason"),
    [
        (mlp, "stacked", "twin"),
        (Residual, "vmap", "no stacked twin"),
        (tied, "vmap", "used twice"),
        (convolution, "reference", "Conv2d"),
        (dropping, "reference", "Dropout"),
        (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)), "reference", "buffers"),
        (Noisy, "reference", "global generator"),
        (Branching, "reference", "vmap does not take it"),
    ],
)
def test_the_path_is_chosen_by_the_model_and_said(model, path, reason, caplog):
    with caplog.at_level(logging.INFO, logger="fedsim"):
        app = FederatedClient(workload(model=model))
    assert app.path.name == path
    assert reason in app.path.reason
    assert app.path.reason in caplog.text


@pytest.mark.parametrize("model", [Residual, tied])
def test_vmap_serves_what_has_no_twin(model):
    more = {"model": model, "precision": "float64"}
    torch.testing.assert_close(trained("vmap", **more), trained("reference", **more), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("path", "model"), [("stacked", Residual), ("stacked", tied), ("vmap", dropping), ("vmap", Branching)]
)
def test_a_path_that_cannot_serve_the_model_is_one_clear_error(path, model):
    with pytest.raises(FedsimError, match=f"given '{path}'; accepted") as caught:
        FederatedClient(workload(model=model, path=path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [dropping, Noisy])
def test_random_layers_draw_from_the_clients_own_stream(model):
    load = workload((10, 10), model=model)
    vector, state = initial(load), torch.random.get_rng_state()
    app = FederatedClient(load)
    first = deltas(app, vector, [0, 1])
    assert torch.equal(first, deltas(FederatedClient(load), vector, [1, 0]).flip(0))
    assert not torch.equal(first, deltas(app, vector, [0, 1], round=4))
    assert torch.equal(state, torch.random.get_rng_state())
