"""A run's updates once more, from the first one to any step: nothing written, nothing evaluated on the way."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp import data, model, runtime, shards, train
from jaxmlp.config import ExperimentConfig
from jaxmlp.fit import check_batch_size
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
        self.mesh = shards.make_mesh(shards.pick_devices(config.grad_shards, devices))
        self.examples = len(dataset.train.labels)
        self.steps_per_epoch = -(-self.examples // config.batch_size)
        self.step = 0
        """Updates made."""
        self.config, self._test = config, dataset.test
        module = module or model.make_mlp(config.model, dataset.num_classes, config.precision)
        self._static: dict[str, Any] = {"config": config.program(), "module": module}
        self._hyper = self._put(train.make_hyper(config, self.steps_per_epoch))
        self._split = self._put_split(dataset.train)
        image_shape = dataset.train.images.shape[1:]
        self._state = self._put(train.init_state(self._hyper, **self._static, image_shape=image_shape))

    def state(self) -> train.TrainState:
        """The state, on the host."""
        state: train.TrainState = jax.device_get(self._state)
        return state

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, that made the update which led to `step`; the first one's for step 0."""
        return (max(step, 1) - 1) // self.steps_per_epoch + 1

    def order_sha256(self, epoch: int) -> str:
        """As the run's `digests.jsonl` has it."""
        return digest({"order": np.asarray(self._order(epoch))[: self.examples]})

    def advance(self, step: int) -> None:
        """Make the updates up to `step`."""
        while self.step < step:
            epoch = self.epoch_of(self.step + 1)
            begin = (epoch - 1) * self.steps_per_epoch
            stop = min(step - begin, self.steps_per_epoch)
            sums = self._put(train.Sums.zero())  # A chunk's own: they change no bit of the state.
            self._state, _, _ = train.train_steps(
                self._state, sums, self._split, self._put(self._order(epoch)), self.step - begin, stop, self._hyper,
                **self._static, mesh=self.mesh,
            )  # fmt: skip
            self.step = begin + stop

    def test(self) -> dict[str, float]:
        """Loss and accuracy on the test examples, by the names of a run's result."""
        params = self._state.params
        sums = jax.device_get(train.evaluate(params, self._put_split(self._test), **self._static, mesh=self.mesh))
        return {
            "test_loss": float(sums.loss) / int(sums.examples),
            "test_accuracy": int(sums.correct) / int(sums.examples),
        }

    def _order(self, epoch: int) -> jax.Array:
        order: jax.Array = train.epoch_order(
            self._hyper.seed, epoch - 1, examples=self.examples, batch_size=self.config.batch_size,
            shuffle=self.config.shuffle,
        )  # fmt: skip
        return order

    def _put_split(self, split: data.Split) -> train.Split:
        images, labels = self._put(split)
        return train.Split(jnp.asarray(images), jnp.asarray(labels))

    def _put[T](self, tree: T) -> T:
        return shards.replicate(tree, self.mesh)
