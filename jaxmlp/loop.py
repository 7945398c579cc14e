"""The host's loop over chunks of updates: progress, history, digests, checkpoints, stop signals. No numerics."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh

from jaxmlp import data, distributed, shards, train
from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import DivergedError
from jaxmlp.history import EpochRecord, History
from jaxmlp.position import Position
from jaxmlp.progress import Progress
from jaxmlp.run.digest import digest, leaves
from jaxmlp.run.directory import RunDirectory
from jaxmlp.signals import Stop

CHUNK_S = 0.25
"""About how long the device runs between two looks of the host: signals, progress, divergence. Changes no bit."""


class Hook(Protocol):
    """A function called after each epoch."""

    def __call__(self, record: EpochRecord, state: train.TrainState) -> object:
        """See the epoch's record, and the state, which it must not keep: the next step takes its memory."""


@dataclass
class Loop:
    """One call of `fit`, whose arguments it has."""

    config: ExperimentConfig
    dataset: data.Dataset
    module: nn.Module
    mesh: Mesh
    run: RunDirectory | None
    progress: Progress
    hooks: Sequence[Hook]
    stop: Stop
    checkpoint_s: float
    chunk: int = 1
    """Updates a call, fitted to CHUNK_S."""
    stopping: bool = False
    """Whether all processes know that one has a stop signal."""
    saved_at: float = 0.0
    unsaved_best: tuple[int, dict[str, np.ndarray[Any, Any]], dict[str, Any]] | None = None
    records: list[EpochRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.examples = len(self.dataset.train.labels)
        self.steps_per_epoch = -(-self.examples // self.config.batch_size)
        self.static: dict[str, Any] = {"config": self.config.program(), "module": self.module}
        self.hyper = self._put(train.make_hyper(self.config, self.steps_per_epoch))
        self.train_split = self._put_split(self.dataset.train)
        self.val_split = self.dataset.validation and self._put_split(self.dataset.validation)

    def run_all(self) -> History:
        """Train from where the run stands to its end, or to a stop signal.

        Raises: As `fit`.
        """
        began = time.perf_counter()
        position = self._start()
        self._compile(position)
        self.saved_at = first_update = time.perf_counter()
        while position.epoch <= self.config.epochs and not self.stopping:
            self._epoch(position)
        status = "finished" if position.epoch > self.config.epochs else "interrupted"
        self._save(position)
        ended = time.perf_counter()
        test: tuple[float | None, float | None] = (None, None)
        if status == "finished":
            test = self._evaluate(position, self._put_split(self.dataset.test))
        state = jax.device_get(position.state)
        history = History(
            config=self.config,
            records=tuple(self.records),
            state=state,
            status=status,
            test_loss=test[0],
            test_accuracy=test[1],
            params_sha256=digest(state.params),
            state_sha256=digest(state),
            compile_s=first_update - began,
            train_s=ended - first_update,
            devices=self.mesh.size,
            processes=jax.process_count(),
        )
        if self.run:
            self.run.finish(status, dict(history.result()))
        return history

    def _start(self) -> Position:
        image_shape = self.dataset.train.images.shape[1:]
        state = train.init_state(self.hyper, **self.static, image_shape=image_shape)
        position = Position(state, train.Sums.zero())
        checkpoint = self.run and self.run.newest_checkpoint(self.progress.note)
        if checkpoint:
            position = position.moved_to(checkpoint.arrays, checkpoint.meta)
        if jax.process_count() > 1:
            arrays = distributed.share(safetensors.numpy.save(position.arrays()))
            meta = distributed.share(json.dumps(position.meta()).encode())
            position = position.moved_to(safetensors.numpy.load(arrays), json.loads(meta))
        if self.run:
            self.run.cut_back(position.epoch)
            self.records = [EpochRecord(**line) for line in self.run.epochs()]
        position.state, position.sums = self._put((position.state, position.sums))
        return position

    def _compile(self, position: Position) -> None:
        """Run every program once: `train_steps` over no updates, so that nothing changes."""
        order = self._order(position.epoch)
        self._train_steps(position, order, position.done)
        if self.val_split:
            self._evaluate(position, self.val_split)

    def _epoch(self, position: Position) -> None:
        """The epoch's updates that are left, unless stopped; then its evaluation and its record."""
        order = self._order(position.epoch)
        while position.done < self.steps_per_epoch:
            self._agree()
            if self.stopping:
                return
            self._chunk(position, order)
            if time.perf_counter() - self.saved_at > self.checkpoint_s:
                self._save(position)
        began = time.perf_counter()
        loss, accuracy = _means(position.sums)
        val_loss, val_accuracy = self._evaluate(position, self.val_split) if self.val_split else (None, None)
        rate = train.learning_rate(position.state.step - 1, self.hyper, config=self.static["config"])
        steps, seconds = int(position.state.step), position.epoch_s + time.perf_counter() - began
        figures = (loss, accuracy, val_loss, val_accuracy, float(rate), seconds)
        record = EpochRecord(position.epoch, steps, *figures)
        position.epoch, position.done, position.epoch_s = position.epoch + 1, 0, 0.0
        position.sums = self._put(train.Sums.zero())
        self.records.append(record)
        if self.run:
            self._write(record, position, order)
        for hook in self.hooks:
            hook(record, position.state)
        self.progress.epoch_ended(record)

    def _agree(self) -> None:
        """Take the shortest chunk of all processes, and stop where one of them is to."""
        plans = [(self.chunk, self.stop.signal or 0)]
        if jax.process_count() > 1:
            plans = distributed.gather(plans[0]).tolist()
        self.chunk = min(chunk for chunk, _ in plans)
        if signals := [number for _, number in plans if number]:
            self.stop.signal, self.stopping = signal.Signals(signals[0]), True

    def _chunk(self, position: Position, order: jax.Array) -> None:
        began = time.perf_counter()
        stop = min(position.done + self.chunk, self.steps_per_epoch)
        health = self._train_steps(position, order, stop)
        sums, health = jax.device_get((position.sums, health))
        self._check(health, position)
        seconds = time.perf_counter() - began
        position.epoch_s += seconds
        self.chunk = max(1, min(int(self.chunk * CHUNK_S / seconds), 8 * self.chunk))
        self.progress.steps_done(position.epoch, position.done, self.steps_per_epoch, *_means(sums))

    def _train_steps(self, position: Position, order: jax.Array, stop: int) -> train.Health:
        """Make the epoch's updates from where the position stands up to `stop`."""
        health: train.Health
        position.state, position.sums, health = train.train_steps(
            position.state, position.sums, self.train_split, order, position.done, stop, self.hyper,
            **self.static, mesh=self.mesh,
        )  # fmt: skip
        position.done = stop
        return health

    def _check(self, health: train.Health, position: Position) -> None:
        bad = [name for name, finite in leaves(health.finite_params).items() if not finite]
        if health.bad_loss_step == train.NEVER and not bad:
            return
        step = min(int(health.bad_loss_step), int(position.state.step) - 1)
        leaf = f"first non-finite parameter: {bad[0]}" if bad else "its parameters are still finite"
        newest = self.run.checkpoints() if self.run else []
        kept = f"the last good checkpoint is {newest[0].name}" if newest else "no checkpoint was written before"
        raise DivergedError(
            f"diverged: the loss is not finite at step {step}, epoch {position.epoch}; {leaf}; {kept}.\n"
            "Try a smaller --optimizer.learning-rate, or check the data's scale (--data.pixel-scale)."
        )

    def _write(self, record: EpochRecord, position: Position, order: jax.Array) -> None:
        """The epoch's lines; and the best state, kept until the next checkpoint writes it."""
        assert self.run
        state = jax.device_get(position.state)
        digests = {
            "epoch": record.epoch,
            "steps": record.steps,
            "params_sha256": digest(state.params),
            "opt_state_sha256": digest(state.opt_state),
            "order_sha256": digest({"order": np.asarray(order)[: self.examples]}),
        }
        self.run.append_epoch(record._asdict(), digests)
        if record.val_loss is not None and record.val_loss < position.best_val_loss:
            position.best_val_loss = record.val_loss
            self.unsaved_best = (record.steps, position.arrays(), position.meta())

    def _save(self, position: Position) -> None:
        """A checkpoint of this position; before it the best one's, so that no checkpoint knows a best that is lost."""
        if not self.run:
            return
        step = int(position.state.step)
        best, self.unsaved_best = self.unsaved_best, None
        if best and best[0] != step:
            self.run.save_checkpoint(*best, best=True)
        self.run.save_checkpoint(step, position.arrays(), position.meta(), best=bool(best and best[0] == step))
        self.saved_at = time.perf_counter()

    def _order(self, epoch: int) -> jax.Array:
        order: jax.Array = train.epoch_order(
            self.hyper.seed, epoch - 1, examples=self.examples, batch_size=self.config.batch_size,
            shuffle=self.config.shuffle,
        )  # fmt: skip
        return self._put(order)

    def _evaluate(self, position: Position, split: train.Split) -> tuple[float, float]:
        return _means(jax.device_get(train.evaluate(position.state.params, split, **self.static, mesh=self.mesh)))

    def _put_split(self, split: data.Split) -> train.Split:
        images, labels = self._put(split)
        return train.Split(jnp.asarray(images), jnp.asarray(labels))

    def _put[T](self, tree: T) -> T:
        return shards.replicate(tree, self.mesh)


def _means(sums: train.Sums) -> tuple[float, float]:
    """Loss and accuracy, divided once, on the host."""
    return float(sums.loss) / int(sums.examples), int(sums.correct) / int(sums.examples)
