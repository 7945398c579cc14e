"""The last two checkpoints and the best are kept; where one is damaged, the next older good one is used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import run_stand_in
from refusals import assert_names, refused
from run_stand_in import READ_ONLY, no_warning, refuse, save

from jaxmlp.errors import DiskError, RunError
from jaxmlp.run.checkpoint_folder import CheckpointFolder
from jaxmlp.run.directory import RunDirectory

path = run_stand_in.path
run = run_stand_in.run


def steps(run: RunDirectory) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in run.checkpoints.paths()]


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_the_last_two_checkpoints_and_the_best_are_kept(run: RunDirectory) -> None:
    save(run, 1)
    save(run, 2, best=True)
    for step in (3, 4, 5):
        save(run, step)
    assert steps(run) == [5, 4, 2]
    save(run, 6, best=True)
    save(run, 7)
    assert steps(run) == [7, 6]
    best = run.checkpoints.best()
    assert best and best.step == 6


def test_the_best_is_known_after_a_kill_and_a_resume(run: RunDirectory, path: Path) -> None:
    save(run, 2, best=True)
    save(run, 4)
    run.close()
    with RunDirectory.open(path, write=True) as again:
        for step in (6, 8):
            save(again, step)
        best = again.checkpoints.best()
        assert steps(again) == [8, 6, 2]
        assert best and best.step == 2


def test_the_best_written_once_more_stays_the_best(run: RunDirectory) -> None:
    save(run, 2, best=True)
    save(run, 2)
    best = run.checkpoints.best()
    assert best and best.step == 2


def test_without_a_best_there_is_none(run: RunDirectory) -> None:
    assert run.checkpoints.best() is None
    save(run, 1)
    assert run.checkpoints.best() is None


def test_without_checkpoints_there_is_no_newest(run: RunDirectory) -> None:
    assert run.newest_checkpoint(no_warning) is None


def test_a_damaged_checkpoint_is_named_with_the_older_good_one_that_is_used(run: RunDirectory) -> None:
    save(run, 1)
    damage(save(run, 2))
    warnings: list[str] = []
    newest = run.newest_checkpoint(warnings.append)
    assert newest and newest.step == 1
    (warning,) = warnings
    assert_names(warning, "step-00000002.safetensors", "params/w", "step-00000001.safetensors")


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_last_two(run: RunDirectory) -> None:
    save(run, 1)
    damage(save(run, 3))
    run.newest_checkpoint(lambda _: None)
    save(run, 2)
    assert steps(run) == [2, 1]


def test_reading_a_run_moves_no_damaged_checkpoint(run: RunDirectory, path: Path) -> None:
    save(run, 1)
    damage(save(run, 2))
    RunDirectory.open(path, write=False).newest_checkpoint(lambda _: None)
    assert steps(run) == [2, 1]


def test_where_no_checkpoint_is_good_all_are_named(run: RunDirectory) -> None:
    damage(save(run, 1))
    damage(save(run, 2))
    with refused(RunError, "step-00000002.safetensors", "step-00000001.safetensors", "--out"):
        run.newest_checkpoint(no_warning)


def test_a_checkpoint_under_another_name_is_refused(run: RunDirectory) -> None:
    path = save(run, 1)
    path.rename(path.with_name("step-00000009.safetensors"))
    with refused(RunError, "step-00000009.safetensors", 1):
        run.checkpoints.at(9)


def test_a_checkpoint_is_had_by_its_step_or_the_steps_are_listed(run: RunDirectory) -> None:
    save(run, 100)
    save(run, 200)
    assert run.checkpoints.at(100).step == 100
    with refused(RunError, 150, 100, 200):
        run.checkpoints.at(150)


def test_other_files_among_the_checkpoints_are_left_alone(run: RunDirectory, path: Path) -> None:
    names = ["step-1.safetensors", "step-00000001.safetensors.bak", "x.txt", "step-0000000a.safetensors"]
    for name in names:
        (path / "checkpoints" / name).touch()
    for step in (1, 2, 3):
        save(run, step)
    assert steps(run) == [3, 2]
    assert {file.name for file in (path / "checkpoints").iterdir()} >= set(names)


def test_a_full_disk_names_the_checkpoint_that_is_intact(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 469)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    lost, intact = "step-00000938.safetensors", "step-00000469.safetensors"
    with refused(DiskError, lost, os.strerror(errno.ENOSPC), intact, "--resume"):
        save(run, 938)
    assert steps(run) == [469]
    assert run.newest_checkpoint(no_warning)


def test_an_old_checkpoint_that_cannot_be_removed_is_told(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    save(run, 2)
    refuse(monkeypatch, "unlink", "step-00000001")
    with refused(DiskError, "step-00000001.safetensors", READ_ONLY):
        save(run, 3)
    assert steps(run) == [3, 2, 1]


def test_a_damaged_checkpoint_that_cannot_be_set_aside_is_told(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 1)
    damage(save(run, 2))
    refuse(monkeypatch, "rename")
    with refused(DiskError, "step-00000002.safetensors", READ_ONLY):
        run.newest_checkpoint(lambda _: None)


def test_a_write_that_fails_is_told_though_its_temporary_file_stays(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "replace")
    refuse(monkeypatch, "unlink")
    with refused(DiskError, "step-00000001.safetensors", READ_ONLY):
        save(run, 1)


def test_a_reader_takes_no_checkpoint_for_damaged_that_a_writer_removed_meanwhile(
    run: RunDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 1, best=True)
    listed = RunDirectory.open(path, write=False)
    paths = CheckpointFolder.paths

    def paths_then_written(folder: CheckpointFolder) -> list[Path]:
        found = paths(folder)
        monkeypatch.setattr(CheckpointFolder, "paths", paths)
        for step in (2, 3, 4):
            save(run, step, best=True)
        return found

    for read in (listed.newest_checkpoint, lambda _: listed.checkpoints.best()):
        monkeypatch.setattr(CheckpointFolder, "paths", paths_then_written)
        found = read(no_warning)
        assert found and found.step == 4
        for each in run.checkpoints.paths():
            each.unlink()
        save(run, 1, best=True)
