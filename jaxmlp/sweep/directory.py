"""What is in a sweep's directory? Everything that a sweep leaves and a resume needs.

sweep.json     the plan: config, seeds, settings, batching, keep_runs; written once
manifest.json  what the bits depend on, and `status`, like a run's manifest
lanes.jsonl    one line per lane that has ended: `LaneResult`, with its figures epoch by epoch in `metrics`
result.json    what `sweep --json` prints, once the sweep has ended or was interrupted
lock           the process that writes here
code/          the user's own code, as in a run
group/         while lanes train: epochs.jsonl, one line per epoch with the figures of all lanes, and checkpoints
               step-00009380.safetensors, in which each array has a leading axis of lanes
runs/          with --keep-runs, the run directories: lane 3 with seed 7 is runs/0003-s7

Lane i has the setting settings[i // len(seeds)] and the seed seeds[i % len(seeds)]. `load` reads a sweep.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from jaxmlp.errors import ConfigError, RunError
from jaxmlp.experiment.fields import parse_json
from jaxmlp.run import code as stored
from jaxmlp.run import files, jsonl
from jaxmlp.run.checkpoint_folder import Checkpoint, CheckpointFolder
from jaxmlp.run.find import last_begun_first, runs_dir
from jaxmlp.run.lock import Lock, lock_folder
from jaxmlp.run.opening import finder, refusal
from jaxmlp.run.record import CONFIG, FORMAT, MANIFEST, checked_manifest
from jaxmlp.source.code import code_of, data_code_of, sums_of
from jaxmlp.source.file import Code, Experiment
from jaxmlp.sweep.lanes import Lane, Plan
from jaxmlp.sweep.result import LaneResult

PLAN, LANES, RESULT, GROUP, EPOCHS, RUNS, LOCK = (
    "sweep.json", "lanes.jsonl", "result.json", "group", "epochs.jsonl", "runs", "lock",
)  # fmt: skip


class SweepDirectory:
    """One sweep on disk, for the process that writes it. Made by `create` or `open`; use it in a `with` block."""

    def __init__(self, path: Path, plan: Plan, manifest: dict[str, Any], lock: Lock) -> None:
        self.path = path
        self.plan = plan
        self.manifest = manifest
        self._lock = lock
        self._checkpoints = CheckpointFolder(path / GROUP)

    @classmethod
    def create(cls, path: Path, plan: Plan, manifest: Mapping[str, Any]) -> SweepDirectory:
        """Begin a sweep in a folder that holds no run or sweep.

        Raises:
            RunError: The folder holds a run or sweep, or another process uses it.
            DiskError: The folder cannot be written.
        """
        lock = lock_folder(path, LOCK)
        try:
            if os.path.lexists(path / CONFIG):
                raise RunError(f"{path} holds a run. Name another folder with --out.")
            if os.path.lexists(path / PLAN):
                try:
                    names = stored.files_to_name(parse_json(files.read(path / PLAN)), read_manifest(path))
                except ValueError as error:
                    raise RunError(f"{path} holds a damaged sweep ({error}). Name another folder with --out.") from None
                resume = f"jaxmlp sweep --resume {shlex.quote(str(path))}{stored.flags(names)}"
                raise RunError(f"{path} holds a sweep. Continue with `{resume}`, or name another folder with --out.")
            sweep = cls(path, plan, {"format": FORMAT, **manifest, "status": "running"}, lock)
            sweep._remove_temporaries()
            stored.copy(path / stored.CODE, data_code_of(plan.config) | code_of(plan.config, *plan.variants()))
            sweep._write_manifest()
            files.write(path / LANES)
            sweep.begin_group()
            # Last, because sweep.json makes the folder a sweep.
            files.write(path / PLAN, plan.to_json().encode())
            return sweep
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: Path, code: Code | None = None, *, accept_changed_code: bool = False) -> SweepDirectory:
        """Open a sweep to continue it. Files that a killed process left half written are removed.

        An unfinished sweep becomes `running` again.

        Args:
            path: Folder of the sweep.
            code: The user's own code that the sweep used.
            accept_changed_code: Whether the sweep may continue with changed code. The change is recorded.

        Raises:
            CodeError: The sweep's code was not given, or has changed and the change was not accepted.
            RunError: There is no sweep, it cannot be read, or another process uses it.
            DiskError: The folder cannot be written.
        """
        code = code or Code()
        plan = read_plan(path, code)
        manifest = read_manifest(path)
        goes_on = manifest["status"] != "finished" and (code.files or code.config)
        changed = code.changed(stored.wanted(manifest)) if goes_on else ()
        if changed and not accept_changed_code:
            raise refusal(path, changed)
        for name in (GROUP, RUNS):
            if (path / name).is_symlink():
                raise RunError(f"{path / name} is a symbolic link: it must lie in the sweep's folder.")
        lock = Lock(path / LOCK)
        try:
            sweep = cls(path, plan, read_manifest(path), lock)
            sweep._remove_temporaries()
            jsonl.cut_back(path / LANES, lambda line: True)
            if changed:
                sources = code_of(plan.config, *plan.variants())
                accepted = {"lanes": len(sweep.lanes()), stored.CODE: sums_of(sources)}
                stored.accept(path, sweep.manifest, accepted, sources)
                sweep._write_manifest()
            if not sweep.finished:
                if not (path / GROUP / EPOCHS).exists():
                    sweep.begin_group()
                sweep.manifest["status"] = "running"
                sweep._write_manifest()
            return sweep
        except BaseException:
            lock.release()
            raise

    def _remove_temporaries(self) -> None:
        with files.trying_to(f"write in {self.path}"):
            files.remove_temporaries(self.path)
            files.remove_temporaries(self.path / GROUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    @property
    def finished(self) -> bool:
        """Whether the result is written and the log still holds all lanes."""
        count = len(self.plan.seeds) * len(self.plan.settings)
        return bool(self.manifest["status"] == "finished") and len(self.lanes()) == count

    def lanes(self) -> list[LaneResult]:
        """The results of the lanes that have ended."""
        return read_lanes(self.path, self.plan)

    def append_lane(self, result: LaneResult) -> None:
        """Record the end of a lane. It is on the disk when this returns.

        Raises:
            DiskError: It could not be written.
        """
        jsonl.append(self.path / LANES, result.to_line())
        self._sync(self.path / LANES)

    def begin_group(self) -> None:
        """Delete the files of the last group and begin a new group.

        Raises:
            DiskError: The folder cannot be written.
        """
        with files.trying_to(f"make the folder {self.path / GROUP}"):
            shutil.rmtree(self.path / GROUP, ignore_errors=True)
            (self.path / GROUP).mkdir(mode=0o700)
        files.write(self.path / GROUP / EPOCHS)

    def append_epoch(self, line: Mapping[str, Any]) -> None:
        """Add an epoch's line to the group's log."""
        jsonl.append(self.path / GROUP / EPOCHS, line)

    def epochs(self, epoch: int, done: int) -> list[dict[str, Any]]:
        """The group's epochs before `epoch`, and the lanes that ended in `epoch` by update `done`.

        Later lines are cut off.
        """

        def is_before(line: Mapping[str, Any]) -> bool:
            return bool(line["epoch"] < epoch or (line["epoch"] == epoch and line.get("done", done + 1) <= done))

        jsonl.cut_back(self.path / GROUP / EPOCHS, is_before)
        return jsonl.read(self.path / GROUP / EPOCHS)

    def save_group(self, step: int, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Write the group's checkpoint and keep the last two.

        Raises:
            DiskError: It could not be written.
        """
        self._sync(self.path / GROUP / EPOCHS)
        self._checkpoints.save(step, arrays, meta, best=False)

    def newest_group(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The group's newest good checkpoint; None if there are no checkpoint files."""
        found = self._checkpoints.newest(warn, set_aside=True)
        if found:
            _check_group(found.meta, found.arrays, self.plan)
        return found

    def run_path(self, lane: Lane) -> Path:
        """Path of the lane's run directory, if runs are kept."""
        return self.path / RUNS / f"{lane.index:04d}-s{lane.seed}"

    def finish(self, status: str, result: Mapping[str, Any]) -> None:
        """Record how the sweep ended."""
        if status == "finished":
            shutil.rmtree(self.path / GROUP, ignore_errors=True)
        files.write(self.path / RESULT, (json.dumps(jsonl.finite(result), indent=2) + "\n").encode())
        # Last, because a sweep that says it has finished is not written again.
        self.manifest["status"] = status
        self._write_manifest()

    def _sync(self, path: Path) -> None:
        with files.trying_to(f"write {path}"):
            files.sync(path)

    def _write_manifest(self) -> None:
        files.write(self.path / MANIFEST, (json.dumps(self.manifest, indent=2) + "\n").encode())


def load(path: str | Path, experiment: Experiment | Code = ()) -> tuple[Plan, list[LaneResult]]:
    """Read a sweep's plan and the lanes that have ended, sorted by number. The sweep may be running.

    Args:
        path: Folder of the sweep.
        experiment: The user's own code that the sweep used: the experiment's file, several files, or an
            `ExperimentConfig`.

    Raises:
        CodeError: The sweep used code of the user's own, which was not given.
        RunError: There is no sweep, or it cannot be read.
    """
    path = Path(path)
    plan = read_plan(path, experiment if isinstance(experiment, Code) else Code(experiment))
    return plan, sorted(read_lanes(path, plan), key=lambda result: result.lane)


def standing(path: Path) -> tuple[int, int]:
    """Number of lanes in a sweep, and number of lanes that have ended. Needs no code of the user's own.

    Raises:
        RunError: There is no sweep, or it cannot be read.
    """
    try:
        plain = parse_json(files.read(path / PLAN))
        return len(plain["seeds"]) * len(plain["settings"]), len(jsonl.read(path / LANES))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path / PLAN} is not the plan of a sweep: {error}.") from error


