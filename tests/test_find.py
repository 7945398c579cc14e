"""A new run's folder tells time, experiment and seed, and `last` is the run begun last."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from refusals import assert_names, refused
from run_stand_in import CONFIG, MANIFEST

from jaxmlp.errors import DiskError, RunError
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.find import default_run_dir, find_run
from jaxmlp.sweep.directory import SweepDirectory
from jaxmlp.sweep.lanes import make_plan


def test_the_default_folder_tells_time_experiment_and_seed(runs_dir: Path) -> None:
    now = datetime(2026, 11, 22, 23, 15, 30, tzinfo=timezone(timedelta(hours=1)))
    names = [default_run_dir(CONFIG, now).name for _ in range(3)]
    first = "20261122T221530Z-relu_rmsprop-s0"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_an_empty_variable_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXMLP_RUNS_DIR", "")
    monkeypatch.chdir(tmp_path)
    assert default_run_dir(CONFIG, datetime(2026, 1, 1, tzinfo=UTC)).parent == Path("runs")


def test_a_tilde_in_the_variable_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JAXMLP_RUNS_DIR", "~/my runs")
    assert default_run_dir(CONFIG, datetime(2026, 1, 1, tzinfo=UTC)).parent == tmp_path / "my runs"


def test_a_folder_for_runs_that_cannot_be_made_is_told(runs_dir: Path) -> None:
    runs_dir.symlink_to("nowhere/at/all")
    with refused(DiskError, runs_dir, "--out", "JAXMLP_RUNS_DIR"):
        default_run_dir(CONFIG, datetime(2026, 1, 1, tzinfo=UTC))


def test_last_is_the_run_begun_last(runs_dir: Path) -> None:
    with refused(RunError, runs_dir):
        find_run("last")
    for number, name in enumerate(("b", "c", "a")):
        RunDirectory.create(runs_dir / name, CONFIG, MANIFEST).close()
        os.utime(runs_dir / name / "config.json", ns=(number, number))
    (runs_dir / "no_run").mkdir()
    assert find_run("last") == find_run("last", or_sweep=True) == runs_dir / "a"
    assert find_run("some/path") == Path("some/path")


def test_after_a_sweep_last_is_the_sweep_or_the_run_that_is_taken_is_said(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SweepDirectory.create(runs_dir / "sweep", make_plan(CONFIG, [0], [{}]), {}):
        os.utime(runs_dir / "sweep" / "sweep.json", ns=(3, 3))
    with refused(RunError, runs_dir, runs_dir / "sweep"):
        find_run("last")
    RunDirectory.create(runs_dir / "run", CONFIG, MANIFEST).close()
    os.utime(runs_dir / "run" / "config.json", ns=(2, 2))
    assert find_run("last", or_sweep=True) == runs_dir / "sweep"
    assert capsys.readouterr().err == ""
    assert find_run("last") == runs_dir / "run"
    assert_names(capsys.readouterr().err, runs_dir / "run", "sweep")
    os.utime(runs_dir / "run" / "config.json", ns=(4, 4))
    assert find_run("last") == find_run("last", or_sweep=True) == runs_dir / "run"
    assert capsys.readouterr().err == ""
