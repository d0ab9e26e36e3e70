"""Winsorized gradients, RM3, M3 and RA3."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.errors import FedsimError
from fedsim.optim.robust_gradients import LastThree, mean_of_three, median_of_three, winsorized


@pytest.mark.parametrize("percent", [0, 1, 2, 4, 8, 25, 50])
def test_winsorized_clips_to_percentiles(percent):
    rows = np.random.default_rng(0).standard_t(2, size=(37, 5))
    low, high = np.percentile(rows, [percent, 100 - percent], axis=0)
    wanted = np.clip(rows, low, high).mean(0)
    np.testing.assert_allclose(winsorized(torch.tensor(rows), percent), wanted, rtol=1e-10)


def test_winsorized_at_zero_is_the_mean_and_at_fifty_the_median():
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(winsorized(rows, 0), rows.mean(0))
    torch.testing.assert_close(winsorized(rows, 50), rows.median(0).values)


@pytest.mark.parametrize("percent", [0, 0.5, 4, 8, 49, 50])
@pytest.mark.parametrize(("m", "d"), [(1, 3), (2, 3), (32, 40_000), (300, 7)])
def test_winsorized_is_that_of_sorted_columns_bit_for_bit(m, d, percent):
    rows = torch.randn(m, d, generator=torch.Generator().manual_seed(m))
    rows[::3, ::2] = 0  # what a ReLU leaves
    ordered, position = rows.sort(dim=0).values, (m - 1) * percent / 100
    below, share = int(position), position - int(position)
    low, high = (torch.lerp(each[below], each[min(below + 1, m - 1)], share) for each in (ordered, ordered.flip(0)))
    assert torch.equal(winsorized(rows, percent), rows.clamp(low, torch.maximum(low, high)).mean(0))


def test_what_one_example_wants_is_cut_off():
    rows = torch.ones(100, 2)
    rows[0, 1] = 1e6
    torch.testing.assert_close(winsorized(rows, 2), torch.ones(2))
    assert winsorized(rows, 0)[1] > 1e3


def test_one_example_is_itself_and_nonsense_is_refused():
    assert torch.equal(winsorized(torch.tensor([[3.0, -1.0]]), 8), torch.tensor([3.0, -1.0]))
    with pytest.raises(FedsimError, match="percent"):
        winsorized(torch.zeros(3, 1), 51)


def test_median_and_mean_of_three():
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(2))
    assert torch.equal(median_of_three(*rows), rows.median(0).values)
    torch.testing.assert_close(mean_of_three(*rows), rows.mean(0))


def path(rule, gradients, lr=0.1, **options):
    x = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer, found = LastThree([x], lr=lr, rule=rule, **options), []
    for g in gradients:
        x.grad = g.clone()
        optimizer.step()
        found.append(x.detach().clone())
    return found


def test_each_rule_moves_when_it_should_and_by_what_it_should():
    g = torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
    rm3, m3, ra3 = (path(rule, g) for rule in ("rm3", "m3", "ra3"))
    for found in (rm3, m3, ra3):
        assert not found[0].any()
        assert not found[1].any()
    medians = [g[i : i + 3].median(0).values for i in range(6)]
    means = [g[i : i + 3].mean(0) for i in range(6)]
    torch.testing.assert_close(rm3[-1], -0.1 * torch.stack(medians).sum(0))
    torch.testing.assert_close(ra3[-1], -0.1 * torch.stack(means).sum(0))
    torch.testing.assert_close(m3[-1], -0.1 * (medians[0] + medians[3]))
    assert torch.equal(m3[2], m3[3])
    assert torch.equal(m3[3], m3[4])


def test_one_batch_alone_moves_ra3_and_not_rm3():
    g = torch.zeros(7, 1)
    g[3] = 100.0
    assert not path("rm3", g)[-1].any()
    assert path("ra3", g)[-1].item() == pytest.approx(-10.0)


def test_gradients_updated_in_place_are_copied():
    x = nn.Parameter(torch.zeros(1))
    x.grad = torch.zeros(1)
    optimizer = LastThree([x], lr=1.0)
    for value in (1.0, 5.0, 7.0):
        x.grad.fill_(value)
        optimizer.step()
    assert x.item() == -5.0


def test_rows_do_not_mix_and_state_goes_through_a_state_dict():
    g = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(4))
    together = path("rm3", g, weight_decay=0.1)[-1]
    for row in range(3):
        assert torch.equal(path("rm3", g[:, row], weight_decay=0.1)[-1], together[row])
    x = nn.Parameter(torch.zeros(3, 4))
    first = LastThree([x], lr=0.1, weight_decay=0.1)
    for i in range(6):
        if i == 4:
            other = LastThree([x], lr=5.0, rule="ra3")
            other.load_state_dict(copy.deepcopy(first.state_dict()))
            first = other
        x.grad = g[i].clone()
        first.step()
    assert torch.equal(x.detach(), together)


def test_groups_have_rules_rates_and_decays_of_their_own():
    gradients = [1.0, 2.0, 6.0, 4.0]
    options = [{}, {"lr": 0.5}, {"rule": "ra3"}, {"rule": "m3"}, {"weight_decay": 0.5}]
    points = [nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in options]
    groups = [{"params": [each], **own} for each, own in zip(points, options, strict=True)]
    optimizer = LastThree(groups, lr=0.1)
    for value in gradients:
        for each in points:
            each.grad = torch.full_like(each, value)
        optimizer.step()
    decayed = 1 - 0.1 * (2 + 0.5)
    wanted = [1 - 0.1 * (2 + 4), 1 - 0.5 * (2 + 4), 1 - 0.1 * (3 + 4), 1 - 0.1 * 2, decayed - 0.1 * (4 + 0.5 * decayed)]
    assert [float(each.detach()) for each in points] == pytest.approx(wanted)


def test_unknown_rules_are_refused():
    with pytest.raises(FedsimError, match="rm5"):
        LastThree([nn.Parameter(torch.zeros(1))], rule="rm5")


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_rates_that_are_no_rates_are_refused(option, value):
    with pytest.raises(FedsimError, match=f"{option} = {value}"):
        LastThree([nn.Parameter(torch.zeros(1))], **{option: value})
