"""Which losses ship? Each returns the loss of every example; the caller takes the mean over a batch.

No loss divides by a traced value that is broadcast. XLA rewrites such a division into a product everywhere in a program
for one device, but not everywhere in a program for several devices, so their bits would differ.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxmlp.errors import ConfigError
from jaxmlp.experiment.fields import ranged
from jaxmlp.experiment.parts import Logits, Loss, Targets


class ClippedCrossEntropy(Loss):
    """-log(clip(p[label], epsilon, 1 - epsilon)), p the softmax; no gradient where it clips. Source: Keras 2.2.4.

    For a distribution, and with label smoothing: -sum(target * log(clip(p, epsilon, 1 - epsilon))).

    Keras also renormalises the softmax, which is the identity in exact arithmetic; this loss does not. A probability
    equal to a bound passes its whole gradient on, as TensorFlow's minimum and maximum do; `jnp.clip` would pass half.
    """

    kind: ClassVar[str] = "clipped_cross_entropy"
    needs_classes: ClassVar[bool] = True

    epsilon: float = ranged(1e-7, "(0, 0.5)")
    """Probabilities are clipped to [epsilon, 1 - epsilon]."""
    label_smoothing: float = ranged(0.0, "[0, 1)", optional=True)
    """Fraction of the target that is spread evenly over the classes."""

    def __call__(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The loss of each example."""
        exponentials = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        target = distribution(targets, logits)
        if self.label_smoothing or jnp.issubdtype(targets.dtype, jnp.floating):
            smoothed = target * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[-1]
            # The barrier hides the broadcast from XLA, which would rewrite the division.
            sums = jnp.broadcast_to(jnp.sum(exponentials, axis=-1, keepdims=True), exponentials.shape)
            return -jnp.sum(smoothed * self._log(exponentials / lax.optimization_barrier(sums)), axis=-1)
        return -self._log(jnp.sum(exponentials * target, axis=-1) / jnp.sum(exponentials, axis=-1))

    def _log(self, probability: Float[Array, "..."]) -> Float[Array, "..."]:
        clipped = lax.stop_gradient(jnp.clip(probability, self.epsilon, 1 - self.epsilon))
        return jnp.log(jnp.where(probability == clipped, probability, clipped))


class CrossEntropy(Loss):
    """-sum(target * log_softmax(logits)). `label_smoothing` mixes the one-hot target with the uniform distribution."""

    kind: ClassVar[str] = "cross_entropy"
    needs_classes: ClassVar[bool] = True

    label_smoothing: float = ranged(0.0, "[0, 1)")
    """Fraction of the target that is spread evenly over the classes."""

    def __call__(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The loss of each example."""
        smoothed = distribution(targets, logits) * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[-1]
        return -jnp.sum(smoothed * jax.nn.log_softmax(logits), axis=-1)


class MeanSquaredError(Loss):
    """Mean over the outputs of (outputs - target)^2; for class labels, of (softmax(logits) - one_hot)^2."""

    kind: ClassVar[str] = "mean_squared_error"

    def __call__(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The loss of each example."""
        if jnp.issubdtype(targets.dtype, jnp.floating):
            return jnp.mean(jnp.square(logits - targets.reshape(logits.shape)), axis=-1)
        exponentials = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        probabilities = exponentials * (1 / jnp.sum(exponentials, axis=-1, keepdims=True))
        return jnp.mean(jnp.square(probabilities - distribution(targets, logits)), axis=-1)


def distribution(targets: Targets, logits: Logits) -> Float[Array, "batch classes"]:
    """The targets as distributions over the classes. Class ids become one-hot; distributions stay as they are.

    The class id of padding, -1, becomes a row of zeros.

    Raises:
        ConfigError: The targets are numbers and their shape differs from the logits' shape.
    """
    if jnp.issubdtype(targets.dtype, jnp.floating):
        if targets.shape != logits.shape:
            wanted = (
                f"must fit the targets: {list(targets.shape)} numbers are not distributions over {logits.shape[-1]}"
            )
            raise ConfigError("loss", f"{wanted} classes. Use a loss for numbers, such as MeanSquaredError()")
        return targets.astype(logits.dtype)
    return jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
