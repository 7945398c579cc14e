"""How are a run's updates made once more, up to any step? Nothing is written, nothing is evaluated on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxmlp import data, shards, train
from jaxmlp.engine.feed import RESIDENT_BYTES
from jaxmlp.engine.fitting import check_data
from jaxmlp.engine.position import Position
from jaxmlp.engine.programs import Programs, figures
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.run.digest import digest
from jaxmlp.run.weights import as_trained
from jaxmlp.system import runtime


class Training:
    """A training between two updates, initially before the first update.

    Args:
        config: The experiment.
        dataset: The data set.
        devices: Number of devices that split each batch, as in `fit`.
        resident_bytes: As in `fit`.
        start: Initial weights, as `RunDirectory.start` returns them.

    Raises:
        ConfigError, DeviceError: As `fit`.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: data.Dataset,
        *,
        devices: int | None = None,
        resident_bytes: int = RESIDENT_BYTES,
        start: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> None:
        runtime.configure()
        check_data(config, dataset)
        mesh = shards.make_mesh(shards.pick_devices(config.grad_shards, devices))
        self._programs = Programs(config, dataset, mesh, resident_bytes, start)
        self.position = self._programs.first()
        """State and place in the epoch."""
        self.config = config
        self.on_data = self._programs.config
        self.devices: int = mesh.size
        self.steps_per_epoch = self._programs.steps_per_epoch
        self.last_step = config.epochs * self.steps_per_epoch
        self.made = 0
        """Total number of updates made, including repeated updates."""

    def compiled_sha256(self) -> str:
        """Hash of the compiled program, as in a run's manifest."""
        return self._programs.compiled_sha256(self.position, self._programs.order(1))

    @property
    def step(self) -> int:
        """Number of updates made."""
        return self.position.step

    def start_at(self, arrays: Mapping[str, np.ndarray[Any, Any]], meta: Mapping[str, Any]) -> None:
        """Move to the position of a checkpoint.

        Raises:
            RunError: The checkpoint has other shapes, or holds no position.
        """
        self.position = self._programs.placed(self._programs.first().restored(as_trained(arrays), meta))

    def mark(self) -> Position:
        """The current position, to go back to."""
        return self._programs.copied(self.position)

    def go_back(self, mark: Position) -> None:
        """Go back to where `mark` was taken. `mark` stays valid."""
        self.position = self._programs.copied(mark)

    def state(self) -> train.TrainState:
        """The state, on the host."""
        state: train.TrainState = jax.device_get(self.position.state)
        return state

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, whose update led to `step`. Step 0 belongs to the first epoch."""
        return (max(step, 1) - 1) // self.steps_per_epoch + 1

    def order(self, epoch: int) -> Int[np.ndarray, " padded"]:
        """The order of examples in epoch `epoch`, from 1, padded to whole batches."""
        return np.asarray(self._programs.order(epoch))

    def order_sha256(self, epoch: int) -> str:
        """Hash of the batch order, as in the run's `digests.jsonl`."""
        return digest({"order": self.order(epoch)[: self._programs.examples]})

    def advance(self, step: int, *, ends: bool = False) -> None:
        """Make the updates up to `step`. If `step` ends an epoch, the controllers see the epoch.

        Args:
            step: Updates since the start.
            ends: Whether the run ended there, if `step` lies within an epoch.
        """
        epoch, self.made = self.epoch_of(step), self.made + max(0, step - self.step)
        self._programs.advance_to(self.position, epoch, step - (epoch - 1) * self.steps_per_epoch)
        if self.position.done == self.steps_per_epoch or (ends and self.position.done):
            self._programs.end_epoch(self.position)

    def test(self) -> dict[str, float]:
        """Loss and metrics on the test examples, with names such as `test_loss`."""
        found = figures(self.config, self._programs.evaluate(self.position, "test")[0])
        return {f"test_{name}": value for name, value in found.items()}
