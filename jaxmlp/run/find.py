"""Where do runs lie, what is a new run's folder called, and which run do people mean?"""

from __future__ import annotations

import contextlib
import itertools
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmlp.errors import DiskError, RunError, printable
from jaxmlp.folders import chosen_folder
from jaxmlp.run import files
from jaxmlp.run.record import CONFIG

if TYPE_CHECKING:
    from jaxmlp.experiment.config import ExperimentConfig

SWEEP = "sweep.json"
"""File that makes a folder a sweep, as `config.json` makes it a run."""


def runs_dir() -> Path:
    """The folder of all runs: `JAXMLP_RUNS_DIR`, or `runs` in the current folder."""
    return chosen_folder(None, "JAXMLP_RUNS_DIR") or Path("runs")


def list_runs() -> list[Path]:
    """The runs in `runs_dir()`, the latest first."""
    return last_begun_first(CONFIG)


def last_begun_first(*names: str) -> list[Path]:
    """The folders in `runs_dir()` that hold a file with one of these names, newest file first."""
    found = (file for name in names for file in runs_dir().glob(f"*/{name}"))
    return [path for _, path in sorted(((file.lstat().st_mtime_ns, file.parent) for file in found), reverse=True)]


def default_run_dir(config: ExperimentConfig, now: datetime) -> Path:
    """Make an empty folder for a run in `runs_dir()`, such as `20261122T221530Z-relu_rmsprop-s0`.

    Raises:
        DiskError: The folder cannot be made.
    """
    return new_folder(f"{config.name}-s{config.seed}", now)


def new_folder(name: str, now: datetime) -> Path:
    """Make an empty folder in `runs_dir()`, named by time and `name`. If it exists, a number such as `-2` is added.

    Raises:
        DiskError: The folder cannot be made.
    """
    name = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{name}"
    try:
        with files.trying_to(f"make a folder in {runs_dir()}"):
            runs_dir().mkdir(parents=True, exist_ok=True)
            for number in itertools.count(1):
                path = runs_dir() / (name if number == 1 else f"{name}-{number}")
                with contextlib.suppress(FileExistsError):
                    path.mkdir(mode=0o700)
                    break
    except DiskError as error:
        raise DiskError(f"{error} Name another folder with --out or JAXMLP_RUNS_DIR.") from error
    return path


def find_run(name: str, *, or_sweep: bool = False) -> Path:
    """The run that people call `name`: a path, or `last` for the latest run in `runs_dir()`.

    Args:
        name: Name as people gave it.
        or_sweep: Whether `last` may be a sweep. If it may not, but a sweep is newer than the latest run, stderr says
            which run is used.

    Raises:
        RunError: The name is `last`, but there is no run.
    """
    if name != "last":
        return Path(name)
    newest = last_begun_first(CONFIG, SWEEP)
    found = newest if or_sweep else list_runs()
    if not found:
        has = f"has only the sweep {newest[0]}" if newest else "has no runs"
        raise RunError(f"there is no last run: {runs_dir()} {has}.")
    if found[0] != newest[0]:
        note = f"last: {found[0]}. The sweep {newest[0].name} is newer, but it is not a run."
        print(printable(note), file=sys.stderr, flush=True)
    return found[0]
