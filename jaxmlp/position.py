"""Where a training stands: with the config and the data, all that its future depends on; what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jaxmlp import distributed, train
from jaxmlp.errors import RunError
from jaxmlp.run.digest import leaves, restore


@dataclass
class Position:
    """Between two updates, of one run or of lanes that train side by side: their arrays have a row a lane then."""

    state: train.TrainState
    sums: train.Sums
    """Sums over the epoch so far."""
    epoch: int = 1
    done: int = 0
    """Updates made in this epoch."""
    epoch_s: float = 0.0
    """Seconds that the epoch has taken so far."""
    best_score: float | None = None
    """Lowest score of an epoch so far; None before the first one, and without validation."""
    stopped: str | None = None
    """Why the run ends here, before its last epoch."""

    @property
    def step(self) -> int:
        """Updates made since the run's start; of lanes, the first one's."""
        return int(np.ravel(jax.device_get(self.state.step))[0])

    @classmethod
    def at(cls, steps: int, steps_per_epoch: int, state: train.TrainState, sums: train.Sums) -> Position:
        """After so many updates."""
        epochs, done = divmod(steps, steps_per_epoch)
        return cls(state, sums, epochs + 1, done)

    def meta(self) -> dict[str, Any]:
        """All of it that is no array, as JSON values."""
        meta = {"epoch": self.epoch, "done": self.done, "epoch_s": self.epoch_s, "best_score": self.best_score}
        return meta | ({"stopped": self.stopped} if self.stopped else {})

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """All the arrays, on the host, by path."""
        return leaves({"state": self.state, "sums": self.sums})

    def holding(self, state: train.TrainState, sums: train.Sums) -> Position:
        """The same place with other arrays."""
        return dataclasses.replace(self, state=state, sums=sums)

    def moved_to(self, arrays: Mapping[str, np.ndarray[Any, Any]], meta: Mapping[str, Any]) -> Position:
        """Where these `arrays()` and this `meta()` of a run of the same shapes stand.

        Raises:
            RunError: They are of other shapes, or not those of a position.
        """
        epoch, done, epoch_s = (meta.get(name) for name in ("epoch", "done", "epoch_s"))
        if "best_score" not in meta or not epoch or done is None or epoch_s is None:
            raise RunError("the checkpoint does not fit: its meta is not that of a run.")
        tree: dict[str, Any] = {"state": self.state, "sums": self.sums}
        tree = restore(tree, arrays)
        return Position(tree["state"], tree["sums"], epoch, done, epoch_s, meta["best_score"], meta.get("stopped"))

    def shared(self) -> Position:
        """Where the first process of the run stands."""
        arrays = distributed.share(safetensors.numpy.save(self.arrays()))
        meta = distributed.share(json.dumps(self.meta()).encode())
        return self.moved_to(safetensors.numpy.load(arrays), json.loads(meta))
