"""The catalogue's further attacks against their formulas; the adaptive ones really adapt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fedsim
from attacks.attack import Attack, Compromised, Craft, LocalStep, Received
from attacks.chameleon import contrastive
from attacks.fang_krum import krum_picks_first
from attacks.neurotoxin import benign_top
from attacks.trigger import make_trigger
from fedsim import registry
from fedsim.data.examples import Examples
from fedsim.errors import KnowledgeError, UpdatesError
from fedsim.rng import Streams
from fedsim.testing import attacks as toy
from fedsim.updates import Updates
from strategies.defense import Round


def node(model=None, examples=None, learned=None, round=1):
    return Compromised(4, 0, 4, round, 0, 10, model, examples, learned or {})


def linear_model(shape=(1, 6, 6), classes=3, seed=0):
    """A linear classifier of small images, its (d,) parameters, and images that it tells apart."""
    generator = torch.Generator().manual_seed(seed)
    width = math.prod(shape)
    prototypes = torch.rand((classes, *shape), generator=generator)
    targets = torch.arange(60) % classes
    inputs = (prototypes[targets] + 0.1 * torch.randn((60, *shape), generator=generator)).clamp(0, 1)

    def predict(vector, given):
        return torch.nn.functional.linear(given.flatten(1).to(vector.dtype), vector.view(classes, width + 1)[:, :width],
                                          vector.view(classes, width + 1)[:, width])  # fmt: skip

    def features(vector, given):
        return given.flatten(1).to(vector.dtype) * vector[:width]

    parameters = torch.zeros(classes * (width + 1))
    examples = Examples(inputs, targets)
    for _ in range(200):
        point = parameters.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(predict(point, inputs), targets)
        parameters = (point - 0.1 * torch.autograd.grad(loss, point)[0]).detach()
    return Received(parameters, None, predict, features), examples


def test_neurotoxin_leaves_the_benign_top_k_alone():
    reference, previous = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([1.5, 2, 0, 4.1, 3])
    assert benign_top(reference, previous, 0.4).tolist() == [2, 4]
    model = Received(reference, previous, lambda p, x: x, lambda p, x: x)
    parameters = torch.arange(10.0).reshape(2, 5) + 20
    step = LocalStep(reference, 1, torch.tensor([False, False]), (node(model), node(model)))
    registry.make("attack", "neurotoxin", top=0.4).after_step(parameters, step)
    assert parameters.tolist() == [[20, 21, 3, 23, 5], [25, 26, 3, 28, 5]]


class Witness(Attack):
    """Writes what the malicious clients of a round trained, the global step before it, and their models to a folder."""

    folder: str = ""

    def craft(self, rows, ctx):
        moved = torch.zeros(0) if ctx.previous_reference is None else ctx.reference - ctx.previous_reference
        torch.save((rows, moved, ctx.reference + rows), f"{self.folder}/{ctx.round}.pt")
        return rows


def scenario(*attacks, rounds=3, seed=0, server=None, client=None, **adversary):
    return fedsim.Scenario(
        rounds=rounds,
        seed=seed,
        data={"dataset": "digits", "clients": 12},
        model={"name": "mlp", "hidden": [16]},
        client={"per_round": 6, "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9}, **(client or {})},
        adversary={"attacks": list(attacks), "count": 4, **adversary},
        server=server or {},
        engine={"name": "local", "workers": 1},
    )


@pytest.mark.parametrize("path", ["stacked", "reference"])
def test_neurotoxin_in_a_federation(tmp_path, path):
    attacks = [{"name": "badnets"}, {"name": "neurotoxin", "top": 0.1}, {"name": f"{__file__}:Witness"}]
    attacks[2]["folder"] = str(tmp_path)
    given = scenario(*attacks)
    fedsim.run(given.model_copy(update={"engine": given.engine.model_copy(update={"path": path})}))
    checked = 0
    for file in sorted(tmp_path.glob("*.pt")):
        rows, moved, _ = torch.load(file)
        if len(moved) == 0:
            continue
        top = moved.abs().sort(descending=True, stable=True).indices[: int(0.1 * len(moved))]
        assert bool((rows[:, top] == 0).all())
        assert float((rows != 0).double().mean()) > 0.5
        checked += len(rows)
    assert checked


def backdoor_loss(model, shown):
    outputs = model.predict(model.parameters, shown.inputs)
    return float(torch.nn.functional.cross_entropy(outputs, shown.targets))


@pytest.mark.parametrize("name", ["a3fl", "iba"])
def test_an_optimised_trigger_lowers_its_loss_on_images_that_it_never_saw(name):
    model, examples = linear_model()
    train, test = examples.take(torch.arange(30)), examples.take(torch.arange(30, 60))
    attack = registry.make("attack", name, target=1)
    before = backdoor_loss(model, attack.triggered(test))
    learned = attack.learn(train, node(model))
    after = backdoor_loss(model, attack.shown(test, learned))
    assert after < 0.7 * before
    further = backdoor_loss(model, attack.shown(test, attack.learn(train, node(model, learned=learned, round=2))))
    assert further < 0.7 * before


def test_a3fls_pattern_stays_an_image_and_ibas_change_within_epsilon():
    model, examples = linear_model()
    pattern = registry.make("attack", "a3fl", lr=0.3).learn(examples, node(model))["a3fl.pattern"]
    assert 0 <= float(pattern.min()) <= float(pattern.max()) <= 1
    attack = registry.make("attack", "iba", epsilon=0.1, target=0)
    clean = examples.take((examples.targets != 0).nonzero().flatten())
    shown = attack.shown(examples, attack.learn(examples, node(model)))
    assert 0 < float((shown.inputs - clean.inputs).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(shown.inputs.min()) <= float(shown.inputs.max()) <= 1


def test_a3fl_looks_at_the_model_that_unlearnt_the_trigger():
    model, examples = linear_model()
    plain = registry.make("attack", "a3fl", adversarial=0.0).learn(examples, node(model))
    wary = registry.make("attack", "a3fl", adversarial=5.0, unlearning=20, unlearning_lr=0.5)
    assert not torch.equal(plain["a3fl.pattern"], wary.learn(examples, node(model))["a3fl.pattern"])


@pytest.mark.parametrize("name", ["a3fl", "iba"])
def test_what_is_learnt_reaches_the_evaluation_and_a_resumed_run(name, tmp_path):
    given = scenario({"name": name, "target": 1, "steps": 10}, rounds=4)
    whole = fedsim.run(given, out=tmp_path / "whole")
    fedsim.run(fedsim.Scenario(**{**given.table(), "rounds": 2}), out=tmp_path / "half")
    frozen = registry.make("attack", name, target=1)
    test = registry.make("dataset", "digits").load().test
    from safetensors.torch import load_file

    files = list((tmp_path / "whole").glob("checkpoint-*.safetensors"))
    names = [key for file in files for key in load_file(file) if name in key]
    assert names
    assert whole.rounds["asr"].iloc[-1] > whole.rounds["asr"].iloc[0] + 0.2
    resumed = fedsim.run(given, out=tmp_path / "half", resume=True)
    assert resumed.digest == whole.digest
    assert len(frozen.triggered(test)) == whole.rounds["asr_eligible"].iloc[-1]


def test_anticipate_is_the_loss_behind_simulated_steps():
    model, examples = linear_model()
    attack = registry.make("attack", "anticipate", target=1, ahead=2, lr=0.3, batch_size=60, share=0.5, weight=2.0)
    received = model.parameters.double()
    point = (received + 0.1 * torch.randn(len(received), generator=torch.Generator().manual_seed(1))).double()
    shown = attack.triggered(examples)
    weights, total = received + 0.5 * (point - received), 0.0
    for _ in range(2):
        here = weights.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model.predict(here, examples.inputs), examples.targets)
        weights = (here - 0.3 * torch.autograd.grad(loss, here)[0]).detach()
        total += float(torch.nn.functional.cross_entropy(model.predict(weights, shown.inputs), shown.targets))
    step = LocalStep(received, 1, torch.tensor([False]), (node(model, examples),))
    row = point[None].clone().requires_grad_()
    found = attack.objective(torch.tensor([0.25]).double(), row, step)
    assert float(found.detach()) == pytest.approx(0.25 + 2 * total / 2, rel=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), row)
    nudge = torch.zeros_like(point)
    nudge[7] = 1e-5
    sides = [float(attack.objective(torch.zeros(1).double(), (point + s * nudge)[None].requires_grad_(), step).detach())
             for s in (1, -1)]  # fmt: skip
    assert float(gradient[0, 7]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-3)


def test_contrastive_loss_by_loops():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(7, 4, generator=generator).double(), torch.tensor([0, 0, 1, 1, 1, 2, 0])
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    total = 0.0
    for i in range(7):
        others = [j for j in range(7) if j != i]
        below = sum(math.exp(unit[i] @ unit[a] / 0.5) for a in others)
        same = [p for p in others if labels[p] == labels[i]]
        if same:
            total -= sum(math.log(math.exp(unit[i] @ unit[p] / 0.5) / below) for p in same) / len(same)
    assert float(contrastive(features, labels, 0.5)) == pytest.approx(total / 7, rel=1e-9)


def test_chameleons_objective_is_the_loss_and_weight_times_the_contrastive_one():
    model, examples = linear_model()
    attack = registry.make("attack", "chameleon", target=1, weight=2.0, temperature=0.5, batch_size=60)
    given = node(model, examples)
    step = LocalStep(model.parameters, 1, torch.tensor([False]), (given,))
    shown = attack.poison(examples, given)
    assert not torch.equal(shown.targets, examples.targets)

    def by_formula(row):
        return 0.25 + 2.0 * contrastive(model.features(row, shown.inputs), shown.targets, 0.5)

    row = model.parameters.double()[None].requires_grad_()
    found = attack.objective(torch.tensor([0.25]).double(), row, step)
    assert float(found.detach()) == pytest.approx(float(by_formula(row[0].detach())), rel=1e-9)
    assert float(found.detach()) > 0.3
    (gradient,) = torch.autograd.grad(found.sum(), row)
    for place in range(4):
        nudge = torch.zeros(row.shape[1], dtype=torch.float64)
        nudge[place] = 1e-5
        sides = [float(by_formula(row[0].detach() + sign * nudge)) for sign in (1, -1)]
        assert float(gradient[0, place]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5)
    assert float(gradient[0, :4].abs().max()) > 1e-4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_chameleon_draws_triggered_features_to_the_targets(tmp_path, seed):
    """In the attackers' models: cosine to the target's own images, less that to the images of other classes."""
    test = registry.make("dataset", "digits").load().test
    own = test.targets == 1

    def nearer(weight):
        folder = tmp_path / f"{weight}"
        folder.mkdir()
        attack = {"name": "chameleon", "target": 1, "weight": weight}
        given = scenario(attack, {"name": f"{__file__}:Witness", "folder": str(folder)}, seed=seed)
        result = fedsim.run(given)
        assert bool(result.rounds["attack_acted"].iloc[-1])
        triggered = registry.make("attack", "chameleon", target=1).triggered(test).inputs
        found = []
        for vector in torch.load(folder / "3.pt")[2]:
            hidden, bias = vector[: 16 * 64].view(16, 64), vector[16 * 64 : 16 * 65]
            unit = [
                torch.nn.functional.normalize((images.flatten(1) @ hidden.T + bias).relu(), dim=1)
                for images in (triggered, test.inputs[own], test.inputs[~own])
            ]
            found.append(float((unit[0] @ unit[1].T).mean() - (unit[0] @ unit[2].T).mean()))
        return sum(found) / len(found)

    assert nearer(1.0) > max(0.1, 2 * nearer(0.0))


@pytest.mark.parametrize("anomaly", ["euclidean", "cosine"])
def test_constrain_and_scale_adds_the_distance_to_the_received_model(anomaly):
    generator = torch.Generator().manual_seed(0)
    reference, rows = torch.randn(9, generator=generator), torch.randn(2, 9, generator=generator)
    attack = registry.make("attack", "constrain_and_scale", alpha=0.6, anomaly=anomaly)
    found = attack.objective(torch.tensor([1.0, 2.0]), rows, LocalStep(reference, 1, torch.tensor([True, True]), ()))
    for i, row in enumerate(rows.numpy()):
        other = reference.numpy()
        far = ((row - other) ** 2).sum()
        if anomaly == "cosine":
            far = 1 - row @ other / np.linalg.norm(row) / np.linalg.norm(other)
        assert float(found[i]) == pytest.approx(0.6 * (i + 1) + 0.4 * far, rel=1e-5)


@pytest.mark.parametrize("name", ["fang_krum", "fang_trimmed_mean", "optimal"])
def test_who_knows_the_defense_needs_the_right_to(name):
    attack = registry.make("attack", name)
    assert attack.knows_defense
    rows, honest = toy.federation()
    with pytest.raises(KnowledgeError):
        attack.craft(rows.values, toy.context(rows, honest, knowledge="colluding", knows_defense=False))


def test_fang_trimmed_mean_lies_beyond_the_honest_models_against_their_direction():
    rows, honest = toy.federation(dtype=torch.float64)
    crafted = registry.make("attack", "fang_trimmed_mean").craft(rows.values, toy.context(rows, honest))
    models, reference = honest.values + honest.reference, honest.reference
    direction = torch.cat([rows.values, honest.values]).mean(0)
    for j in range(rows.d):
        high, low = float(models[:, j].max()), float(models[:, j].min())
        for value in (crafted + reference)[:, j].tolist():
            if direction[j] < 0:
                ends = (high, 2 * high) if high > 0 else (high, high / 2)
            else:
                ends = (low / 2, low) if low > 0 else (2 * low, low)
            assert ends[0] - 1e-9 <= value <= ends[1] + 1e-9
    assert not torch.equal(crafted[0], crafted[1])


def fang_round(f=3, n=13, d=40, pull=0.1):
    """Malicious and honest rows that share a small step, away from zero."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(d, generator=generator)
    values = (pull * common + torch.randn(n, d, generator=generator)).double()
    reference = torch.randn(d, generator=generator).double()
    rows = Updates(values[:f], torch.ones(f), list(range(f)), reference)
    return rows, Updates(values[f:], torch.ones(n - f), list(range(f, n)), reference)


