"""How does a lane leave a run directory like a solo run's? It differs only in times."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmlp.engine.history import EpochRecord, History
from jaxmlp.engine.position import Position
from jaxmlp.engine.run_loop import RunWriter
from jaxmlp.errors import RunError
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.run import files
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.record import CONFIG, read_plain_config
from jaxmlp.sweep.values import MAX_LANES


def most_at_once() -> int:
    """Largest number of lanes in training that keep runs.

    Each keeps its lock file open; half the allowed files stay free.
    """
    files_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_LANES if files_open == resource.RLIM_INFINITY else min(MAX_LANES, files_open // 2)


class KeptRun:
    """The run directory of a lane in training.

    Args:
        path: Folder of the run. An existing run is continued.
        config: Config of the lane.
        manifest: Manifest of a new run.
        before: Records of the lane's epochs so far.
    """

    def __init__(
        self, path: Path, config: ExperimentConfig, manifest: Mapping[str, Any], before: list[EpochRecord]
    ) -> None:
        if (path / CONFIG).exists():
            if path.is_symlink():
                raise RunError(f"{path} is a symbolic link: it must lie in the sweep's folder.")
            if read_plain_config(path) != json.loads(config.to_json()):
                raise RunError(
                    f"{path} holds a run with another config than the sweep's lane. Sweep again in another folder."
                )
            self.run = RunDirectory.open(path, write=True)
        else:
            with files.trying_to(f"make the folder {path.parent}"):
                path.parent.mkdir(mode=0o700, exist_ok=True)
            self.run = RunDirectory.create(path, config, manifest)
        try:
            if self.run.status == "finished":  # The process was killed before the sweep recorded it.
                self.run.begin_again()
            self.run.cut_back(len(before) + 1)
        except BaseException:
            self.run.close()
            raise
        scores = [score for record in before if (score := config.score(record.figures)) is not None]
        self.writer = RunWriter(self.run, config, min(scores, default=None))

    def finish(self, history: History, position: Position) -> None:
        """Write the last state and the result. A diverged lane gets neither: its state cannot be continued."""
        if history.status == "diverged":
            self.writer.save(None)
            self.run.finish("diverged", None)
            return
        position.stopped = history.stopped
        self.writer.save(position)
        self.run.finish(history.status, history.result())
