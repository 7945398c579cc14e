"""Prints a digest of a few updates of small networks, portable and plain: `portable_digest.py UPDATES [op-by-op]`.

`make test-portable` compares them under other flags, and so do the tests, for fewer networks.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxmlp.portable import portable


class Perceptron(nn.Module):
    """Dense layers with dropout."""

    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = getattr(nn, self.activation)(nn.Dense(96)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.Dropout(0.2, deterministic=False)(x))


class Convolutional(nn.Module):
    """A convolution, a norm and a pooling."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3), strides=2)(x)), (2, 2), (2, 2))
        return nn.Dense(10)(nn.LayerNorm()(x.reshape(len(x), -1)))


NETWORKS: dict[str, tuple[nn.Module, Any]] = {
    "relu rmsprop": (Perceptron("relu"), optax.rmsprop(1e-3)),
    "gelu adamw": (Perceptron("gelu"), optax.adamw(optax.cosine_decay_schedule(1e-3, 20))),
    "conv nesterov": (Convolutional(), optax.sgd(0.01, 0.9, nesterov=True)),
}


def digest(name: str, updates: int, plain: bool) -> str:
    """SHA-256 of all that training leaves."""
    module, optimizer = NETWORKS[name]
    change: Any = optimizer.update
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 12, 12, 1)).astype(np.uint8)
    labels = rng.integers(0, 10, 64).astype(np.int32)

    def update(params: Any, state: Any, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            scaled = jnp.asarray(images).astype(jnp.float32) * jnp.float32(1 / 255)
            logits = module.apply({"params": params}, scaled, rngs={"dropout": key})
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)))

        value, grads = jax.value_and_grad(loss)(params)
        changes, state = change(grads, state, params)
        return optax.apply_updates(params, changes), state, value

    def train(seed: jax.Array, updates: jax.Array) -> Any:
        def body(i: jax.Array, carry: Any) -> Any:
            params, state, _ = carry
            return update(params, state, jax.random.fold_in(jax.random.key(seed), i))

        return lax.fori_loop(0, updates, body, (start, optimizer.init(start), jnp.float32(0)))

    shapes = jax.eval_shape(
        lambda: module.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, images[:1])["params"]
    )
    start = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.1, s.shape).astype(np.float32)), shapes)
    if jax.config.jax_disable_jit:
        state = (start, optimizer.init(start), np.float32(0))
        step: Any = update if plain else portable(update)
        for i in range(updates):
            state = step(*state[:2], jax.random.fold_in(jax.random.key(7), i))
        out = state
    else:
        out = (jax.jit(train) if plain else portable(train))(np.uint32(7), np.int32(updates))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(out))).hexdigest()


def main() -> None:
    updates = int(sys.argv[1])
    jax.config.update("jax_disable_jit", "op-by-op" in sys.argv)
    names = os.environ.get("NETWORKS", ",".join(NETWORKS)).split(",")
    kinds = [("portable", False)] + ([] if "op-by-op" in sys.argv else [("plain", True)])
    print(json.dumps({kind: {name: digest(name, updates, plain) for name in names} for kind, plain in kinds}))


if __name__ == "__main__":
    main()
