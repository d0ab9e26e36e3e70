"""Gradients of single examples and of several objectives: many clients at once are what each is alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.attack import Attack
from fedsim import registry
from fedsim.client import apart
from fedsim.client.app import FederatedClient
from fedsim.errors import FedsimError
from fedsim.losses.loss import Loss
from fedsim.optim.client_sam_gs import Memories, similarities, surgery_of_rows
from fedsim.optim.sam_gs import State, similarity, surgery
from fedsim.testing.federation import CLASSES, SHAPE, deltas, initial, kept_rounds, mlp, workload

SIZES = (10, 7, 0, 1, 12, 8, 3, 16)
PATHS = ["stacked", "vmap"]
part = registry.make


def by_pixel() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 5), nn.ELU(inplace=True), nn.LayerNorm((3, 5)), nn.Flatten(), nn.Linear(15, CLASSES)
    )


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 6, bias=False), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(),
        nn.LayerNorm(5, bias=False), nn.Linear(5, CLASSES),
    )  # fmt: skip


def recon() -> dict[str, Any]:
    loss = part("loss", "with_reconstruction")
    loss.set_up(SHAPE)
    return {"loss": loss}


def winsorized(**options: Any) -> dict[str, Any]:
    return {"optimizer": part("optimizer", "winsorized", lr=0.3, percent=20.0, **options)}


def sam_gs(**options: Any) -> dict[str, Any]:
    return recon() | {"optimizer": part("optimizer", "sam_gs", lr=0.01, **options)}


CASES: dict[str, dict[str, Any]] = {
    "winsorized": winsorized(),
    "winsorized, momentum": winsorized(momentum=0.9, weight_decay=0.01),
    "winsorized, squared error": winsorized() | {"loss": part("loss", "squared_error")},
    "winsorized, masked": winsorized() | {"loss": part("loss", "cross_entropy", mask_absent=True)},
    "sum, sgd": recon(),
    "sum, adam": recon() | {"optimizer": part("optimizer", "adam", lr=0.01)},
    "sam_gs": sam_gs(),
    "sam_gs, both branches": sam_gs(gamma=0.93),
    "sam_gs, momenta": sam_gs(gamma=0.0, pairs="all", rescale=True),
}
MORE: dict[str, dict[str, Any]] = {
    "plain": {},
    "proximal, clipped": {"proximal": 0.5, "clip_norm": 0.2},
    "stragglers": {"straggler": 0.7, "epochs": 4},
    "a step control": {"step_control": part("step_control", "softmax_radius")},
}


class Anchor(Attack):
    """Minimises a share of the task's loss, and stays near what it received."""

    def objective(self, loss: Tensor, parameters: Tensor, step: Any) -> Tensor:
        return 0.3 * loss + 0.5 * (parameters - step.reference - 0.01).square().sum(1)


def load_of(path: str, model: Any = mlp, **options: Any) -> Any:
    loss = options.get("loss")
    return workload(SIZES, (lambda: loss.head(model())) if loss is not None else model, path=path, **options)


