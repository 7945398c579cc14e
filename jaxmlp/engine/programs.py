"""What does one run compute on its devices? The functions of `train`, bound to a config, its data and the devices."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmlp import data, shards, train
from jaxmlp.engine.feed import RESIDENT_BYTES, Feed
from jaxmlp.engine.position import Position
from jaxmlp.experiment import controllers
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.run.digest import restore


class Programs:
    """The compiled programs of one run, with the arrays that they share on the devices.

    A sweep has the same programs over lanes (`jaxmlp.sweep.program`). The host's loop is the same for both, because it
    reads all results through `per_lane`, which returns one tree per lane.

    Args:
        config: The experiment. `self.config` is the same on the data and on the devices.
        dataset: The data.
        mesh: The devices that split each batch.
        resident_bytes: As in `Feed`.
        start: Weights to start from, by their paths in a checkpoint. Default: the experiment's initial weights.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: data.Dataset,
        mesh: Mesh,
        resident_bytes: int = RESIDENT_BYTES,
        start: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> None:
        self.dataset, self._start = dataset, start
        self.mesh = mesh
        self.examples = len(dataset.train.targets)
        self.steps_per_epoch = -(-self.examples // config.batch_size)
        self.config = self.put(config.on_data(dataset.num_classes, self.steps_per_epoch))
        self._resident_bytes = resident_bytes
        self.feeds: dict[str, Feed] = {}
        for name in ("train", "validation", *config.data.also):
            if dataset.split(name):
                self.feeds[name] = self._feed(name)

    def _feed(self, name: str) -> Feed:
        split: Any = self.dataset.split(name)
        resident = next((feed.resident for feed in self.feeds.values() if feed.split is split), None)
        return Feed(split, self.config, self.put, resident_bytes=self._resident_bytes, resident=resident)

    def put[T](self, tree: T) -> T:
        """Copy arrays to the devices, in full on each device."""
        return shards.replicate(tree, self.mesh)

    def freeze(self, going: Sequence[bool]) -> None:
        """Stop training lanes that are not going. A run has one lane and ends with it, so nothing happens."""

    def per_lane[T](self, tree: T) -> list[T]:
        """The tree on the host, one per lane. A run has a single lane."""
        return [jax.device_get(tree)]

    def first(self) -> Position:
        """The position before the first update."""
        example, initial = self.put(self.dataset.facts.zeros(1).inputs), None
        if self._start:
            shapes = jax.eval_shape(train.init_state, self.config, example)
            wanted = {"state": {"params": shapes.params, "variables": shapes.variables}}
            initial = self.put(restore(wanted, self._start)["state"])
        state = train.init_state(self.config, example, initial)
        return self.placed(Position(state, self._zero(state)))

    def _zero(self, state: Any) -> train.Sums:
        return train.zero_sums(self.config, state, train.DeviceSplit.of(self.dataset.facts.zeros(1)))

    def placed(self, position: Position) -> Position:
        """The position with its arrays on the devices."""
        return position.holding(*self.put((position.state, position.sums)))

    def zero_sums(self, position: Position) -> train.Sums:
        """The sums at the start of an epoch."""
        return self.put(self._zero(position.state))

    def order(self, epoch: int) -> jax.Array:
        """The order of examples in epoch `epoch`, from 1, padded to whole batches."""
        order: jax.Array = train.epoch_order(self.config, self.put(np.int32(epoch - 1)), examples=self.examples)
        return self.put(order)

    def limit(self, position: Position) -> int:
        """One past the last update of the epoch that one `advance` can reach."""
        return self.feeds["train"].limit(position.done, self.steps_per_epoch)

    def advance(self, position: Position, order: jax.Array, stop: int) -> train.Health:
        """Make the epoch's updates from the position up to `stop`, and move the position there."""
        updates = self.feeds["train"].updates(order, position.done, stop)
        health: train.Health
        position.state, position.sums, health = self.steps(position, *updates)
        position.done = stop
        return health

    def advance_to(self, position: Position, epoch: int, done: int) -> None:
        """Make all updates up to update `done` of `epoch`, and move the position there."""
        while (position.epoch, position.done) < (epoch, done):
            until = done if position.epoch == epoch else self.steps_per_epoch
            order = self.order(position.epoch)
            while position.done < until:
                self.advance(position, order, min(until, self.limit(position)))
            if position.epoch < epoch:
                self.end_epoch(position)

    def end_epoch(self, position: Position) -> None:
        """Move the position from an epoch's last update to the start of the next epoch. Controllers see the epoch."""
        if position.state.controllers:
            self.control(position, self.epoch_figures(position, [self.config]))
        position.epoch, position.done, position.sums = position.epoch + 1, 0, self.zero_sums(position)

    def epoch_figures(
        self, position: Position, configs: Sequence[ExperimentConfig | None]
    ) -> list[dict[str, float | None] | None]:
        """Loss and metrics of the epoch that ends here, for each lane. None for a lane whose config is None.

        Training figures are in training mode. Names of validation figures start with `val_`. Without a validation split
        these figures are None. With a moving average and a validation split, its figures start with `val_ema_`. Names
        of figures of a split in `data.also` start with `val_`, the split's name and `_`.
        """
        trained = self.per_lane(position.sums)
        scored = self.scored(position, "validation", configs) if self.dataset.validation else None
        also = {split: self.scored(position, split, configs) for split in self.config.data.also}
        ended: list[dict[str, float | None] | None] = []
        for lane, config in enumerate(configs):
            found: dict[str, float | None] = dict(figures(config, trained[lane])) if config else {}
            of_validation: dict[str, float | None] = {**scored[lane]} if scored else dict.fromkeys(found)
            for split, rows in also.items():
                of_validation |= {f"{split}_{name}": value for name, value in rows[lane].items()}
            ended.append(found | {f"val_{name}": value for name, value in of_validation.items()} if config else None)
        return ended

    def scored(
        self, position: Position, name: str, configs: Sequence[ExperimentConfig | None]
    ) -> list[dict[str, float]]:
        """Loss and metrics on all of a split, for each lane. Names for the moving average start with `ema_`.

        Empty for a lane whose config is None.
        """
        sums = [("", self.evaluate(position, name))]
        if averaged := controllers.averaged(position.state):
            sums.append(("ema_", self.evaluate(position.holding(averaged, position.sums), name)))
        return [
            {f"{of}{each}": value for of, rows in sums for each, value in figures(config, rows[lane]).items()}
            if config
            else {}
            for lane, config in enumerate(configs)
        ]

    def control(self, position: Position, found: Sequence[dict[str, float | None] | None]) -> list[dict[str, Any]]:
        """Let controllers see an epoch with these figures. The new states go into the position.

        Returns:
            The controllers' states of each lane, on the host, without the trees in them, such as parameters.
        """
        (seen,) = found
        if position.state.controllers and seen:
            position.state = controllers.after_epoch(self.config, position.state, self.put(as_seen(seen)))
        return self.per_lane(without_trees(position.state.controllers))

    def swap_best_weights(self, position: Position, *, back: bool = False) -> None:
        """Replace the last epoch's weights by the best epoch's, as `controllers.swap_best_weights` does."""
        if position.state.controllers:
            position.state = controllers.swap_best_weights(position.state, back=back)

    def steps(self, position: Position, split: Any, order: Any, start: int, stop: int) -> Any:
        """`train.train_steps` on these examples. The position's arrays are donated."""
        bounds = self.put((np.int32(start), np.int32(stop)))
        return train.train_steps(self.config, position.state, position.sums, split, order, *bounds, mesh=self.mesh)

    def copied(self, position: Position) -> Position:
        """The position with copied arrays. The original arrays are lost when the original position moves."""
        return position.holding(*_copied((position.state, position.sums)))

    def learning_rates(self, position: Position) -> list[float | None]:
        """Learning rate of the last update before the position, for each lane. None if it is not known."""
        state, step = position.state, self.put(np.int32(position.step - 1))
        return [known(rate) for rate in self.per_lane(train.learning_rate(self.config, step, state.controllers))]

    def compiled_sha256(self, position: Position, order: jax.Array) -> str:
        """SHA-256 of the training program as compiled by XLA, without references to source files."""
        split, order, *bounds = self.feeds["train"].updates(order, position.done, position.done)
        arguments = self.config, position.state, position.sums, split, order, *self.put(tuple(map(np.int32, bounds)))
        text = str(train.train_steps.lower(*arguments, mesh=self.mesh).compile().as_text())
        _, computations = re.split(r"^(?=%|ENTRY)", text, maxsplit=1, flags=re.MULTILINE)
        return hashlib.sha256(re.sub(r", metadata=\{[^}]*\}", "", computations).encode()).hexdigest()

    def compile_evaluation(self, position: Position, name: str) -> None:
        """Compile what `evaluate` runs."""
        state, piece = position.state, next(self.feeds[name].pieces())
        arguments = self.config, state.params, state.variables, piece, self.zero_sums(position)
        train.evaluate.lower(*arguments, mesh=self.mesh).compile()

    def evaluate(self, position: Position, name: str) -> list[train.Sums]:
        """The sums over all of a split, for each lane."""
        # The test split is on the devices only during its evaluation.
        feed = self.feeds.get(name) or self._feed(name)
        state, sums = position.state, self.zero_sums(position)
        for piece in feed.pieces():
            before, sums = sums, self._evaluated(state, piece, sums)
            jax.block_until_ready(before)  # At most two pieces are on the devices at a time.
        return self.per_lane(sums)

    def _evaluated(self, state: train.TrainState, piece: train.DeviceSplit, sums: train.Sums) -> Any:
        return train.evaluate(self.config, state.params, state.variables, piece, sums, mesh=self.mesh)


@jax.jit
def _copied[T](tree: T) -> T:
    copied: T = jax.tree.map(jnp.copy, tree)
    return copied


def known(rate: Any) -> float | None:
    """The learning rate; None for NaN, which stands for an unknown rate."""
    return None if math.isnan(rate) else float(rate)


def as_seen(found: Mapping[str, float | None]) -> dict[str, Any]:
    """An epoch's figures as controllers see them: float32, without those that are None."""
    return {name: np.float32(value) for name, value in found.items() if value is not None}


def without_trees(states: Mapping[str, Any]) -> dict[str, Any]:
    """The states of controllers without the trees in them, such as parameters."""
    return {
        name: {each: value for each, value in own.items() if not isinstance(value, dict)}
        for name, own in states.items()
    }


def figures(config: ExperimentConfig, sums: train.Sums) -> dict[str, float]:
    """Loss and metrics by name: the sums, divided once, on the host."""
    examples = int(sums["examples"])
    metrics = {metric.name: metric.result(sums[metric.sums_name], examples) for metric in config.metrics}
    return {"loss": float(sums["loss"]) / examples, **metrics}
