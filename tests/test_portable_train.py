"""The package's own training step goes through `portable` as it is: one shard or several, on one device or several."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp import MLP, Adam, ExperimentConfig, RMSprop, shards, train
from jaxmlp.parts import Optimizer
from jaxmlp.portable import portable
from jaxmlp.prng import root_key

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1)).astype(np.uint8)
LABELS = np.arange(8, dtype=np.int32)


def updated(optimizer: Optimizer, grad_shards: int, devices: int, through: Any) -> Any:
    """State and sums after an update from the seed; `through` is `portable`, or `jax.jit`."""
    config = ExperimentConfig(
        name="small",
        model=MLP(hidden_sizes=(6,)),
        optimizer=optimizer,
        batch_size=8,
        grad_shards=grad_shards,
    )
    mesh = shards.make_mesh(jax.devices()[:devices])
    batch = train.Batch(jnp.asarray(IMAGES), jnp.asarray(LABELS), jnp.ones(8, jnp.float32))

    def step(config: ExperimentConfig, batch: train.Batch) -> Any:
        state = train.init_state(config, batch.inputs[:1])
        return train.train_step(config, state, batch, root_key(config.seed), mesh=mesh)

    return through(step)(config.on_data(10, 1), batch)


def test_an_update_is_jax_s_to_float32_s_precision() -> None:
    got = updated(RMSprop(), 1, 1, lambda step: portable(step, slices=3))
    want = updated(RMSprop(), 1, 1, jax.jit)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # An optimizer divides a gradient by its own size: 2^-12 of a rate of 0.001, where a gradient is near 0.
        assert np.allclose(a, b, rtol=1e-5, atol=2.0**-22)


def test_an_update_of_several_shards_has_the_same_bits_on_any_devices() -> None:
    one, two = (updated(Adam(), 4, devices, portable) for devices in (1, 2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