@pytest.mark.parametrize("pull", [0.1, 1.0])
def test_krum_chooses_fangs_row_and_not_the_next_farther_one(pull):
    """λ is the paper's bound, computed here by loops over models, halved until Krum picks the row."""
    rows, honest = fang_round(pull=pull)
    f, n, d = len(rows), len(rows) + len(honest), rows.d
    crafted = registry.make("attack", "fang_krum").craft(rows.values, toy.context(rows, honest))
    direction = -torch.cat([rows.values, honest.values]).mean(0).sign()
    step = float((crafted[0] * direction).mean())
    torch.testing.assert_close(crafted, (step * direction).expand(f, -1))
    models = [(row + honest.reference).numpy() for row in honest.values]
    sums = [sum(sorted(np.linalg.norm(one - two) for two in models)[1 : n - f - 2 + 1]) for one in models]
    farthest = max(np.linalg.norm(one - honest.reference.numpy()) for one in models)
    bound = min(sums) / ((n - 2 * f - 1) * d**0.5) + farthest / d**0.5
    halvings = math.log2(bound / step)
    assert halvings == pytest.approx(round(halvings), abs=1e-9)
    assert round(halvings) > 0
    krum = registry.make("defense", "krum", malicious=f)
    for factor, chosen in ((1, True), (2, False)):
        together = torch.cat([factor * crafted, honest.values])
        everyone = Updates(together, torch.ones(n), list(range(n)), honest.reference)
        picked = krum.aggregate(everyone, Round()).update
        assert torch.allclose(picked, factor * crafted[0]) == chosen
        assert krum_picks_first(together, f) == chosen


