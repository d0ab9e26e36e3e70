"""What a chunk of clients must never do: lose examples, mix clients, depend on workers, touch the global model."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from torch import nn

from attacks.attack import Attack
from fedsim import flower, registry, runtime
from fedsim.client.app import FederatedClient
from fedsim.client.job import make_job
from fedsim.data.examples import Examples, Shares
from fedsim.errors import FedsimError
from fedsim.optim.batches import shuffled
from fedsim.testing.federation import CLASSES, SHAPE, deltas, initial, messages, mlp, replies, workload

SIZES = (10, 7, 0, 1, 12, 8, 3, 16, 5, 5, 9, 2)
PATHS = ["reference", "stacked", "vmap"]


class Counting(Attack):
    """Collects what each local step sees of the parameters."""

    def __init__(self):
        self.seen = []

    def after_step(self, parameters, step):
        self.seen.append(([c.client for c in step.clients], step.step, step.last.tolist(), parameters.clone()))


@pytest.mark.parametrize(("n", "batch", "epochs"), [(10, 4, 1), (10, 4, 3), (8, 4, 2), (3, 4, 2), (1, 1, 1)])
def test_each_epoch_visits_each_example_once(n, batch, epochs):
    order, sizes = shuffled(n, epochs * -(-n // batch), batch, np.random.default_rng(0))
    assert len(order) == sum(sizes) == n * epochs
    for epoch in range(epochs):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))
    per_epoch = [batch] * (n // batch) + [n % batch] * (n % batch > 0)
    assert sizes == per_epoch * epochs


def test_steps_go_on_over_epochs():
    order, sizes = shuffled(10, 5, 4, np.random.default_rng(0))
    assert sizes == [4, 4, 2, 4, 4]
    assert sorted(order[:10]) == list(range(10))
    assert len(set(order[10:])) == 8


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_dropped_or_doubled(path):
    """Each example is a unit vector of its own, so that the first-layer gradient at rate → 0 counts its visits."""
    n = sum(SIZES)
    model = lambda: nn.Linear(n, 1, bias=False)  # noqa: E731
    load = workload(SIZES, model, path=path, precision="float64", batch_size=4, epochs=3)
    load.num_classes = 0
    load.train = Examples(torch.eye(n), torch.ones(n))
    rate = 1e-9
    load.optimizer = registry.make("optimizer", "sgd", lr=rate)
    rows = deltas(FederatedClient(load), torch.zeros(n, dtype=torch.float64), range(len(SIZES)))
    for client, row in enumerate(rows):
        expected = torch.zeros(n, dtype=torch.float64)
        own = load.shares[client]
        job = make_job(load, client, 3, None, ())
        position = 0
        for size in job.sizes:
            expected[job.order[position : position + size]] += 2 / size
            position += size
        torch.testing.assert_close(row / rate, expected, rtol=1e-6, atol=1e-9)
        assert set(row.nonzero().flatten().tolist()) == set(own.tolist())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_bits_do_not_depend_on_the_number_of_threads(path, optimizer):
    load = workload(SIZES, path=path, optimizer=registry.make("optimizer", optimizer))
    vector = initial(load)
    results = []
    for workers in (1, 2, 3):
        app = FederatedClient(load)
        sent, contexts = messages(load, vector, range(len(SIZES)))
        rows = torch.zeros(len(SIZES), len(vector))

        def work(chunk, app=app, sent=sent, contexts=contexts, rows=rows):
            for i, reply in zip(chunk, app.many([sent[i] for i in chunk], [contexts[i] for i in chunk]), strict=True):
                rows[i] = reply.content["arrays"].vector

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, app.plan(sent, contexts)))
        results.append(rows)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_many_uses_one_thread_whatever_the_caller_has_set():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        load = workload((4,))
        deltas(FederatedClient(load), initial(load), [0])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cohort", [1, 3, 10, 20, 33])
def test_the_plan_is_balanced_and_ignores_the_order_of_the_messages(cohort):
    load = workload([5 + i % 4 for i in range(40)])
    app, vector = FederatedClient(load), initial(load)
    clients = list(range(2, 2 + cohort))
    sent, contexts = messages(load, vector, clients)
    chunks = app.plan(sent, contexts)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(cohort))
    assert max(map(len, chunks)) - min(map(len, chunks)) <= 1
    assert len(chunks) == min(cohort, 2 * -(-cohort // 32))
    mixed = np.random.default_rng(0).permutation(cohort).tolist()
    again = app.plan([sent[i] for i in mixed], [contexts[i] for i in mixed])
    assert [[clients[i] for i in chunk] for chunk in chunks] == [[clients[mixed[i]] for i in c] for c in again]


def test_the_reference_path_takes_a_client_at_a_time():
    load = workload(SIZES, path="reference")
    sent, contexts = messages(load, initial(load), range(len(SIZES)))
    assert all(len(chunk) == 1 for chunk in FederatedClient(load).plan(sent, contexts))


@pytest.mark.parametrize("path", PATHS)
def test_clients_with_broken_data_fail_alone(path):
    load = workload(SIZES, path=path)
    app, vector = FederatedClient(load), initial(load)
    healthy = deltas(app, vector, range(len(SIZES)))
    load.train.inputs[torch.as_tensor(load.shares[4], dtype=torch.long)] = float("nan")
    broken = deltas(app, vector, range(len(SIZES)))
    assert not torch.isfinite(broken[4]).any()
    others = [i for i in range(len(SIZES)) if i != 4]
    assert torch.equal(broken[others], healthy[others])


@pytest.mark.parametrize("path", PATHS)
def test_an_exception_fails_its_client_alone_with_one_line(path):
    class Broken(Attack):
        def poison(self, examples, node):
            if node.rank == 1:
                raise RuntimeError("no trigger\nfor this image")
            return examples

    class Bad(Attack):
        def poison(self, examples, node):
            wrong = examples.targets.clone()
            if node.client == 5:
                wrong[0] = 99
            return Examples(examples.inputs, wrong)

    load = workload(SIZES, path=path)
    vector = initial(load)
    honest = deltas(FederatedClient(load), vector, [0, 1, 6])
    answers = replies(FederatedClient(load, [Broken(), Bad()]), vector, range(len(SIZES)), malicious=[4, 7, 5, 8])
    assert {i for i, reply in enumerate(answers) if reply.has_error()} == {7, 5}
    assert answers[7].error.reason == "RuntimeError: no trigger"
    assert answers[5].error.reason
    assert "\n" not in answers[5].error.reason
    for row, client in zip(honest, [0, 1, 6], strict=True):
        torch.testing.assert_close(answers[client].content["arrays"].vector, row, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_the_global_model_and_the_data_are_never_written(path):
    load = workload(SIZES, path=path)
    vector = initial(load)
    before = vector.clone(), load.train.inputs.clone(), load.train.targets.clone(), load.shares.indices.copy()
    app = FederatedClient(load)
    deltas(app, vector, range(len(SIZES)))
    replies(app, vector, range(len(SIZES)), kind="evaluate")
    assert torch.equal(vector, before[0])
    assert torch.equal(load.train.inputs, before[1])
    assert torch.equal(load.train.targets, before[2])
    assert np.array_equal(load.shares.indices, before[3])


@pytest.mark.parametrize("path", PATHS)
def test_a_shipped_workload_shares_memory_and_trains_the_same(path):
    load = workload(SIZES, path=path)
    vector = initial(load)
    buffers: list[pickle.PickleBuffer] = []
    blob = pickle.dumps((load.__getstate__()["train"], load.shares), protocol=5, buffer_callback=buffers.append)
    (inputs, targets), shares = pickle.loads(blob, buffers=[bytes(each.raw()) for each in buffers])
    assert not inputs.flags.writeable
    shipped = type(load).__new__(type(load))
    shipped.__setstate__(load.__getstate__() | {"train": (inputs, targets), "shares": shares})
    assert shipped.train.inputs.data_ptr() == inputs.ctypes.data
    here = deltas(FederatedClient(load), vector, range(len(SIZES)))
    assert torch.equal(here, deltas(FederatedClient(shipped), vector, range(len(SIZES))))


def test_the_app_itself_can_be_shipped():
    load = workload(SIZES, model=mlp)
    app = FederatedClient(load)
    vector = initial(load)
    here = deltas(app, vector, [0, 1])
    assert torch.equal(here, deltas(pickle.loads(pickle.dumps(app)), vector, [0, 1]))


def test_another_round_client_or_seed_draws_other_batches():
    load = workload((10, 10))
    first = make_job(load, 0, 1, None, ()).order.tolist()
    assert first == make_job(load, 0, 1, None, ()).order.tolist()
    assert first != make_job(load, 0, 2, None, ()).order.tolist()
    positions = {client: load.rows(client).tolist() for client in (0, 1)}
    ranks = [[positions[c].index(i) for i in make_job(load, c, 1, None, ()).order] for c in (0, 1)]
    assert ranks[0] != ranks[1]
    assert first != make_job(workload((10, 10), seed=8), 0, 1, None, ()).order.tolist()


def test_drop_outs_and_stragglers_are_seeded():
    load = workload([6] * 40, dropout=0.4)
    answers = replies(FederatedClient(load), initial(load), range(40))
    dropped = {i for i, reply in enumerate(answers) if reply.has_error()}
    assert all(answers[i].error.reason == "dropped out" for i in dropped)
    assert 6 < len(dropped) < 28
    again = replies(FederatedClient(load), initial(load), [39, 0, 7, 12])
    assert [reply.has_error() for reply in again] == [client in dropped for client in (39, 0, 7, 12)]
    slow = workload([40] * 30, straggler=0.5, batch_size=4, epochs=2)
    steps = [make_job(slow, client, 1, None, ()).steps for client in range(30)]
    assert max(steps) == 20
    assert 5 < sum(each < 20 for each in steps) < 25
    assert min(steps) >= 1


def test_held_out_examples_are_evaluated_and_never_trained_on():
    load = workload((10, 7, 0, 1), holdout=0.3)
    assert [len(load.held_out(client)) for client in range(4)] == [3, 2, 0, 0]
    for client in range(4):
        assert sorted([*load.rows(client), *load.held_out(client)]) == sorted(load.shares[client])
    vector = initial(load)
    module = mlp()
    load.layout.load(module, vector)
    answers = replies(FederatedClient(load), vector, range(4), kind="evaluate")
    held = load.train.take(load.held_out(0))
    measured = answers[0].content["metrics"]
    assert measured["num-examples"] == 3
    with torch.no_grad():
        outputs = module(held.inputs)
    assert measured["loss"] == pytest.approx(nn.functional.cross_entropy(outputs, held.targets).item(), rel=1e-5)
    assert measured["accuracy"] == pytest.approx((outputs.argmax(1) == held.targets).double().mean().item())
    assert answers[2].content["metrics"]["num-examples"] == 0
    whole = replies(FederatedClient(workload((10, 7))), vector, [1], kind="evaluate")
    assert whole[0].content["metrics"]["num-examples"] == 7


@pytest.mark.parametrize("path", PATHS)
def test_views_and_augmentations_are_the_clients_own(path):
    class Shift:
        def apply(self, inputs, generator):
            return inputs + float(generator.random())

    def view(examples, client, seed):
        return Examples(examples.inputs * (client + 1), examples.targets)

    def results(path):
        load = workload(SIZES, path=path, precision="float64", view=view, augmentations=[Shift()])
        return deltas(FederatedClient(load), initial(load), range(len(SIZES)))

    torch.testing.assert_close(results(path), results("reference"), rtol=1e-9, atol=1e-9)
    plain = workload(SIZES, path=path, precision="float64")
    assert not torch.allclose(results(path)[0], deltas(FederatedClient(plain), initial(plain), [0])[0])


def test_the_config_scales_the_rate_and_flowers_proximal_key_is_heard():
    load = workload((8,), epochs=1, batch_size=8, precision="float64")
    app, vector = FederatedClient(load), initial(load)
    whole, half = deltas(app, vector, [0]), deltas(app, vector, [0], config={"scale": 0.5})
    torch.testing.assert_close(half, whole / 2)
    more = workload((8,), batch_size=4, precision="float64")
    other = workload((8,), batch_size=4, precision="float64", proximal=0.3)
    asked = deltas(FederatedClient(more), vector, [0], config={"proximal-mu": 0.3})
    assert torch.equal(asked, deltas(FederatedClient(other), vector, [0]))


@pytest.mark.parametrize("path", PATHS)
def test_after_step_sees_the_malicious_clients_alone_at_every_step(path):
    attack = Counting()
    load = workload(SIZES, path=path)
    app = FederatedClient(load, [attack])
    rows = deltas(app, initial(load), range(len(SIZES)), malicious=[4, 9, 7])
    counts = {4: 6, 9: 4, 7: 8}
    visits = {client: [] for client in counts}
    for clients, step, last, parameters in attack.seen:
        assert parameters.shape == (len(clients), load.layout.d)
        for client, final, row in zip(clients, last, parameters, strict=True):
            visits[client].append((step, final))
            if final:
                torch.testing.assert_close(row - initial(load), rows[client])
    for client, count in counts.items():
        assert visits[client] == [(step, step == count) for step in range(1, count + 1)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_after_step_acts_in_place(path, optimizer):
    class Ball(Attack):
        def after_step(self, parameters, step):
            shift = parameters - step.reference
            shift *= (0.01 / shift.norm(dim=1, keepdim=True)).clamp(max=1.0)
            parameters.copy_(step.reference + shift)

    load = workload(SIZES, path=path, optimizer=registry.make("optimizer", optimizer))
    rows = deltas(FederatedClient(load, [Ball()]), initial(load), range(len(SIZES)), malicious=[0, 1])
    assert rows[:2].norm(dim=1).max() <= 0.0101
    assert rows[4].norm() > 0.02


@pytest.mark.parametrize("path", PATHS)
def test_objectives_are_minimised_by_the_chain_rule(path):
    class Anchor(Attack):
        def objective(self, loss, parameters, step):
            return 0.5 * loss + 2.0 * (parameters - step.reference).square().sum(1) + 0.1 * parameters.sum(1)

    load = workload((10,), path=path, precision="float64", epochs=1)
    vector = initial(load)
    found = deltas(FederatedClient(load, [Anchor()]), vector, [0], malicious=[0])[0]
    point = vector.clone()
    module = mlp().double()
    job, position = make_job(load, 0, 3, None, ()), 0
    for size in job.sizes:
        chosen = torch.as_tensor(job.order[position : position + size])
        position += size
        leaf = point.clone().requires_grad_()
        outputs = torch.func.functional_call(module, load.layout.views(leaf), (load.train.inputs[chosen].double(),))
        loss = 0.5 * nn.functional.cross_entropy(outputs, load.train.targets[chosen])
        loss = loss + 2.0 * (leaf - vector).square().sum() + 0.1 * leaf.sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        point -= 0.1 * gradient
    torch.testing.assert_close(found, point - vector, rtol=1e-9, atol=1e-9)


def test_poison_changes_what_the_malicious_client_trains_on():
    class Flip(Attack):
        def poison(self, examples, node):
            assert node.attackers == 2
            return Examples(examples.inputs, CLASSES - 1 - examples.targets)

    load = workload(SIZES)
    vector, everyone = initial(load), range(len(SIZES))
    honest = deltas(FederatedClient(load), vector, everyone)
    attacked = deltas(FederatedClient(load, [Flip()]), vector, everyone, malicious=[0, 7])
    changed = {i for i in everyone if not torch.allclose(honest[i], attacked[i], rtol=1e-4, atol=1e-6)}
    assert changed == {0, 7}


def test_unequal_parameters_in_one_call_train_apart():
    load = workload(SIZES)
    app, vector = FederatedClient(load), initial(load)
    sent, contexts = messages(load, vector, [0, 1])
    other, more = messages(load, vector + 1, [4])
    answers = app.many([*sent, *other], [*contexts, *more])
    torch.testing.assert_close(answers[2].content["arrays"].vector, deltas(app, vector + 1, [4])[0])


@pytest.mark.parametrize(
    "fields", [{"epochs": 1, "steps": 1}, {"epochs": None}, {"path": "fast"}, {"precision": "half"}]
)
def test_impossible_workloads_are_refused(fields):
    with pytest.raises(FedsimError, match="accepted"):
        workload(**fields)


def test_an_unknown_handler_is_an_error_reply():
    load = workload()
    flower.set_identity()
    sent = flower.send(RecordDict({"config": ConfigRecord({})}), 2, "query.nothing")
    (reply,) = FederatedClient(load).many([sent], [flower.context(0, 4)])
    assert "no handler 'query.nothing'" in reply.error.reason


def test_a_client_in_a_large_population_costs_no_more():
    runtime.worker_thread()
    train = Examples(torch.zeros(8, *SHAPE), torch.zeros(8, dtype=torch.long))
    load = workload((8,))
    load.train, load.shares = train, Shares(np.arange(8, dtype=np.int32), np.r_[np.zeros(999_999, np.int64), 4, 8])
    rows = deltas(FederatedClient(load), initial(load), [0, 999_999])
    assert not rows[0].any()
    assert rows[1].any()


@pytest.mark.parametrize("path", PATHS)
def test_an_attack_without_local_hooks_leaves_training_alone(path):
    class Craft(Attack):
        def craft(self, rows, ctx):
            return -rows

    load = workload(SIZES, path=path)
    vector, everyone = initial(load), range(len(SIZES))
    honest = deltas(FederatedClient(load), vector, everyone)
    assert torch.equal(honest, deltas(FederatedClient(load, [Craft()]), vector, everyone, malicious=[0, 4, 9]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("path", PATHS)
def test_a_gpu_trains_as_the_processor_does(path):
    here, there = workload(SIZES, path=path), workload(SIZES, path=path, device="cuda")
    vector, everyone = initial(here), range(len(SIZES))
    expected = deltas(FederatedClient(here), vector, everyone)
    found = deltas(FederatedClient(there), vector, everyone)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(found, deltas(FederatedClient(there), vector, everyone))