def read_plan(path: Path, code: Code | None = None) -> Plan:
    """The plan of the sweep in the folder `path`, with the user's own code that it used.

    Raises:
        CodeError: The code was not given.
        RunError: There is no sweep, or it cannot be read.
    """
    if not os.path.lexists(path / PLAN):
        raise RunError(f"{path} is not a sweep: it has no {PLAN}.")
    try:
        text = files.read(path / PLAN)
        find = finder(path, parse_json(text), read_manifest(path), code or Code())
        return Plan.from_json(text.decode(), find)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path / PLAN} is not the plan of a sweep: {error}.") from error


def read_lanes(path: Path, plan: Plan) -> list[LaneResult]:
    """The lanes that have ended, in the order in which they ended.

    Raises:
        RunError: The log cannot be read, or holds lanes that the plan does not have.
    """
    try:
        found = {result.lane: result for result in map(LaneResult.from_line, jsonl.read(path / LANES))}
        for lane, result in found.items():
            if not _is_of_plan(result, plan):
                raise ValueError(f"lane {lane} is not in the plan")
        return list(found.values())
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path / LANES} is damaged: {error}. Sweep again in another folder.") from error


def _is_of_plan(result: LaneResult, plan: Plan) -> bool:
    setting, seed = divmod(result.lane, len(plan.seeds))
    is_lane = setting < len(plan.settings)
    return is_lane and (result.seed, dict(result.settings)) == (plan.seeds[seed], plan.settings[setting])


