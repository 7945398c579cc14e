"""Which examples are on the device: all of a split; or, where they are too many, those of the next updates alone.

Either way the same functions of `train` see the same batches, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jaxmlp import data, shards, train
from jaxmlp.config import ExperimentConfig

RESIDENT_BYTES = 4 << 30
"""Bytes of images up to which a split stays on the device. MNIST's have 47 MB."""


class Feed:
    """A split, as `train_steps` and `evaluate` take it.

    Args:
        split: On the host.
        config: The experiment.
        mesh: Whose devices hold the examples.
        resident_bytes: Of images that may be on a device at a time; at least a batch is.
    """

    def __init__(
        self, split: data.Split, config: ExperimentConfig, mesh: Mesh, resident_bytes: int = RESIDENT_BYTES
    ) -> None:
        self.split = split
        self.batch_size = config.batch_size
        self.mesh = mesh
        examples, rows = len(split.labels), resident_bytes // split.images[0].nbytes
        self.resident = self._put(split) if rows >= examples else None
        self.steps = max(1, rows // config.batch_size)
        """Updates whose examples fit."""
        eval_rows = train.eval_batch_size(examples, config.grad_shards)
        self.piece_rows = eval_rows * max(1, min(rows, examples) // eval_rows)
        """Examples evaluated a call: whole batches."""

    def limit(self, start: int, stop: int) -> int:
        """The last update before `stop` up to which `updates(order, start, ...)` can go."""
        return stop if self.resident else min(stop, start + self.steps)

    def updates(
        self, order: Int[Array, " padded"], start: int, stop: int
    ) -> tuple[train.Split, Int[Array, " padded"], int, int]:
        """Arguments of `train_steps` for the epoch's updates `start` to `stop`: split, order, start and stop."""
        if self.resident:
            return self.resident, order, start, stop
        rows = np.full(self.steps * self.batch_size, train.PADDING, np.int32)
        wanted = np.asarray(order)[start * self.batch_size : stop * self.batch_size]
        rows[: len(wanted)] = wanted
        local = jnp.where(rows >= 0, jnp.arange(len(rows), dtype=jnp.int32), train.PADDING)
        return self._rows(rows), shards.replicate(local, self.mesh), 0, stop - start

    def evaluate(self, params: Any, *, config: ExperimentConfig, module: nn.Module) -> train.Sums:
        """The sums over all examples, dropout off, on the host; arguments as those of `train.evaluate`."""
        sums = shards.replicate(train.Sums.zero(), self.mesh)
        for piece in self._pieces():
            sums = train.evaluate(params, piece, sums, config=config, module=module, mesh=self.mesh)
        found: train.Sums = jax.device_get(sums)
        return found

    def _pieces(self) -> Iterator[train.Split]:
        if self.resident:
            yield self.resident
            return
        examples = len(self.split.labels)
        for first in range(0, examples, self.piece_rows):
            rows = np.arange(first, first + self.piece_rows)
            yield self._rows(np.where(rows < examples, rows, train.PADDING))

    def _rows(self, rows: np.ndarray[tuple[int], np.dtype[np.integer]]) -> train.Split:
        labels = np.where(rows >= 0, self.split.labels[rows], train.PADDING)
        return self._put(data.Split(self.split.images[rows], labels))

    def _put(self, split: data.Split) -> train.Split:
        images, labels = shards.replicate(split, self.mesh)
        return train.Split(jnp.asarray(images), jnp.asarray(labels))
