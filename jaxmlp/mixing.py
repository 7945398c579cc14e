"""Augmentations that mix examples with each other, and their targets likewise."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxmlp.fields import ranged
from jaxmlp.parts import Augmentation, Batch


class Mixup(Augmentation):
    """part * example + (1 - part) * the next example of its shard, and so the targets; part ~ Beta(alpha, alpha).

    One part is drawn for each update and gradient shard. Of a shuffled batch the next example is any other. Weights of
    examples are mixed too. Source: Zhang et al. 2018.
    """

    kind: ClassVar[str] = "mixup"
    mixes_targets: ClassVar[bool] = True

    alpha: float = ranged(0.2, "(0, inf)", traced=True)
    """Both parameters of the beta distribution: small ones leave most examples nearly alone."""

    def __call__(self, key: Key[Array, ""], batch: Batch) -> Batch:
        """The rule."""
        part = jax.random.beta(key, self.alpha, self.alpha, dtype=jnp.float32)
        rows = jnp.sum(batch.mask, dtype=jnp.int32)
        following = (jnp.arange(len(batch.mask), dtype=jnp.int32) + 1) % jnp.maximum(rows, 1)

        def mixed(leaf: Array) -> Array:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            return leaf * part.astype(leaf.dtype) + leaf[following] * (1 - part).astype(leaf.dtype)

        weights = None if batch.weights is None else mixed(batch.weights)
        return batch._replace(inputs=jax.tree.map(mixed, batch.inputs), targets=mixed(batch.targets), weights=weights)