@pytest.mark.parametrize("name", ["fang_krum", "fang_trimmed_mean"])
def test_fang_goes_against_what_the_servers_own_rule_would_do(name):
    """The paper's s is that of the model before the attack, Krum's pick where the server runs Krum; not the mean's."""
    rows, honest = fang_round()
    everyone = torch.cat([rows.values, honest.values])
    krum = registry.make("defense", "krum", malicious=3)
    pick = krum.aggregate(Updates(everyone, torch.ones(13), list(range(13)), honest.reference), Round()).update
    ctx = optimal_context(rows, honest, server_of("krum", honest, malicious=3))
    crafted = registry.make("attack", name).craft(rows.values, ctx)
    if name == "fang_krum":
        assert torch.equal(crafted[0].sign(), -pick.sign())
    else:
        fell = pick < 0
        assert bool((crafted[:, fell] >= honest.values.amax(0)[fell] - 1e-9).all())
        assert bool((crafted[:, ~fell] <= honest.values.amin(0)[~fell] + 1e-9).all())
    assert not torch.equal(pick.sign(), everyone.mean(0).sign())


def server_of(name, honest, **options):
    """A server with one defense, as preview runs it."""
    part = registry.make("defense", name, **options)

    def server(rows):
        values = torch.cat([rows, honest.values])
        clients = list(range(len(values)))
        given = Updates(values, torch.ones(len(values)), clients, honest.reference)
        return honest.reference + part.aggregate(given, Round()).update

    return server


