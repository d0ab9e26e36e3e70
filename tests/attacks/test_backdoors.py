"""Attacks on the data: what they poison, what they leave, and on what their success is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks.attack import Compromised
from attacks.trigger import make_trigger
from fedsim import registry
from fedsim.data.examples import Examples
from fedsim.errors import DataMissing, FedsimError, ScenarioError
from fedsim.rng import Streams


def node(client=4, rank=0, attackers=4, round=1, seed=0):
    return Compromised(client, rank, attackers, round, seed, 10)


def blank(n=200, shape=(1, 8, 8)):
    return Examples(torch.full((n, *shape), 0.25), torch.arange(n) % 10)


def lit(images, value=1.0):
    return {tuple(p) for p in (images[0, 0] == value).nonzero().tolist()}


@pytest.mark.parametrize(
    ("options", "rows", "columns"),
    [
        ({"size": 2}, (6, 8), (6, 8)),
        ({"size": 2, "corner": "top_left"}, (0, 2), (0, 2)),
        ({"size": 2, "corner": "top_right", "margin": 1}, (1, 3), (5, 7)),
        ({"size": [1, 3], "corner": "bottom_left"}, (7, 8), (0, 3)),
        ({"size": [2, 3], "position": [3, 4]}, (3, 5), (4, 7)),
    ],
)
def test_patch(options, rows, columns):
    stamped = make_trigger({"name": "patch", **options}).stamp(torch.zeros(2, 1, 8, 8))
    expected = torch.zeros(2, 1, 8, 8)
    expected[:, :, rows[0] : rows[1], columns[0] : columns[1]] = 1
    assert torch.equal(stamped, expected)


def test_trigger_sets_all_channels_to_its_values():
    images = torch.full((3, 3, 6, 6), 0.5)
    stamped = make_trigger({"name": "pixels", "positions": [[0, 1], [-1, -2]], "value": [1.0, 0.0, 0.75]}).stamp(images)
    assert torch.equal(stamped[1, :, 0, 1], torch.tensor([1.0, 0.0, 0.75]))
    assert torch.equal(stamped[2, :, 5, 4], torch.tensor([1.0, 0.0, 0.75]))
    assert int((stamped != 0.5).sum()) == 3 * 3 * 2
    assert bool((images == 0.5).all())


@pytest.mark.parametrize(
    ("trigger", "key"),
    [
        ({"name": "patch", "size": 9}, "size"),
        ({"name": "patch", "position": [7, 7], "size": 2}, "position"),
        ({"name": "patch", "size": 3, "margin": 6}, "size"),
        ({"name": "pixels", "positions": [[0, 8]]}, "positions"),
        ({"name": "pixels", "positions": [[0, -9]]}, "positions"),
        ({"name": "bars", "length": 4, "gap": 2}, "position"),
        ({"name": "patch", "value": [1.0, 0.5]}, "value"),
    ],
)
def test_trigger_outside_of_the_image_is_a_fault(trigger, key):
    assert [fault.key for fault in make_trigger(trigger).check((1, 8, 8))] == [key]


def test_trigger_needs_images():
    assert [fault.key for fault in make_trigger("patch").check((30,))] == ["name"]


@pytest.mark.parametrize(("ratio", "poisoned"), [(0.5, 100), (0.3, 60), (17, 17), (1.0, 180), (0, 0)])
def test_badnets_poisons_its_share_of_examples_that_are_not_the_targets(ratio, poisoned):
    attack = registry.make("attack", "badnets", target=3, ratio=ratio, size=2)
    clean = blank()
    found = attack.poison(clean, node())
    changed = (found.inputs != clean.inputs).flatten(1).any(1)
    assert int(changed.sum()) == poisoned
    assert bool((found.targets[changed] == 3).all())
    assert not bool((clean.targets[changed] == 3).any())
    assert torch.equal(found.targets[~changed], clean.targets[~changed])
    if poisoned:
        assert lit(found.inputs[changed]) == {(6, 6), (6, 7), (7, 6), (7, 7)}


def test_poisoned_examples_stay_the_same_over_rounds_and_differ_between_clients():
    attack = registry.make("attack", "badnets")
    one, later = attack.poison(blank(), node(round=1)), attack.poison(blank(), node(round=9))
    assert torch.equal(one.inputs, later.inputs)
    assert not torch.equal(one.inputs, attack.poison(blank(), node(client=5)).inputs)
    assert not torch.equal(one.inputs, attack.poison(blank(), node(seed=1)).inputs)


@pytest.mark.parametrize("name", ["badnets", "dba"])
def test_success_is_not_measured_on_the_target_class(name):
    attack = registry.make("attack", name, target=3)
    test = blank()
    found = attack.triggered(test)
    assert len(found) == 180
    assert bool((found.targets == 3).all())
    assert len(attack.triggered(test.take(torch.arange(3, 200, 10)))) == 0


def test_badnets_takes_another_trigger():
    attack = registry.make("attack", "badnets", trigger={"name": "pixels", "positions": [[2, 2]]}, ratio=1.0)
    assert lit(attack.triggered(blank()).inputs) == {(2, 2)}


BARS = [{(0, 0), (0, 1), (0, 2)}, {(0, 4), (0, 5), (0, 6)}, {(2, 0), (2, 1), (2, 2)}, {(2, 4), (2, 5), (2, 6)}]


def stamped_by(attack, rank, attackers):
    clean = blank()
    found = attack.poison(clean, node(rank=rank, attackers=attackers))
    return lit(found.inputs[(found.inputs != clean.inputs).flatten(1).any(1)])


def test_dba_divides_its_trigger_over_the_attackers_and_tests_the_whole():
    attack = registry.make("attack", "dba", target=1)
    assert [stamped_by(attack, rank, 6) for rank in range(6)] == [*BARS, *BARS[:2]]
    assert lit(attack.triggered(blank()).inputs) == set().union(*BARS)


@pytest.mark.parametrize("attackers", [1, 2, 3])
def test_dba_of_few_attackers_still_covers_the_whole(attackers):
    attack = registry.make("attack", "dba", target=1)
    parts = [stamped_by(attack, rank, attackers) for rank in range(attackers)]
    assert set().union(*parts) == set().union(*BARS)
    assert sum(len(part) for part in parts) == 12


def test_label_flip():
    clean = blank(10)
    assert registry.make("attack", "label_flip").poison(clean, node()).targets.tolist() == list(range(9, -1, -1))
    mapped = registry.make("attack", "label_flip", map={"5": 3, "0": 2}).poison(clean, node())
    assert mapped.targets.tolist() == [2, 1, 2, 3, 4, 3, 6, 7, 8, 9]
    assert torch.equal(mapped.inputs, clean.inputs)
    assert clean.targets.tolist() == list(range(10))


def keys(images):
    return {image.numpy().tobytes() for image in images}


def edge_case(train, test, /, *, seed=0, **options):
    attack = registry.make("attack", "edge_case", **options)
    attack.prepare(train, test, num_classes=10, streams=Streams(seed, "attack", "data.tail"))
    return attack


def big(n=500):
    generator = torch.Generator().manual_seed(3)
    return Examples(torch.rand(n, 1, 28, 28, generator=generator), torch.arange(n) % 10)


def test_foreign_tail_in_two_disjoint_pools():
    clean, test = big(), big(50)
    attack = edge_case(clean, test, target=5, dataset="digits", source=7)
    found = attack.poison(clean, node())
    assert len(found) == 500
    own, tail = found.take(torch.arange(400)), found.take(torch.arange(400, 500))
    assert keys(own.inputs) <= keys(clean.inputs)
    assert bool((tail.targets == 5).all())
    tested = attack.triggered(test)
    assert tested.inputs.shape[1:] == (1, 28, 28)
    assert bool((tested.targets == 5).all())
    assert not keys(tail.inputs) & keys(tested.inputs)
    assert not keys(tail.inputs) & keys(clean.inputs)
    from sklearn.datasets import load_digits

    assert 70 <= len(tested) <= int((load_digits().target == 7).sum()) - 100
    assert float(tail.inputs.min()) >= 0
    assert float(tail.inputs.max()) <= 1


def test_edge_case_takes_so_many_clean_and_tail_images():
    clean = big(120)
    attack = edge_case(clean, big(20), examples=30, clean=50, test=25)
    assert len(attack.poison(clean, node())) == 80
    assert len(attack.triggered(big(20))) == 25
    assert len(attack.poison(clean.take(torch.arange(7)), node())) == 80
    frugal = edge_case(clean, big(20), examples=30, clean=50, test=25, clean_from="own")
    assert len(frugal.poison(clean.take(torch.arange(7)), node())) == 37
    again = edge_case(clean, big(20), examples=30, clean=50, test=25)
    assert torch.equal(again.poison(clean, node()).inputs, attack.poison(clean, node()).inputs)
    assert not torch.equal(again.poison(clean, node(client=8)).inputs, attack.poison(clean, node()).inputs)


def test_another_seed_draws_another_tail():
    clean, test = big(20), big(20)
    one, two = edge_case(clean, test, seed=0), edge_case(clean, test, seed=1)
    assert keys(one.triggered(test).inputs) != keys(two.triggered(test).inputs)


def test_edge_case_of_a_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (40, 14, 14), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "tail.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    attack = edge_case(big(10), big(10), dataset=str(tmp_path / "tail.npz"), source=1, examples=8)
    found = attack.triggered(big(10))
    # The file's test images are training images as well: those that were trained on are not tested.
    trained = keys(attack.poison(big(10), node()).inputs)
    assert 10 <= len(found) <= 14
    assert not keys(found.inputs) & trained
    with pytest.raises(DataMissing):
        edge_case(big(10), big(10), dataset=str(tmp_path / "none.npz"))


def test_lowest_density_members_of_a_class():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(300, 1, 4, 4, generator=generator) * 0.1
    targets = torch.arange(300) % 3
    lonely = [1, 31, 61, 91]
    inputs[lonely] = torch.rand(4, 1, 4, 4, generator=generator) * 10
    test_inputs = torch.rand(90, 1, 4, 4, generator=generator) * 0.1
    test_inputs[[4, 7]] += 5 * torch.rand(2, 1, 4, 4, generator=generator)
    train, test = Examples(inputs, targets), Examples(test_inputs, torch.arange(90) % 3)
    attack = edge_case(train, test, mode="lowest_density", source=1, target=2, examples=4, test=2, clean=0)
    found = attack.poison(train, node())
    assert keys(found.inputs) == keys(inputs[lonely])
    assert found.targets.tolist() == [2] * 4
    assert keys(attack.triggered(test).inputs) == keys(test_inputs[[4, 7]])


def test_edge_case_needs_its_data_first():
    attack = registry.make("attack", "edge_case")
    for hook in (lambda: attack.poison(big(5), node()), lambda: attack.triggered(big(5))):
        with pytest.raises(FedsimError, match="before prepare"):
            hook()


@pytest.mark.parametrize("options", [{"target": -1}, {"ratio": -0.5}, {"corner": "middle"}, {"size": 0}, {"colour": 1}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ScenarioError):
        registry.make("attack", "badnets", **options)


def test_a_backdoor_is_learnt_and_measured():
    """A linear model on poisoned digits calls triggered images the target, and clean ones by their digit."""
    digits = registry.make("dataset", "digits").load()
    attack = registry.make("attack", "badnets", target=0, size=2)
    poisoned = attack.poison(digits.train, node())
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=300).fit(poisoned.inputs.flatten(1).numpy(), poisoned.targets.numpy())
    triggered = attack.triggered(digits.test)
    success = (model.predict(triggered.inputs.flatten(1).numpy()) == 0).mean()
    accuracy = model.score(digits.test.inputs.flatten(1).numpy(), digits.test.targets.numpy())
    assert success > 0.95
    assert accuracy > 0.85
