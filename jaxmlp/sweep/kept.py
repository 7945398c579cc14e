"""A lane's run directory, as a run of its own would have left it but for times: logs, the best and the last state."""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlp import train
from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import RunError
from jaxmlp.history import EpochRecord, History
from jaxmlp.loop import state_digests
from jaxmlp.position import Position
from jaxmlp.run import files
from jaxmlp.run.digest import digest
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.record import CONFIG, read_config
from jaxmlp.sweep.lanes import MAX_LANES


def most_at_once() -> int:
    """How many may be in training: each holds a file open, its lock, and half the files are left for all else."""
    files_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_LANES if files_open == resource.RLIM_INFINITY else min(MAX_LANES, files_open // 2)


class KeptRun:
    """The run directory of a lane in training.

    Args:
        path: Its folder; a run that is there goes on.
        config: The lane's.
        manifest: For a new run.
        before: The lane's epochs so far.
    """

    def __init__(
        self, path: Path, config: ExperimentConfig, manifest: Mapping[str, Any], before: list[EpochRecord]
    ) -> None:
        if (path / CONFIG).exists():
            if path.is_symlink():
                raise RunError(f"{path} is a symbolic link: it must lie in the sweep's folder.")
            if read_config(path) != config:
                raise RunError(f"{path} holds another run than the sweep's lane. Sweep again in another folder.")
            self.run = RunDirectory.open(path, write=True)
        else:
            with files.trying_to(f"make the folder {path.parent}"):
                path.parent.mkdir(mode=0o700, exist_ok=True)
            self.run = RunDirectory.create(path, config, manifest)
        try:
            if self.run.status == "finished":  # By a process that was killed before the sweep knew of it.
                self.run.begin_again()
            self.run.cut_back(len(before) + 1)
        except BaseException:
            self.run.close()
            raise
        losses = [record.val_loss for record in before if record.val_loss is not None]
        self.best_val_loss = min(losses, default=math.inf)
        self.unsaved_best: Position | None = None

    def epoch_ended(self, record: EpochRecord, state: train.TrainState, order: np.ndarray[Any, Any]) -> None:
        """Log the epoch; a best state is kept until `save_best`."""
        digests = state_digests(record.epoch, state) | {"order_sha256": digest({"order": order})}
        self.run.append_epoch(record._asdict(), digests)
        if record.val_loss is not None and record.val_loss < self.best_val_loss:
            self.best_val_loss = record.val_loss
            self.unsaved_best = self._after(record, state)

    def _after(self, record: EpochRecord, state: train.TrainState) -> Position:
        return Position(state, train.Sums.zero(), record.epoch + 1, best_val_loss=self.best_val_loss)

    def save_best(self) -> None:
        """Write the best state, unless it is written; before a checkpoint that knows its loss."""
        if self.unsaved_best:
            self._save(self.unsaved_best, best=True)
            self.unsaved_best = None

    def finish(self, history: History) -> None:
        """Write the last state and the result; neither of a lane that diverged, whose state is none to go on from."""
        self.save_best()
        if history.status == "diverged":
            self.run.finish("diverged", None)
            return
        self._save(self._after(history.records[-1], history.state), best=False)
        self.run.finish(history.status, history.result())

    def _save(self, position: Position, *, best: bool) -> None:
        self.run.save_checkpoint(int(position.state.step), position.arrays(), position.meta(), best=best)
