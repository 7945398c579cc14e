"""Faithful: `fit` trains as Keras 2.2.4 does, update by update, and any flax module trains in the MLP's place."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras_reference as keras
import numpy as np
import pytest

from jaxmlp import MLP, SGD, DataConfig, ExperimentConfig, InverseTime, RMSprop, data, train
from jaxmlp.engine import fitting
from jaxmlp.layers import Dropout
from jaxmlp.prng import Stream, root_key, stream_key

EXAMPLES, VALIDATION, CLASSES = 70, 20, 5
IMAGE = (6, 6, 1)

# Both experiments, small: a partial last batch (6 of 16, 10 of 20), three epochs.
RELU = ExperimentConfig(
    model=MLP(hidden_sizes=(12, 9), activation="relu", dropout_rate=0.2),
    optimizer=RMSprop(),
    batch_size=16,
    epochs=3,
)
TANH = ExperimentConfig(
    model=MLP(hidden_sizes=(11, 8), activation="tanh", dropout_rate=0.5),
    data=DataConfig(pixel_scale=1 / 64),
    optimizer=SGD(momentum=0.9, nesterov=True, schedule=InverseTime(decay=1e-2)),
    batch_size=20,
    epochs=3,
)


CONFIGS = {
    "relu": RELU,
    "relu_four_shards": replace(RELU, model=MLP(hidden_sizes=(12, 9), dropout_rate=0.0), grad_shards=4),
    "relu_decay": replace(RELU, optimizer=RMSprop(schedule=InverseTime(decay=1e-1))),
    # Raw pixels: of 210 losses, 137 are clipped from above and 42 from below.
    "relu_mostly_clipped": replace(
        RELU, data=DataConfig(pixel_scale=1.0), optimizer=SGD(learning_rate=1e-4, momentum=0.9)
    ),
    "tanh": TANH,
    "tanh_l1_l2": replace(TANH, model=MLP(**{**vars(TANH.model), "l1": 1e-3, "l2": 1e-2})),
}


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    """Images whose class shows, so that a few epochs move every figure."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, EXAMPLES + VALIDATION)
    patterns = rng.integers(0, 256, (CLASSES, *IMAGE))
    noise = rng.integers(0, 256, (len(labels), *IMAGE))
    images = ((patterns[labels] + noise) // 2).astype(np.uint8)
    held_out = (images[EXAMPLES:], labels[EXAMPLES:])
    return data.from_arrays((images[:EXAMPLES], labels[:EXAMPLES]), held_out, validation="test")


def layers(params: Any) -> list[keras.Array]:
    """kernel, bias, kernel, bias, ... in float64."""
    return [
        np.asarray(params[f"Dense_{layer}"][name], np.float64)
        for layer in range(len(params))
        for name in ("kernel", "bias")
    ]


@jax.jit
def kept_units(config: ExperimentConfig, step: int) -> list[jax.Array]:
    """The units of a whole batch that dropout keeps at `step`: what it leaves of a sigmoid's, which are never zero."""
    root = root_key(config.seed)
    module = MLP(**{**vars(config.model), "activation": "sigmoid"}).module(CLASSES, "float32")
    params = module.init(stream_key(root, Stream.INIT), jnp.zeros((1, *IMAGE)))["params"]
    key = jax.random.fold_in(stream_key(root, Stream.DROPOUT, step), 0)  # Of shard 0, the only one.
    _, captured = module.apply(
        {"params": params},
        jnp.zeros((config.batch_size, *IMAGE)),
        train=True,
        rngs={"dropout": key},
        capture_intermediates=lambda layer, _: isinstance(layer, Dropout),
    )
    dropouts = captured["intermediates"]
    return [dropouts[name]["__call__"][0] != 0 for name in sorted(dropouts)]


def keras_optimizer(config: ExperimentConfig) -> keras.Optimizer:
    optimizer: Any = config.optimizer
    decay = optimizer.schedule.decay if isinstance(optimizer.schedule, InverseTime) else 0.0
    if isinstance(optimizer, SGD):
        return keras.SGD(optimizer.learning_rate, optimizer.momentum, decay, optimizer.nesterov)
    assert isinstance(optimizer, RMSprop)
    return keras.RMSprop(optimizer.learning_rate, optimizer.rho, optimizer.epsilon, decay)


def keras_fit(config: ExperimentConfig, dataset: data.Dataset) -> tuple[list[keras.Array], list[tuple[float, ...]]]:
    """Keras's whole loop in float64, from the project's initial parameters, batch orders and dropout masks.

    Returns:
        The parameters, and for each epoch loss, accuracy, val_loss, val_accuracy.
    """
    on_data, model = config.on_data(CLASSES, 1), config.model
    assert isinstance(model, MLP)
    initial = train.init_state(on_data, np.zeros((1, *IMAGE), np.uint8))
    network = keras.Sequential(layers(initial.params), model.activation, model.dropout_rate, model.l1, model.l2)
    optimizer, step = keras_optimizer(config), 0
    figures: list[tuple[float, ...]] = []
    for epoch in range(config.epochs):
        order = train.epoch_order(on_data, epoch, examples=EXAMPLES)
        losses, accuracies, sizes = [], [], []
        for rows in keras.batches(np.asarray(order)[:EXAMPLES], config.batch_size):
            kept = [np.asarray(mask)[: len(rows)] for mask in kept_units(on_data, step)]
            images, labels = scaled(config, dataset.train.rows(rows))
            loss, accuracy = network.train_on_batch(images, labels, kept, optimizer)
            losses.append(loss)
            accuracies.append(accuracy)
            sizes.append(len(rows))
            step += 1
        assert dataset.validation
        validation = network.evaluate(*scaled(config, dataset.validation))
        figures.append((keras.epoch_mean(losses, sizes), keras.epoch_mean(accuracies, sizes), *validation))
    return network.params, figures


def scaled(config: ExperimentConfig, split: data.Split) -> tuple[keras.Array, keras.Array]:
    return split.inputs.astype(np.float64) * config.data.pixel_scale, split.targets


FIGURES = ("loss", "accuracy", "val_loss", "val_accuracy")


@pytest.mark.parametrize("name", CONFIGS)
def test_fit_gives_the_parameters_and_figures_of_kerass_loop(name: str, dataset: data.Dataset) -> None:
    """Update by update from the same start, in the same order, under the same masks."""
    config = CONFIGS[name]
    history = fitting.fit(config, dataset)
    params, figures = keras_fit(config, dataset)
    # Float32 against float64: parameters of size 1 have roundings of 6e-8 an update; 2e-7 was seen at most.
    for found, expected in zip(layers(history.state.params), params, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose([history[name] for name in FIGURES], np.transpose(figures), rtol=1e-6)


TUTORIAL: dict[str, dict[str, Any]] = {
    "relu_rmsprop": {
        "model": {
            "kind": "mlp",
            "hidden_sizes": [512, 512],
            "activation": "relu",
            "dropout_rate": 0.2,
            "kernel_init": "glorot_uniform",
            "l1": 0.0,
            "l2": 0.0,
        },
        "data": {"name": "mnist", "validation": "test", "pixel_scale": 1 / 255},
        "optimizer": {
            "kind": "rmsprop",
            "learning_rate": 0.001,
            "rho": 0.9,
            "epsilon": 1e-7,
            "epsilon_in_sqrt": False,
            "schedule": {"kind": "constant"},
        },
        "batch_size": 128,
        "epochs": 20,
    },
    "tanh_sgd_nesterov": {
        "model": {
            "kind": "mlp",
            "hidden_sizes": [500, 500],
            "activation": "tanh",
            "dropout_rate": 0.5,
            "kernel_init": "glorot_uniform",
            "l1": 0.0,
            "l2": 0.0,
        },
        "data": {"name": "mnist", "validation": 0.3, "pixel_scale": 1.0},
        "optimizer": {
            "kind": "sgd",
            "learning_rate": 0.01,
            "momentum": 0.9,
            "nesterov": True,
            "schedule": {"kind": "inverse_time", "decay": 1e-6},
        },
        "batch_size": 200,
        "epochs": 50,
    },
}
EITHER = {
    "loss": {"kind": "clipped_cross_entropy", "epsilon": 1e-7},
    "augmentation": [],
    "metrics": [{"kind": "accuracy"}],
    "best_by": "loss",
    "shuffle": True,
    "precision": "float32",
    "grad_shards": 1,
}


@pytest.mark.parametrize("name", TUTORIAL)
def test_both_experiments_are_the_tutorials_value_for_value(name: str) -> None:
    path = Path(__file__).parent.parent / "experiments" / f"{name}.py"
    plain = runpy.run_path(str(path))["CONFIG"].to_dict()
    assert {key: plain[key] for key in plain if key not in ("name", "seed")} == TUTORIAL[name] | EITHER


@pytest.mark.parametrize(("examples", "batch_size", "updates"), [(60_000, 128, 469), (42_000, 200, 210)])
def test_an_epoch_of_both_experiments_trains_the_partial_batch_too(
    examples: int, batch_size: int, updates: int
) -> None:
    config = ExperimentConfig(batch_size=batch_size).on_data(10, updates)
    order = train.epoch_order(config, 0, examples=examples)
    assert len(order) == updates * batch_size
    assert len(list(keras.batches(np.arange(examples), batch_size))) == updates


@pytest.mark.parametrize(
    ("examples", "fraction", "kept"),
    [(60_000, 0.3, 42_000), (100, 0.07, 93), (101, 0.3, 70), (10, 0.25, 7), (99, 0.1, 89), (7, 0.5, 3)],
)
def test_a_validation_fraction_is_cut_off_the_end_where_keras_cuts(examples: int, fraction: float, kept: int) -> None:
    images = np.arange(examples, dtype=np.uint8)[:, None, None, None]
    labels = np.arange(examples) % CLASSES
    made = data.from_arrays((images, labels), (images, labels), validation=fraction)
    assert kept == keras.split_at(examples, fraction)
    assert made.validation
    np.testing.assert_array_equal(made.train.inputs, images[:kept])
    np.testing.assert_array_equal(made.train.targets, labels[:kept])
    np.testing.assert_array_equal(made.validation.inputs, images[kept:])
    np.testing.assert_array_equal(made.validation.targets, labels[kept:])


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3), strides=(2, 2))(images))
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