def optimal_context(rows, honest, server):
    return Craft(
        rows=rows.values, reference=rows.reference, clients=rows.client_ids, num_clients=len(rows) + len(honest),
        num_malicious=len(rows), num_examples=rows.num_examples, knowledge="omniscient", server_lr=1.0, round=1, seed=0,
        honest_rows=honest.values, honest_examples=honest.num_examples, server=server,
    )  # fmt: skip


@pytest.mark.parametrize(("defense", "options"), [("fedavg", {}), ("trimmed_mean", {"trim": 3}), ("krum", {})])
@pytest.mark.parametrize("inner", ["ipm", "alie"])
def test_optimal_does_as_much_damage_as_any_value_of_a_fine_grid(defense, options, inner):
    rows, honest = toy.federation(dtype=torch.float64)
    server = server_of(defense, honest, **options)
    ctx = optimal_context(rows, honest, server)
    attack = registry.make("attack", "optimal", attack=inner, low=0.1, high=5.0, steps=50)
    crafted = attack.craft(rows.values, ctx)
    usual = server(rows.values)
    option = {"ipm": "epsilon", "alie": "z"}[inner]

    def damage(value):
        sent = registry.make("attack", inner, **{option: value}).craft(rows.values, ctx)
        return float((server(sent) - usual).norm())

    best = max(damage(value) for value in np.linspace(0.1, 5.0, 99))
    assert float((server(crafted) - usual).norm()) >= 0.97 * best
    assert ctx.state["gain"] == pytest.approx(float((server(crafted) - usual).norm()))


