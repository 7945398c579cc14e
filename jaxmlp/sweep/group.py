"""The host's loop over a group of lanes that train side by side, as `loop.py` is for one run. No numerics."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmlp import distributed, train
from jaxmlp.errors import RunError
from jaxmlp.history import EpochRecord, History
from jaxmlp.loop import agree_on_chunk, next_chunk
from jaxmlp.programs import means
from jaxmlp.run.checkpoint_folder import Checkpoint
from jaxmlp.run.digest import digest, leaves, restore
from jaxmlp.run.manifest import manifest
from jaxmlp.sweep.job import Job
from jaxmlp.sweep.kept import KeptRun
from jaxmlp.sweep.lanes import Lane
from jaxmlp.sweep.over_lanes import ROWS, epoch_orders, init_lanes, learning_rates, put, to_host
from jaxmlp.sweep.program import Program
from jaxmlp.sweep.result import LaneResult

CHUNK_S = 1.0
"""As `loop.CHUNK_S`; longer, because between two looks every lane's state is read and written once."""


class Group:
    """Lanes of one program, from their start, or their checkpoint, to their end.

    Args:
        job: The sweep.
        program: Compiled for lanes like these.
        lanes: At most the program's slots; the rest of these is padded with the last lane, which stands still.
    """

    def __init__(self, job: Job, program: Program, lanes: Sequence[Lane]) -> None:
        self.job, self.program, self.lanes = job, program, list(lanes)
        self.config = lanes[0].config
        self.steps_per_epoch = job.steps_per_epoch(lanes[0])
        self.padding = program.slots - len(lanes)
        self.hyper = put(job.hyper([*lanes, *[lanes[-1]] * self.padding]), job.mesh, ROWS)
        self.records: list[list[EpochRecord]] = [[] for _ in lanes]
        self.diverged_in: list[int | None] = [None] * len(lanes)
        self.epoch, self.done, self.epoch_s, self.train_s = 1, 0, 0.0, 0.0
        self.kept: list[KeptRun] = []
        self.chunk = 1

    def run(self, checkpoint: Checkpoint | None = None, *, go_on: bool = False) -> list[LaneResult] | None:
        """Train to the end, or to a stop signal; then the group is saved and the answer none.

        Args:
            checkpoint: In the first process: where some lanes stood.
            go_on: Whether these are among them.
        """
        try:
            return self._run(checkpoint, go_on=go_on)
        finally:
            for kept in self.kept:
                kept.run.close()

    def _run(self, checkpoint: Checkpoint | None, *, go_on: bool) -> list[LaneResult] | None:
        self._start(checkpoint if go_on else None, go_on)
        jax.block_until_ready((self._orders(), self._rates()))  # Compiled before the clock starts.
        self.began = self.saved_at = time.perf_counter()
        while self.epoch <= self.config.epochs and not self.job.stopping and None in self.diverged_in:
            self._epoch()
        if self.job.stopping:
            self._save()
            return None
        return self._results()

    def _start(self, checkpoint: Checkpoint | None, go_on: bool) -> None:
        job = self.job
        if go_on:
            meta = json.loads(distributed.share(json.dumps(checkpoint.meta if checkpoint else {}).encode()))
            arrays = checkpoint.arrays if checkpoint else {}
            wanted: dict[str, Any] = {"state": self.program.states, "sums": self._zero_sums()}
            tree = restore(wanted, self._rows(arrays, meta["lanes"], wanted))
            self.state, self.sums = put((tree["state"], tree["sums"]), job.mesh, ROWS)
            diverged_in = dict(zip(meta["lanes"], meta["diverged_in"], strict=True))
            self.diverged_in = [diverged_in[lane.index] for lane in self.lanes]
            self.epoch, self.done = meta["epoch"], meta["done"]
            self.epoch_s, self.train_s = meta["epoch_s"], meta["train_s"]
            self._read_records()
        else:
            image_shape = job.dataset.train.images.shape[1:]
            self.state = init_lanes(self.hyper, **self.program.static, image_shape=image_shape)
            self.sums = put(self._zero_sums(), job.mesh, ROWS)
            if job.directory:
                job.directory.begin_group()
        self._put_active()
        if job.keep_runs and job.directory:
            for lane, records in zip(self.lanes, self.records, strict=True):
                facts = manifest(lane.config, job.dataset.sha256, devices=1)
                self.kept.append(KeptRun(job.directory.run_path(lane), lane.config, facts, records))

    def _zero_sums(self) -> train.Sums:
        zeros: train.Sums = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self.program.sums)
        return zeros

    def _rows(self, arrays: Mapping[str, Any], saved: Sequence[int], wanted: Any) -> dict[str, np.ndarray[Any, Any]]:
        """The rows of this group's lanes of a checkpoint's arrays, which the first process has; padded."""
        flat, _ = jax.tree_util.tree_flatten_with_path(wanted)
        leaf_of = {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in flat}
        if jax.process_count() > 1:
            shared = {}
            for name, leaf in leaf_of.items():
                data = distributed.share(arrays[name].tobytes() if arrays else b"")
                shared[name] = np.frombuffer(data, leaf.dtype).reshape(len(saved), *leaf.shape[1:])
            arrays = shared
        rows = [saved.index(lane.index) for lane in self.lanes]
        rows += rows[-1:] * self.padding
        return {name: array[rows] for name, array in arrays.items()}

    def _read_records(self) -> None:
        lines = self.job.directory.epochs(self.epoch) if self.job.directory else []
        for line in json.loads(distributed.share(json.dumps(lines).encode())):
            try:
                found = dict(zip(line["lanes"], line["records"], strict=True))
                ours = [found[lane.index] for lane in self.lanes]
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(f"the log of the group's epochs is damaged: {error}. Sweep again elsewhere.") from error
            for each, records in zip(ours, self.records, strict=True):
                if each:
                    records.append(EpochRecord.from_line(each))

    def _put_active(self) -> None:
        going = [epoch is None for epoch in self.diverged_in]
        self.active = put(np.asarray([*going, *[False] * self.padding]), self.job.mesh, ROWS)

    def _where(self) -> str:
        first, last = self.lanes[0].index + 1, self.lanes[-1].index + 1
        lanes = f"Lane {first}" if first == last else f"Lanes {first}-{last}"
        return f"{lanes} of {self.job.total} - Epoch {self.epoch}/{self.config.epochs}"

    def _epoch(self) -> None:
        """The epoch's updates that are left, unless stopped; then its evaluation and its records."""
        job = self.job
        orders = self._orders()
        while self.done < self.steps_per_epoch:
            length = min(self.chunk, self.steps_per_epoch - self.done)
            due = time.perf_counter() - self.saved_at > job.checkpoint_s
            length, job.stopping, due = agree_on_chunk(length, job.stop, due)
            if job.stopping:
                return
            if due:
                self._save()
            self._chunk(orders, length)
        began = time.perf_counter()
        where, records = self._where(), self._evaluated()
        if job.directory:
            lines = [record and record._asdict() for record in records]
            names = [lane.index for lane in self.lanes]
            job.directory.append_epoch({"epoch": self.epoch, "lanes": names, "records": lines})
        if job.keep_runs:
            self._keep(records, orders)
        seconds = self.epoch_s + time.perf_counter() - began
        self.epoch, self.done, self.epoch_s = self.epoch + 1, 0, 0.0
        self.sums = put(self._zero_sums(), job.mesh, ROWS)
        job.progress.epoch_ended(where, seconds, [record for record in records if record])

    def _chunk(self, orders: jax.Array, length: int) -> None:
        job, began = self.job, time.perf_counter()
        stop = self.done + length
        self.state, self.sums, health = self.program.train(
            self.state, self.sums, orders, self.hyper, self.active, job.splits["train"],
            np.int32(self.done), np.int32(stop),
        )  # fmt: skip
        health = to_host(health, job.mesh)
        finite_params = np.all(list(leaves(health.finite_params).values()), axis=0)
        healthy = finite_params & (health.bad_loss_step == train.NEVER)
        for row in range(len(self.lanes)):
            if self.diverged_in[row] is None and not healthy[row]:
                self._diverge(row)
        seconds = time.perf_counter() - began
        self.epoch_s += seconds
        self.chunk = next_chunk(self.chunk, length, seconds, self.steps_per_epoch, CHUNK_S)
        job.progress.updates_done(self._where(), len(self.lanes) * length)
        self.done = stop

    def _diverge(self, row: int) -> None:
        self.diverged_in[row] = self.epoch
        lane = self.lanes[row]
        self.job.progress.note(f"Lane {lane.index + 1} (seed {lane.seed}) diverged in epoch {self.epoch}.")
        self._put_active()

    def _orders(self) -> jax.Array:
        orders: jax.Array = epoch_orders(
            self.hyper.seed, np.int32(self.epoch - 1), examples=self.job.examples,
            batch_size=self.config.batch_size, shuffle=self.config.shuffle, mesh=self.job.mesh,
        )  # fmt: skip
        return orders

    def _rates(self) -> jax.Array:
        config, mesh = self.program.static["config"], self.job.mesh
        rates: jax.Array = learning_rates(self.state.step, self.hyper, config=config, mesh=mesh)
        return rates

    def _evaluated(self) -> list[EpochRecord | None]:
        """The epoch's record of each lane that has not diverged, added to its others."""
        job, began = self.job, time.perf_counter()
        sums = [to_host(self.sums, job.mesh)]
        if "validation" in job.splits:
            split = job.splits["validation"]
            sums.append(to_host(self.program.evaluate["validation"](self.state.params, split), job.mesh))
        rates = to_host(self._rates(), job.mesh)
        seconds = (self.epoch_s + time.perf_counter() - began) / len(self.lanes)
        ended: list[EpochRecord | None] = []
        for row, records in enumerate(self.records):
            if self.diverged_in[row] is not None:
                ended.append(None)
                continue
            loss, accuracy = means(_row(sums[0], row))
            val_loss, val_accuracy = means(_row(sums[1], row)) if len(sums) > 1 else (None, None)
            if val_loss is not None and not math.isfinite(val_loss):
                self._diverge(row)
                ended.append(None)
                continue
            steps, rate = self.epoch * self.steps_per_epoch, float(rates[row])
            record = EpochRecord(self.epoch, steps, loss, accuracy, val_loss, val_accuracy, rate, seconds)
            records.append(record)
            ended.append(record)
        return ended

    def _keep(self, records: Sequence[EpochRecord | None], orders: jax.Array) -> None:
        states, orders = to_host(self.state, self.job.mesh), to_host(orders, self.job.mesh)
        for row, (kept, record) in enumerate(zip(self.kept, records, strict=False)):
            if record:
                kept.epoch_ended(record, _row(states, row), np.asarray(orders[row][: self.job.examples]))

    def _save(self) -> None:
        """A checkpoint of all lanes, gathered by all processes and written by the first."""
        self.saved_at = time.perf_counter()
        tree = to_host({"state": self.state, "sums": self.sums}, self.job.mesh)
        if not self.job.directory:
            return
        for kept in self.kept:
            kept.save_best()
            kept.run.sync_logs()
        meta = {
            "lanes": [lane.index for lane in self.lanes],
            "diverged_in": self.diverged_in,
            "epoch": self.epoch,
            "done": self.done,
            "epoch_s": self.epoch_s,
            "train_s": self.train_s + time.perf_counter() - self.began,
        }
        arrays = {name: array[: len(self.lanes)] for name, array in leaves(tree).items()}
        self.job.directory.save_group((self.epoch - 1) * self.steps_per_epoch + self.done, arrays, meta)

    def _results(self) -> list[LaneResult]:
        """Every lane's, written as each is made."""
        job = self.job
        train_s = (self.train_s + time.perf_counter() - self.began) / len(self.lanes)
        split = job.splits["test"]
        sums = to_host(self.program.evaluate["test"](self.state.params, split), job.mesh)
        states = to_host(self.state, job.mesh)
        results = []
        for row, lane in enumerate(self.lanes):
            state, diverged_in = _row(states, row), self.diverged_in[row]
            loss, accuracy = means(_row(sums, row))
            ended = diverged_in is None and math.isfinite(loss)
            history = History(
                config=lane.config, module=self.program.static["module"], dataset=job.dataset,
                records=tuple(self.records[row]), state=state,
                status="finished" if ended else "diverged", test_loss=loss if ended else None,
                test_accuracy=accuracy if ended else None, params_sha256=digest(state.params),
                state_sha256=digest(state), compile_s=job.compile_s, train_s=train_s,
                devices=1, processes=jax.process_count(),
            )  # fmt: skip
            if self.kept:
                self.kept[row].finish(history)
            result = LaneResult(
                lane=lane.index, seed=lane.seed, settings=lane.settings, status=history.status,
                epoch=diverged_in or self.config.epochs, test_loss=history.test_loss,
                test_accuracy=history.test_accuracy,
                params_sha256=history.params_sha256 if ended else None,
                state_sha256=history.state_sha256 if ended else None, train_s=train_s, metrics=history.records,
            )  # fmt: skip
            if job.directory:
                job.directory.append_lane(result)
            results.append(result)
        return results


def _row[T](tree: T, row: int) -> T:
    picked: T = jax.tree.map(lambda leaf: leaf[row], tree)
    return picked
