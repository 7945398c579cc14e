"""The host's loop over chunks of updates: progress, history, digests, checkpoints, stop signals. No numerics."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from jaxmlp import distributed, train
from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import DivergedError, RunError
from jaxmlp.history import EpochRecord, History
from jaxmlp.position import Position
from jaxmlp.programs import Programs, means
from jaxmlp.progress import Progress
from jaxmlp.run.digest import digest, leaf_digests, leaves
from jaxmlp.run.directory import RunDirectory
from jaxmlp.signals import Stop

CHUNK_S = 0.25
"""About how long the device runs between two looks of the host: signals, progress, divergence. Changes no bit."""
GROWTH = 8
"""How much longer a chunk may be than the one before: where the first were too fast to tell, no signal waits 2 s."""


class Hook(Protocol):
    """A function called after each epoch."""

    def __call__(self, record: EpochRecord, state: train.TrainState) -> object:
        """See the epoch's record, and the state, which it must not keep: the next step takes its memory."""


@dataclass
class Loop:
    """One call of `fit`, whose arguments it has."""

    config: ExperimentConfig
    programs: Programs
    devices: int
    run: RunDirectory | None
    progress: Progress
    hooks: Sequence[Hook]
    stop: Stop
    checkpoint_s: float
    digest_every: int | None
    chunk: int = 1
    """Updates a call, fitted to CHUNK_S."""
    stopping: bool = False
    """Whether all processes know that one has a stop signal."""
    saved_at: float = 0.0
    unsaved_best: tuple[int, dict[str, np.ndarray[Any, Any]], dict[str, Any]] | None = None
    records: list[EpochRecord] = field(default_factory=list)

    def run_all(self) -> History:
        """Train from where the run stands to its end, or to a stop signal.

        Raises: As `fit`.
        """
        began = time.perf_counter()
        with self.progress.compiling():
            position = self._start()
            self._compile(position)
        self.saved_at = first_update = time.perf_counter()
        while position.epoch <= self.config.epochs and not self.stopping:
            self._epoch(position)
        status = "finished" if position.epoch > self.config.epochs else "interrupted"
        self._save(position)
        ended = time.perf_counter()
        test = self.programs.test(position) if status == "finished" else (None, None)
        self._check_score("test", test[0], self.config.epochs)
        state = jax.device_get(position.state)
        history = History(
            config=self.config,
            module=self.programs.module,
            dataset=self.programs.dataset,
            records=tuple(self.records),
            state=state,
            status=status,
            test_loss=test[0],
            test_accuracy=test[1],
            params_sha256=digest(state.params),
            state_sha256=digest(state),
            compile_s=first_update - began,
            train_s=ended - first_update,
            devices=self.devices,
            processes=jax.process_count(),
        )
        if self.run:
            self.run.finish(status, dict(history.result()))
        return history

    def _start(self) -> Position:
        position = self.programs.first()
        checkpoint = self.run and self.run.newest_checkpoint(self.progress.note)
        if checkpoint:
            position = position.moved_to(checkpoint.arrays, checkpoint.meta)
            if position.step != (position.epoch - 1) * self.programs.steps_per_epoch + position.done:
                raise RunError(f"{checkpoint.path.name} tells of a step that its epoch has not.")
        if jax.process_count() > 1:
            position = position.shared()
        if self.run:
            self.run.cut_back(position.epoch, position.step)
            self.records = [EpochRecord.from_line(line) for line in self.run.epochs()]
        return self.programs.placed(position)

    def _compile(self, position: Position) -> None:
        """Run every program once: the updates are none, so that nothing changes."""
        self.programs.advance(self.programs.copied(position), self.programs.order(position.epoch), position.done)
        if self.programs.validation:
            self.programs.evaluate(position, self.programs.validation)

    def _epoch(self, position: Position) -> None:
        """The epoch's updates that are left, unless stopped; then its evaluation and its record."""
        order = self.programs.order(position.epoch)
        while position.done < self.programs.steps_per_epoch:
            length = self._agree(position)
            if self.stopping:
                return
            self._chunk(position, order, length)
            if time.perf_counter() - self.saved_at > self.checkpoint_s:
                self._save(position)
        began = time.perf_counter()
        validation = self.programs.validation
        loss, accuracy = means(position.sums)
        val_loss, val_accuracy = self.programs.evaluate(position, validation) if validation else (None, None)
        self._check_score("validation", val_loss, position.epoch)
        rate, seconds = self.programs.learning_rate(position), position.epoch_s + time.perf_counter() - began
        record = EpochRecord(position.epoch, position.step, loss, accuracy, val_loss, val_accuracy, rate, seconds)
        position.epoch, position.done, position.epoch_s = position.epoch + 1, 0, 0.0
        position.sums = self.programs.zero_sums()
        self.records.append(record)
        if self.run:
            self._write(record, position, order)
        for hook in self.hooks:
            hook(record, position.state)
        self.progress.epoch_ended(record)

    def _agree(self, position: Position) -> int:
        """The length of the next chunk, the shortest of all processes'; stop where one of them is to."""
        length = min(self.chunk, self.programs.limit(position) - position.done)
        if self.digest_every:
            length = min(length, self.digest_every - position.step % self.digest_every)
        length, self.stopping, _ = agree_on_chunk(length, self.stop)
        return length

    def _chunk(self, position: Position, order: jax.Array, length: int) -> None:
        began, before = time.perf_counter(), self.programs.copied(position)
        health = self.programs.advance(position, order, position.done + length)
        sums, health = jax.device_get((position.sums, health))
        if not _is_finite(health):
            self._diverge(before, order, position.done)
        seconds = time.perf_counter() - began
        position.epoch_s += seconds
        self.chunk = next_chunk(self.chunk, length, seconds, self.programs.steps_per_epoch)
        if self.run and self.digest_every and position.step % self.digest_every == 0:
            self.run.append_trace(state_digests(position.epoch, jax.device_get(position.state)))
        self.progress.steps_done(position.epoch, position.done, self.programs.steps_per_epoch, *means(sums))

    def _diverge(self, position: Position, order: jax.Array, stop: int) -> None:
        """Go through a chunk once more, step by step, so that no length of chunks changes what is named."""
        while position.done < stop and _is_finite(health := self.programs.advance(position, order, position.done + 1)):
            pass
        what = "parameters are" if health.bad_loss_step == train.NEVER else "loss is"
        bad = [name for name, finite in leaves(health.finite_params).items() if not finite]
        leaf = f"first non-finite parameter: {bad[0]}" if bad else "its parameters are still finite"
        raise self._diverged(f"{what} not finite at step {position.step - 1}, epoch {position.epoch}; {leaf}")

    def _check_score(self, split: str, loss: float | None, epoch: int) -> None:
        """Accuracy is no figure where the loss is none: of logits that are not numbers, any class is the largest."""
        if loss is not None and not math.isfinite(loss):
            raise self._diverged(f"{split} loss is not finite after epoch {epoch}; the parameters are still finite")

    def _diverged(self, what: str) -> DivergedError:
        newest = self.run.checkpoints() if self.run else []
        kept = f"the last good checkpoint is {newest[0].name}" if newest else "no checkpoint was written before"
        return DivergedError(
            f"diverged: the {what}; {kept}.\n"
            "Try a smaller --optimizer.learning-rate, or check the data's scale (--data.pixel-scale)."
        )

    def _write(self, record: EpochRecord, position: Position, order: jax.Array) -> None:
        """The epoch's lines; and the best state, kept until the next checkpoint writes it."""
        assert self.run
        order_sha256 = digest({"order": np.asarray(order)[: self.programs.examples]})
        digests = state_digests(record.epoch, jax.device_get(position.state)) | {"order_sha256": order_sha256}
        self.run.append_epoch(record._asdict(), digests)
        if record.val_loss is not None and record.val_loss < position.best_val_loss:
            position.best_val_loss = record.val_loss
            self.unsaved_best = (record.steps, position.arrays(), position.meta())

    def _save(self, position: Position) -> None:
        """A checkpoint of this position; before it the best one's, so that no checkpoint knows a best that is lost."""
        if not self.run:
            return
        best, self.unsaved_best = self.unsaved_best, None
        if best and best[0] != position.step:
            self.run.save_checkpoint(*best, best=True)
        is_best = bool(best and best[0] == position.step)
        self.run.save_checkpoint(position.step, position.arrays(), position.meta(), best=is_best)
        self.saved_at = time.perf_counter()


