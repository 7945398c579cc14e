"""Runs that a sweep keeps, and sweeps that go on: as solo runs would be, whenever they were stopped."""

from __future__ import annotations

import dataclasses
import resource
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import small_sweep
from refusals import assert_names
from small_sweep import CONFIG, VARY, Interrupt, assert_kept_runs

from jaxmlp import SGD, Exponential, data
from jaxmlp.engine.fitting import fit
from jaxmlp.errors import DivergedError
from jaxmlp.run.directory import RunDirectory
from jaxmlp.sweep import resume, sweep
from jaxmlp.sweep.directory import SweepDirectory, read_manifest
from jaxmlp.sweep.progress import SweepProgress

dataset = small_sweep.dataset


@pytest.mark.parametrize(("limit", "at_once"), [(9, 4), (resource.RLIM_INFINITY, 8)])
def test_kept_runs_leave_half_the_files_that_may_be_open(
    limit: int, at_once: int, dataset: data.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    progress = Interrupt()
    progress.stop.signal = signal.SIGTERM
    sweep(
        CONFIG, dataset, seeds=range(2), vary=VARY, devices=1, out=tmp_path / "sweep", keep_runs=True,
        progress=progress, stop=progress.stop,
    )  # fmt: skip
    assert_names(progress.notes[0], at_once)
    assert len(list((tmp_path / "sweep" / "runs").iterdir())) == at_once


def test_a_kept_run_that_finished_unknown_to_its_sweep_is_running_again(dataset: data.Dataset, tmp_path: Path) -> None:
    """As a kill between the ends of the run and of its lane leaves them."""
    path = tmp_path / "sweep"
    killed = mock.patch.object(SweepDirectory, "append_lane", side_effect=KeyboardInterrupt)
    with killed, pytest.raises(KeyboardInterrupt):
        sweep(CONFIG, dataset, seeds=[0], devices=1, out=path, keep_runs=True)
    run, progress = path / "runs" / "0000-s0", Interrupt(1)
    assert RunDirectory.open(run, write=False).status == "finished"
    resume(path, dataset, devices=1, progress=progress, stop=progress.stop)
    assert RunDirectory.open(run, write=False).status == "interrupted"
    assert not (run / "SHA256SUMS").exists()
    resume(path, dataset, devices=1)
    assert_kept_runs(path, dataset, tmp_path)


def test_a_kept_run_that_diverges_after_an_epoch_ends_as_its_solo_run(dataset: data.Dataset, tmp_path: Path) -> None:
    """Five updates an epoch, at a rate that grows tenfold with each: finite epochs come first."""
    optimizer = SGD(learning_rate=1e-6, schedule=Exponential(decay_rate=10.0, decay_steps=1.0))
    config = dataclasses.replace(CONFIG, optimizer=optimizer, epochs=20)
    result = sweep(config, dataset, seeds=[0], devices=1, out=tmp_path / "sweep", keep_runs=True)
    with RunDirectory.create(tmp_path / "solo", config, {}) as solo, pytest.raises(DivergedError):
        fit(config, dataset, run=solo, devices=1)
    with RunDirectory.open(tmp_path / "sweep" / "runs" / "0000-s0", write=False) as kept:
        assert 1 < result.lanes[0].epoch < 20
        assert kept.status == solo.status == "diverged"
        assert kept.manifest["result"] is solo.manifest["result"] is None
        assert kept.digests() == solo.digests()
        newest = kept.newest_checkpoint(pytest.fail)
        assert newest and all(np.isfinite(array).all() for array in newest.arrays.values())


def test_a_resumed_sweep_is_running_and_a_finished_one_is_left_as_it_is(dataset: data.Dataset, tmp_path: Path) -> None:
    path, progress = tmp_path / "sweep", Interrupt(1)
    sweep(CONFIG, dataset, seeds=[0], devices=1, out=path, progress=progress, stop=progress.stop)
    statuses = [read_manifest(path)["status"]]

    class Look(SweepProgress):
        def begin(self, updates: int) -> None:
            statuses.append(read_manifest(path)["status"])

    resume(path, dataset, devices=1, progress=Look())
    files = {each: each.read_bytes() for each in path.glob("*.json*")}
    resume(path, dataset, devices=2, progress=Look())
    assert {each: each.read_bytes() for each in path.glob("*.json*")} == files
    (path / "lanes.jsonl").write_text("")
    resume(path, dataset, devices=1, progress=Look())
    assert statuses == ["interrupted", "running", "finished", "running"]
    assert not (path / "group").exists()
