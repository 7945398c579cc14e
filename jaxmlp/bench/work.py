"""What is the least work of a step or an evaluation? FLOPs of its products, and bytes between memory and processor.

FLOPs are counted in the traced program, which has no gradient for the images. The bytes are the least that a device
moves if the arrays do not fit into its caches: parameters and optimizer state are read and written once, gradients and
activations written and read once, the batch read once. A device whose caches hold the arrays moves less, and may beat
the roof.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax

from jaxmlp import data, train
from jaxmlp.engine.network import summary
from jaxmlp.experiment.config import ExperimentConfig


class Work(NamedTuple):
    """The least work of one call."""

    flops: int
    bytes: int


def step_work(config: ExperimentConfig, facts: data.Facts) -> Work:
    """The least work of an update with a full batch."""
    found = summary(config, facts)
    kept = 2 * (2 * found.params_bytes + found.opt_state_bytes + found.activations_bytes)
    return Work(found.flops_per_step, kept + config.batch_size * _example_bytes(facts))


def eval_work(config: ExperimentConfig, facts: data.Facts, examples: int) -> Work:
    """The least work to evaluate examples. Each batch of `train.eval_batch_size` reads the parameters once."""
    rows = train.eval_batch_size(config, examples)
    found = summary(dataclasses.replace(config, batch_size=rows), facts)
    params = found.params_bytes * -(-examples // rows)
    activations = 2 * found.activations_bytes * examples // rows
    read = examples * _example_bytes(facts)
    return Work(found.flops_per_evaluation * examples // rows, params + activations + read)


def _example_bytes(facts: data.Facts) -> int:
    one = facts.zeros(1)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((one.inputs, one.targets)))
