"""How are examples and their targets mixed?"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxmlp.experiment.fields import ranged
from jaxmlp.experiment.parts import Augmentation, Batch

TRIES = 32
"""Number of pairs that are drawn. With probability 1 - 2^-32 or more, at least one of them is accepted."""


class Mixup(Augmentation):
    """part * example + (1 - part) * the next example, the same for the targets; part ~ Beta(alpha, alpha).

    The next example is the next row of the same gradient shard, which shuffling makes random. One part is drawn for
    each update and gradient shard. Weights of examples are mixed too. Source: Zhang et al. 2018.
    """

    kind: ClassVar[str] = "mixup"
    mixes_targets: ClassVar[bool] = True

    alpha: float = ranged(0.2, "(0, 1]", traced=True)
    """Both parameters of the beta distribution. Small values leave most examples almost unmixed; 1 is uniform."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The mixed batch."""
        part = symmetric_beta(key, self.alpha)
        rows = jnp.sum(batch.mask, dtype=jnp.int32)
        following = (jnp.arange(len(batch.mask), dtype=jnp.int32) + 1) % jnp.maximum(rows, 1)

        def mixed(leaf: Array) -> Array:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            return leaf * part.astype(leaf.dtype) + leaf[following] * (1 - part).astype(leaf.dtype)

        weights = None if batch.weights is None else mixed(batch.weights)
        return batch._replace(inputs=jax.tree.map(mixed, batch.inputs), targets=mixed(batch.targets), weights=weights)


def symmetric_beta(key: Key[Array, ""], alpha: float | Float[Array, ""]) -> Float[Array, ""]:
    """A sample of the distribution Beta(alpha, alpha), alpha in (0, 1].

    u^(1/alpha) / (u^(1/alpha) + v^(1/alpha)) for the first u, v, uniform in (0, 1], whose divisor is at most 1. Source:
    Jöhnk 1964. `jax.random.beta` has no portable rule.
    """
    u, v = jnp.log(1 - jax.random.uniform(key, (2, TRIES))) * (1 / jnp.float32(alpha))
    taken = jnp.argmax(jnp.exp(u) + jnp.exp(v) <= 1)
    return 1 / (1 + jnp.exp(v[taken] - u[taken]))