def trained(path: str, attacks: Any = (), malicious: Any = (), **options: Any) -> Tensor:
    load = load_of(path, **options)
    app = FederatedClient(load, attacks)
    assert app.path.name == path
    return deltas(app, initial(load), range(len(SIZES)), malicious=malicious)


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("case", CASES)
def test_paths_agree_on_clients_of_unequal_size(case: str, more: str) -> None:
    options = {"precision": "float64", **CASES[case], **MORE[more]}
    if case == "winsorized, squared error" and more == "a step control":
        pytest.skip("squared error has no softmax")
    reference = trained("reference", **options)
    assert reference.abs().max() > 1e-3
    for path in PATHS:
        torch.testing.assert_close(trained(path, **options), reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", [by_pixel, normed])
@pytest.mark.parametrize("case", ["winsorized", "sum, sgd", "sam_gs, both branches"])
def test_paths_agree_on_other_layers(case: str, model: Any) -> None:
    options = {"precision": "float64", "model": model, **CASES[case]}
    reference = trained("reference", **options)
    for path in PATHS:
        torch.testing.assert_close(trained(path, **options), reference, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", ["winsorized, momentum", "sum, adam", "sam_gs, both branches"])
def test_paths_agree_in_float32(case: str) -> None:
    reference = trained("reference", **CASES[case])
    for path in PATHS:
        torch.testing.assert_close(trained(path, **CASES[case]), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["winsorized, momentum", "sum, adam", "sam_gs", "sam_gs, both branches"])
def test_paths_agree_under_attack(case: str) -> None:
    options = {"precision": "float64", **CASES[case]}
    attacks, malicious = [part("attack", "badnets", size=1, ratio=0.5), Anchor()], [4, 7, 1]
    reference, honest = trained("reference", attacks, malicious, **options), trained("reference", **options)
    moved = (reference != honest).any(1).nonzero().flatten().tolist()
    assert moved == sorted(malicious)
    for path in PATHS:
        torch.testing.assert_close(trained(path, attacks, malicious, **options), reference, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", ["winsorized, momentum", "sum, adam", "sam_gs, momenta"])
def test_a_client_is_the_same_in_any_company(case: str) -> None:
    """Clients that are done advance nothing of the others, and nothing of theirs goes on."""
    load = load_of("vmap", precision="float64", **CASES[case])
    vector, app = initial(load), FederatedClient(load)
    together = deltas(app, vector, range(len(SIZES)))
    for client in range(len(SIZES)):
        torch.testing.assert_close(deltas(app, vector, [client])[0], together[client], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", ["winsorized, momentum", "sum, adam"])
def test_what_clients_keep_over_rounds_is_the_same(case: str, path: str) -> None:
    def rounds(path: str, state: str) -> list[Tensor]:
        load = load_of(path, precision="float64", optimizer_state=state, **CASES[case])
        return kept_rounds(load, ((0, 1, 3, 4, 5), (0, 4), (0, 1, 3, 4, 7)))[0]

    ours, reference, fresh = rounds(path, "persist"), rounds("reference", "persist"), rounds(path, "reset")
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    assert torch.equal(ours[0], fresh[0])
    assert not torch.allclose(ours[1], fresh[1], rtol=1e-3)


@pytest.mark.parametrize("path", PATHS)
def test_the_memory_for_examples_is_bounded_and_changes_no_number(path: str, monkeypatch: Any) -> None:
    held = []
    take = apart.Apart._take

    def spied(self: Any, parts: Tensor, *more: Any) -> Tensor:
        held.append(parts.numel() * parts.element_size())
        return take(self, parts, *more)

    monkeypatch.setattr(apart.Apart, "_take", spied)
    options = {"precision": "float64", **CASES["winsorized, momentum"]}
    whole = trained(path, **options)
    one = 4 * initial(load_of(path, **options)).numel() * 8
    assert max(held) > 2 * one
    held.clear()
    monkeypatch.setattr(apart, "EXAMPLE_BYTES", 2 * one)
    torch.testing.assert_close(trained(path, **options), whole, rtol=1e-10, atol=1e-12)
    assert max(held) == 2 * one
    held.clear()
    monkeypatch.setattr(apart, "EXAMPLE_BYTES", 1)
    torch.testing.assert_close(trained(path, **options), whole, rtol=1e-10, atol=1e-12)
    assert max(held) == one


@pytest.mark.parametrize("pairs", ["distinct", "all"])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_surgery_of_rows_is_that_of_each(pairs: Any, tasks: int) -> None:
    """Both branches in one call, zeros, clients that leave."""
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"betas": (0.9, 0.99), "gamma": 0.9, "eps": 1e-8, "pairs": pairs}
    for rescale in (False, True):
        memories, states = None, [State.fresh(tasks, 6, torch.float64) for _ in range(5)]
        branches = set()
        for active in (5, 5, 4, 2, 2, 1):
            gradients = torch.randn(active, tasks, 6, generator=generator, dtype=torch.float64)
            gradients *= 1.5 ** torch.randn(active, tasks, 1, generator=generator, dtype=torch.float64)
            gradients[-1, 0] = 0
            if memories is None:
                memories = Memories.fresh(gradients)
            memories = Memories(memories.momentum[:active], memories.spread[:active], memories.steps)
            psi = similarities(gradients, pairs)
            ours = surgery_of_rows(gradients, memories, rescale=rescale, **options)
            for row in range(active):
                theirs = surgery(gradients[row], states[row], rescale=rescale, **options)
                branches.add(theirs.equalised)
                assert psi[row] == pytest.approx(similarity(gradients[row], pairs))
                torch.testing.assert_close(ours[row], theirs.gradient, rtol=1e-12, atol=0)
                torch.testing.assert_close(memories.momentum[row], states[row].momentum)
                torch.testing.assert_close(memories.spread[row], states[row].spread)
        assert branches == ({False} if tasks == 1 else {False, True})


def test_the_fastest_path_is_the_default() -> None:
    for case in ("winsorized", "sum, adam", "sam_gs"):
        assert FederatedClient(load_of("auto", **CASES[case])).path.name == "stacked"


class Masked(Loss):
    """Two objectives of which a mask of data-dependent length is taken: neither fast path takes them."""

    objectives = 2

    def losses(self, outputs: Tensor, inputs: Tensor, targets: Tensor, num_classes: int) -> Tensor:
        each = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return torch.stack([each.mean(), each[inputs.flatten(1).sum(1) > 0].sum()])


def test_a_loss_of_several_objectives_that_no_fast_path_takes_goes_by_reference() -> None:
    assert FederatedClient(workload(SIZES, loss=Masked())).path.name == "reference"
    for path in PATHS:
        with pytest.raises(FedsimError, match=f"engine.path: given '{path}'; accepted") as caught:
            FederatedClient(workload(SIZES, loss=Masked(), path=path))
        assert "\n" not in str(caught.value)


def test_examples_of_a_harmonic_head_go_by_vmap() -> None:
    options = {"precision": "float64", **winsorized(), "loss": part("loss", "harmonic")}
    app = FederatedClient(load_of("auto", **copy.deepcopy(options)))
    assert app.path.name == "vmap"
    assert "single examples" in app.path.reason
    with pytest.raises(FedsimError, match="given 'stacked'; accepted: 'vmap' or 'reference'"):
        FederatedClient(load_of("stacked", **options))
    torch.testing.assert_close(trained("vmap", **options), trained("reference", **options), rtol=1e-9, atol=1e-10)