class RowLSTM(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        rows = images.reshape((*images.shape[:2], -1))
        outputs: Any = nn.RNN(nn.OptimizedLSTMCell(16))(rows)
        return nn.Dense(CLASSES)(outputs[:, -1])


class TwoBranches(nn.Module):
    """Two sizes of filters, joined, with a connection that skips both, and a dropout of its own."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        branches = [nn.relu(nn.Conv(4, size)(images)) for size in [(1, 1), (3, 3)]]
        x = nn.Conv(images.shape[-1], (1, 1))(jnp.concatenate(branches, axis=-1)) + images
        x = nn.Dropout(0.2, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(CLASSES)(x)


class WithRunningMean(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(images.reshape(len(images), -1))
        return nn.Dense(CLASSES)(x)


MODULES = [ConvNet(), RowLSTM(), TwoBranches(), WithRunningMean()]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_any_flax_module_trains_through_the_same_fit(module: nn.Module, dataset: data.Dataset) -> None:
    config = ExperimentConfig(model=module, optimizer=RMSprop(learning_rate=0.01), batch_size=16, epochs=8)
    history = fitting.fit(config, dataset)
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_running_means_move_to_those_of_the_images(dataset: data.Dataset) -> None:
    """Flax keeps 0.99 of the mean an update; padding enters no mean."""
    config = ExperimentConfig(model=WithRunningMean(), batch_size=EXAMPLES, epochs=1)
    history = fitting.fit(config, dataset)
    images = dataset.train.inputs.reshape(EXAMPLES, -1) / 255
    found = history.state.variables["batch_stats"]["BatchNorm_0"]
    # Float32 sums of 70 terms below 1, and 1 - 0.99 as float32 has it.
    np.testing.assert_allclose(found["mean"], 0.01 * images.mean(axis=0), rtol=2e-5)
    np.testing.assert_allclose(found["var"], 0.99 + 0.01 * images.var(axis=0), rtol=2e-5)
