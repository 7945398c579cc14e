"""Which experiments does everyone have? Those that `doctor` trains, with the spread of their results over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final, NamedTuple

from jaxmlp.experiment.config import DataConfig, ExperimentConfig
from jaxmlp.experiment.losses import ClippedCrossEntropy
from jaxmlp.experiment.mlp import MLP
from jaxmlp.experiment.optimizers import SGD, RMSprop
from jaxmlp.experiment.schedules import InverseTime

MNIST_SHA256: Final = "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a"


class Band(NamedTuple):
    """Range in which a figure of a new seed must lie."""

    mean: float
    std: float
    """Standard deviation over the measured seeds, ten or more."""

    @property
    def low(self) -> float:
        """Four standard deviations below the mean.

        By Student's t for ten seeds, 1 right run of 240 lies outside the band.
        """
        return self.mean - 4 * self.std

    @property
    def high(self) -> float:
        """Four standard deviations above the mean."""
        return self.mean + 4 * self.std


RELU_RMSPROP: Final = ExperimentConfig(
    name="relu_rmsprop",
    model=MLP(hidden_sizes=(512, 512), activation="relu", dropout_rate=0.2),
    data=DataConfig(name="mnist", validation="test"),
    optimizer=RMSprop(learning_rate=0.001),
    loss=ClippedCrossEntropy(),
    batch_size=128,
    epochs=20,
)
TANH_SGD_NESTEROV: Final = ExperimentConfig(
    name="tanh_sgd_nesterov",
    model=MLP(hidden_sizes=(500, 500), activation="tanh", dropout_rate=0.5),
    data=DataConfig(name="mnist", validation=0.3, pixel_scale=1.0),
    optimizer=SGD(learning_rate=0.01, momentum=0.9, nesterov=True, schedule=InverseTime(decay=1e-6)),
    loss=ClippedCrossEntropy(),
    batch_size=200,
    epochs=50,
)
QUICKSTART: Final = dataclasses.replace(
    RELU_RMSPROP, name="quickstart", data=DataConfig(name="mnist_5k", validation="test"), epochs=3
)
"""The experiment of `experiments/quickstart.py`, with three epochs: seconds of training."""

REFERENCED: Final = {each.name: each for each in (QUICKSTART, RELU_RMSPROP, TANH_SGD_NESTEROV)}
"""The experiments that have references, by name."""

BANDS: Final = {
    RELU_RMSPROP: {"test_accuracy": Band(0.9836, 0.0008), "test_loss": Band(0.1122, 0.0090)},
    TANH_SGD_NESTEROV: {"test_accuracy": Band(0.9262, 0.0024), "test_loss": Band(0.2405, 0.0072)},
    dataclasses.replace(RELU_RMSPROP, precision="bfloat16"): {
        "test_accuracy": Band(0.9837, 0.0010), "test_loss": Band(0.1114, 0.0098),
    },
    dataclasses.replace(TANH_SGD_NESTEROV, precision="bfloat16"): {
        "test_accuracy": Band(0.9264, 0.0023), "test_loss": Band(0.2376, 0.0065),
    },
}  # fmt: skip
"""Bands from ten seeds on MNIST. docs/results.md has the ranges and the commands that measure them."""


def bands(config: ExperimentConfig, data_sha256: str) -> Mapping[str, Band]:
    """The bands of an experiment, whatever its name, seed and gradient shards. Empty if they are unknown."""
    for known, found in BANDS.items():
        same = dataclasses.replace(config, name=known.name, seed=known.seed, grad_shards=known.grad_shards)
        if same == known and data_sha256 == MNIST_SHA256:
            return found
    return {}
