"""Files that real Keras wrote become runs that answer as Keras did; anything else is named and refused, unharmed."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from refusals import assert_names, refused

from jaxmlp import MLP, DataConfig, ExperimentConfig, data
from jaxmlp.cli import main
from jaxmlp.data import catalog
from jaxmlp.errors import ConfigError, RunError
from jaxmlp.keras.apart import read_keras
from jaxmlp.keras.files import parse_keras
from jaxmlp.keras.imported import import_network
from jaxmlp.keras.network import KerasNetwork
from jaxmlp.run.digest import digest
from jaxmlp.run.directory import RunDirectory
from jaxmlp.trained.inference import evaluate_split, load_model

FILES = Path(__file__).parent / "keras_files"
"""Written by real Keras 2.2.4 and 3.15.1: see `make.py` there."""
IMAGES = np.uint8(np.arange(7 * 16).reshape(7, 4, 4, 1) * 37 % 256)
"""The images of `make.py`."""


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """A data set of pictures of the files' shape and classes, called tiny."""
    rng = np.random.default_rng(0)
    splits = [(rng.integers(0, 256, (n, 4, 4), np.uint8), np.arange(n) % 3) for n in (30, 12)]
    data.register("tiny", lambda: (splits[0], splits[1]))
    yield
    catalog.user_data.pop("tiny")


def imported(name: str, path: Path, *flags: str) -> int:
    words = ["--data.name", "tiny", "--batch-size", "10", "--epochs", "2", "--out", str(path)]
    return main(["import-keras", str(FILES / name), *words, *flags])


