"""Which random stream belongs to which step? A key is a function of seed, stream and position, so none is stored.

Adding a stream changes no other stream, and a resume needs no key from its checkpoint.
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
"""The generator. JAX documents that its bits are the same on CPU, GPU and TPU, for any sharding of arrays."""


class Stream(enum.IntEnum):
    """The purpose of a key. The number of a stream affects every run's bits."""

    INIT = 0
    DROPOUT = 1
    SHUFFLE = 2
    AUGMENTATION = 3


def root_key(seed: int | UInt32[Array, ""]) -> Key[Array, ""]:
    """The key from which all streams of a run derive.

    Args:
        seed: Seed in [0, 2^32).
    """
    return jax.random.key(seed, impl=IMPLEMENTATION)


def key_of(words: UInt32[Array, "... 2"]) -> Key[Array, "..."]:
    """The keys whose words, as in `jax.random.key_data`, are given."""
    return jax.random.wrap_key_data(words, impl=IMPLEMENTATION)


def stream_key(root: Key[Array, ""], stream: Stream, position: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """fold_in(fold_in(root, stream), position).

    Args:
        root: Key from `root_key`.
        stream: Purpose of the key.
        position: Position in the stream: the step for dropout and augmentation, the epoch for shuffling.
    """
    return jax.random.fold_in(jax.random.fold_in(root, int(stream)), position)


def of_the_device(key: Key[Array, ""]) -> Key[Array, ""]:
    """A key for the device's own generator, which is faster on accelerators. Other devices give other bits."""
    return jax.random.wrap_key_data(jnp.tile(jax.random.key_data(key), 2), impl="rbg")


def bernoulli(key: Key[Array, ""], probability: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True with `probability`, rounded to a multiple of 2^-16. Draws 16 random bits per element.

    Differs from: `jax.random.bernoulli`, which computes 128 random bits per element and uses 23 of them.
    """
    threshold = jnp.uint32(round(probability * 2**16))
    if str(jax.random.key_impl(key)) != IMPLEMENTATION:
        drawn: Bool[Array, "..."] = jax.random.bits(key, shape, jnp.uint16).astype(jnp.uint32) < threshold
        return drawn
    size = math.prod(shape)
    if not shape or shape[0] % 4:
        words = threefry_2x32(jax.random.key_data(key), lax.iota(jnp.uint32, -(-size // 2)))
        # The barrier keeps each user of the elements from computing the bits again.
        words = lax.optimization_barrier(words)
        return (jnp.concatenate([words & 0xFFFF, words >> 16])[:size] < threshold).reshape(shape)
    # The same bits, of which no kernel moves any: a counter has two words, so it decides on four elements, one in each
    # quarter of the rows. The four decisions are packed into one word, and each quarter reads its own bit.
    first = lax.iota(jnp.uint32, size // 4).reshape(shape[0] // 4, *shape[1:])
    keys = [jnp.broadcast_to(half, first.shape) for half in jax.random.key_data(key)]
    words = threefry2x32_p.bind(*keys, first, first + jnp.uint32(size // 4 % 2**32))
    quarters = [*(each & 0xFFFF for each in words), *(each >> 16 for each in words)]
    kept = [(quarter < threshold).astype(jnp.uint32) << number for number, quarter in enumerate(quarters)]
    packed = lax.optimization_barrier(kept[0] | kept[1] | kept[2] | kept[3])
    number = np.repeat(np.arange(4, dtype=np.uint32), shape[0] // 4).reshape(-1, *[1] * (len(shape) - 1))
    mask: Bool[Array, "..."] = ((jnp.concatenate([packed] * 4) >> number) & 1).astype(bool)
    return mask