@pytest.mark.parametrize(("defense", "options"), [("fedavg", {}), ("norm_bound", {"radius": 20.0})])
def test_optimal_for_success_comes_closest_to_the_backdoored_model(defense, options):
    """A backdoor that the honest rows undo; behind a norm bound nothing is won beyond the bound."""
    rows, honest = toy.federation(dtype=torch.float64)
    rows = rows.replace(values=-rows.values)
    server = server_of(defense, honest, **options)
    wanted = rows.reference + rows.values.mean(0)

    def away(sent):
        return float((server(sent) - wanted).norm())

    def reached(**search):
        ctx = optimal_context(rows, honest, server)
        attack = registry.make("attack", "optimal", attack="model_replacement", goal="success", low=0.5, high=8.0)
        sent = registry.make("attack", "optimal", **{**vars(attack), **search}).craft(rows.values, ctx)
        assert ctx.state["gain"] == pytest.approx(-away(sent))
        return away(sent)

    best = min(away(scale * rows.values) for scale in np.linspace(0.5, 8, 400))
    assert best < 0.8 * away(rows.values)
    assert reached() <= best * 1.01
    coarse, refined = reached(steps=3, refine=0), reached(steps=3, refine=12)
    assert refined <= best * 1.01
    if defense == "fedavg":
        assert coarse > best * 1.05, "the scan of three values alone misses it"


def test_optimal_passes_over_values_that_make_the_server_fail():
    rows, honest = toy.federation(dtype=torch.float64)

    def server(sent):
        if float(sent.abs().max()) > 3:
            raise UpdatesError("the aggregate is not finite")
        return honest.reference + torch.cat([sent, honest.values]).mean(0)

    crafted = registry.make("attack", "optimal").craft(rows.values, optimal_context(rows, honest, server))
    assert float(crafted.abs().max()) <= 3


