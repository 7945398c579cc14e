"""How do examples lie on the device, and which of them form a batch?

An epoch's order is an array of row numbers, padded to whole batches with `PADDING`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from jaxmlp import shards
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.parts import Batch
from jaxmlp.prng import Stream, root_key, stream_key

PADDING = -1
"""Entry of an epoch's order for a row of padding."""
TILE = 128
"""Columns of a tile, in which a TPU stores arrays."""
FEW_TILES = 4
"""Rows of at most this many tiles are not padded to whole tiles, because too much of them would be zeros."""


@partial(jax.tree_util.register_dataclass, data_fields=["flat"], meta_fields=["shape"])
@dataclass(frozen=True)
class Rows:
    """Examples of one shape, each flattened to a row of numbers.

    A TPU stores an array in tiles of 128 columns. It would copy images, and long rows that do not fill their last tile,
    into another layout in every call.
    """

    flat: Shaped[Array, "examples columns"]
    """The rows. Long rows are padded with zeros to whole tiles."""
    shape: tuple[int, ...]
    """Shape of one example."""

    @classmethod
    def of(cls, array: np.ndarray, axes: int = 1) -> Rows:
        """Make rows of a host array whose first `axes` dimensions count examples."""
        rows, shape = array.shape[:axes], array.shape[axes:]
        size = math.prod(shape)
        flat = array.reshape(*rows, size)
        if size > FEW_TILES * TILE and size % TILE:
            flat = np.pad(flat, [*[(0, 0)] * axes, (0, -size % TILE)])
        return cls(flat, shape)  # type: ignore[arg-type]  # a device has it later

    def __getitem__(self, rows: Int[Array, " rows"]) -> Shaped[Array, "rows ..."]:
        return self.flat[rows][:, : math.prod(self.shape)].reshape(len(rows), *self.shape)


class DeviceSplit(NamedTuple):
    """Examples on the device. Each update scales its own pixels."""

    inputs: Any
    """`Rows`, an array, or a tree of these."""
    targets: Num[Array, "examples ..."]
    """Class ids, distributions or numbers."""
    weights: Float[Array, " examples"] | None = None
    """Weight of each example's loss. None weighs all examples alike."""
    mask: Bool[Array, " examples"] | None = None
    """True in rows that hold an example. None if all rows do. Streamed pieces have rows without one at their end."""

    @classmethod
    def of(cls, split: Any, mask: Any = None) -> DeviceSplit:
        """Make a split for the device from one on the host, `[examples, ...]`, or `[*mask.shape, ...]` with a mask."""
        rows = partial(Rows.of, axes=1 if mask is None else mask.ndim)
        return cls(jax.tree.map(rows, split.inputs), split.targets, split.weights, mask)


@partial(jax.jit, static_argnames="examples")
def epoch_order(config: ExperimentConfig, epoch: Int[Array, ""], *, examples: int) -> Int[Array, " padded"]:
    """The order of the examples in an epoch: each example once, then `PADDING` to a whole number of batches.

    Epochs count from 0.
    """
    order = jnp.arange(examples, dtype=jnp.int32)
    if config.shuffle:
        order = jax.random.permutation(stream_key(root_key(config.seed), Stream.SHUFFLE, epoch), order)
    return jnp.pad(order, (0, -examples % config.batch_size), constant_values=PADDING)


def take_batch(
    split: DeviceSplit,
    order: Int[Array, " padded"],
    index: Int[Array, ""],
    batch_size: int,
    *,
    mesh: Mesh | None = None,
) -> Batch:
    """Batch `index` of an epoch with this order. With a mesh, only the rows of this device, inside `shards.on_devices`.

    Rows of padding have mask 0 and repeat an example, so losses, metrics and modules see valid inputs only.
    """
    rows = shards.own_rows(_rows_of_batch(order, index, batch_size), mesh)
    inputs, targets, weights = jax.tree.map(
        lambda leaf: leaf[rows],
        (split.inputs, split.targets, split.weights),
        is_leaf=lambda node: isinstance(node, Rows),
    )
    return Batch(inputs, targets, _is_example(split, rows).astype(jnp.float32), weights)


def num_examples(
    split: DeviceSplit, order: Int[Array, " padded"], index: Int[Array, ""], batch_size: int
) -> Float[Array, ""]:
    """Number of examples in batch `index`, over all devices, padding not counted."""
    return jnp.sum(_is_example(split, _rows_of_batch(order, index, batch_size)), dtype=jnp.float32)


def _rows_of_batch(order: Int[Array, " padded"], index: Int[Array, ""], batch_size: int) -> Int[Array, " batch"]:
    """The row numbers of batch `index`, over all devices. `PADDING` where there is no example."""
    return lax.dynamic_slice_in_dim(order, index * batch_size, batch_size)


def _is_example(split: DeviceSplit, rows: Int[Array, " rows"]) -> Bool[Array, " rows"]:
    return rows != PADDING if split.mask is None else (rows != PADDING) & split.mask[rows]