def _check_group(meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], plan: Plan) -> None:
    """Raise RunError if the values do not form a checkpoint of the plan's lanes."""
    lanes, diverged_in = (meta.get(name) for name in ("lanes", "diverged_in"))
    numbers = [meta.get(name) for name in ("epoch", "done", "epoch_s", "train_s")]
    if isinstance(lanes, list) and isinstance(diverged_in, list) and None not in numbers and meta["epoch"]:
        count = len(plan.seeds) * len(plan.settings)
        are_lanes = all(type(lane) is int and 0 <= lane < count for lane in lanes) and len(set(lanes)) == len(lanes)
        are_epochs = all(epoch is None or type(epoch) is int for epoch in diverged_in)
        are_epochs &= len(meta.get("stopped", lanes)) == len(lanes)
        have_rows = all(array.shape[:1] == (len(lanes),) for array in arrays.values())
        if are_lanes and are_epochs and have_rows and len(lanes) == len(diverged_in):
            return
    raise RunError("the sweep's checkpoint does not fit its lanes. Sweep again in another folder.")


def read_manifest(path: Path) -> dict[str, Any]:
    """What the bits of the sweep in the folder `path` depend on, and its status.

    Raises:
        RunError: The file cannot be read.
    """
    try:
        return checked_manifest(path, "sweep", "Sweep again")
    except ValueError:
        way = "Restore it from a copy, or sweep again in another folder"
        raise RunError(f"{path / MANIFEST} is damaged. {way}.") from None


def list_sweeps() -> list[Path]:
    """The sweeps in `runs_dir()`, the latest first."""
    return last_begun_first(PLAN)


def find_sweep(name: str) -> Path:
    """The sweep that people call `name`: a path, or `last` for the latest sweep.

    Raises:
        RunError: The name is `last`, but there is no sweep.
    """
    if name != "last":
        return Path(name)
    if not (found := list_sweeps()):
        raise RunError(f"there is no last sweep: {runs_dir()} has no sweeps.")
    return found[0]
