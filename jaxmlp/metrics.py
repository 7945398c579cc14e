"""The metrics that ship: each a sum over examples, the same bits on any number of devices, and a figure made of it."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxmlp.fields import ranged
from jaxmlp.parts import Logits, Metric, Targets


class Accuracy(Metric):
    """Part of the examples whose largest logit, the first of equals, is the label's."""

    kind: ClassVar[str] = "accuracy"
    needs_classes: ClassVar[bool] = True

    def of_examples(self, logits: Logits, targets: Targets) -> Bool[Array, " batch"]:
        """Whether the answer is right."""
        return jnp.argmax(logits, axis=-1) == labels(targets)

    @property
    def sums_name(self) -> str:
        """The number of right answers."""
        return "correct"


class TopK(Metric):
    """Part of the examples whose label is among the `k` largest logits; of equals, the first count as larger."""

    kind: ClassVar[str] = "top_k"
    needs_classes: ClassVar[bool] = True

    k: int = ranged(3, "[1, 1000000]")
    """How many answers an example has."""

    def of_examples(self, logits: Logits, targets: Targets) -> Bool[Array, " batch"]:
        """Whether the label is among the answers."""
        label = labels(targets)[:, None]
        own = jnp.take_along_axis(logits, jnp.maximum(label, 0), axis=-1)
        earlier = jnp.arange(logits.shape[-1], dtype=label.dtype)[None] < label
        above = (logits > own) | ((logits == own) & earlier)
        return jnp.sum(above, axis=-1) < self.k

    @property
    def name(self) -> str:
        """Such as `top_3`."""
        return f"top_{self.k}"


class MeanAbsoluteError(Metric):
    """Mean over examples and outputs of |output - target|."""

    kind: ClassVar[str] = "mean_absolute_error"
    larger_is_better: ClassVar[bool] = False

    def of_examples(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """Its mean over the outputs."""
        return jnp.mean(jnp.abs(logits - targets.reshape(logits.shape)), axis=-1)


def labels(targets: Targets) -> Int[Array, " batch"]:
    """Class ids: of distributions, the likeliest class, the first of equals."""
    return jnp.argmax(targets, axis=-1) if jnp.issubdtype(targets.dtype, jnp.floating) else targets
