"""How do sweeps start from Python? `sweep` trains a new sweep; `resume` trains the rest of an interrupted one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax

from jaxmlp import data, shards
from jaxmlp.engine.feed import RESIDENT_BYTES
from jaxmlp.engine.fitting import CHECKPOINT_S, check_data
from jaxmlp.errors import ConfigError, DeviceError
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.run.manifest import differences, manifest
from jaxmlp.run.opening import finder, open_data_of
from jaxmlp.source.file import Code, Experiment, placed
from jaxmlp.sweep.directory import SweepDirectory
from jaxmlp.sweep.group import LaneGroup
from jaxmlp.sweep.job import Job, LaneHook
from jaxmlp.sweep.lanes import Lane, Plan, make_plan, make_settings
from jaxmlp.sweep.over_lanes import make_mesh
from jaxmlp.sweep.program import groups, side_by_side
from jaxmlp.sweep.progress import SweepProgress
from jaxmlp.sweep.result import LaneResult, SweepResult
from jaxmlp.sweep.values import MAX_LANES, Batching, Choices
from jaxmlp.system import distributed, runtime
from jaxmlp.system.signals import Stop


def sweep(
    config: ExperimentConfig,
    dataset: data.Dataset | None = None,
    *,
    seeds: Sequence[int] = range(64),
    vary: Mapping[str, Choices] | None = None,
    draws: int | None = None,
    random_seed: int = 0,
    batching: Batching = "map",
    out: str | Path | None = None,
    keep_runs: bool = False,
    progress: SweepProgress | None = None,
    devices: int | None = None,
    stop: Stop | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    digest_every: int | None = None,
    resident_bytes: int = RESIDENT_BYTES,
    hooks: Sequence[LaneHook] = (),
) -> SweepResult:
    """Train every seed of every setting, with one compiled program per set of shapes.

    Args:
        config: The experiment.
        dataset: Data set that all lanes share. Default: the data set that `config.data` names.
        seeds: Seeds. Each makes a lane in every setting.
        vary: Values by the dotted path of their field, such as `{"optimizer.learning_rate": [1e-3, 3e-3]}`; all
            combinations are trained. Or ranges, of `jaxmlp.sweep.Range`, for `draws`.
        draws: Number of settings to draw, in place of all combinations.
        random_seed: Seed of the draws.
        batching: `map`: a lane has the bits of `fit` with its config. `vmap`: a device trains its lanes together, which
            is faster on accelerators; the last bits may differ.
        out: Folder of the sweep, from which it can go on. Default: nothing is written.
        keep_runs: Whether to keep a run directory for each lane in `out`.
        progress: Receives the sweep's events.
        devices: Number of devices that share the lanes. Default: all; on the CPU one per core.
        stop: Checked between chunks of updates. If it holds a signal, the sweep is saved and ends as `interrupted`.
        checkpoint_s: Seconds between two checkpoints of the lanes in training.
        digest_every: Number of updates between two digests in the traces of kept runs.
        resident_bytes: As in `fit`.
        hooks: Functions to call after each epoch of each lane: `hook(lane, record, state)`.

    Returns:
        The lanes, their summary and the best setting. Diverged lanes are included.

    Raises:
        ConfigError, DataError, DeviceError, DiskError, PeerLostError, RunError: As `fit` and `make_settings`.
    """
    options = {"digest_every": digest_every, "resident_bytes": resident_bytes, "hooks": hooks}
    config = placed(config)
    settings = make_settings(config, vary or {}, draws=draws, random_seed=random_seed)
    plan = make_plan(config, seeds, settings, batching=batching, keep_runs=keep_runs)
    if keep_runs and not out:
        raise ConfigError("keep_runs", "needs a folder for the runs: pass out")
    lanes = plan.lanes()
    with runtime.settings(cpu_devices=len(lanes), exact=config.exact):
        progress = progress or SweepProgress()
        dataset = dataset or data.load(config.data, report=progress.note)
        # Checked before a folder is made.
        for lane in lanes:
            check_data(lane.config, dataset)
        mesh_devices = pick_devices(len(lanes), devices)
        if not out or not distributed.is_first():
            return _train(plan, lanes, dataset, None, mesh_devices, progress, stop, checkpoint_s, options)
        facts = manifest(config, dataset, devices=len(mesh_devices), variants=plan.variants())
        with SweepDirectory.create(Path(out), plan, facts) as directory:
            return _train(plan, lanes, dataset, directory, mesh_devices, progress, stop, checkpoint_s, options)


@runtime.settings(cpu_devices=MAX_LANES)
def resume(
    path: str | Path | None,
    dataset: data.Dataset | None = None,
    *,
    experiment: Experiment = (),
    accept_changed_code: bool = False,
    manual_dir: Path | None = None,
    progress: SweepProgress | None = None,
    devices: int | None = None,
    stop: Stop | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    digest_every: int | None = None,
    resident_bytes: int = RESIDENT_BYTES,
    hooks: Sequence[LaneHook] = (),
) -> SweepResult:
    """Train the rest of the sweep in the folder `path`, to the same bits as an uninterrupted sweep.

    Args:
        path: Folder of the sweep. Only the first process reads it; the others may pass None.
        dataset: As in `sweep`, like the arguments below.
        experiment: The user's own code that the sweep used: the experiment's file, several files, or an
            `ExperimentConfig`. Each process passes it.
        accept_changed_code: Whether the sweep may continue with code that has changed. The sweep records the change.
        manual_dir: As in `data.load`, if no data set is given.
        progress: Receives the sweep's events.
        devices: Number of devices that share the lanes. It may differ from before.
        stop: Checked between chunks of updates.
        checkpoint_s: Seconds between two checkpoints.
        digest_every: Number of updates between two digests in the traces of kept runs.
        resident_bytes: As in `fit`.
        hooks: Functions to call after each epoch of each lane: `hook(lane, record, state)`.

    Raises:
        CodeError: The sweep's code was not given, or has changed and the change was not accepted.
        DataError, DeviceError, DiskError, PeerLostError, RunError: As `fit`; or there is no sweep, or it used other
            data.
    """
    options = {"digest_every": digest_every, "resident_bytes": resident_bytes, "hooks": hooks}
    progress = progress or SweepProgress()
    code = Code(experiment)
    opened = (
        SweepDirectory.open(Path(path), code, accept_changed_code=accept_changed_code)
        if path and distributed.is_first()
        else nullcontext()
    )
    with opened as directory:
        stored: list[Any] = [directory.plan.to_json(), directory.manifest] if directory else []
        text, there = distributed.share_json(stored)
        plan = Plan.from_json(text, finder(Path(path or ""), json.loads(text), there, code))
        dataset = open_data_of(
            Path(path or ""), plan.config.data, there, dataset, manual_dir=manual_dir, report=progress.note
        )
        facts = manifest(plan.config, dataset, variants=plan.variants())
        for difference in differences(there, facts) if directory else []:
            progress.note(f"The bits may differ from an uninterrupted sweep: {difference}.")
        lanes = plan.lanes()
        picked = pick_devices(len(lanes), devices)
        return _train(plan, lanes, dataset, directory, picked, progress, stop, checkpoint_s, options)


def pick_devices(lanes: int, wanted: int | None = None) -> list[jax.Device]:
    """The devices that share the lanes, equally many from each process.

    Raises:
        ConfigError: `wanted` is below 1, or not a multiple of the number of processes.
        DeviceError: There are fewer devices than `wanted`.
    """
    there, processes = jax.devices(), jax.process_count()
    if wanted is None:
        wanted = len(there) if processes > 1 else min(len(there), lanes)
    if wanted < 1:
        raise ConfigError("devices", f"must be 1 or more, got {wanted}")
    if wanted % processes:
        raise ConfigError("devices", f"must be a multiple of the {processes} processes, got {wanted}")
    if wanted > len(there):
        raise DeviceError(
            f"device: {wanted} devices were asked for, but JAX finds {len(there)} of {there[0].platform}. "
            "Leave out --devices"
        )
    return shards.of_each_process(wanted)


def _train(
    plan: Plan,
    lanes: Sequence[Lane],
    dataset: data.Dataset,
    directory: SweepDirectory | None,
    devices: Sequence[jax.Device],
    progress: SweepProgress,
    stop: Stop | None,
    checkpoint_s: float,
    options: dict[str, Any],
) -> SweepResult:
    if jax.process_count() > 1:
        facts = manifest(plan.config, dataset, variants=plan.variants())["binding"]
        distributed.agree(plan.config.to_dict() | facts | {"sweep": plan.to_json(), "devices": len(devices)})
    for note in dataset.notes:
        progress.note(note)
    job = Job(
        dataset, make_mesh(devices), plan.batching, plan.keep_runs, directory, progress,
        stop or Stop(), checkpoint_s, total=len(lanes), **options,
    )  # fmt: skip
    with distributed.peers("sweep"):
        results = _run_groups(job, lanes)
    result = SweepResult(
        config=plan.config,
        lanes=tuple(sorted(results, key=lambda each: each.lane)),
        total=len(lanes),
        status="finished" if len(results) == len(lanes) else "interrupted",
        batching=plan.batching,
        compile_s=job.compile_s,
        devices=len(devices),
        processes=jax.process_count(),
    )
    if directory and not directory.finished:
        directory.finish(result.status, result.result())
    return result


def _run_groups(job: Job, lanes: Sequence[Lane]) -> list[LaneResult]:
    """The results of all lanes that have ended, including those from an earlier process."""
    lines = distributed.share_json([result.to_line() for result in job.directory.lanes()] if job.directory else [])
    results = [LaneResult.from_line(line) for line in lines]
    ended = {result.lane for result in results}
    checkpoint = job.directory.newest_group(job.progress.note) if job.directory else None
    stood: list[Any] = [checkpoint.meta["lanes"], checkpoint.step] if checkpoint else [[], 0]
    begun, step = distributed.share_json(stood)
    bunches: dict[Any, list[Lane]] = {}
    left = [lane for lane in lanes if lane.index not in ended]
    started = [lane for lane in left if lane.index in begun]
    for lane in left:
        if lane.index not in begun:
            bunches.setdefault(side_by_side(job, lane), []).append(lane)
    updates = sum(lane.config.epochs * job.steps_per_epoch(lane) for lane in left)
    job.progress.begin(updates - len(started) * step)
    for bunch in ([started] if started else []) + list(bunches.values()):
        bunches_of, slots = groups(job, bunch, together=bunch is started)
        for group in bunches_of:
            found = LaneGroup(job, group, slots).run(checkpoint, resume=bunch is started)
            if found is None:
                return results
            results += found
    return results
