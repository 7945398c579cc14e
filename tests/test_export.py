"""Every export answers as the run it came from, for any number of images, and a bad one is not left behind."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import jax.export
import numpy as np
import pytest
import safetensors.numpy
from refusals import assert_names, refused

from jaxmlp import MLP, DataConfig, ExperimentConfig, data, modules, train
from jaxmlp.cli import main
from jaxmlp.cli.export import ExportFlags
from jaxmlp.engine import network
from jaxmlp.errors import CheckFailed, DiskError, JaxmlpError, RunError, UsageError
from jaxmlp.experiment import mlp
from jaxmlp.export import FORMATS, checked, export, stablehlo
from jaxmlp.export.layers import dense_layers, softmax_of_layers
from jaxmlp.run import files
from jaxmlp.run.digest import digest
from jaxmlp.trained.inference import Model, load_model

ACTIVATIONS = list(mlp.ACTIVATIONS)


@pytest.fixture(scope="module")
def digits(digits_run: Path) -> Model:
    return load_model(digits_run)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """All 1,000 test digits of mnist_5k."""
    found: np.ndarray = data.load(DataConfig(name="mnist_5k", validation=None)).test.inputs
    return found


def made(image_shape: tuple[int, int, int] = (28, 28, 1), precision: str = "float32", **changes: Any) -> Model:
    """A network fresh from its initial parameters, with biases that count."""
    config = ExperimentConfig(name="made", precision=precision, model=MLP(**{"hidden_sizes": (9, 7)} | changes))
    facts = network.MNIST._replace(inputs=data.ArrayFacts("uint8", image_shape))
    state = train.init_state(config.on_data(facts.outputs, 1), facts.zeros(1).inputs)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), state.params)
    return Model(config=config, facts=facts, params=params, variables={}, step=0)


def read_back(name: str, path: Path, loaded: Model, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = importlib.import_module(f"jaxmlp.export.{name}").answers(path, loaded, images)
    return found


def test_the_command_knows_every_format() -> None:
    assert get_args(get_type_hints(ExportFlags)["format"]) == tuple(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_answers_as_the_run_does_on_every_test_digit(
    name: str, digits: Model, images: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    found = export(digits, name, path)
    assert found.path == path and found.bytes > 4 * modules.num_params(digits.params) * 0.8  # orbax compresses
    nothing_learned = dataclasses.replace(digits, params=jax.tree.map(np.zeros_like, digits.params))
    answers = read_back(name, path, nothing_learned, images)
    limit = 0 if FORMATS[name].exact else 1e-5  # what float32 may round otherwise
    np.testing.assert_allclose(answers, digits.probabilities(images), rtol=0, atol=limit)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_the_same_in_numpy_onnx_and_the_program(activation: str, tmp_path: Path) -> None:
    loaded = made(activation=activation)
    images = np.random.default_rng(1).integers(0, 256, (50, 28, 28, 1), np.uint8)
    wanted = loaded.probabilities(images)
    export(loaded, "onnx", tmp_path / "model.onnx")
    found = read_back("onnx", tmp_path / "model.onnx", loaded, images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)  # some roundings of float32
    np.testing.assert_allclose(softmax_of_layers(dense_layers(loaded), images), wanted, rtol=0, atol=2e-6)


def test_a_network_without_hidden_layers_or_of_other_images_is_exported(tmp_path: Path) -> None:
    for name, loaded in {
        "onnx": made(hidden_sizes=()),
        "stablehlo": made((6, 5, 3)),
        "web": made(hidden_sizes=()),
    }.items():
        export(loaded, name, tmp_path / name)
    with refused(RunError, "web", "28 x 28 x 1", "6 x 5 x 3"):
        export(made((6, 5, 3)), "web", tmp_path / "page.html")


def test_a_bfloat16_run_is_exported_as_it_computes_or_in_float32(tmp_path: Path) -> None:
    loaded = made(precision="bfloat16")
    export(loaded, "stablehlo", tmp_path / "program")
    assert "bf16" in jax.export.deserialize(bytearray((tmp_path / "program").read_bytes())).mlir_module()
    export(loaded, "onnx", tmp_path / "model.onnx")
    in_float32 = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, precision="float32"))
    images = checked.probes(network.MNIST)
    found = read_back("onnx", tmp_path / "model.onnx", loaded, images)
    np.testing.assert_allclose(found, in_float32.probabilities(images), rtol=0, atol=1e-5)
    assert np.abs(found - loaded.probabilities(images)).max() > 1e-4


def test_the_program_is_for_cpu_cuda_and_tpu_and_any_number_of_images(tmp_path: Path) -> None:
    loaded = made()
    stablehlo.write(tmp_path / "program", loaded)
    exported = jax.export.deserialize(bytearray((tmp_path / "program").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    (images,) = exported.in_avals
    assert (str(images.shape), images.dtype) == ("(batch, 28, 28, 1)", np.float32)
    for count in (1, 3, 1025):
        assert exported.call(np.zeros((count, 28, 28, 1), np.float32)).shape == (count, 10)


def test_the_safetensors_file_is_the_same_twice_and_says_what_it_holds(tmp_path: Path) -> None:
    loaded = made()
    for name in ("one", "two"):
        export(loaded, "safetensors", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    arrays = safetensors.numpy.load_file(tmp_path / "one")
    assert {name: array.shape for name, array in arrays.items() if "kernel" in name} == {
        "Dense_0/kernel": (784, 9),
        "Dense_1/kernel": (9, 7),
        "Dense_2/kernel": (7, 10),
    }
    with safetensors.safe_open(tmp_path / "one", "np") as file:
        about = json.loads(file.metadata()["jaxmlp"])
    assert ExperimentConfig.from_dict(about["config"]) == loaded.config
    assert (about["params_sha256"], about["image_shape"]) == (digest(loaded.params), [28, 28, 1])


def test_an_export_that_answers_otherwise_is_removed_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = made()
    write = stablehlo.write

    def damaged(path: Path, model: Model) -> None:
        kernel = np.array(model.params["Dense_0"]["kernel"])
        kernel[400, 3] += 1
        write(
            path,
            dataclasses.replace(
                model, params={**model.params, "Dense_0": {**model.params["Dense_0"], "kernel": kernel}}
            ),
        )

    monkeypatch.setattr(stablehlo, "write", damaged)
    with refused(CheckFailed, tmp_path / "program", "1e-05"):
        export(loaded, "stablehlo", tmp_path / "program")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_cannot_be_read_back_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(stablehlo, "answers", full)
    with pytest.raises(MemoryError):
        export(made(), "stablehlo", tmp_path / "program")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_cannot_be_compared_leaves_the_file_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "program").write_text("the one before")
    monkeypatch.setattr(checked, "_otherwise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(made(), "stablehlo", tmp_path / "program")
    assert (tmp_path / "program").read_text() == "the one before"


@pytest.mark.parametrize("name", FORMATS)
def test_a_network_larger_than_a_format_holds_is_refused_before_it_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = made()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    if FORMATS[name].max_bytes is None:
        assert name in ("safetensors", "orbax")
        return
    monkeypatch.setitem(FORMATS, name, FORMATS[name]._replace(max_bytes=size))
    export(loaded, name, tmp_path / "model")
    (tmp_path / "model").unlink()
    monkeypatch.setitem(FORMATS, name, FORMATS[name]._replace(max_bytes=size - 1))
    with refused(RunError, name, "safetensors", "orbax"):
        export(loaded, name, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_page_as_large_as_may_be_can_be_read_back() -> None:
    assert -(-checked.MAX_PAGE // 3) * 4 < files.MAX_TEXT < 1 << 29, "browsers take no longer text"
    assert FORMATS["onnx"].max_bytes == checked.MAX_MESSAGE < (1 << 31) - 1


def test_rounding_allows_no_more_than_a_few_times_its_own_size(tmp_path: Path) -> None:
    """If a network's float32 answers are far from the exact answers, those of another program may be as far."""
    loaded = made(activation="tanh")
    loaded = dataclasses.replace(loaded, params=jax.tree.map(lambda leaf: 40 * leaf, loaded.params))
    found = export(loaded, "onnx", tmp_path / "model.onnx")
    assert found.difference <= max(1e-5, 4 * found.rounding)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_or_of_another_kind_or_network_is_named_and_refused(name: str, tmp_path: Path) -> None:
    loaded, path = made(), tmp_path / "model"
    export(loaded, name, path)
    images = np.zeros((1, 28, 28, 1), np.uint8)
    if path.is_dir():
        (path / "_METADATA").write_bytes(b"{")
        contents: list[bytes | None] = [None]
    else:
        whole = path.read_bytes()
        contents = [whole[: len(whole) // 2], b"", b"hello", b"\x80\x04\x95\x0b." + bytes(99)]
    for content in contents:
        if content is not None:
            path.write_bytes(content)
        with refused(RunError, path):
            read_back(name, path, loaded, images)


@pytest.mark.parametrize("name", ["safetensors", "orbax"])
def test_parameters_of_another_network_are_refused(name: str, tmp_path: Path) -> None:
    export(made(hidden_sizes=(5, 7)), name, tmp_path / "model")
    with refused(JaxmlpError, "Dense_0"):
        read_back(name, tmp_path / "model", made(), np.zeros((1, 28, 28, 1), np.uint8))


def test_a_folder_that_cannot_be_written_or_is_there_already_is_said(tmp_path: Path) -> None:
    for name in FORMATS:
        with refused(DiskError, tmp_path / "nowhere" / "model"):
            export(made(), name, tmp_path / "nowhere" / "model")
    (tmp_path / "mine").mkdir()
    with refused(RunError, tmp_path / "mine", "--out"):
        export(made(), "orbax", tmp_path / "mine")


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnxruntime"), ("orbax", "orbax.checkpoint")])
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with refused(UsageError, f"--format {name}", f"pip install 'jaxmlp[{name}]'"):
        export(made(), name, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_no_package_leaves_an_identifier_behind(tmp_path: Path) -> None:
    code = "from jaxmlp.export import onnx; onnx.packages()"
    # In a CI, onnxruntime leaves no identifier anyway.
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    subprocess.run([sys.executable, "-c", code], env=kept | {"HOME": str(tmp_path), "XDG_CACHE_HOME": ""}, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_the_command_writes_into_the_run_and_says_how_near_it_is(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(digits_run), "--format", "stablehlo", "--json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert set(document) == {"format", "path", "bytes", "difference", "rounding", "code_changed"}
    assert (document["path"], document["format"]) == (str(digits_run / "model.stablehlo"), "stablehlo")
    assert Path(document["path"]).stat().st_size == document["bytes"]
    assert_names(said.err, "256")
    assert main(["export", str(digits_run), "--format", "tflite"]) == 2
    assert_names(capsys.readouterr().err, "--format", "tflite", *FORMATS)
