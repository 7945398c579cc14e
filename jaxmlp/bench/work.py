"""What a step and an evaluation must do at least: FLOPs of their products, and bytes between memory and processor.

FLOPs are counted in the traced program, without a gradient for the images. Bytes are those that no schedule can save
once the arrays outgrow the caches: parameters and optimizer state are read and written once, gradients and activations
written and read once, the batch read once. A device whose caches hold them moves less, and may beat the roof.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax

from jaxmlp import data, train
from jaxmlp.engine.network import summary
from jaxmlp.experiment.config import ExperimentConfig


class Work(NamedTuple):
    """Of one call of something."""

    flops: int
    bytes: int


def step_work(config: ExperimentConfig, facts: data.Facts) -> Work:
    """Of an update with a full batch of such examples."""
    found = summary(config, facts)
    kept = 2 * (2 * found.params_bytes + found.opt_state_bytes + found.activations_bytes)
    return Work(found.flops_per_step, kept + config.batch_size * _example_bytes(facts))


def eval_work(config: ExperimentConfig, facts: data.Facts, examples: int) -> Work:
    """Of evaluating so many examples: parameters are read once a batch of `train.eval_batch_size`."""
    rows = train.eval_batch_size(config, examples)
    found = summary(dataclasses.replace(config, batch_size=rows), facts)
    params = found.params_bytes * -(-examples // rows)
    activations = 2 * found.activations_bytes * examples // rows
    read = examples * _example_bytes(facts)
    return Work(found.flops_per_evaluation * examples // rows, params + activations + read)


def _example_bytes(facts: data.Facts) -> int:
    one = facts.zeros(1)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((one.inputs, one.targets)))
