"""Where does a training stand? A position is what a checkpoint holds.

Config, data and position decide everything that the training will do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jaxmlp import train
from jaxmlp.errors import RunError
from jaxmlp.run.digest import leaves, restore
from jaxmlp.system import distributed


@dataclass
class Position:
    """A point between two updates, of one run, or of lanes that train side by side.

    For lanes, arrays have a row per lane.
    """

    state: train.TrainState
    sums: train.Sums
    """Sums over the epoch so far."""
    epoch: int = 1
    """Number of the current epoch, from 1. After the last epoch, one more than the number of epochs."""
    done: int = 0
    """Number of updates made in this epoch."""
    epoch_s: float = 0.0
    """Seconds that the epoch has taken so far."""
    best_score: float | None = None
    """Lowest score of an epoch so far. None before the first epoch, and without validation."""
    stopped: str | None = None
    """Why the run ends here, before its last epoch."""

    @property
    def step(self) -> int:
        """Number of updates since the run's start; for lanes, of the first lane. Waits for the device."""
        return int(np.ravel(jax.device_get(self.state.step))[0])

    @classmethod
    def at(cls, steps: int, steps_per_epoch: int, state: train.TrainState, sums: train.Sums) -> Position:
        """The position after `steps` updates."""
        epochs, done = divmod(steps, steps_per_epoch)
        return cls(state, sums, epochs + 1, done)

    def meta(self) -> dict[str, Any]:
        """Everything that is not an array, as JSON values."""
        meta = {"epoch": self.epoch, "done": self.done, "epoch_s": self.epoch_s, "best_score": self.best_score}
        return meta | ({"stopped": self.stopped} if self.stopped else {})

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """All arrays, on the host, by path."""
        return leaves({"state": self.state, "sums": self.sums})

    def holding(self, state: train.TrainState, sums: train.Sums) -> Position:
        """The same position with other arrays."""
        return dataclasses.replace(self, state=state, sums=sums)

    def restored(self, arrays: Mapping[str, np.ndarray[Any, Any]], meta: Mapping[str, Any]) -> Position:
        """The position that `arrays` and `meta` describe, for a run with the same shapes.

        Raises:
            RunError: They have other shapes, or do not describe a position.
        """
        epoch, done, epoch_s = (meta.get(name) for name in ("epoch", "done", "epoch_s"))
        if "best_score" not in meta or not epoch or done is None or epoch_s is None:
            raise RunError("the checkpoint does not fit: its meta does not describe a run.")
        tree: dict[str, Any] = {"state": self.state, "sums": self.sums}
        tree = restore(tree, arrays)
        return Position(tree["state"], tree["sums"], epoch, done, epoch_s, meta["best_score"], meta.get("stopped"))

    def from_first_process(self) -> Position:
        """The first process's position, on every process."""
        arrays = distributed.share(safetensors.numpy.save(self.arrays()))
        return self.restored(safetensors.numpy.load(arrays), distributed.share_json(self.meta()))
