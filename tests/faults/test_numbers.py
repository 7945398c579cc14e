"""Numbers at their ends: a training comes to what a plain computation comes to, or ends in 7, 2 or 4 with a message."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import assert_names, refused

from jaxmlp import (
    MLP,
    SGD,
    Adam,
    AdamW,
    ClippedCrossEntropy,
    CrossEntropy,
    DataConfig,
    ExperimentConfig,
    Exponential,
    MeanSquaredError,
    RMSprop,
    data,
    fit,
)
from jaxmlp.engine.history import History
from jaxmlp.errors import ConfigError, DataError, DivergedError
from jaxmlp.run.directory import RunDirectory

SMALL = MLP(hidden_sizes=(5,), dropout_rate=0.0)
OPTIMIZERS = (SGD, RMSprop, Adam, AdamW)
LOSSES = (ClippedCrossEntropy(), CrossEntropy(), MeanSquaredError())
PAIRS = [pytest.param(optimizer, LOSSES[i % 3], id=optimizer.__name__) for i, optimizer in enumerate(OPTIMIZERS)]


def dataset(examples: int, *, classes: int = 3, images: Any = None, labels: Any = None) -> data.Dataset:
    """Noise of 4 x 4 pixels, or the given examples, as the training, validation and test split."""
    rng = np.random.default_rng(examples)
    images = rng.integers(0, 256, (examples, 4, 4), np.uint8) if images is None else images
    labels = rng.integers(0, classes, examples) if labels is None else labels
    return data.from_arrays((images, labels), (images, labels), validation=(images, labels), num_classes=classes)


def config(**values: Any) -> ExperimentConfig:
    return ExperimentConfig(
        **{"model": SMALL, "epochs": 2, "batch_size": 4, "optimizer": SGD(learning_rate=0.1)} | values
    )


def is_finite(history: History) -> bool:
    figures: list[Any] = [value for record in history.records for value in record.line().values()]
    figures = [value for value in figures if value is not None]
    figures += [history.test_loss, history.test_accuracy]
    leaves = [leaf for layer in history.state.params.values() for leaf in layer.values()]
    return all(map(math.isfinite, figures)) and all(np.isfinite(leaf).all() for leaf in leaves)


def outcome(chosen: ExperimentConfig, examples: data.Dataset, **how: Any) -> str:
    """What came of a training; an error that is none of 7, 2 and 4 is raised."""
    try:
        history = fit(chosen, examples, **how)
    except DivergedError as error:
        assert_names(str(error), "--optimizer.learning-rate")
        return "diverged"
    except (ConfigError, DataError):
        return "refused"
    assert history.status == "finished"
    assert is_finite(history), history.records
    return "finished"


def plain_loss(params: Any, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean clipped cross-entropy and accuracy of the network, in float64, in NumPy."""
    x = images.reshape(len(images), -1) / 255
    hidden = np.maximum(x @ np.float64(params["Dense_0"]["kernel"]) + params["Dense_0"]["bias"], 0)
    logits = hidden @ np.float64(params["Dense_1"]["kernel"]) + params["Dense_1"]["bias"]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    losses = -np.log(np.clip(p[np.arange(len(labels)), labels], 1e-7, 1 - 1e-7))
    return float(losses.mean()), float((p.argmax(axis=1) == labels).mean())


