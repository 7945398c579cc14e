"""What a step and an evaluation must do at least: FLOPs of their products, and bytes between memory and processor.

FLOPs are counted in the traced program, without a gradient for the images. Bytes are those that no schedule can save
once the arrays outgrow the caches: parameters and optimizer state are read and written once, gradients and activations
written and read once, the batch read once. A device whose caches hold them moves less, and may beat the roof.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import NamedTuple

from jaxmlp import train
from jaxmlp.config import ExperimentConfig
from jaxmlp.network import summary

LABEL_BYTES = 4


class Work(NamedTuple):
    """Of one call of something."""

    flops: int
    bytes: int


def step_work(config: ExperimentConfig, image_shape: tuple[int, ...], num_classes: int) -> Work:
    """Of an update with a full batch of uint8 images of this shape."""
    found = summary(config, image_shape, num_classes)
    kept = 2 * (2 * found.params_bytes + found.opt_state_bytes + found.activations_bytes)
    return Work(found.flops_per_step, kept + config.batch_size * (math.prod(image_shape) + LABEL_BYTES))


def eval_work(config: ExperimentConfig, image_shape: tuple[int, ...], num_classes: int, examples: int) -> Work:
    """Of evaluating so many examples: parameters are read once a batch of `train.eval_batch_size`."""
    rows = train.eval_batch_size(examples, config.grad_shards)
    found = summary(dataclasses.replace(config, batch_size=rows), image_shape, num_classes)
    sizes = (math.prod(image_shape), *config.model.hidden_sizes, num_classes)
    products = sum(inputs * outputs for inputs, outputs in itertools.pairwise(sizes))
    params = found.params_bytes * -(-examples // rows)
    activations = 2 * found.activations_bytes * examples // rows
    read = examples * (math.prod(image_shape) + LABEL_BYTES)
    return Work(2 * examples * products, params + activations + read)
