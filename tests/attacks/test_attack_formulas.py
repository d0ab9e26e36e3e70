"""Each crafting attack against its formula, computed by hand, by NumPy or by SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from attacks.adversary import Adversary
from attacks.attack import Compromised, LocalStep
from attacks.pgd import PGD
from fedsim import registry
from fedsim.rng import Streams
from fedsim.testing.attacks import federation
from fedsim.updates import Updates


def crafted(
    name,
    rows,
    honest,
    *,
    knowledge="omniscient",
    state=None,
    round=1,
    num_clients=None,
    server_lr=1.0,
    previous=None,
    claim=None,
    **options,
):
    adversary = Adversary(
        [registry.make("attack", name, **options)], 20, count=3, knowledge=knowledge, claim=claim, rounds=9
    )
    sent, _ = adversary.craft(
        rows,
        honest,
        round=round,
        num_clients=num_clients or len(rows) + (0 if honest is None else len(honest)),
        server_lr=server_lr,
        previous_reference=previous,
        state=state,
    )
    return sent.double().numpy()


@pytest.fixture
def rows():
    return federation(dtype=torch.float64)[0]


@pytest.fixture
def honest():
    return federation(dtype=torch.float64)[1]


def everyone(rows, honest):
    return np.concatenate([rows.values.numpy(), honest.values.numpy()])


def test_sign_flip(rows, honest):
    np.testing.assert_allclose(crafted("sign_flip", rows, honest, scale=2.5), -2.5 * rows.values.numpy())
    mean = honest.values.numpy().mean(0)
    np.testing.assert_allclose(
        crafted("sign_flip", rows, honest, of="mean", scale=2.0), np.tile(-2 * mean, (3, 1)), atol=1e-12
    )


def test_gaussian_is_standard_normal_times_its_scale():
    rows = Updates(torch.zeros(2, 20000), torch.ones(2), [4, 9], torch.zeros(20000))
    sent = crafted("gaussian", rows, None, knowledge="own", scale=3.0)
    for row in sent:
        assert stats.kstest(row / 3, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(sent)[0, 1]) < 0.03
    assert not np.array_equal(sent, crafted("gaussian", rows, None, knowledge="own", scale=3.0, round=2))
    added = crafted("gaussian", rows.replace(values=torch.ones(2, 20000)), None, scale=3.0, mode="added")
    np.testing.assert_allclose(added, sent + 1, atol=1e-5)


@pytest.mark.parametrize("n", [5, 10, 50])
@pytest.mark.parametrize("f", [1, 2, 4])
def test_alie_z_is_the_papers(n, f):
    from attacks.alie import z_max

    supporters = max(1, n // 2 + 1 - f)
    expected = stats.norm.ppf((n - f - supporters) / (n - f))
    assert z_max(n, f) == pytest.approx(expected, rel=1e-9) or (math.isnan(z_max(n, f)) and n - f <= supporters)


def test_alie_of_the_paper_has_its_z():
    from attacks.alie import z_max

    # n = 50, m = 24: s = ⌊26⌋ − 24 = 2 and z = Φ⁻¹(24/26), the paper's example.
    assert z_max(50, 24) == pytest.approx(1.426, abs=1e-3)


def test_alie_uses_its_own_clients_or_all(rows, honest):
    z = stats.norm.ppf((11 - 3 - 3) / (11 - 3))
    own = rows.values.numpy()
    np.testing.assert_allclose(
        crafted("alie", rows, honest, knowledge="colluding")[1], own.mean(0) - z * own.std(0), atol=1e-12
    )
    known = everyone(rows, honest)
    np.testing.assert_allclose(crafted("alie", rows, honest)[2], known.mean(0) - z * known.std(0), atol=1e-12)
    np.testing.assert_allclose(crafted("alie", rows, honest, z=0.5)[0], known.mean(0) - 0.5 * known.std(0), atol=1e-12)


def test_ipm(rows, honest):
    sent = crafted("ipm", rows, honest, epsilon=0.7)
    np.testing.assert_allclose(sent, np.tile(-0.7 * honest.values.numpy().mean(0), (3, 1)), atol=1e-12)


def direction(known, kind):
    mean = known.mean(0)
    return {"unit": -mean / np.linalg.norm(mean), "std": -known.std(0, ddof=1), "sign": -np.sign(mean)}[kind]


@pytest.mark.parametrize("kind", ["unit", "std", "sign"])
@pytest.mark.parametrize("knowledge", ["colluding", "omniscient"])
def test_min_max_gamma_against_brentq(rows, honest, kind, knowledge):
    known = rows.values.numpy() if knowledge == "colluding" else everyone(rows, honest)
    mean, p = known.mean(0), direction(known, kind)
    bound = max(np.linalg.norm(a - b) for a in known for b in known)
    gamma = optimize.brentq(
        lambda g: max(np.linalg.norm(mean + g * p - row) for row in known) - bound, 0, 1e3, xtol=1e-13, rtol=1e-14
    )
    sent = crafted("min_max", rows, honest, knowledge=knowledge, direction=kind)
    np.testing.assert_allclose(sent, np.tile(mean + gamma * p, (3, 1)), rtol=1e-8, atol=1e-8)
    assert gamma > 0


@pytest.mark.parametrize("kind", ["unit", "std", "sign"])
@pytest.mark.parametrize("knowledge", ["colluding", "omniscient"])
def test_min_sum_gamma_against_brentq(rows, honest, kind, knowledge):
    known = rows.values.numpy() if knowledge == "colluding" else everyone(rows, honest)
    mean, p = known.mean(0), direction(known, kind)
    bound = max(sum(np.sum((a - b) ** 2) for b in known) for a in known)
    gamma = optimize.brentq(
        lambda g: sum(np.sum((mean + g * p - row) ** 2) for row in known) - bound, 0, 1e3, xtol=1e-13, rtol=1e-14
    )
    sent = crafted("min_sum", rows, honest, knowledge=knowledge, direction=kind)
    np.testing.assert_allclose(sent, np.tile(mean + gamma * p, (3, 1)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["min_max", "min_sum"])
def test_deviation_of_equal_rows_is_their_mean(name):
    rows = Updates(torch.full((3, 7), 2.0), torch.ones(3), [1, 2, 3], torch.zeros(7))
    assert np.array_equal(crafted(name, rows, None, knowledge="colluding"), np.full((3, 7), 2.0))


@pytest.mark.parametrize("name", ["alie", "min_max", "min_sum"])
def test_a_spread_of_one_row_is_skipped_and_said(name, rows, honest):
    state: dict = {}
    one = rows.rows([1])
    for round in (1, 2):
        sent = crafted(name, one, honest, knowledge="colluding", state=state, round=round)
        assert np.array_equal(sent, one.values.numpy())
    assert state[f"0.{name}"]["skipped"] == 2


@pytest.mark.parametrize(("server_lr", "f", "k"), [(1.0, 1, 10), (0.5, 2, 10), (0.1, 3, 25)])
def test_model_replacement_puts_its_model_in_the_global_ones_place(server_lr, f, k):
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(30, generator=generator, dtype=torch.float64)
    wanted = torch.randn(30, generator=generator, dtype=torch.float64)
    rows = Updates((wanted - reference).expand(f, 30).clone(), torch.full((f,), 7), list(range(f)), reference)
    sent = crafted("model_replacement", rows, None, knowledge="own", num_clients=k, server_lr=server_lr)
    np.testing.assert_allclose(sent, (k / (server_lr * f)) * rows.values.numpy())
    honest = np.zeros((k - f, 30))  # equal counts, honest updates that cancel
    after = reference.numpy() + server_lr * np.concatenate([sent, honest]).mean(0)
    np.testing.assert_allclose(after, wanted.numpy(), atol=1e-12)


def test_model_replacement_by_example_counts(rows, honest):
    total = float(rows.num_examples.sum() + honest.num_examples.sum())
    gamma = total / (0.5 * float(rows.num_examples.sum()))
    sent = crafted("model_replacement", rows, honest, participation="examples", server_lr=0.5)
    np.testing.assert_allclose(sent, gamma * rows.values.numpy(), rtol=1e-12)
    claimed = (float(honest.num_examples.sum()) + 3 * 500) / (0.5 * 3 * 500)
    sent = crafted("model_replacement", rows, honest, participation="examples", server_lr=0.5, claim=500)
    np.testing.assert_allclose(sent, claimed * rows.values.numpy(), rtol=1e-12)


def test_model_replacement_takes_a_given_scale(rows, honest):
    np.testing.assert_allclose(crafted("model_replacement", rows, honest, scale=4.0), 4 * rows.values.numpy())


def test_broken_clients(rows, honest):
    assert np.isnan(crafted("non_finite", rows, honest)).all()
    assert np.isposinf(crafted("non_finite", rows, honest, value="inf")).all()
    assert (crafted("oversized", rows, honest) == 1e30).all()


def test_free_rider(rows, honest):
    assert not crafted("free_rider", rows, honest).any()
    assert not crafted("free_rider", rows, honest, mode="previous").any()
    previous = rows.reference - 0.25
    sent = crafted("free_rider", rows, honest, mode="previous", previous=previous)
    np.testing.assert_allclose(sent, 0.25, atol=1e-12)
    noisy = crafted("free_rider", rows, honest, noise=0.1)
    assert noisy.std() == pytest.approx(0.1, rel=0.2)
    assert len({row.tobytes() for row in noisy}) == 3


def test_free_riders_noise_lies_on_the_step_of_the_round_before(rows, honest):
    """θ_t − θ_{t−1} + s·N(0, 1), the numbers a stream of the client and the round, its own for each."""
    previous = rows.reference - torch.linspace(-1, 1, rows.d, dtype=torch.float64)
    sent = crafted("free_rider", rows, honest, mode="previous", noise=0.1, previous=previous, round=4)
    streams = Streams(0, "attack")
    for row, client in zip(sent, rows.client_ids, strict=True):
        generator = streams.torch_stream("attack.free_rider", round=4, client=client)
        drawn = torch.randn(rows.d, generator=generator, dtype=torch.float64)
        np.testing.assert_allclose(row, np.linspace(-1, 1, rows.d) + 0.1 * drawn.numpy(), atol=1e-12)


def test_mimic_copies_the_honest_row_farthest_along_the_principal_direction(rows, honest):
    values = honest.values.numpy()
    centred = values - values.mean(0)
    principal = np.linalg.svd(centred)[2][0]
    copied = values[np.abs(centred @ principal).argmax()]
    state: dict = {}
    sent = crafted("mimic", rows, honest, state=state, warmup=1)
    np.testing.assert_array_equal(sent, np.tile(copied, (3, 1)))
    direction = state["0.mimic"]["direction"].clone()
    crafted("mimic", rows, federation(seed=5, dtype=torch.float64)[1], state=state, warmup=1, round=2)
    assert torch.equal(direction, state["0.mimic"]["direction"])


def test_mimics_direction_turns_by_ojas_rule(rows):
    """Round t: (t − 1)·z and the unit vector of Σ ⟨z, Δ_i − μ⟩ (Δ_i − μ), added and brought to length 1."""
    state: dict = {}
    honest = [federation(seed=seed, dtype=torch.float64)[1] for seed in (1, 2, 3)]
    z = np.linalg.svd(honest[0].values.numpy() - honest[0].values.numpy().mean(0))[2][0]
    for t, seen in enumerate(honest, start=1):
        centred = seen.values.numpy() - seen.values.numpy().mean(0)
        if t > 1:
            g = centred.T @ (centred @ z)
            z = (t - 1) * z + g / np.linalg.norm(g)
            z /= np.linalg.norm(z)
        sent = crafted("mimic", rows, seen, state=state, warmup=5, round=t)
        found = state["0.mimic"]["direction"].numpy()
        np.testing.assert_allclose(found * np.sign(found @ z), z, atol=1e-9)
        np.testing.assert_array_equal(sent[0], seen.values[np.abs(centred @ z).argmax()])


def project(start, step, last, epsilon=2.0, every=10, reference=None):
    reference = torch.zeros(start.shape[1]) if reference is None else reference
    nodes = tuple(Compromised(i, i, len(start), 1, 0, 10) for i in range(len(start)))
    parameters = start.clone()
    PGD(epsilon=epsilon, every=every).after_step(parameters, LocalStep(reference, step, torch.tensor(last), nodes))
    return parameters


def test_pgd_projects_on_the_ball_around_the_received_model():
    reference = torch.tensor([10.0, -10.0])
    start = torch.tensor([[13.0, -6.0], [10.6, -9.2], [10.0, -15.0]])
    after = project(start, 10, [False] * 3, reference=reference)
    # ‖(3, 4)‖ = 5 → 2/5 of it; ‖(.6, .8)‖ = 1 stays; ‖(0, −5)‖ = 5 → 2/5 of it.
    torch.testing.assert_close(after, torch.tensor([[11.2, -8.4], [10.6, -9.2], [10.0, -12.0]]))
    assert torch.equal(after[1], start[1])


def test_pgd_projects_every_so_many_steps_and_those_who_are_done():
    start = torch.full((2, 4), 3.0)
    assert torch.equal(project(start, 7, [False, False]), start)
    after = project(start, 7, [True, False])
    assert float(after[0].norm()) == pytest.approx(2.0)
    assert torch.equal(after[1], start[1])
    assert float(project(start, 20, [False, False]).norm(dim=1).max()) == pytest.approx(2.0)


def test_pgd_norm_is_taken_in_float64():
    # The square of 1e-25 is below float32's smallest number.
    start = torch.full((1, 1000), 1e-25)
    after = project(start, 1, [True], epsilon=1e-26)
    assert float(after.double().norm()) == pytest.approx(1e-26, rel=1e-5)
