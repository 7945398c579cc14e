"""How does the host drive a training? A loop over chunks of updates, without numerics.

`Loop` trains one run, or lanes side by side: it sends chunks to the device and evaluates at the end of each epoch.
`jaxmlp.engine.run_loop` adds a run directory, progress and hooks; `jaxmlp.sweep.group` adds the lanes of a sweep.
"""

from __future__ import annotations

import abc
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmlp import train
from jaxmlp.engine.history import EpochRecord
from jaxmlp.engine.position import Position
from jaxmlp.engine.programs import Programs
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.controllers import steps_left, why_stop
from jaxmlp.system import distributed
from jaxmlp.system.signals import Stop

CHUNK_S = 0.25
"""Target time of a chunk, in s. The host checks signals, progress and divergence between chunks. Changes no bit."""
GROWTH = 8
"""Largest factor by which a chunk may outgrow the previous chunk, so that no signal waits longer than about 2 s."""


class Chunk(NamedTuple):
    """Updates that were sent to the device, which may not have finished them."""

    start: int
    """Index of the first update within the epoch."""
    stop: int
    """Index one past the last update."""
    health: train.Health
    """Whether the numbers are finite after these updates; on the device."""
    began: float
    """When the updates were sent, in seconds of `time.perf_counter`."""


class Loop(abc.ABC):
    """A training in chunks of updates, from a position to the end or to a stop signal.

    Args:
        configs: The experiment of each lane. A run has one lane.
        programs: The compiled programs of these experiments.
        stop: The stop signal, which is checked between chunks.
        checkpoint_s: Seconds between two checkpoints.
        digest_every: Updates between two digests of the state. None: no digests within an epoch.
    """

    chunk_s = CHUNK_S

    def __init__(
        self,
        configs: Sequence[ExperimentConfig],
        programs: Programs,
        stop: Stop,
        checkpoint_s: float,
        digest_every: int | None,
    ) -> None:
        self.configs, self.config = configs, configs[0]
        self.programs, self.stop_signal = programs, stop
        self.checkpoint_s, self.digest_every = checkpoint_s, digest_every
        self.chunk_length = 1
        """Updates of the next chunk, chosen to take about `chunk_s`."""
        self.agreed_to_stop = False
        """Whether the processes agreed to stop, because one of them got a signal."""
        self.running: Chunk | None = None
        """The chunk on the device, whose health was not checked yet."""
        self.pending_writes: list[Callable[[], None]] = []
        """Writes of logs, digests and checkpoints, put off until the device has work again."""
        self._settled_at = 0.0
        """When the host last had waited for a chunk."""
        self.saved_at = 0.0
        """When the newest checkpoint was copied."""
        self._saved = 0, 0
        """The epoch and its number of updates in the newest checkpoint."""
        self.records: list[list[EpochRecord]] = [[] for _ in configs]
        """Records of each lane, in the order of the epochs."""
        self.diverged_in: list[int | None] = [None] * len(configs)
        """The epoch in which each lane diverged, or None."""
        self.stop_reasons: list[str | None] = [None] * len(configs)
        """Why each lane ended before its last epoch, or None."""

        self.position: Position
        """Where the training stands. Set before `train`."""

    @property
    def ended(self) -> bool:
        """Whether no epoch is left, or no lane still trains."""
        return self.position.epoch > self.config.epochs or not any(self.going)

    @property
    def going(self) -> list[bool]:
        """Whether each lane still trains: it has neither diverged nor stopped."""
        return [
            not (diverged or stopped) for diverged, stopped in zip(self.diverged_in, self.stop_reasons, strict=True)
        ]

    def train(self) -> None:
        """Train from the position to the end, or to a stop signal. Save the position there."""
        self.saved_at, self._saved = time.perf_counter(), (self.position.epoch, self.position.done)
        while not self.ended and not self.agreed_to_stop:
            self._epoch()
        self._settle()
        if self.ended:
            self.programs.swap_best_weights(self.position)
        self._keep_position()

    def _keep_position(self) -> None:
        """Write what waits, then a checkpoint."""
        self._put_off_checkpoint()
        self._write_pending()

    def _put_off_checkpoint(self) -> None:
        """Copy the position to the host now. `_write_pending` writes it."""
        self._settle()
        self.pending_writes.append(self._checkpoint())
        self.saved_at, self._saved = time.perf_counter(), (self.position.epoch, self.position.done)

    def _write_pending(self) -> None:
        """Write what waits, in order."""
        while self.pending_writes:
            self.pending_writes.pop(0)()

    def _epoch(self) -> None:
        """Train the rest of the epoch, then evaluate and record it. A stop signal ends it before."""
        position, programs = self.position, self.programs
        order = programs.order(position.epoch)
        while position.done < programs.steps_per_epoch:
            if any(spent := self._spent()):
                self._end_epoch(order, spent)
                if not any(self.going):
                    return
            due = time.perf_counter() - self.saved_at > self.checkpoint_s
            length, self.agreed_to_stop, due = agree_on_chunk(self._length(), self.stop_signal, due)
            if self.agreed_to_stop:
                return
            if due and self._saved != (position.epoch, position.done):
                self._put_off_checkpoint()
            self._send_chunk(order, length)
        self._end_epoch(order, [True] * len(self.configs))

    def _end_epoch(self, order: jax.Array, ending: Sequence[bool]) -> None:
        """Evaluate the lanes whose epoch ends here. A lane that ends before its epoch is whole trains no further."""
        position, programs = self.position, self.programs
        is_whole = position.done == programs.steps_per_epoch
        self._settle()
        records = self._evaluated(ending)
        states = programs.control(position, [dict(each.figures) if each else None for each in records])
        why = [why_stop(*each) for each in zip(self.configs, states, self.records, strict=True)]
        if_cut_short = None if is_whole else "no more updates are allowed"
        self.stop_reasons = [
            before or ((reason or if_cut_short) if record else None)
            for before, reason, record in zip(self.stop_reasons, why, records, strict=True)
        ]
        if is_whole:
            position.epoch, position.done = position.epoch + 1, 0
        if is_whole or not any(self.going):
            position.epoch_s, position.sums = 0.0, programs.zero_sums(position)
        of_hooks = self._epoch_ended(records, order)
        found = [before or each for before, each in zip(self.stop_reasons, of_hooks, strict=True)]
        self.stop_reasons = distributed.share_json(found)
        if any(self.stop_reasons):
            programs.freeze(self.going)

    def _length(self) -> int:
        """The largest number of updates that the next chunk may have."""
        length = min(self.chunk_length, self.programs.limit(self.position) - self.position.done)
        left = [self._steps_left(lane) for lane, going in enumerate(self.going) if going]
        length = min([length, *(max(1, each) for each in left if each is not None)])
        return min(length, self.digest_every - self._step() % self.digest_every) if self.digest_every else length

    def _steps_left(self, lane: int) -> int | None:
        """How many more updates the lane's controllers allow. None: no limit."""
        seconds = sum(record.seconds for record in self.records[lane]) + self.position.epoch_s / len(self.records)
        return steps_left(self.configs[lane], self._step(), seconds)

    def _spent(self) -> list[bool]:
        """Whether each lane has used up the updates that its controllers allow. The first process decides.

        Empty at the start of an epoch, which always gets one update, and without controllers.
        """
        if not self.position.done or not any(config.controllers for config in self.configs):
            return []
        return distributed.share_json([going and self._steps_left(lane) == 0 for lane, going in enumerate(self.going)])

    def _step(self) -> int:
        """Updates made since the start of the training, counted on the host without waiting for the device."""
        return (self.position.epoch - 1) * self.programs.steps_per_epoch + self.position.done

    def _send_chunk(self, order: jax.Array, length: int) -> None:
        """Send the next chunk to the device. While it runs, write what waits and check the previous chunk.

        Several processes also wait for this chunk and check it here: to agree on the next chunk, they run a program on
        the same devices (`agree_on_chunk`).
        """
        began, start = time.perf_counter(), self.position.done
        health = self.programs.advance(self.position, order, start + length)
        self._write_pending()
        self._settle()
        self.running = Chunk(start, start + length, health, began)
        is_due = self.digest_every and self._step() % self.digest_every == 0
        if is_due or jax.process_count() > 1:
            self._settle()
        if is_due:
            self._trace()

    def _settle(self) -> None:
        """Wait for the running chunk, if any, and check that loss and parameters are finite."""
        if not (chunk := self.running):
            return
        self.running = None
        health = self.programs.per_lane(chunk.health)[: len(self.records)]
        now = time.perf_counter()
        seconds, self._settled_at = now - max(chunk.began, self._settled_at), now
        for lane, each in enumerate(health):
            if self.going[lane] and not is_finite(each):
                self._diverge(lane, chunk)
        self.position.epoch_s += seconds
        made = chunk.stop - chunk.start
        self.chunk_length = next_chunk(self.chunk_length, made, seconds, self.programs.steps_per_epoch, self.chunk_s)
        self._chunk_ended(chunk, health[0].sums)

    def _evaluated(self, ending: Sequence[bool]) -> list[EpochRecord | None]:
        """Evaluate each lane whose epoch ends here, and add the record to the lane's records."""
        position, programs, began = self.position, self.programs, time.perf_counter()
        lanes = zip(self.configs, self.going, ending, strict=True)
        configs = [config if going and ends else None for config, going, ends in lanes]
        ended = programs.epoch_figures(position, configs)
        rates = programs.learning_rates(position)
        seconds = (position.epoch_s + time.perf_counter() - began) / len(self.records)
        records: list[EpochRecord | None] = []
        for lane, found in enumerate(ended):
            record = None
            if found and self._is_sound(lane, "validation", found["val_loss"]):
                record = EpochRecord(position.epoch, self._step(), found, rates[lane], seconds)
                self.records[lane].append(record)
            records.append(record)
        return records

    @abc.abstractmethod
    def _diverge(self, lane: int, chunk: Chunk | None) -> None:
        """Handle a lane whose loss or parameters became non-finite in `chunk`. None: in an evaluation."""

    @abc.abstractmethod
    def _is_sound(self, lane: int, split: str, loss: float | None) -> bool:
        """Whether the loss of a split is finite. If it is not, the lane's metrics mean nothing."""

    @abc.abstractmethod
    def _trace(self) -> None:
        """Log the digests of the state."""

    @abc.abstractmethod
    def _chunk_ended(self, chunk: Chunk, sums: Mapping[str, Any]) -> None:
        """Handle the end of a chunk. `sums` are the first lane's sums over the epoch so far."""

    @abc.abstractmethod
    def _epoch_ended(self, records: Sequence[EpochRecord | None], order: jax.Array) -> Sequence[str | None]:
        """Handle the end of an epoch. The position is the start of the next epoch, or the place where lanes end.

        Returns:
            Why hooks end each lane, or None.
        """

    @abc.abstractmethod
    def _checkpoint(self) -> Callable[[], None]:
        """Copy the position to the host, and return a function that writes its checkpoint."""


