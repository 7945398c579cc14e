"""How fast is the same update in plain JAX and optax, which runs no code of jaxmlp?

`compare` divides the times of jaxmlp by this one. A neighbour on the same server slows products, caches and memory down
by different factors. So only a training shows by how much trainings are slower at the moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, UInt8, UInt32

from jaxmlp.bench.timing import TimedProgram

type Params = list[tuple[Float[Array, "inputs units"], Float[Array, " units"]]]
type Rows = tuple[UInt8[Array, "rows pixels"], Int[Array, " rows"]]

RATE = 0.2
"""Dropout rate of the hidden layers."""
KEY = np.zeros(2, np.uint32)
"""The words of a threefry key."""
OPTIMIZER = optax.rmsprop(0.001)


def plain_step(batch_size: int, sizes: Sequence[int], examples: int) -> TimedProgram:
    """An update of the base in float32 on one device, as one writes it in plain JAX.

    Args:
        batch_size: Rows of an update.
        sizes: Sizes of the layers, from the pixels to the classes.
        examples: Random images to train on.
    """
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (examples, sizes[0]), np.uint8), rng.integers(0, sizes[-1], examples)
    split = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    kernels = [jnp.asarray(rng.normal(0, shape[0] ** -0.5, shape), jnp.float32) for shape in pairwise(sizes)]
    params = [(kernel, jnp.zeros(kernel.shape[1])) for kernel in kernels]
    held = [(params, OPTIMIZER.init(params))]

    def update(count: int) -> None:
        held[0] = jax.block_until_ready(train(batch_size, held[0], split, count))

    return TimedProgram(what="plain step", run=update, examples=batch_size, batch_size=batch_size, width=sizes[1])


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train(batch_size: int, state: Any, split: Rows, count: int) -> Any:
    """Make `count` updates on random batches. `state` is a pair: parameters, optimizer state."""

    def loss(params: Params, images: Any, labels: Any, key: UInt32[Array, "2"]) -> Any:
        *hidden, (last, last_bias) = params
        x = images.astype(jnp.float32) / 255
        for number, (kernel, bias) in enumerate(hidden):
            x = jax.nn.relu(x @ kernel + bias[None])
            kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - RATE, x.shape)
            x = jnp.where(kept, x / (1 - RATE), 0.0)
        return optax.softmax_cross_entropy_with_integer_labels(x @ last + last_bias[None], labels).mean()

    def update(index: Int[Array, ""], state: Any) -> Any:
        params, opt_state = state
        key = jax.random.fold_in(KEY, index)
        rows = jax.random.randint(key, (batch_size,), 0, len(split[0]))
        grads = jax.grad(loss)(params, *(array[rows] for array in split), key)
        updates, opt_state = OPTIMIZER.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    return lax.fori_loop(0, count, update, state)
