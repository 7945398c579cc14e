"""How is one run driven? From its newest checkpoint or its start to its end, with its files, progress and hooks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np

from jaxmlp import train
from jaxmlp.engine.history import EpochRecord, History
from jaxmlp.engine.loop import Chunk, Loop, asked, is_finite
from jaxmlp.engine.position import Position
from jaxmlp.engine.programs import Programs, figures
from jaxmlp.engine.progress import Progress
from jaxmlp.errors import DivergedError, RunError
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.controllers import restores
from jaxmlp.run.digest import digest, leaf_digests, leaves
from jaxmlp.run.directory import RunDirectory
from jaxmlp.system import distributed
from jaxmlp.system.signals import Stop


class Hook(Protocol):
    """A function called after each epoch."""

    def __call__(self, record: EpochRecord, state: train.TrainState) -> object:
        """Handle the end of an epoch. The hook must not keep `state`: the next step reuses its memory.

        Returns:
            True ends the run here. Any other answer is ignored.
        """


class RunWriter:
    """Writes the files of one run: logs, the best state, and the current state.

    Args:
        run: The run's directory, open for writing.
        config: The experiment.
        best_score: The lowest score of the epochs before. None: no epoch has a score yet.
    """

    def __init__(self, run: RunDirectory, config: ExperimentConfig, best_score: float | None = None) -> None:
        self.run, self.config, self.best_score = run, config, best_score
        self.params_sha256: str | None = None
        """Digest of the parameters after the last logged epoch."""
        self._unsaved: tuple[int, dict[str, np.ndarray[Any, Any]], dict[str, Any]] | None = None
        """The best state, if it is not on disk: its number of updates, arrays and meta."""

    def epoch_ended(self, record: EpochRecord, position: Position, order: np.ndarray[Any, Any]) -> None:
        """Log the epoch. If its score is the best so far, keep the state, which must be on the host."""
        line = state_digests(record.epoch, position.state) | {"order_sha256": digest({"order": order})}
        self.params_sha256 = line["params_sha256"]
        self.run.append_epoch(record.line(), line)
        score = self.config.score(record.figures)
        if score is not None and (self.best_score is None or score < self.best_score):
            self.best_score = position.best_score = score
            self._unsaved = record.steps, position.arrays(), position.meta()

    def save(self, position: Position | None) -> None:
        """Write the best state, unless it is on disk, and then the position, if any.

        In this order no checkpoint has the score of a best state that is not on disk.
        """
        best, self._unsaved = self._unsaved, None
        is_best = bool(best and position and best[0] == position.step)
        if best and not is_best:
            self.run.save_checkpoint(*best, best=True)
        if position:
            position.best_score = self.best_score
            self.run.save_checkpoint(position.step, position.arrays(), position.meta(), best=is_best)


class RunLoop(Loop):
    """The loop of one call of `fit`, with the arguments of `fit`."""

    def __init__(
        self,
        config: ExperimentConfig,
        programs: Programs,
        run: RunDirectory | None,
        progress: Progress,
        hooks: Sequence[Hook],
        stop: Stop,
        checkpoint_s: float,
        digest_every: int | None,
    ) -> None:
        super().__init__([config], programs, stop, checkpoint_s, digest_every if run else None)
        self.run, self.progress, self.hooks = run, progress, hooks

    def run_all(self) -> History:
        """Train the run from its newest checkpoint or its start to its end, or to a stop signal.

        Raises: As `fit`.
        """
        self.began = time.perf_counter()
        with self.progress.compiling():
            self.position = self._resume()
            self._compile()
        self.writer = self.run and RunWriter(self.run, self.config, self.position.best_score)
        self.first_update = time.perf_counter()
        self.train()
        return self._end("finished" if self.ended else "interrupted")

    def _end(self, status: str) -> History:
        """Score a finished run on the test split, write the result, and return the history."""
        ended, is_finished = time.perf_counter(), status == "finished"
        tested = self.programs.scored(self.position, "test", self.configs)[0] if is_finished else {}
        self._is_sound(0, "test", tested.get("loss", 0.0))
        state = jax.device_get(self.position.state)
        # The writer has hashed these parameters after the last epoch, unless the best epoch's have replaced them.
        trained_sha256 = (
            self.writer.params_sha256 if is_finished and self.writer and not restores(self.config) else None
        )
        history = History(
            config=self.config,
            dataset=self.programs.dataset,
            records=tuple(self.records[0]),
            state=state,
            status=status,
            stopped=self.stop_reasons[0],
            test=tested,
            params_sha256=trained_sha256 or digest(state.params),
            state_sha256=digest(state),
            compile_s=self.first_update - self.began,
            train_s=ended - self.first_update,
            devices=self.programs.mesh.size,
            processes=jax.process_count(),
        )
        if self.run:
            self.run.finish(status, dict(history.result()))
        return history

    def _resume(self) -> Position:
        position = self._stored()
        if self.run:
            # A run that stopped within an epoch has logged it.
            first_to_cut = position.epoch + 1 if position.done and position.stopped else position.epoch
            self.run.cut_back(first_to_cut, position.step)
        # Only the first process has the run directory, but every process reports its epochs.
        lines = distributed.share_json(self.run.epochs() if self.run else [])
        self.records = [[EpochRecord.from_line(line) for line in lines]]
        self.stop_reasons = [position.stopped]
        return position

    def _stored(self) -> Position:
        """The position of the newest intact checkpoint, or the start, on the devices of all processes.

        If a finished run gets more epochs, it continues from its last weights, not from its best epoch's weights.
        """
        position = self.programs.first()
        checkpoint = self.run and self.run.newest_checkpoint(self.progress.note)
        if checkpoint:
            position = position.restored(checkpoint.arrays, checkpoint.meta)
            if position.step != (position.epoch - 1) * self.programs.steps_per_epoch + position.done:
                raise RunError(f"{checkpoint.path.name} has a step that is not in its epoch.")
        position = self.programs.placed(position.from_first_process() if jax.process_count() > 1 else position)
        if position.epoch <= self.config.epochs and not position.stopped:
            self.programs.swap_best_weights(position, back=True)
        return position

    def _compile(self) -> None:
        """Compile every program of an epoch, without an update or an evaluation."""
        copied = self.programs.copied(self.position)
        order = self.programs.order(copied.epoch)
        self.programs.advance(copied, order, copied.done)
        if self.run and jax.process_count() == 1:
            self.run.compiled_as(self.programs.compiled_sha256(self.position, order))
        for name in self.programs.feeds:
            if name != "train":
                self.programs.compile_evaluation(self.position, name)

    def _trace(self) -> None:
        assert self.run
        self.run.append_trace(state_digests(self.position.epoch, jax.device_get(self.position.state)))

    def _chunk_ended(self, chunk: Chunk, sums: Mapping[str, Any]) -> None:
        means = figures(self.config, dict(sums))
        self.progress.steps_done(self.position.epoch, chunk.stop, self.programs.steps_per_epoch, means)

    def _epoch_ended(self, records: Sequence[EpochRecord | None], order: jax.Array) -> list[str | None]:
        (record,) = records
        assert record
        if self.writer:
            examples = jax.device_get(order)[: self.programs.examples]
            self.pending_writes.append(partial(self.writer.epoch_ended, record, self._on_host(), examples))
        self.progress.epoch_ended(record)
        try:
            return [asked(self.hooks, record, self.position.state)]
        except Exception as error:
            self._keep_position()
            error.history = self._end("interrupted")  # type: ignore[attr-defined]
            error.add_note(
                "The run so far is this error's `history`" + (f"; {self.run.path} can go on" if self.run else "")
            )
            raise

    def _diverge(self, lane: int, chunk: Chunk | None) -> None:
        """Repeat the chunk update by update, and raise an error that names the first bad update and parameter.

        So the message does not depend on the lengths of chunks. The state before the chunk is not kept. It is trained
        again from the newest checkpoint or the start.
        """
        assert chunk
        epoch, programs, position = self.position.epoch, self.programs, self._stored()
        programs.advance_to(position, epoch, chunk.start)
        order = programs.order(epoch)
        while position.done < chunk.stop:
            health = jax.device_get(programs.advance(position, order, position.done + 1))
            if not is_finite(health):
                break
        what = "parameters are" if np.isfinite(health.sums["loss"]) else "loss is"
        bad = [name for name, finite in leaves(health.finite_params).items() if not finite]
        leaf = f"first non-finite parameter: {bad[0]}" if bad else "its parameters are still finite"
        raise self._diverged(f"{what} not finite at step {position.step - 1}, epoch {epoch}; {leaf}")

    def _is_sound(self, lane: int, split: str, loss: float | None) -> bool:
        if loss is None or math.isfinite(loss):
            return True
        epoch = min(self.position.epoch, self.config.epochs)
        raise self._diverged(f"{split} loss is not finite after epoch {epoch}; the parameters are still finite")

    def _diverged(self, what: str) -> DivergedError:
        newest = self.run.checkpoints.paths() if self.run else []
        kept = f"the last good checkpoint is {newest[0].name}" if newest else "no checkpoint was written before"
        return DivergedError(
            f"diverged: the {what}; {kept}.\n"
            "Try a smaller --optimizer.learning-rate, or check the data's scale (--data.pixel-scale)."
        )

    def _on_host(self) -> Position:
        return self.position.holding(*jax.device_get((self.position.state, self.position.sums)))

    def _checkpoint(self) -> Callable[[], None]:
        self.position.stopped = self.stop_reasons[0]
        return partial(self.writer.save, self._on_host()) if self.writer else lambda: None


def state_digests(epoch: int, state: train.TrainState) -> dict[str, Any]:
    """The line of `digests.jsonl` for a state in `epoch`, without the digest of the batch order."""
    parts: Mapping[str, Any] = {"params": state.params, "opt_state": state.opt_state}
    parts = {**parts, **{name: tree for name in ("variables", "controllers") if (tree := getattr(state, name))}}
    return {
        "epoch": epoch,
        "steps": int(state.step),
        **{f"{name}_sha256": digest(part) for name, part in parts.items()},
        "leaves_sha256": leaf_digests(parts),
    }