@pytest.mark.parametrize(
    ("name", "expected", "flags"),
    [
        ("keras2.h5", "keras2", ()),
        ("keras2_weights.h5", "keras2", ("--model.activation", "tanh")),
        ("keras3.h5", "keras3", ()),
        ("keras3.keras", "keras3", ()),
        ("keras3.weights.h5", "keras3", ("--model.activation", "tanh")),
        ("functional.h5", "functional", ()),
        ("functional.keras", "functional", ()),
    ],
)
def test_a_run_made_of_a_file_of_keras_answers_as_keras_did(
    name: str, expected: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    assert imported(name, tmp_path / "run", *flags) == 0
    found = load_model(tmp_path / "run").probabilities(IMAGES)
    assert np.ptp(found, axis=0).min() > 0.01, "all images are alike to it: this test shows little"
    np.testing.assert_allclose(found, np.load(FILES / f"{expected}.npy"), atol=5e-7)  # some roundings of float32


def test_what_the_file_says_is_in_the_config_and_what_it_cannot_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported("keras3.keras", tmp_path / "whole")
    config = RunDirectory.open(tmp_path / "whole", write=False).config
    assert config.name == "keras3"
    assert config.model == MLP(hidden_sizes=(6, 5), activation="tanh", dropout_rate=0.5)
    assert config.data.pixel_scale == 1 / 255
    imported("functional.keras", tmp_path / "functional")
    config = RunDirectory.open(tmp_path / "functional", write=False).config
    assert isinstance(config.model, MLP)
    assert (config.model.activation, config.data.pixel_scale) == ("silu", 1 / 128)
    capsys.readouterr()
    imported("keras3.weights.h5", tmp_path / "weights")
    assert_names(capsys.readouterr().out, "--model.activation", "relu")


def test_a_run_may_be_scored_without_an_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported("keras3.keras", tmp_path / "run", "--metrics", "top_k", "--metrics.0.k", "2") == 0
    assert "test_top_2" in capsys.readouterr().out


def test_the_run_is_scored_evaluated_asked_and_trained_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert imported("keras3.keras", tmp_path / "run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    scored = evaluate_split(load_model(run), data.load(DataConfig(name="tiny", validation="test")).test)
    assert (document["test_loss"], document["test_accuracy"]) == (scored.loss, scored.accuracy)
    assert (document["status"], document["epochs"], document["run_dir"]) == ("interrupted", 0, run)
    before = load_model(run)
    manifest = RunDirectory.open(run, write=False).manifest
    assert (
        manifest["imported"] == {"params_sha256": digest(before.params)} == {"params_sha256": document["params_sha256"]}
    )
    assert main(["evaluate", run]) == 0
    np.save(tmp_path / "images.npy", IMAGES)
    assert main(["predict", run, str(tmp_path / "images.npy")]) == 0
    assert main(["train", "--resume", run, "--verbose", "0"]) == 0
    after = load_model(run)
    assert (before.step, after.step) == (0, 6)
    moved = np.abs(after.params["Dense_0"]["kernel"] - before.params["Dense_0"]["kernel"])
    # Six updates of RMSprop move a weight by rate / sqrt(1 - rho) each at most: it went on from the imported ones.
    assert 0 < moved.max() <= 6 * 0.001 / math.sqrt(0.1)


def test_flags_that_make_another_network_of_it_are_refused(tmp_path: Path) -> None:
    dataset = data.load(DataConfig(name="tiny", validation="test"))
    network = parse_keras(FILES / "keras3.keras")
    for path, value in {"hidden_sizes": (7, 5), "activation": "relu"}.items():
        model = {"hidden_sizes": (6, 5), "activation": "tanh", path: value}
        config = ExperimentConfig.from_dict(ExperimentConfig().to_dict() | {"batch_size": 10})
        config = ExperimentConfig.from_dict(config.to_dict() | {"model": config.to_dict()["model"] | model})
        with refused(ConfigError, f"model.{path}"):
            import_network(network, config, dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_of_other_images_or_classes_than_the_datas_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.name", "mnist_5k", "--data.validation", "none", "--out", str(tmp_path / "run")]
    assert main(["import-keras", str(FILES / "keras3.keras"), *words]) == 5
    assert_names(capsys.readouterr().err.splitlines()[0], 16, 3, "mnist_5k", (784, 10))


def archive(config: bytes | None = None, compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """The .keras file again, with another config, or compressed."""
    made = io.BytesIO()
    with zipfile.ZipFile(FILES / "keras3.keras") as real, zipfile.ZipFile(made, "w", compression) as new:
        for name in real.namelist():
            new.writestr(name, config if config and name == "config.json" else real.read(name))
        for name, content in more.items():
            new.writestr(name, content)
    return made.getvalue()


def config_with(change: Callable[[dict[str, Any]], Any]) -> bytes:
    with zipfile.ZipFile(FILES / "keras3.keras") as real:
        config = json.loads(real.read("config.json"))
    change(config)
    return archive(json.dumps(config).encode())


def layer(config: dict[str, Any], index: int) -> dict[str, Any]:
    values: dict[str, Any] = config["config"]["layers"][index]
    return values


LAMBDA = {"class_name": "Lambda", "config": {"name": "lambda", "function": {"class_name": "__lambda__", "config": {}}}}

WRONG_ARCHIVES: dict[str, tuple[Any, ...]] = {
    "cut short": (lambda: (FILES / "keras3.keras").read_bytes()[:-900],),
    "bomb": (lambda: archive(b" " * 10**7, zipfile.ZIP_DEFLATED), "config.json"),
    "long config": (lambda: archive(b" " * (1 << 22) + b" "), "config.json", 4194305),
    "deep config": (lambda: archive(b"[" * 10**5), "config"),
    "no config of a model": (lambda: archive(b"[]"), "config"),
    "Python code": (lambda: config_with(lambda c: c["config"]["layers"].append(LAMBDA)), "Lambda"),
    "convolution": (lambda: config_with(lambda c: layer(c, 2).update(class_name="Conv2D")), "Conv2D"),
    "other class": (lambda: config_with(lambda c: c.update(class_name="Mine")), "Mine", "Sequential"),
    "other units": (lambda: config_with(lambda c: layer(c, 2)["config"].update(units=7)), (6, 5, 3), (7, 5, 3)),
    "other activations": (
        lambda: config_with(lambda c: layer(c, 2)["config"].update(activation="relu")),
        "relu",
        "tanh",
    ),
    "gelu": (
        lambda: config_with(lambda c: [layer(c, i)["config"].update(activation="gelu") for i in (2, 4)]),
        "gelu",
    ),
    "another regularizer": (
        lambda: config_with(lambda c: each_dense(c, kernel_regularizer=regularizer("Orthogonal", factor=0.1))),
        "Orthogonal",
        "L1L2",
    ),
    "sigmoid at the end": (
        lambda: config_with(lambda c: layer(c, 6)["config"].update(activation="sigmoid")),
        "sigmoid",
        "softmax",
    ),
}
"""What makes an archive, and what its refusal names."""


@pytest.mark.parametrize("case", WRONG_ARCHIVES)
def test_an_archive_that_is_no_stack_of_dense_layers_is_refused(case: str, tmp_path: Path) -> None:
    make, *named = WRONG_ARCHIVES[case]
    (tmp_path / "x.keras").write_bytes(make())
    with refused(RunError, tmp_path / "x.keras", *named):
        parse_keras(tmp_path / "x.keras")


def parsed(change: Callable[[dict[str, Any]], Any], path: Path) -> KerasNetwork:
    path.write_bytes(config_with(change))
    return parse_keras(path)


def each_dense(config: dict[str, Any], **values: Any) -> None:
    for index in (2, 4, 6):
        layer(config, index)["config"].update(values)


def regularizer(name: str, **values: float) -> dict[str, Any]:
    return {"module": "keras.regularizers", "class_name": name, "config": values, "registered_name": None}


def test_a_file_that_says_nothing_else_is_imported_without_a_note() -> None:
    for name in ("keras2.h5", "keras3.h5", "keras3.keras"):
        assert parse_keras(FILES / name).notes == (), name
    for name in ("functional.keras", "functional.h5"):
        (note,) = parse_keras(FILES / name).notes
        assert_names(note, "dense_3", "bias")


@pytest.mark.parametrize(
    ("given", "penalties"),
    [
        (regularizer("L2", l2=0.25), (0.0, 0.25)),
        (regularizer("L1", l1=0.5), (0.5, 0.0)),
        (regularizer("L1L2", l1=0.5, l2=0.25), (0.5, 0.25)),
    ],
)
def test_a_regularizer_of_all_kernels_is_the_runs(
    given: dict[str, Any], penalties: tuple[float, float], tmp_path: Path
) -> None:
    file, run = tmp_path / "x.keras", tmp_path / "run"
    network = parsed(lambda config: each_dense(config, kernel_regularizer=given), file)
    assert ((network.l1, network.l2), network.notes) == (penalties, ())
    assert imported(str(file), run) == 0
    model: Any = RunDirectory.open(run, write=False).config.model
    assert (model.l1, model.l2) == penalties


LEFT_OUT: dict[str, tuple[Any, ...]] = {
    "frozen": (lambda c: layer(c, 2)["config"].update(trainable=False), "dense", "trainable"),
    "one layer's regularizer": (
        lambda c: layer(c, 4)["config"].update(kernel_regularizer=regularizer("L2", l2=0.1)),
        "kernel",
    ),
    "bias regularizer": (
        lambda c: layer(c, 4)["config"].update(bias_regularizer=regularizer("L2", l2=0.1)),
        *("dense_1", "bias_regularizer", "L2"),
    ),
    "activity regularizer": (
        lambda c: layer(c, 4)["config"].update(activity_regularizer=regularizer("L1", l1=0.1)),
        *("dense_1", "activity_regularizer", "L1"),
    ),
    "constraint": (
        lambda c: layer(c, 6)["config"].update(kernel_constraint=regularizer("MaxNorm", max_value=2)),
        *("dense_2", "kernel_constraint", "MaxNorm"),
    ),
    "noise shape": (
        lambda c: layer(c, 3)["config"].update(noise_shape=[None, 1]),
        *("dropout", "noise_shape", [None, 1]),
    ),
    "precision": (
        lambda c: layer(c, 2)["config"].update(dtype="mixed_bfloat16"),
        *("dense", "mixed_bfloat16", "--precision"),
    ),
    "something new": (lambda c: layer(c, 2)["config"].update(sparsity=0.5), "dense", "sparsity", 0.5),
    "loss": (lambda c: c.update(compile_config={"loss": "mse"}), "mse", "--loss"),
    "label smoothing": (
        lambda c: c.update(
            compile_config={"loss": {"class_name": "CategoricalCrossentropy", "config": {"label_smoothing": 0.1}}}
        ),
        *("CategoricalCrossentropy", "label_smoothing", 0.1),
    ),
}
"""What a file says that is not imported, and what the note of it names."""


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_left_out_of_a_layer_is_said(case: str, tmp_path: Path) -> None:
    change, *named = LEFT_OUT[case]
    (note,) = parsed(change, tmp_path / "x.keras").notes
    assert_names(note, *named)


def test_the_usual_loss_needs_no_note(tmp_path: Path) -> None:
    function = {"module": "builtins", "class_name": "function", "config": "sparse_categorical_crossentropy"}
    for loss in (function, "categorical_crossentropy"):
        content = config_with(partial(dict.update, compile_config={"loss": loss}))
        (tmp_path / "x.keras").write_bytes(content)
        assert parse_keras(tmp_path / "x.keras").notes == ()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
from jaxmlp.keras.apart import limit_memory
limit_memory(1 << 30)
print(resource.getrlimit(resource.RLIMIT_AS), "jax" in sys.modules)"""


def test_the_process_apart_keeps_a_limit_that_the_system_set_already_and_starts_no_jax() -> None:
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # OpenBLAS takes memory for each thread.
    done = subprocess.run([sys.executable, "-c", LIMITED], env=env, capture_output=True, text=True)
    assert done.stdout == f"({1 << 29}, {1 << 29}) False\n", done.stderr


def test_a_system_that_starts_no_more_processes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", full)
    with refused(RunError, FILES / "keras3.keras"):
        read_keras(FILES / "keras3.keras")


def branched(config: dict[str, Any]) -> None:
    """The second Dense layer takes the input's layer."""
    layers = config["config"]["layers"]
    text = json.dumps(layers[-2]["inbound_nodes"]).replace(layers[-3]["config"]["name"], layers[2]["config"]["name"])
    layers[-2]["inbound_nodes"] = json.loads(text)


def test_layers_that_do_not_follow_one_another_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(FILES / "functional.keras") as real:
        config = json.loads(real.read("config.json"))
        weights = real.read("model.weights.h5")
    branched(config)
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as new:
        new.writestr("config.json", json.dumps(config))
        new.writestr("model.weights.h5", weights)
    with refused(RunError, tmp_path / "x.keras"):
        parse_keras(tmp_path / "x.keras")


def replaced(file: h5py.File, **how: Any) -> None:
    """Another dataset in the place of the first kernel."""
    del file["layers/dense/vars/0"]
    file["layers/dense/vars"].create_dataset("0", **how)


def never_written(file: h5py.File) -> None:
    """A terabyte that takes no byte of the file, and is all zeros when it is read."""
    replaced(file, shape=(1 << 20, 1 << 18), dtype="f4")


def stored_outside(file: h5py.File) -> None:
    replaced(file, shape=(16, 6), dtype="f4", external=[("/dev/zero", 0, 16 * 6 * 4)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((16, 6), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (16, 6))
    del file["layers/dense/vars/0"]
    file["layers/dense/vars"].create_virtual_dataset("0", layout)


def linked(file: h5py.File) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = h5py.ExternalLink("other.h5", "x")


def many_times(file: h5py.File) -> None:
    """A large array under the names of two layers."""
    replaced(file, data=np.zeros((16, 6000), "f4"))
    file["layers/dense_3/vars/0"] = file["layers/dense/vars/0"]


def pickled(file: h5py.File) -> None:
    replaced(file, data=np.void(pickle.dumps({"a": 1})))


KERNEL = "/layers/dense/vars/0"
WRONG_HDF5: dict[str, tuple[Any, ...]] = {
    "a chunk larger than the array": (
        lambda f: replaced(
            f, data=np.ones((16, 6), "f4"), maxshape=(None, None), chunks=(1 << 9, 1 << 9), compression="gzip"
        ),
        *(KERNEL, [16, 6]),
    ),
    "never written": (never_written, KERNEL, [1048576, 262144]),
    "stored outside": (stored_outside, KERNEL),
    "virtual": (virtual, KERNEL),
    "a link to another file": (linked,),
    "one array many times": (many_times,),
    "a pickle": (pickled, KERNEL, "float32"),
    "half precision": (lambda f: replaced(f, data=np.zeros((16, 6), "f2")), "float16", "float32"),
    "another kernel": (lambda f: replaced(f, data=np.zeros((16, 7), "f4")), 0, [6], [7]),
    "a kernel of an image": (lambda f: replaced(f, data=np.zeros((4, 4, 6), "f4")), 0, [4, 4, 6]),
    "not a number": (lambda f: replaced(f, data=np.full((16, 6), np.nan, "f4")), 0),
    "another layer": (lambda f: f.move("layers/dense", "layers/conv2d"), "conv2d"),
    "no layers": (lambda f: f.__delitem__("layers"), "layer_names"),
    "a layer that is an array": (
        lambda f: (f.move("layers/dense", "d"), f.create_dataset("layers/dense", data=np.zeros(3, "f4")))[0],
        "/layers/dense",
    ),
}
"""What changes a file of weights, and what its refusal names."""


@pytest.mark.parametrize("case", WRONG_HDF5)
def test_weights_that_are_not_plain_arrays_of_the_file_itself_are_refused(case: str, tmp_path: Path) -> None:
    change, *named = WRONG_HDF5[case]
    path = tmp_path / "x.weights.h5"
    path.write_bytes((FILES / "keras3.weights.h5").read_bytes())
    with h5py.File(path, "a") as file:
        change(file)
    with refused(RunError, path, *named):
        parse_keras(path)


def test_a_layer_list_that_names_a_layer_twice_or_is_no_text_is_refused(tmp_path: Path) -> None:
    for names in ((b"dense_1", b"dense_1"), (1, 2)):
        path = tmp_path / "x.h5"
        path.write_bytes((FILES / "keras2_weights.h5").read_bytes())
        with h5py.File(path, "a") as file:
            file.attrs["layer_names"] = np.array(names)
        with refused(RunError, path, "layer_names"):
            parse_keras(path)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"weights": [1.0] * 99}),
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        b"\x89HDF\r\n\x1a\n" + bytes(99),
        b"PK\x03\x04" + bytes(99),
        None,
    ],
    ids=["pickle", "empty", "png", "hdf5", "zip", "missing"],
)
def test_a_file_of_another_kind_under_keras_name_exits_5(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.keras"
    if content is not None:
        path.write_bytes(content)
    assert main(["import-keras", str(path)]) == 5
    assert_names(capsys.readouterr().err.splitlines()[0], path)