def asked(hooks: Sequence[Callable[..., object]], *arguments: Any) -> str | None:
    """Call all hooks. If one returns True, return why the run ends, otherwise None."""
    stopping = [hook for hook in hooks if hook(*arguments) is True]
    return f"the hook {getattr(stopping[0], '__name__', type(stopping[0]).__name__)} asked for it" if stopping else None


def agree_on_chunk(length: int, stop: Stop, due: bool) -> tuple[int, bool, bool]:
    """Agree with all processes on the next chunk.

    Returns:
        The shortest length, whether any process got a stop signal, and whether the first process's checkpoint is due.
    """
    plans = [(length, stop.signal or 0, due)]
    if jax.process_count() > 1:
        plans = distributed.gather(plans[0]).tolist()
    signals = [number for _, number, _ in plans if number]
    if signals:
        stop.signal = signal.Signals(signals[0])
    return min(length for length, _, _ in plans), bool(signals), bool(plans[0][2])


def next_chunk(chunk: int, made: int, seconds: float, most: int, chunk_s: float = CHUNK_S) -> int:
    """Updates of the next chunk, at least 1.

    Args:
        chunk: Updates that the last chunk was to make.
        made: Updates that it made: fewer if the epoch or another limit ended it.
        seconds: Time of these updates.
        most: Largest number of updates.
        chunk_s: Target time of a chunk, in seconds.
    """
    return max(1, min(int(made * chunk_s / seconds), GROWTH * chunk, most))


def is_finite(health: train.Health) -> bool:
    """Whether the loss and all parameters are finite."""
    return bool(np.isfinite(health.sums["loss"])) and all(map(bool, jax.tree.leaves(health.finite_params)))
