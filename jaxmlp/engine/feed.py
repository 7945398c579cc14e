"""Which examples are on the device? A whole split or, if it is too large, the examples of the next updates.

In both cases the functions of `train` see the same batches, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from jaxmlp import data, train
from jaxmlp.experiment.config import ExperimentConfig

RESIDENT_BYTES = 4 << 30
"""Largest size in bytes of inputs that stay on the device. MNIST has 47 MB."""

PIECE_BYTES = 32 << 20
"""Bytes of inputs streamed at a time. While the device works on one piece, the host gathers and sends the next."""

Put = Callable[[Any], Any]
"""Copies a tree of the host's arrays to the devices."""


class Updates(NamedTuple):
    """The examples of some updates, as `train_steps` takes them."""

    split: train.DeviceSplit
    order: Int[Array, " padded"]
    start: int
    stop: int


class Feed:
    """A split, as `train_steps` and `evaluate` take it.

    Args:
        split: The split, on the host.
        config: The experiment, for its batch size, gradient shards and rows evaluated at a time.
        put: Copies arrays to every device, whole.
        put_rows: Copies arrays that have a row per lane. Default, for a single run: `put`.
        lanes: Number of runs that train side by side, each with its own order. None for a single run.
        resident_bytes: Largest size in bytes of inputs on a device at a time, but never less than two batches.
        resident: The split, if it is on the devices already.
    """

    def __init__(
        self,
        split: data.Split,
        config: ExperimentConfig,
        put: Put,
        *,
        put_rows: Put | None = None,
        lanes: int | None = None,
        resident_bytes: int = RESIDENT_BYTES,
        resident: train.DeviceSplit | None = None,
    ) -> None:
        self.split = split
        self.batch_size = config.batch_size
        self._put, self._put_rows, self._lanes = put, put_rows or put, lanes
        examples = len(split.targets)
        row_bytes = sum(leaf[0].nbytes for leaf in jax.tree.leaves(split.inputs))
        fits = resident_bytes // row_bytes >= examples
        self.resident = (resident or self._put(train.DeviceSplit.of(split))) if fits else None
        """The whole split on the devices. None if it is too large and is streamed in pieces."""
        rows = min(PIECE_BYTES, resident_bytes // 2) // row_bytes  # Two pieces are on the device at a time.
        self.steps = max(1, rows // (self.batch_size * (lanes or 1)))
        """Number of updates in a piece."""
        eval_rows = train.eval_batch_size(config, examples)
        self.piece_rows = eval_rows * max(1, min(rows, examples) // eval_rows)
        """Number of examples evaluated per call: whole batches."""
        self._sent: tuple[Any, int, train.DeviceSplit, Any] | None = None
        """Order and first update of the piece on the device, its examples and their positions there."""

    def limit(self, start: int, stop: int) -> int:
        """One past the last update that `updates(order, start, ...)` can reach: `stop`, or the end of the piece."""
        return stop if self.resident else min(stop, start - start % self.steps + self.steps)

    def updates(self, order: Int[Array, "*lanes padded"], start: int, stop: int) -> Updates:
        """The examples of the epoch's updates `start` to `stop`."""
        if self.resident:
            return Updates(self.resident, order, start, stop)
        first = start - start % self.steps
        if not self._sent or self._sent[0] is not order or self._sent[1] != first:
            self._sent = order, first, *self.piece(order, first)
        _, _, examples, places = self._sent
        return Updates(examples, places, start - first, stop - first)

    def piece(self, order: Int[Array, "*lanes padded"], first: int) -> tuple[train.DeviceSplit, Any]:
        """The examples of the updates from `first` on, and their positions there, padded to a whole piece."""
        orders = jax.device_get(order).reshape(self._lanes or 1, -1)
        rows = np.full((len(orders), self.steps * self.batch_size), train.PADDING, np.int32)
        wanted = orders[:, first * self.batch_size :][:, : rows.shape[1]]
        rows[:, : wanted.shape[1]] = wanted
        places = np.where(rows >= 0, np.arange(rows.shape[1], dtype=np.int32), train.PADDING).astype(np.int32)
        if self._lanes is None:
            rows, places = rows[0], places[0]
        return self._put_rows(self._rows(rows)), self._put_rows(places)

    def pieces(self) -> Iterator[train.DeviceSplit]:
        """All examples, in as few pieces as fit."""
        if self.resident:
            yield self.resident
            return
        examples = len(self.split.targets)
        for first in range(0, examples, self.piece_rows):
            rows = np.arange(first, first + self.piece_rows)
            yield self._put(self._rows(np.where(rows < examples, rows, train.PADDING)))

    def _rows(self, rows: np.ndarray[Any, np.dtype[np.integer]]) -> train.DeviceSplit:
        return train.DeviceSplit.of(self.split.rows(rows), mask=rows >= 0)
