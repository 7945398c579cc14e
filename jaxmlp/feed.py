"""Which examples are on the device: all of a split; or, where they are too many, those of the next updates alone.

Either way the same functions of `train` see the same batches, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from jaxmlp import data, train

RESIDENT_BYTES = 4 << 30
"""Bytes of inputs up to which a split stays on the device. MNIST's have 47 MB."""

Put = Callable[[Any], Any]
"""Places a tree of the host's arrays on the devices."""


class Updates(NamedTuple):
    """The examples of some updates, as `train_steps` takes them."""

    split: train.Split
    order: Int[Array, " padded"]
    start: int
    stop: int


class Feed:
    """A split, as `train_steps` and `evaluate` take it.

    Args:
        split: On the host.
        batch_size: Examples an update.
        grad_shards: Parts of a batch.
        put: Places arrays that all devices have whole.
        put_rows: Places arrays that have a row a lane; for one run, `put`.
        lanes: Runs that train side by side, each with an order of its own; None for one run.
        resident_bytes: Bytes of inputs that may be on a device at a time; at least a batch is.
        resident: The split, where it is on the devices already.
    """

    def __init__(
        self,
        split: data.Split,
        batch_size: int,
        grad_shards: int,
        put: Put,
        *,
        put_rows: Put | None = None,
        lanes: int | None = None,
        resident_bytes: int = RESIDENT_BYTES,
        resident: train.Split | None = None,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self._put, self._put_rows, self._lanes = put, put_rows or put, lanes
        examples = len(split.targets)
        rows = resident_bytes // sum(leaf[0].nbytes for leaf in jax.tree.leaves(split.inputs))
        fits = rows >= examples
        self.resident = (resident or self._put(train.Split.of(split))) if fits else None
        self.steps = max(1, rows // (batch_size * (lanes or 1)))
        """Updates whose examples fit."""
        eval_rows = train.eval_batch_size(examples, grad_shards)
        self.piece_rows = eval_rows * max(1, min(rows, examples) // eval_rows)
        """Examples evaluated a call: whole batches."""

    def limit(self, start: int, stop: int) -> int:
        """The last update before `stop` up to which `updates(order, start, ...)` can go."""
        return stop if self.resident else min(stop, start + self.steps)

    def updates(self, order: Int[Array, "*lanes padded"], start: int, stop: int) -> Updates:
        """The epoch's updates `start` to `stop`."""
        if self.resident:
            return Updates(self.resident, order, start, stop)
        orders = np.asarray(order).reshape(self._lanes or 1, -1)
        rows = np.full((len(orders), self.steps * self.batch_size), train.PADDING, np.int32)
        wanted = orders[:, start * self.batch_size : stop * self.batch_size]
        rows[:, : wanted.shape[1]] = wanted
        local = np.where(rows >= 0, np.arange(rows.shape[1], dtype=np.int32), train.PADDING).astype(np.int32)
        if self._lanes is None:
            rows, local = rows[0], local[0]
        return Updates(self._put_rows(self._rows(rows)), self._put_rows(local), 0, stop - start)

    def pieces(self) -> Iterator[train.Split]:
        """All examples, in as many pieces as must be."""
        if self.resident:
            yield self.resident
            return
        examples = len(self.split.targets)
        for first in range(0, examples, self.piece_rows):
            rows = np.arange(first, first + self.piece_rows)
            yield self._put(self._rows(np.where(rows < examples, rows, train.PADDING)))

    def _rows(self, rows: np.ndarray[Any, np.dtype[np.integer]]) -> train.Split:
        return train.Split.of(self.split.rows(rows), mask=rows >= 0)