@pytest.mark.parametrize(("examples", "batch_size"), [(1, 1), (5, 2), (7, 7), (513, 512)])
def test_every_example_counts_once_however_small_the_last_batch(examples: int, batch_size: int) -> None:
    """At a rate of 0 the parameters stay, so that an epoch's figures are those of all its examples."""
    found = dataset(examples)
    history = fit(config(batch_size=batch_size, optimizer=SGD(learning_rate=0.0)), found)
    loss, accuracy = plain_loss(history.state.params, found.train.inputs, found.train.targets)
    for record in history.records:
        # float32's rounding over as many additions as there are examples.
        assert [record.loss, record.val_loss] == pytest.approx([loss, loss], rel=1e-5)
        assert record.accuracy == record.val_accuracy == accuracy
        assert record.steps == record.epoch * -(-examples // batch_size)
    assert [history.test_loss, history.test_accuracy] == pytest.approx([loss, accuracy], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_updates_of_a_last_batch_of_one_are_those_of_plain_gradient_descent(batch_size: int) -> None:
    """Three epochs, unshuffled, in NumPy and float64: a remainder of 1 weighs as one example, not as a batch."""
    found = dataset(5)
    chosen = config(batch_size=batch_size, epochs=3, shuffle=False)
    start = fit(config(batch_size=batch_size, optimizer=SGD(learning_rate=0.0)), found).state.params
    params = {name: {k: np.float64(v) for k, v in layer.items()} for name, layer in start.items()}
    x, labels = found.train.inputs.reshape(5, -1) / 255, found.train.targets
    for _ in range(3):
        for begin in range(0, 5, batch_size):
            rows, wanted = x[begin : begin + batch_size], labels[begin : begin + batch_size]
            before = rows @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
            hidden = np.maximum(before, 0)
            logits = hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            d_logits = (e / e.sum(axis=1, keepdims=True) - np.eye(3)[wanted]) / len(rows)
            d_hidden = d_logits @ params["Dense_1"]["kernel"].T * (before > 0)
            for name, inputs, d in (("Dense_1", hidden, d_logits), ("Dense_0", rows, d_hidden)):
                params[name]["kernel"] -= 0.1 * inputs.T @ d
                params[name]["bias"] -= 0.1 * d.sum(axis=0)
    trained = fit(chosen, found).state.params
    for name, layer in params.items():
        for leaf, value in layer.items():
            np.testing.assert_allclose(trained[name][leaf], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("optimizer", "loss"), PAIRS)
def test_a_rate_of_a_million_ends_finite_or_in_7(optimizer: Any, loss: Any) -> None:
    for rate in (1e6, 3e38):
        chosen = config(optimizer=optimizer(learning_rate=rate), loss=loss, epochs=12)
        assert outcome(chosen, dataset(9, classes=2)) in ("finished", "diverged")


EXTREMES: dict[str, tuple[dict[str, Any], str]] = {
    "a rate at float32's end": ({"optimizer": SGD(learning_rate=3e38)}, "diverged"),
    "a weight decay at float32's end": ({"model": MLP(hidden_sizes=(5,), l2=3e38)}, "diverged"),
    "a lasso at float32's end": ({"model": MLP(hidden_sizes=(5,), l1=3e38)}, "diverged"),
    "pixels beyond float32": ({"data": DataConfig(pixel_scale=3e38)}, "diverged"),
    "pixels that vanish": ({"data": DataConfig(pixel_scale=1e-38)}, "finished"),
    "a schedule that grows beyond float32": (
        {"optimizer": SGD(schedule=Exponential(decay_rate=1e30, decay_steps=1.0))},
        "diverged",
    ),
    "nearly all units dropped": ({"model": MLP(hidden_sizes=(5,), dropout_rate=1 - 1e-7)}, "finished"),
    "nearly all of a label smoothed": ({"loss": CrossEntropy(label_smoothing=1 - 1e-7)}, "finished"),
    "a clip that keeps nothing": ({"loss": ClippedCrossEntropy(epsilon=0.5 - 1e-7)}, "finished"),
}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_an_extreme_value_ends_finite_or_in_7(extreme: str) -> None:
    values, wanted = EXTREMES[extreme]
    assert outcome(config(**values), dataset(9)) == wanted


@pytest.mark.parametrize(("optimizer", "loss"), PAIRS)
def test_constant_pixels_and_one_class_train_to_finite_values(optimizer: Any, loss: Any) -> None:
    for value, classes in itertools.product((0, 255), (1, 2)):
        images = np.full((9, 4, 4), value, np.uint8)
        labels = np.zeros(9, int)
        found = dataset(9, classes=classes, images=images, labels=labels)
        chosen = config(optimizer=optimizer(learning_rate=0.01), loss=loss, epochs=4)
        history = fit(chosen, found)
        assert is_finite(history)
        if classes == 1:
            assert history.test_accuracy == 1.0


class Poisoned(nn.Module):
    """Its gradient is not a number, although its loss is finite: the root of a zero that is multiplied by zero."""

    @nn.compact
    def __call__(self, images: Any, *, train: bool = False) -> Any:
        flat = images.reshape(len(images), -1)
        logits = nn.Dense(3, name="Dense_0")(flat)
        return logits + 0 * jnp.sqrt(logits * 0)


def test_a_gradient_that_is_not_a_number_ends_in_7_at_its_step() -> None:
    with refused(DivergedError, 0, 1, "Dense_0"):
        fit(config(model=Poisoned()), dataset(9))


def test_a_run_that_diverges_says_so_and_keeps_its_epochs_and_checkpoints(tmp_path: Path) -> None:
    chosen = config(optimizer=SGD(schedule=Exponential(decay_rate=10.0, decay_steps=1.0)), epochs=40)
    with RunDirectory.create(tmp_path / "run", chosen, {}) as run, pytest.raises(DivergedError) as error:
        fit(chosen, dataset(9), run=run, checkpoint_s=0)
    read = RunDirectory.open(tmp_path / "run", write=False)
    assert read.status == "diverged"
    assert read.epochs()
    for line in read.epochs():
        assert None not in line.values()
    good = read.newest_checkpoint(pytest.fail)
    assert good and all(np.isfinite(array).all() for array in good.arrays.values())
    assert_names(str(error.value), good.path.stem)


def test_scores_that_are_not_finite_are_told_and_never_a_success(tmp_path: Path, capsys: Any) -> None:
    """Training images are sane, those of the test beyond what float32 can multiply."""
    images = np.random.default_rng(0).random((9, 4, 4), np.float32)
    labels = np.arange(9) % 3
    test = (images * np.float32(3e38), labels)
    found = data.from_arrays((images, labels), test, validation=test)
    for loss in LOSSES:
        chosen = config(loss=loss, data=DataConfig(pixel_scale=1.0), model=MLP(hidden_sizes=(50,)))
        with pytest.raises(DivergedError):
            fit(chosen, found)
