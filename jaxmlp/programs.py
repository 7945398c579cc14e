"""What a run computes on its devices: the programs of `train`, bound to its config, data and mesh."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmlp import data, shards, train
from jaxmlp.config import ExperimentConfig
from jaxmlp.feed import Feed
from jaxmlp.position import Position


class Programs:
    """The compiled programs of one run, with the arrays that they share on the devices."""

    def __init__(
        self, config: ExperimentConfig, dataset: data.Dataset, module: nn.Module, mesh: Mesh, resident_bytes: int
    ) -> None:
        self._config = config
        self.module = module
        self.dataset = dataset
        self._mesh = mesh
        self._resident_bytes = resident_bytes
        self.examples = len(dataset.train.labels)
        self.steps_per_epoch = -(-self.examples // config.batch_size)
        self._static: dict[str, Any] = {"config": config.program(), "module": module}
        self._hyper = self._put(train.make_hyper(config, self.steps_per_epoch))
        self._train_feed = self._feed(dataset.train)
        self.validation = dataset.validation and self._feed(dataset.validation)

    def first(self) -> Position:
        """Where the run starts."""
        image_shape = self.dataset.train.images.shape[1:]
        return Position(train.init_state(self._hyper, **self._static, image_shape=image_shape), train.Sums.zero())

    def placed(self, position: Position) -> Position:
        """The position with its arrays on every device."""
        return position.holding(*self._put((position.state, position.sums)))

    def zero_sums(self) -> train.Sums:
        """Of an epoch's start."""
        return self._put(train.Sums.zero())

    def order(self, epoch: int) -> jax.Array:
        """The examples of epoch `epoch`, from 1, padded to whole batches."""
        order: jax.Array = train.epoch_order(
            self._hyper.seed, epoch - 1, examples=self.examples, batch_size=self._config.batch_size,
            shuffle=self._config.shuffle,
        )  # fmt: skip
        return self._put(order)

    def limit(self, position: Position) -> int:
        """The last of the epoch's updates that one `advance` can reach."""
        return self._train_feed.limit(position.done, self.steps_per_epoch)

    def advance(self, position: Position, order: jax.Array, stop: int) -> train.Health:
        """Make the epoch's updates from where the position stands up to `stop`, and move it there."""
        health: train.Health
        examples = self._train_feed.updates(order, position.done, stop)
        position.state, position.sums, health = train.train_steps(
            position.state, position.sums, *examples, self._hyper, **self._static, mesh=self._mesh
        )
        position.done = stop
        return health

    def copied(self, position: Position) -> Position:
        """The position with arrays of its own: those of the other are gone once it moves."""
        return position.holding(*_copied((position.state, position.sums)))

    def learning_rate(self, position: Position) -> float:
        """The rate of the update that led to the position."""
        return float(train.learning_rate(position.state.step - 1, self._hyper, config=self._static["config"]))

    def evaluate(self, position: Position, feed: Feed) -> tuple[float, float]:
        """Loss and accuracy on all of a split."""
        return means(feed.evaluate(position.state.params, **self._static))

    def test(self, position: Position) -> tuple[float, float]:
        """Loss and accuracy on the test split, which is put on the devices for this alone."""
        return self.evaluate(position, self._feed(self.dataset.test))

    def _feed(self, split: data.Split) -> Feed:
        return Feed(split, self._config, self._mesh, self._resident_bytes)

    def _put[T](self, tree: T) -> T:
        return shards.replicate(tree, self._mesh)


@jax.jit
def _copied[T](tree: T) -> T:
    copied: T = jax.tree.map(jnp.copy, tree)
    return copied


def means(sums: train.Sums) -> tuple[float, float]:
    """Loss and accuracy, divided once, on the host."""
    return float(sums.loss) / int(sums.examples), int(sums.correct) / int(sums.examples)
