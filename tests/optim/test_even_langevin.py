"""Averaging for even exponents: the top eigenvector of the mean of θθᵀ, its sign, and what its state survives."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import optim, registry
from fedsim.client.chunk import Stepper
from fedsim.data.planted import overlap, single_index, single_index_ascent, unit_vectors
from fedsim.errors import FedsimError
from fedsim.optim import EvenSGD, EvenSphericalLangevin
from fedsim.optim.even_langevin import LARGEST
from fedsim.optim.langevin import normalized, normalized_sgd, spherical_langevin

KINDS = [EvenSGD, EvenSphericalLangevin]


def drive(optimizer, parameter, gradients):
    iterates = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        iterates.append(parameter.detach().clone())
    return torch.stack(iterates)


def walk(kind, dtype=torch.float32, shape=(3, 8), steps=9):
    """A parameter and its optimizer in the middle of a walk, with noise of its own; further gradients."""
    generator = torch.Generator().manual_seed(5)
    x = nn.Parameter(normalized(torch.randn(shape, generator=generator)).to(dtype))
    optimizer = kind([x], lr=0.1)
    optimizer.use_streams([torch.Generator().manual_seed(6)])
    gradients = torch.randn(2 * steps, *shape, generator=generator).to(dtype)
    drive(optimizer, x, gradients[:steps])
    return x, optimizer, gradients[steps:]


@pytest.mark.parametrize("shape", [(20,), (3, 20)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_uploaded_is_numpys_top_eigenvector_on_the_side_of_the_start(kind, shape):
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = nn.Parameter(start.clone())
    optimizer = kind([x], lr=0.5)
    assert torch.equal(optimizer.upload(x), start)
    iterates = drive(optimizer, x, torch.randn(9, *shape, generator=generator, dtype=torch.float64))
    wanted = []
    for row, theta in zip(start.view(-1, 20).numpy(), iterates.view(9, -1, 20).transpose(0, 1).numpy(), strict=True):
        v = np.linalg.eigh(theta.T @ theta / 9)[1][:, -1]
        wanted.append(v * np.sign(v @ row))
    found = optimizer.upload(x)
    torch.testing.assert_close(found, torch.tensor(np.array(wanted)).view(shape))
    with optimizer.averaged():
        torch.testing.assert_close(x.detach(), found)
    assert torch.equal(x.detach(), iterates[-1])


def test_the_optimizers_walk_as_the_trajectories_do():
    generator = torch.Generator().manual_seed(2)
    target, start = unit_vectors(2, 30, generator, torch.float64)
    streams = [torch.Generator().manual_seed(4) for _ in range(2)]

    def ascent(theta):
        return 2 * (theta @ target) * target

    x, y = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    hot, plain = EvenSphericalLangevin([x], lr=0.01, inverse_temperature=8.0), EvenSGD([y], lr=0.1)
    hot.use_streams(streams[:1])
    for _ in range(40):
        for parameter, optimizer in ((x, hot), (y, plain)):
            parameter.grad = -ascent(parameter.detach())
            optimizer.step()
    options = {"inverse_temperature": 8.0, "h": 0.01, "generator": streams[1]}
    walks = [spherical_langevin(ascent, start, steps=40, exponent=2, **options)]
    walks += [normalized_sgd(lambda theta, _: ascent(theta), start, lr=0.1, steps=40, exponent=2)]
    for parameter, optimizer, wanted in ((x, hot, walks[0]), (y, plain, walks[1])):
        torch.testing.assert_close(parameter.detach(), wanted.last)
        torch.testing.assert_close(
            overlap(optimizer.upload(parameter), wanted.direction).abs(), torch.ones(()).double()
        )


def test_in_a_plain_loop_it_finds_the_direction_that_the_mean_does_not():
    """k = 2, one example a step; an iterate turned over to -θ changes nothing but the side of the next ones."""
    generator = torch.Generator().manual_seed(0)
    data = single_index(2000, 10, 2, generator, dtype=torch.float64)
    x = nn.Parameter(unit_vectors(1, 10, generator, torch.float64)[0])
    optimizer, seen = EvenSGD([x], lr=0.15), []
    for t in range(2000):
        x.grad = -single_index_ascent(x.detach(), data.inputs[t : t + 1], data.targets[t : t + 1], 2)
        optimizer.step()
        if t % 2:
            x.data.neg_()
        seen.append(x.detach().clone())
    mean = torch.stack(seen).mean(0)
    assert overlap(optimizer.upload(x), data.direction).abs() > 0.95
    assert mean.norm() < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_reloaded_before_every_step_the_second_moment_keeps_its_float64(kind, dtype):
    x, optimizer, gradients = walk(kind, dtype)
    y = nn.Parameter(x.detach().clone())
    other = optimizer
    kept = [stream.get_state() for stream in optimizer.streams]
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    for gradient in gradients:
        buffer.seek(0)
        other = kind([y], lr=9.0)
        other.load_state_dict(torch.load(buffer))
        assert other.state[y]["second"].dtype == torch.float64
        other.use_streams([torch.Generator()])
        other.streams[0].set_state(kept[0])
        drive(other, y, gradient[None])
        kept, buffer = [stream.get_state() for stream in other.streams], io.BytesIO()
        torch.save(other.state_dict(), buffer)
    drive(optimizer, x, gradients)
    assert torch.equal(x, y)
    assert torch.equal(optimizer.state[x]["second"], other.state[y]["second"])
    assert optimizer.upload(x).dtype == dtype
    assert torch.equal(optimizer.upload(x), other.upload(y))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_goes_on_as_the_optimizer_itself(kind, how):
    x, optimizer, gradients = walk(kind)
    y, copied = how((x, optimizer))
    drive(optimizer, x, gradients)
    drive(copied, y, gradients)
    assert torch.equal(x, y)
    assert copied.state[y]["second"].dtype == torch.float64
    assert torch.equal(optimizer.upload(x), copied.upload(y))


@pytest.mark.parametrize("name", ["even_sgd", "even_spherical_langevin"])
def test_clients_leave_a_stacked_chunk_one_after_another_with_what_they_would_send_alone(name):
    """The second moments (k, d, d) are narrowed with the rows."""
    part, generator = registry.make("optimizer", name), torch.Generator().manual_seed(7)
    start, gradients = torch.randn(3, 8, generator=generator), torch.randn(6, 3, 8, generator=generator)
    rows, gradient, counts = start.clone(), torch.zeros(3, 8), (6, 4, 3)

    def streams():
        return [torch.Generator().manual_seed(client) for client in range(3)]

    stepper = Stepper(part, rows, gradient, 1.0, streams)
    for t in range(6):
        active = sum(count > t for count in counts)
        gradient[:active] = gradients[t, :active]
        stepper.step(active)
        assert stepper.optimizer.state[stepper.parameter]["second"].shape == (active, 8, 8)
    stepper.leave()
    for client, count in enumerate(counts):
        x = nn.Parameter(start[client].clone())
        alone = part.build([x])
        alone.use_streams([streams()[client]])
        drive(alone, x, gradients[:count, client])
        assert torch.equal(rows[client], alone.upload(x))


def test_a_walk_that_is_not_finite_uploads_nan_and_leaves_the_other_rows():
    x, optimizer, gradients = walk(EvenSGD)
    gradients[0, 1] = torch.nan
    drive(optimizer, x, gradients)
    assert [bool(row.isfinite().all()) for row in optimizer.upload(x)] == [True, False, True]
    assert bool(optimizer.upload(x)[1].isnan().all())


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_cannot_hold_is_refused(kind):
    for shape in ((LARGEST + 1,), (2, LARGEST + 1), ()):
        with pytest.raises(FedsimError, match=f"{kind.__name__}: params: given .*accepted: .*{LARGEST}"):
            kind([nn.Parameter(torch.zeros(shape))])
    with pytest.raises(FedsimError, match="lr"):
        kind([nn.Parameter(torch.zeros(2))], lr=-0.1)
    assert getattr(optim, kind.__name__) is kind


@pytest.mark.parametrize(
    ("even", "walk"), [("even_sgd", "normalized_sgd"), ("even_spherical_langevin", "spherical_langevin")]
)
def test_options_are_those_of_the_walk(even, walk):
    part, of_walk = registry.get("optimizer", even), registry.get("optimizer", walk)
    assert issubclass(part, of_walk)
    assert registry.options(part) == registry.options(of_walk)
