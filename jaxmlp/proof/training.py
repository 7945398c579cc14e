"""A run's updates once more, from the first one to any step: nothing written, nothing evaluated on the way."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from jaxmlp import data, model, runtime, shards, train
from jaxmlp.config import ExperimentConfig
from jaxmlp.feed import RESIDENT_BYTES
from jaxmlp.fitting import check_batch_size
from jaxmlp.programs import Programs
from jaxmlp.run.digest import digest


class Training:
    """Stands between two updates, at first before the first one.

    Args:
        config: The experiment.
        dataset: Its data.
        module: In place of the config's MLP, as in `fit`.
        devices: How many share a batch, as in `fit`.

    Raises:
        ConfigError, DeviceError: As `fit`.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: data.Dataset,
        *,
        module: nn.Module | None = None,
        devices: int | None = None,
    ) -> None:
        runtime.configure()
        check_batch_size(config, dataset)
        mesh = shards.make_mesh(shards.pick_devices(config.grad_shards, devices))
        module = module or model.make_mlp(config.model, dataset.num_classes, config.precision)
        self._programs = Programs(config, dataset, module, mesh, RESIDENT_BYTES)
        self._position = self._programs.placed(self._programs.first())
        self.config = config
        self.devices: int = mesh.size
        self.steps_per_epoch = self._programs.steps_per_epoch
        self.last_step = config.epochs * self.steps_per_epoch

    @property
    def step(self) -> int:
        """Updates made."""
        return self._position.step

    def state(self) -> train.TrainState:
        """The state, on the host."""
        state: train.TrainState = jax.device_get(self._position.state)
        return state

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, whose update led to `step`; the first one for step 0."""
        return (max(step, 1) - 1) // self.steps_per_epoch + 1

    def order_sha256(self, epoch: int) -> str:
        """As the run's `digests.jsonl` has it."""
        return digest({"order": np.asarray(self._programs.order(epoch))[: self._programs.examples]})

    def advance(self, step: int) -> None:
        """Make the updates up to `step`."""
        position = self._position
        while position.step < step:
            epoch = self.epoch_of(position.step + 1)
            begin = (epoch - 1) * self.steps_per_epoch
            position.done = position.step - begin
            stop = min(step - begin, self._programs.limit(position))
            self._programs.advance(position, self._programs.order(epoch), stop)

    def test(self) -> dict[str, float]:
        """Loss and accuracy on the test examples, by the names of a run's result."""
        loss, accuracy = self._programs.test(self._position)
        return {"test_loss": loss, "test_accuracy": accuracy}
