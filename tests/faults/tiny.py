"""A run of a tenth of a second: two epochs of nine updates of a small network, on noise that can be learned."""

import numpy as np

from jaxmlp import DataConfig, ExperimentConfig, MLP, data
from jaxmlp.data.arrays import Pair


def digits() -> tuple[Pair, Pair]:
    """72 training and 16 test images."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 128, (10, 28, 28, 1), np.uint8)
    labels = rng.integers(0, 10, 88, np.int32)
    images = pictures[labels] + rng.integers(0, 128, (88, 28, 28, 1), np.uint8)
    return (images[:72], labels[:72]), (images[72:], labels[72:])


data.register("tiny", digits)

CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(8,)),
    data=DataConfig(name="tiny", validation="test"),
    batch_size=8,
    epochs=2,
)
