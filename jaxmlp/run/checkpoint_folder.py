"""Which checkpoints of a run are kept, which is the best, and from which does a resume go on?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from jaxmlp.errors import DiskError, RunError
from jaxmlp.run import checkpoint, files

_FILE = re.compile(r"step-(\d{8,15})\.safetensors")


class Checkpoint(NamedTuple):
    """A checkpoint whose every byte was checked."""

    path: Path
    step: int
    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]


class CheckpointFolder:
    """Files such as `step-00009380.safetensors`: the last two and the best.

    The meta of each checkpoint says whether it was the best so far when it was written. So the newest one that says so
    is the best. There is no second record that a crash could separate from the files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            RunError: The folder is a symbolic link, which could lead out of the run.
        """
        if self._path.is_symlink():
            raise RunError(f"{self._path} is a symbolic link: checkpoints must lie in the run directory.")
        return self._path

    def paths(self) -> list[Path]:
        """The files, newest first, not opened yet."""
        found = (path for path in self.path.glob("step-*") if _FILE.fullmatch(path.name))
        return sorted(found, key=_step, reverse=True)

    def save(self, step: int, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], *, best: bool) -> Path:
        """Write the checkpoint of `step`, then remove all but the last two and the best.

        Args:
            step: Number of updates made. It names the file.
            arrays: Arrays by name.
            meta: JSON values. `step` and `best` are added.
            best: Whether this checkpoint is better than all before.

        Raises:
            DiskError: The checkpoint could not be written (the message names an intact checkpoint), or an older
                checkpoint could not be removed.
        """
        path = self.path / f"step-{step:08d}.safetensors"
        before = self.paths()
        try:
            # If the best checkpoint is written again, it stays the best.
            checkpoint.save(path, arrays, {**meta, "step": step, "best": best or _is_best(path)})
        except DiskError as error:
            intact = f" {before[0].name} is intact: make room for more, and continue with --resume." if before else ""
            raise DiskError(f"{error}{intact}") from error
        found = self.paths()
        best_paths = [each for each in found if _is_best(each)]
        for each in found:
            if each not in (*found[:2], *best_paths[:1]):
                with files.trying_to(f"remove the old checkpoint {each}"):
                    each.unlink(missing_ok=True)
        return path

    def newest(self, warn: Callable[[str], None], *, set_aside: bool) -> Checkpoint | None:
        """The newest good checkpoint; None if there are no checkpoint files.

        Args:
            warn: Called for each damaged newer file, with the checkpoint that is used instead.
            set_aside: Whether `.damaged` is added to the names of damaged files, so that they do not count as the last
                two.

        Raises:
            DiskError: A damaged file could not be set aside.
            RunError: There are checkpoints, but all are damaged. The message names them.
        """
        damaged: list[tuple[Path, RunError]] = []
        for path in self.paths():
            try:
                good = _load(path)
            except RunError as error:
                if not path.exists():
                    # A process that writes here has removed it since, because it has newer checkpoints.
                    return self.newest(warn, set_aside=set_aside)
                damaged.append((path, error))
                continue
            for bad, problem in damaged:
                warn(f"{problem}. Using {path.name}, the next older good checkpoint.")
                if set_aside:
                    with files.trying_to(f"set aside the damaged {bad}"):
                        bad.rename(f"{bad}.damaged")
            return good
        if damaged:
            problems = "; ".join(str(problem) for _, problem in damaged)
            raise RunError(f"{self.path} has no good checkpoint: {problems}. Train again with another --out.")
        return None

    def best(self) -> Checkpoint | None:
        """The best checkpoint; None if no checkpoint is marked as best.

        Raises:
            RunError: The best checkpoint is damaged, or a damaged newer checkpoint might be the best.
        """
        for path in self.paths():
            try:
                if checkpoint.load_meta(path).get("best"):
                    return _load(path)
            except RunError:
                if path.exists():
                    raise
                # A process that writes here has removed it since, because it has newer checkpoints.
                return self.best()
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of `step`.

        Raises:
            RunError: The checkpoint is damaged or does not exist. The message lists the existing steps.
        """
        found = {_step(path): path for path in self.paths()}
        if step not in found:
            steps = ", ".join(map(str, sorted(found))) or "none"
            raise RunError(f"{self.path} has no checkpoint of step {step}. It has: {steps}.")
        return _load(found[step])


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-").removesuffix(".safetensors"))


def _is_best(path: Path) -> bool:
    try:
        return bool(checkpoint.load_meta(path).get("best"))
    except RunError:
        return False


def _load(path: Path) -> Checkpoint:
    arrays, meta = checkpoint.load(path)
    if meta.get("step") != _step(path):
        raise RunError(f"checkpoint {path.name}: it is the checkpoint of step {meta.get('step')} under another name")
    return Checkpoint(path, _step(path), arrays, meta)
