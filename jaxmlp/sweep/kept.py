"""A lane's run directory, as a run of its own would have left it but for times: logs, the best and the last state."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import RunError
from jaxmlp.history import EpochRecord, History
from jaxmlp.loop import Keeper
from jaxmlp.position import Position
from jaxmlp.run import files
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.record import CONFIG, read_plain_config
from jaxmlp.sweep.values import MAX_LANES


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
            if read_plain_config(path) != json.loads(config.to_json()):
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
        scores = [score for record in before if (score := config.score(record.figures)) is not None]
        self._keeper = Keeper(self.run, config, min(scores, default=None))
        self.epoch_ended = self._keeper.epoch_ended

    @property
    def params_sha256(self) -> str | None:
        """Digest of the parameters after the last epoch that this process logged."""
        return self._keeper.params_sha256

    def save_best(self) -> None:
        """Write the best state, unless it is written; before a checkpoint that knows its score."""
        self._keeper.save(None)

    def finish(self, history: History, position: Position) -> None:
        """Write the last state and the result. A lane that diverged has neither: nothing can go on from its state."""
        if history.status == "diverged":
            self.save_best()
            self.run.finish("diverged", None)
            return
        position.stopped = history.stopped
        self._keeper.save(position)
        self.run.finish(history.status, history.result())
