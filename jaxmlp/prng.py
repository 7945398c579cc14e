"""Named random streams: a key is a function of seed, stream and position, so none is ever stored.

Adding a stream shifts no other, and a resume needs no key from its checkpoint.
"""

from __future__ import annotations

import enum

import jax
from jaxtyping import Array, Int, Key

IMPLEMENTATION = "threefry2x32"
"""JAX documents its bits as the same on CPU, GPU and TPU, however arrays are sharded."""


class Stream(enum.IntEnum):
    """What a key is for. A stream's number is part of every run's bits."""

    INIT = 0
    DROPOUT = 1
    SHUFFLE = 2


def stream_key(seed: int | Int[Array, ""], stream: Stream, position: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """fold_in(fold_in(key(seed), stream), position).

    Args:
        seed: In [0, 2^32).
        stream: What the key is for.
        position: Where in the stream: the step for dropout, the epoch for shuffling.
    """
    root = jax.random.key(seed, impl=IMPLEMENTATION)
    return jax.random.fold_in(jax.random.fold_in(root, int(stream)), position)
