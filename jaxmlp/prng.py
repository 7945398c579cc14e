"""Named random streams: a key is a function of seed, stream and position, so none is ever stored.

Adding a stream shifts no other, and a resume needs no key from its checkpoint.
"""

from __future__ import annotations

import enum
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p, threefry_2x32
from jaxtyping import Array, Bool, Int, Key, UInt32

IMPLEMENTATION = "threefry2x32"
"""JAX documents its bits as the same on CPU, GPU and TPU, however arrays are sharded."""


class Stream(enum.IntEnum):
    """What a key is for. A stream's number is part of every run's bits."""

    INIT = 0
    DROPOUT = 1
    SHUFFLE = 2
    AUGMENTATION = 3


def root_key(seed: int | UInt32[Array, ""]) -> Key[Array, ""]:
    """The key that all streams of a run come from.

    Args:
        seed: In [0, 2^32).
    """
    return jax.random.key(seed, impl=IMPLEMENTATION)


def key_of(words: UInt32[Array, "... 2"]) -> Key[Array, "..."]:
    """The keys that `jax.random.key_data` gives these words of."""
    return jax.random.wrap_key_data(words, impl=IMPLEMENTATION)


def stream_key(root: Key[Array, ""], stream: Stream, position: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """fold_in(fold_in(root, stream), position).

    Args:
        root: From `root_key`.
        stream: What the key is for.
        position: Where in the stream: the step for dropout and augmentation, the epoch for shuffling.
    """
    return jax.random.fold_in(jax.random.fold_in(root, int(stream)), position)


def of_the_device(key: Key[Array, ""]) -> Key[Array, ""]:
    """A key of the device's own generator: faster on accelerators, with other bits on other devices."""
    return jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key), 2), impl="rbg")


def bernoulli(key: Key[Array, ""], probability: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True with `probability`, rounded to a multiple of 2^-16: 16 random bits an element.

    Differs from: `jax.random.bernoulli`, which computes 128 random bits for each element and keeps 23 of them.
    """
    threshold = jnp.uint32(round(probability * 2**16))
    if str(jax.random.key_impl(key)) != IMPLEMENTATION:
        drawn: Bool[Array, "..."] = jax.random.bits(key, shape, jnp.uint16).astype(jnp.uint32) < threshold
        return drawn
    size = math.prod(shape)
    if not shape or shape[0] % 4:
        words = threefry_2x32(jax.random.key_data(key), lax.iota(jnp.uint32, -(-size // 2)))
        # Apart from what uses the elements, or each of these would compute the bits again.
        words = lax.optimization_barrier(words)
        return (jnp.concatenate([words & 0xFFFF, words >> 16])[:size] < threshold).reshape(shape)
    # The same bits in a quarter of the rows: one kernel draws them, and no other moves them.
    first = lax.iota(jnp.uint32, size // 4).reshape(shape[0] // 4, *shape[1:])
    keys = [jnp.broadcast_to(half, first.shape) for half in jax.random.key_data(key)]
    words = threefry2x32_p.bind(*keys, first, first + jnp.uint32(size // 4 % 2**32))
    quarters = [*(each & 0xFFFF for each in words), *(each >> 16 for each in words)]
    kept = [(quarter < threshold).astype(jnp.uint32) << number for number, quarter in enumerate(quarters)]
    packed = lax.optimization_barrier(kept[0] | kept[1] | kept[2] | kept[3])
    number = np.repeat(np.arange(4, dtype=np.uint32), shape[0] // 4).reshape(-1, *[1] * (len(shape) - 1))
    mask: Bool[Array, "..."] = ((jnp.concatenate([packed] * 4) >> number) & 1).astype(bool)
    return mask
