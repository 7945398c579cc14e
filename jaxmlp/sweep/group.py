"""How do lanes of one program train side by side, with one loop and one checkpoint?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxmlp.engine.history import EpochRecord, History
from jaxmlp.engine.loop import Chunk, Loop, asked
from jaxmlp.engine.position import Position
from jaxmlp.engine.run_loop import state_digests
from jaxmlp.errors import RunError
from jaxmlp.experiment.controllers import restores
from jaxmlp.run.checkpoint_folder import Checkpoint
from jaxmlp.run.digest import digest, leaves, restore
from jaxmlp.run.manifest import manifest
from jaxmlp.sweep.job import Job
from jaxmlp.sweep.kept import KeptRun
from jaxmlp.sweep.lanes import Lane
from jaxmlp.sweep.program import LanePrograms
from jaxmlp.sweep.result import LaneResult
from jaxmlp.system import distributed


class LaneGroup(Loop):
    """Lanes of one program, trained from their start or a checkpoint to their end.

    Args:
        job: The sweep.
        lanes: Lanes with equal `side_by_side`.
        slots: Number of rows in the programs, at least the number of lanes.
    """

    chunk_s = 0.75  # Longer than for a run, because each chunk reads and writes every lane's state once.
    programs: LanePrograms

    def __init__(self, job: Job, lanes: Sequence[Lane], slots: int) -> None:
        programs = LanePrograms(job, lanes, slots)
        digest_every = job.digest_every if job.keep_runs else None
        super().__init__([lane.config for lane in lanes], programs, job.stop, job.checkpoint_s, digest_every)
        self.job, self.lanes, self.slots = job, list(lanes), slots
        self.train_s = 0.0
        self.kept: list[KeptRun] = []

    def run(self, checkpoint: Checkpoint | None = None, *, resume: bool = False) -> list[LaneResult] | None:
        """Train to the end, or to a stop signal. After a signal the group is saved, and the result is None.

        Args:
            checkpoint: In the first process, a checkpoint of some lanes.
            resume: Whether the checkpoint holds the lanes of this group.
        """
        try:
            began = time.perf_counter()
            self._start(checkpoint if resume else None, resume)
            self.programs.compile(self.position)
            self.began = time.perf_counter()
            self.job.compile_s += self.began - began
            self.train()
            return None if self.agreed_to_stop else self._results()
        finally:
            for kept in self.kept:
                kept.run.close()

    def _start(self, checkpoint: Checkpoint | None, resume: bool) -> None:
        job = self.job
        self.position = self.programs.first()
        if resume:
            meta = distributed.share_json(checkpoint.meta if checkpoint else {})
            wanted: dict[str, Any] = {"state": self.position.state, "sums": self.position.sums}
            tree = restore(wanted, self._rows(checkpoint.arrays if checkpoint else {}, meta["lanes"], wanted))
            self.position = self.programs.placed(
                Position(**tree, epoch=meta["epoch"], done=meta["done"], epoch_s=meta["epoch_s"])
            )
            diverged_in = dict(zip(meta["lanes"], meta["diverged_in"], strict=True))
            self.diverged_in = [diverged_in[lane.index] for lane in self.lanes]
            stopped = dict(zip(meta["lanes"], meta.get("stopped", [None] * len(meta["lanes"])), strict=True))
            self.stop_reasons = [stopped[lane.index] for lane in self.lanes]
            self.train_s = meta["train_s"]
            self.programs.freeze(self.going)
            self._read_records()
        elif job.directory:
            job.directory.begin_group()
        if job.keep_runs and job.directory:
            for lane, records in zip(self.lanes, self.records, strict=True):
                facts = manifest(lane.config, job.dataset, devices=1)
                self.kept.append(KeptRun(job.directory.run_path(lane), lane.config, facts, records))

    def _rows(self, arrays: Mapping[str, Any], saved: Sequence[int], wanted: Any) -> dict[str, np.ndarray[Any, Any]]:
        """The rows of this group's lanes in a checkpoint's arrays, padded to the slots.

        Only the first process has the arrays.
        """
        flat, _ = jax.tree_util.tree_flatten_with_path(wanted)
        leaf_of = {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in flat}
        if jax.process_count() > 1:
            shared = {}
            for name, leaf in leaf_of.items():
                data = distributed.share(arrays[name].tobytes() if arrays else b"")
                shared[name] = np.frombuffer(data, leaf.dtype).reshape(len(saved), *leaf.shape[1:])
            arrays = shared
        rows = [saved.index(lane.index) for lane in self.lanes]
        rows += rows[-1:] * (self.slots - len(rows))
        return {name: array[rows] for name, array in arrays.items()}

    def _read_records(self) -> None:
        position = self.position
        lines = self.job.directory.epochs(position.epoch, position.done) if self.job.directory else []
        for line in distributed.share_json(lines):
            try:
                found = dict(zip(line["lanes"], line["records"], strict=True))
                ours = [found[lane.index] for lane in self.lanes]
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(f"the log of the group's epochs is damaged: {error}. Sweep again elsewhere.") from error
            for each, records in zip(ours, self.records, strict=True):
                if each:
                    records.append(EpochRecord.from_line(each))

    def _where(self, epoch: int) -> str:
        first, last = self.lanes[0].index + 1, self.lanes[-1].index + 1
        lanes = f"Lane {first}" if first == last else f"Lanes {first}-{last}"
        return f"{lanes} of {self.job.total} - Epoch {epoch}/{self.config.epochs}"

    def _diverge(self, lane: int, chunk: Chunk | None) -> None:
        epoch = self.position.epoch
        self.diverged_in[lane] = epoch
        named = self.lanes[lane]
        self.job.progress.note(f"Lane {named.index + 1} (seed {named.seed}) diverged in epoch {epoch}.")
        self.programs.freeze(self.going)

    def _is_sound(self, lane: int, split: str, loss: float | None) -> bool:
        is_sound = loss is None or math.isfinite(loss)
        if not is_sound:
            self._diverge(lane, None)
        return is_sound

    def _trace(self) -> None:
        states = self.programs.per_lane(self.position.state)
        for kept, state, going in zip(self.kept, states, self.going, strict=False):
            if going:
                kept.run.append_trace(state_digests(self.position.epoch, state))

    def _chunk_ended(self, chunk: Chunk, sums: Mapping[str, Any]) -> None:
        self.job.progress.updates_done(self._where(self.position.epoch), len(self.lanes) * (chunk.stop - chunk.start))

    def _epoch_ended(self, records: Sequence[EpochRecord | None], order: jax.Array) -> list[str | None]:
        job, done = self.job, self.position.done
        epoch = self.position.epoch - (not done)
        if job.directory:
            lines = [record and record.line() for record in records]
            names = [lane.index for lane in self.lanes]
            within = {"done": done} if done else {}
            job.directory.append_epoch({"epoch": epoch, **within, "lanes": names, "records": lines})
        if job.keep_runs:
            self._keep(records, order)
        going = [record for record in records if record]
        seconds = sum(record.seconds for record in going) * len(records) / max(1, len(going))
        job.progress.epoch_ended(self._where(epoch), seconds, going)
        return self._asked(records) if job.hooks else [None] * len(records)

    def _asked(self, records: Sequence[EpochRecord | None]) -> list[str | None]:
        """Reasons with which hooks end a lane, for each lane."""
        states = self.programs.per_lane(self.position.state)
        try:
            return [
                asked(self.job.hooks, lane, record, state) if record else None
                for lane, record, state in zip(self.lanes, records, states, strict=True)
            ]
        except Exception as error:
            self._keep_position()
            error.add_note(
                "The sweep's lanes are saved" if self.job.directory else "The sweep has no folder: nothing is saved"
            )
            raise

    def _keep(self, records: Sequence[EpochRecord | None], order: jax.Array) -> None:
        zeros = self.programs.zero_sums(self.position)
        rows = zip(records, *map(self.programs.per_lane, (self.position.state, zeros, order)), strict=True)
        for kept, (record, state, sums, own_order) in zip(self.kept, rows, strict=False):
            if record:
                at = Position.at(record.steps, self.programs.steps_per_epoch, state, sums)
                self.pending_writes.append(partial(kept.writer.epoch_ended, record, at, own_order[: self.job.examples]))

    def _checkpoint(self) -> Callable[[], None]:
        """Prepare a checkpoint of all lanes. All processes gather it; the first one writes it.

        Does nothing once all lanes have ended.
        """
        if self.ended:
            return lambda: None
        position, directory = self.position, self.job.directory
        rows = self.programs.per_lane({"state": position.state, "sums": position.sums})
        if not directory:
            return lambda: None
        meta = {
            "lanes": [lane.index for lane in self.lanes],
            "diverged_in": self.diverged_in,
            "epoch": position.epoch,
            "done": position.done,
            "epoch_s": position.epoch_s,
            "train_s": self.train_s + time.perf_counter() - self.began,
            **({"stopped": self.stop_reasons} if any(self.stop_reasons) else {}),
        }
        step = (position.epoch - 1) * self.programs.steps_per_epoch + position.done

        def write() -> None:
            for kept in self.kept:
                kept.writer.save(None)  # Before a checkpoint that records the best score.
                kept.run.sync_logs()
            directory.save_group(step, leaves(jax.tree.map(lambda *each: np.stack(each), *rows)), meta)

        return write

    def _results(self) -> list[LaneResult]:
        """The results of all lanes. Each is written when it is made."""
        job = self.job
        train_s = (self.train_s + time.perf_counter() - self.began) / len(self.lanes)
        tested = self.programs.scored(self.position, "test", self.configs)
        states = self.programs.per_lane(self.position.state)
        zeros = self.programs.per_lane(self.programs.zero_sums(self.position))
        results = []
        rows = zip(self.lanes, states, tested, self.diverged_in, strict=True)
        for row, (lane, state, test, diverged_in) in enumerate(rows):
            ended = diverged_in is None and math.isfinite(test["loss"])
            history = History(
                config=lane.config,
                dataset=job.dataset,
                records=tuple(self.records[row]),
                state=state,
                status="finished" if ended else "diverged",
                stopped=self.stop_reasons[row],
                test=test if ended else {},
                params_sha256=(
                    ended and self.kept and not restores(lane.config) and self.kept[row].writer.params_sha256
                )
                or digest(state.params),
                state_sha256=digest(state),
                compile_s=job.compile_s,
                train_s=train_s,
                devices=1,
                processes=jax.process_count(),
            )
            if self.kept:
                steps = int(state.step), self.programs.steps_per_epoch
                self.kept[row].finish(history, Position.at(*steps, state, zeros[row]))
            result = LaneResult(
                lane=lane.index,
                seed=lane.seed,
                settings=lane.settings,
                status=history.status,
                epoch=diverged_in or len(history.records),
                test=history.test,
                params_sha256=history.params_sha256 if ended else None,
                state_sha256=history.state_sha256 if ended else None,
                train_s=train_s,
                metrics=history.records,
                stopped=history.stopped,
            )
            if job.directory:
                job.directory.append_lane(result)
            results.append(result)
        return results
