"""The losses that ship: each the loss of an example, whose mean over a batch is taken where its rows are known.

No division here is by a traced value that is broadcast: XLA rewrites those into products in programs of one device
but not in all of several, which costs the equality of their bits.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxmlp.errors import ConfigError
from jaxmlp.fields import ranged
from jaxmlp.parts import Logits, Loss, Targets


class ClippedCrossEntropy(Loss):
    """-log(clip(p[label], epsilon, 1 - epsilon)), p the softmax; no gradient where it clips. Source: Keras 2.2.4.

    Of a distribution, -sum(target * log(clip(p, epsilon, 1 - epsilon))); so too with label smoothing.

    Keras renormalises the softmax, which is the identity in exact arithmetic and is left out. A probability equal to
    a bound passes its gradient on, as TensorFlow's minimum and maximum do; `jnp.clip` would pass half.
    """

    kind: ClassVar[str] = "clipped_cross_entropy"
    needs_classes: ClassVar[bool] = True

    epsilon: float = ranged(1e-7, "(0, 0.5)")
    """Probabilities are clipped to [epsilon, 1 - epsilon]."""
    label_smoothing: float = ranged(0.0, "[0, 1)", optional=True)
    """Part of the target spread evenly over the classes."""

    def __call__(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The rule."""
        exponentials = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        target = distribution(targets, logits)
        if self.label_smoothing or jnp.issubdtype(targets.dtype, jnp.floating):
            smoothed = target * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[-1]
            # Behind the barrier XLA sees no broadcast that it could divide by.
            sums = jnp.broadcast_to(jnp.sum(exponentials, axis=-1, keepdims=True), exponentials.shape)
            return -jnp.sum(smoothed * self._log(exponentials / lax.optimization_barrier(sums)), axis=-1)
        return -self._log(jnp.sum(exponentials * target, axis=-1) / jnp.sum(exponentials, axis=-1))

    def _log(self, probability: Float[Array, "..."]) -> Float[Array, "..."]:
        clipped = lax.stop_gradient(jnp.clip(probability, self.epsilon, 1 - self.epsilon))
        return jnp.log(jnp.where(probability == clipped, probability, clipped))


class CrossEntropy(Loss):
    """-sum(target * log_softmax(logits)), target one-hot mixed with the uniform one by `label_smoothing`."""

    kind: ClassVar[str] = "cross_entropy"
    needs_classes: ClassVar[bool] = True

    label_smoothing: float = ranged(0.0, "[0, 1)")
    """Part of the target spread evenly over the classes."""

    def __call__(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The rule."""
        smoothed = distribution(targets, logits) * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[-1]
        return -jnp.sum(smoothed * jax.nn.log_softmax(logits), axis=-1)


class MeanSquaredError(Loss):
    """Mean over the outputs of (outputs - target)^2; of class labels, of (softmax(logits) - one_hot)^2."""

    kind: ClassVar[str] = "mean_squared_error"

    def __call__(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The rule."""
        if jnp.issubdtype(targets.dtype, jnp.floating):
            return jnp.mean(jnp.square(logits - targets.reshape(logits.shape)), axis=-1)
        exponentials = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        probabilities = exponentials * (1 / jnp.sum(exponentials, axis=-1, keepdims=True))
        return jnp.mean(jnp.square(probabilities - distribution(targets, logits)), axis=-1)


def distribution(targets: Targets, logits: Logits) -> Float[Array, "batch classes"]:
    """The targets as distributions over the classes: of class ids, one-hot; distributions are as they are.

    The id of padding, -1, has zeros alone.

    Raises:
        ConfigError: The targets are numbers, and no distributions.
    """
    if jnp.issubdtype(targets.dtype, jnp.floating):
        if targets.shape != logits.shape:
            wanted = f"must fit the targets: {list(targets.shape)} numbers are no distributions of {logits.shape[-1]}"
            raise ConfigError("loss", f"{wanted} classes. Use a loss of numbers, such as MeanSquaredError()")
        return targets.astype(logits.dtype)
    return jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