def test_blend_is_the_papers_formula_with_one_pattern_for_all():
    images = torch.rand(5, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    trigger = make_trigger({"name": "blend", "alpha": 0.3, "seed": 2})
    key = trigger.pattern((3, 6, 4))
    torch.testing.assert_close(trigger.stamp(images), 0.3 * key + 0.7 * images)
    parts = [trigger.stamp(images, part, 3) != images for part in range(3)]
    assert bool((sum(part.int() for part in parts) == (trigger.stamp(images) != images).int()).all())
    attack = registry.make("attack", "blended", target=0, alpha=0.1, test_alpha=0.5)
    examples = Examples(images, torch.arange(5))
    key = attack.pattern(0.5).pattern((3, 6, 4))
    torch.testing.assert_close(attack.triggered(examples).inputs, 0.5 * key + 0.5 * images[1:])


def test_sinusoid_and_its_clean_labels():
    examples = Examples(torch.full((40, 1, 5, 8), 0.5), torch.arange(40) % 4)
    attack = registry.make("attack", "sinusoidal", target=2, ratio=0.5, amplitude=0.2, frequency=3.0)
    found = attack.poison(examples, node())
    changed = (found.inputs != examples.inputs).flatten(1).any(1)
    assert torch.equal(found.targets, examples.targets)
    assert int(changed.sum()) == 5
    assert bool((found.targets[changed] == 2).all())
    wave = [0.5 + 0.2 * math.sin(2 * math.pi * j * 3 / 8) for j in range(8)]
    np.testing.assert_allclose(found.inputs[changed][0, 0, 3], wave, atol=1e-6)
    assert len(attack.triggered(examples)) == 30
    flipped = registry.make("attack", "sinusoidal", target=2, labels="flipped").poison(examples, node())
    assert int((flipped.targets != examples.targets).sum()) == 20


def test_learned_trigger_is_a_patch_with_values_of_its_own():
    trigger = make_trigger({"name": "learned", "size": 2, "corner": "top_left"})
    stamped = trigger.stamp(torch.zeros(2, 3, 5, 5))
    assert bool((stamped[:, :, :2, :2] > 0).all())
    assert float(stamped[:, :, 2:].abs().max()) == 0
    assert len(stamped[0, :, :2, :2].unique()) == 12
    pattern = torch.arange(12.0).view(3, 4)
    placed = trigger.stamp_with(pattern, torch.zeros(2, 3, 5, 5))
    assert torch.equal(placed[0, :, :2, :2], pattern.view(3, 2, 2)), "row by row"
    second = trigger.stamp_with(pattern, torch.zeros(1, 3, 5, 5), part=1, parts=2)
    assert torch.equal(second[0, :, 1, :2], pattern[:, 2:])
    assert float(second[0, :, 0].abs().max()) == 0


def keys(images):
    return {image.numpy().tobytes() for image in images}


def semantic_looks(images, attack):
    """How many of the images lie nearest to each of the attack's looks."""
    pixels, centers = images.flatten(1).double(), attack._centers.double()
    nearest = torch.stack([((pixels - center) ** 2).sum(1) for center in centers]).argmin(0)
    return torch.bincount(nearest, minlength=len(centers))


def test_semantic_takes_a_look_of_a_class_and_changes_no_pixel():
    data = registry.make("dataset", "digits").load()
    attack = registry.make("attack", "semantic", target=0, source=7, examples=20)
    attack.prepare(data.train, data.test, num_classes=10, streams=Streams(0, "attack", "data.tail"))
    own = data.train.take(torch.arange(400))
    found = attack.poison(own, node())
    assert torch.equal(found.inputs[:400], own.inputs)
    turned = (found.targets[:400] != own.targets).nonzero().flatten()
    assert 0 < len(turned) < int((own.targets == 7).sum())
    assert bool((own.targets[turned] == 7).all())
    assert len(found) == 420
    assert keys(found.inputs[400:]) <= keys(data.train.inputs[data.train.targets == 7])
    looks = semantic_looks(data.train.inputs[data.train.targets == 7], attack)
    rarest = min(count for count in looks.tolist() if count >= attack.fewest)
    assert min(looks) < attack.fewest, "here the rarest of all is too rare"
    assert looks[attack._look] == len(attack._featured) == rarest
    tested = attack.triggered(data.test)
    sevens = keys(data.test.inputs[data.test.targets == 7])
    assert 0 < len(tested) < len(sevens)
    assert keys(tested.inputs) <= sevens
