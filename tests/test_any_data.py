"""Data need not be images with labels: any arrays train, are scored, asked and reported, or are refused by name."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from jaxmlp import data
from jaxmlp.cli import main
from jaxmlp.data.idx import idx_parts
from jaxmlp.engine import network
from jaxmlp.engine.fitting import check_data, fit
from jaxmlp.errors import ConfigError, DataError, RunError
from jaxmlp.experiment.config import DataConfig, ExperimentConfig
from jaxmlp.experiment.losses import CrossEntropy, MeanSquaredError
from jaxmlp.experiment.metrics import MeanAbsoluteError
from jaxmlp.experiment.mlp import MLP
from jaxmlp.export import export
from jaxmlp.report import gather, write_report
from jaxmlp.trained import api
from jaxmlp.trained.inference import model_of

RNG = np.random.default_rng(0)
X: np.ndarray[Any, Any] = RNG.normal(size=(60, 13)).astype(np.float32)
Y = X[:, :2] @ np.asarray([[1, 2], [3, 4]], np.float32)
LABELS = np.arange(60) % 3
IDS = RNG.integers(0, 20, (60, 7))


def split(inputs: Any, targets: Any = LABELS, **options: Any) -> data.Dataset:
    return data.from_arrays((inputs, targets), (inputs, targets), validation="test", **options)


def experiment(**values: Any) -> ExperimentConfig:
    values = {"model": MLP(hidden_sizes=(8,)), "data": DataConfig(pixel_scale=1.0), **values}
    return ExperimentConfig(**{"batch_size": 32, "epochs": 2, **values})


NUMBERS: dict[str, Any] = {"loss": MeanSquaredError(), "metrics": MeanAbsoluteError()}


class OfBoth(nn.Module):
    """Ids and numbers by name."""

    @nn.compact
    def __call__(self, inputs: dict[str, jax.Array]) -> jax.Array:
        words = nn.Embed(20, 4)(inputs["ids"]).mean(axis=1)
        return nn.Dense(3)(jnp.concatenate([words, inputs["x"]], axis=-1))


@pytest.mark.parametrize(
    ("array", "dtype", "shape"),
    [
        (X, "float32", (13,)),
        (np.float64(X), "float32", (13,)),
        (X > 0, "float32", (13,)),
        (IDS, "int32", (7,)),
        (np.uint8(IDS), "uint8", (7,)),
        (X[:, 0], "float32", ()),
        (np.zeros((60, 5, 6, 7)), "float32", (5, 6, 7)),
        (np.zeros((60, 2, 3, 4, 5)), "float32", (2, 3, 4, 5)),
        (np.zeros((60, 49)), "float32", (49,)),
        (np.zeros((60, 64)), "float32", (8, 8, 1)),
        (np.zeros((60, 6, 5), np.uint8), "uint8", (6, 5, 1)),
        (np.zeros((60, 3, 6, 5)), "float32", (6, 5, 3)),
    ],
)
def test_arrays_keep_their_shapes_and_images_are_known_by_theirs(array: Any, dtype: str, shape: Any) -> None:
    dataset = split(array)
    assert dataset.facts.inputs == data.ArrayFacts(dtype, shape)
    assert bool(dataset.facts.image_shape) == (len(shape) == 3 and shape[2] <= 4)
    assert data.Facts.from_plain(dataset.facts.to_plain()) == dataset.facts


def test_what_is_an_image_can_be_said() -> None:
    assert split(np.zeros((60, 64)), images=False).facts.inputs == data.ArrayFacts("float32", (64,))
    assert split(np.zeros((60, 16)), images=True).facts.inputs == data.ArrayFacts("float32", (4, 4, 1))


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda: split(np.full((60, 3), np.nan)), ["inputs", "float32"]),
        (lambda: split(np.full((60, 3), 1 << 40)), ["inputs", "int32"]),
        (lambda: split(np.full((60, 3), "a")), ["inputs", "<U1"]),
        (lambda: split({"ids": IDS, "x": X[1:]}), [59, 60]),
        (lambda: split({}), []),
        (lambda: split(X, np.full(60, np.inf)), ["targets", "float32"]),
        (lambda: split(X, Y, num_classes=3), ["[n, 3]"]),
        (lambda: split(X, LABELS, weights=-np.ones(60)), ["weights", 60]),
        (lambda: split(X, LABELS, weights=np.ones(59)), ["weights", 60, 59]),
        (lambda: data.from_arrays((X, Y), (X, Y[:, :1])), ["test", "float32 (2,)", "float32 (1,)"]),
        (lambda: data.from_arrays((X, LABELS), (IDS, LABELS)), ["test", "float32 (13,)", "int32 (7,)"]),
    ],
)
def test_arrays_that_are_no_examples_are_refused(made: Any, named: list[Any]) -> None:
    with refused(DataError, *named):
        made()


def test_the_sum_is_over_every_array_and_its_name() -> None:
    one = split({"ids": IDS, "x": X})
    hashed = hashlib.sha256()
    for _ in range(2):
        for name, leaf in (("ids", np.int32(IDS)), ("x", X)):
            hashed.update(name.encode() + b"\0" + b"".join(idx_parts(leaf)))
        hashed.update(b"".join(idx_parts(np.uint8(LABELS))))
    assert one.sha256 == hashed.hexdigest()
    others = [
        split({"ids": IDS, "y": X}), split({"ids": IDS + 1, "x": X}), split({"x": X}), split(X), split(X, Y),
        split(X, weights=LABELS + 1), split(X, weights=LABELS + 2),
    ]  # fmt: skip
    assert len({one.sha256, *(other.sha256 for other in others)}) == 8


def test_targets_are_labels_distributions_or_numbers() -> None:
    smooth = np.eye(3)[LABELS] * 0.9 + 0.1 / 3
    facts = [split(X, targets).facts for targets in (LABELS, np.eye(3)[LABELS], smooth, Y, Y[:, 0])]
    assert [each.classes for each in facts] == [True, True, True, False, False]
    assert [each.outputs for each in facts] == [3, 3, 3, 2, 1]
    assert [each.targets.dtype for each in facts] == ["int32", "int32", "float32", "float32", "float32"]


def test_numbers_as_targets_want_a_loss_and_metrics_of_numbers() -> None:
    facts = split(X, Y).facts
    with refused(ConfigError, "loss", "clipped_cross_entropy", "loss=MeanSquaredError()"):
        network.check_network(experiment(), facts)
    with refused(ConfigError, "metrics", "accuracy"):
        network.check_network(experiment(loss=MeanSquaredError()), facts)
    network.check_network(experiment(**NUMBERS), facts)
    with refused(ConfigError, "model", [1, 2], [1, 3]):
        network.check_network(experiment(**{**NUMBERS, "model": nn.Dense(3)}), facts)
    with refused(ConfigError, "loss", [2], [()]):
        network.check_network(experiment(loss=lambda logits, targets: jnp.mean(logits)), split(X).facts)


@pytest.mark.parametrize("inputs", [np.float32(X > 0), np.zeros((60, 8, 8, 1)) + 0.5])
def test_numbers_of_0_to_1_are_not_scaled_as_pixels(inputs: Any) -> None:
    with refused(DataError, 255, "--data.pixel-scale 1"):
        check_data(experiment(data=DataConfig()), split(inputs))
    check_data(experiment(), split(inputs))
    check_data(experiment(data=DataConfig()), split(255 * inputs))


def test_numbers_are_learned_scored_asked_exported_and_reported(tmp_path: Path) -> None:
    data.register("numbers", lambda: ((X, Y), (X, Y)))
    config = experiment(data=DataConfig(name="numbers", pixel_scale=1.0, validation="test"), **NUMBERS)
    trained = fit(config, out=tmp_path / "run")
    found = api.evaluate(trained)
    outputs = model_of(trained).logits(X)
    assert (found.accuracy, found.confusion, found.ci95) == (None, None, None)
    # float32's rounding of sums over 120 numbers.
    np.testing.assert_allclose(found.loss, np.square(outputs - Y).mean(), rtol=1e-5)
    np.testing.assert_allclose(found.metrics["mean_absolute_error"], np.abs(outputs - Y).mean(), rtol=1e-5)
    assert trained["val_mean_absolute_error"][-1] == trained.test["mean_absolute_error"]
    assert [each.numbers for each in api.predict(trained, X[:2])] == [tuple(map(float, row)) for row in outputs[:2]]
    with refused(DataError, "logits"):
        model_of(trained).probabilities(X)
    export(model_of(trained), "stablehlo", tmp_path / "model.stablehlo")
    with refused(RunError, "stablehlo"):
        export(model_of(trained), "onnx", tmp_path / "model.onnx")
    written = write_report(gather([tmp_path / "run"], report=print), tmp_path / "report.html")
    page = written.report.read_text()
    assert "Test mean_absolute_error" in page
    assert not any(word in page for word in ("Test accuracy", "worst mistakes", "First-layer", "Calibration error"))
    assert {path.stem for path in written.plots} == {"loss", "mean_absolute_error", "learning_rate"}


def test_mappings_and_ids_train_on_their_names() -> None:
    inputs = {"ids": IDS, "x": X}
    dataset = split(inputs)
    config = experiment(model=OfBoth(), grad_shards=2)
    trained = fit(config, dataset)
    assert trained.state_sha256 == fit(config, dataset, devices=1, resident_bytes=2048).state_sha256
    assert api.predict(trained, inputs)[0].label in range(3)
    assert network.summary(config, dataset.facts).params == 20 * 4 + 17 * 3 + 3
    with refused(DataError, "int32", "float32"):
        api.predict(trained, {"ids": np.float32(IDS), "x": X})


def test_labels_as_distributions_and_even_weights_train_alike() -> None:
    config = experiment(loss=CrossEntropy())
    states = {
        name: fit(config, split(X, targets, **options))
        for name, targets, options in (
            ("labels", LABELS, {}),
            ("ones", LABELS, {"weights": np.ones(60)}),
            ("weighted", LABELS, {"weights": LABELS + 1}),
            ("smooth", np.eye(3)[LABELS] * 0.9 + 0.1 / 3, {}),
        )
    }
    assert states["ones"].params_sha256 == states["labels"].params_sha256 != states["weighted"].params_sha256
    smoothed = fit(experiment(loss=CrossEntropy(label_smoothing=0.1)), split(X))
    # The same targets, made in float64 and in float32.
    assert states["smooth"]["loss"] == pytest.approx(smoothed["loss"], rel=1e-5)
    assert api.evaluate(states["smooth"]).accuracy == states["smooth"].test_accuracy


def test_predict_prints_the_numbers_of_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    pictures, targets = rng.random((40, 4, 4, 1), np.float32), rng.random((40, 2), np.float32)
    dataset = data.from_arrays((pictures, targets), (pictures, targets), validation="test")
    settings: dict[str, Any] = NUMBERS | {"data": DataConfig(pixel_scale=1.0, validation="test")}
    trained = fit(experiment(**settings), dataset, out=tmp_path / "run")
    np.save(tmp_path / "pictures.npy", pictures[:2])
    words = ["predict", str(tmp_path / "run"), str(tmp_path / "pictures.npy")]
    assert main([*words, "--json", "--csv", str(tmp_path / "found.csv")]) == 0
    found = [each["numbers"] for each in json.loads(capsys.readouterr().out)["predictions"]]
    assert found == [list(each.numbers) for each in api.predict(trained, pictures[:2])]
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert [[float(word) for word in row["numbers"].split()] for row in rows] == found
    assert main([*words, "--show"]) == 0
    assert f"[0]: {found[0][0]:g} {found[0][1]:g}" in capsys.readouterr().out
