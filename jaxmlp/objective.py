"""What is minimised and what is counted, example by example; the mean over a batch is taken where its rows are known.

No division here is by a traced value that is broadcast: XLA rewrites those into products in programs of one device
but not in all of several, which costs the equality of their bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxmlp import config as cfg

LossFn: TypeAlias = Callable[[Float[Array, "batch classes"], Int[Array, " batch"]], Float[Array, " batch"]]


def make_loss(config: cfg.Loss) -> LossFn:
    """The loss of each example, `(logits, labels) -> float32 [batch]`; the class of `config` states the rule."""
    match config:
        case cfg.ClippedCrossEntropy():
            return lambda logits, labels: _clipped_cross_entropy(logits, labels, config.epsilon)
        case cfg.CrossEntropy():
            return lambda logits, labels: _cross_entropy(logits, labels, config.label_smoothing)
        case cfg.MeanSquaredError():
            return _mean_squared_error


def _clipped_cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], epsilon: float
) -> Float[Array, " batch"]:
    """Keras 2.2.4's categorical cross-entropy on softmax outputs.

    Its renormalisation of the softmax is the identity in exact arithmetic and is left out. A probability equal to a
    bound passes its gradient on, as TensorFlow's minimum and maximum do; `jnp.clip` would pass half.
    """
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    exponentials = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    probability = jnp.sum(exponentials * one_hot, axis=-1) / jnp.sum(exponentials, axis=-1)
    clipped = lax.stop_gradient(jnp.clip(probability, epsilon, 1 - epsilon))
    return -jnp.log(jnp.where(probability == clipped, probability, clipped))


def _cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], label_smoothing: float
) -> Float[Array, " batch"]:
    num_classes = logits.shape[-1]
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
    target = one_hot * (1 - label_smoothing) + label_smoothing / num_classes
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def _mean_squared_error(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    exponentials = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    probabilities = exponentials * (1 / jnp.sum(exponentials, axis=-1, keepdims=True))
    return jnp.mean(jnp.square(probabilities - one_hot), axis=-1)


def correct(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Bool[Array, " batch"]:
    """Whether the largest logit, the first of equals, is the label's."""
    return jnp.argmax(logits, axis=-1) == labels


def penalty(config: cfg.ModelConfig, params: Any) -> Float[Array, ""]:
    """l1 * sum(|w|) + l2 * sum(w^2) over all leaves named `kernel`. Source: Keras's `kernel_regularizer`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [leaf for path, leaf in leaves if path[-1] == jax.tree_util.DictKey("kernel")]
    return sum(
        (config.l1 * jnp.sum(jnp.abs(w)) + config.l2 * jnp.sum(jnp.square(w)) for w in kernels), start=jnp.float32(0)
    )
