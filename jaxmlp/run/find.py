"""Where runs lie: the folder of all, a new one's name, and which one people mean."""

from __future__ import annotations

import contextlib
import itertools
import sys
from datetime import UTC, datetime
from pathlib import Path

from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import DiskError, RunError, printable
from jaxmlp.folders import chosen_folder
from jaxmlp.run import files
from jaxmlp.run.record import CONFIG

SWEEP = "sweep.json"
"""What makes a folder a sweep, as a run's config makes it a run."""


def runs_dir() -> Path:
    """`JAXMLP_RUNS_DIR`, or `runs` in the current folder."""
    return chosen_folder(None, "JAXMLP_RUNS_DIR") or Path("runs")


def list_runs() -> list[Path]:
    """The runs in `runs_dir()`, the one begun last first."""
    return last_begun_first(CONFIG)


def last_begun_first(*names: str) -> list[Path]:
    """The folders in `runs_dir()` that have a file of one of these names, the newest file's first."""
    found = (file for name in names for file in runs_dir().glob(f"*/{name}"))
    begun = [(file.lstat().st_mtime_ns, file.parent) for file in found]
    return [path for _, path in sorted(begun, reverse=True)]


def default_run_dir(config: ExperimentConfig, now: datetime) -> Path:
    """Make an empty folder for a run in `runs_dir()`: `20261122T221530Z-relu_rmsprop-s0`, with `-2` if that is taken.

    Raises:
        DiskError: It cannot be made.
    """
    return new_folder(f"{config.name}-s{config.seed}", now)


def new_folder(name: str, now: datetime) -> Path:
    """Make an empty folder in `runs_dir()` that has the time before its name, and a number behind it if it is taken.

    Raises:
        DiskError: It cannot be made.
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
        raise DiskError(f"{error} Name another with --out, or by JAXMLP_RUNS_DIR.") from error
    return path


def find_run(name: str, *, or_sweep: bool = False) -> Path:
    """The run that people call `name`: a path, or `last` for the one begun last in `runs_dir()`.

    Args:
        name: As people gave it.
        or_sweep: Whether a sweep will do, so that `last` is the run or sweep begun last. Where it will not, and a
            sweep was begun later than the run, stderr says which run is taken.

    Raises:
        RunError: It is `last`, and there is none.
    """
    if name != "last":
        return Path(name)
    newest = last_begun_first(CONFIG, SWEEP)
    found = newest if or_sweep else list_runs()
    if not found:
        has = f"has none, but the sweep {newest[0]}" if newest else "has none"
        raise RunError(f"there is no last run: {runs_dir()} {has}.")
    if found[0] != newest[0]:
        told = f"last: {found[0]}. The sweep {newest[0].name} was begun later, and is no run."
        print(printable(told), file=sys.stderr, flush=True)
    return found[0]