def agree_on_chunk(length: int, stop: Stop, due: bool = False) -> tuple[int, bool, bool]:
    """What all processes do next: the shortest length, whether one is to stop, and what is due in the first."""
    plans = [(length, stop.signal or 0, due)]
    if jax.process_count() > 1:
        plans = distributed.gather(plans[0]).tolist()
    signals = [number for _, number, _ in plans if number]
    if signals:
        stop.signal = signal.Signals(signals[0])
    return min(length for length, _, _ in plans), bool(signals), bool(plans[0][2])


def next_chunk(chunk: int, made: int, seconds: float, most: int, chunk_s: float | None = None) -> int:
    """The length of the chunk after one that was to be `chunk`, and made `made` updates in `seconds`.

    Args:
        chunk: Updates.
        made: Updates, fewer where the chunk met an end.
        seconds: That they took.
        most: Updates that a chunk may be.
        chunk_s: What a chunk should take; by default CHUNK_S.
    """
    wanted = CHUNK_S if chunk_s is None else chunk_s
    return max(1, min(int(made * wanted / seconds), GROWTH * chunk, most))


def _is_finite(health: train.Health) -> bool:
    return bool(health.bad_loss_step == train.NEVER) and all(map(bool, jax.tree.leaves(health.finite_params)))


def state_digests(epoch: int, state: train.TrainState) -> dict[str, Any]:
    """The line of `digests.jsonl` for a state in `epoch`, without the order's."""
    parts = {"params": state.params, "opt_state": state.opt_state}
    return {
        "epoch": epoch,
        "steps": int(state.step),
        **{f"{name}_sha256": digest(part) for name, part in parts.items()},
        "leaves_sha256": leaf_digests(parts),
    }
