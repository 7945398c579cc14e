"""A run directory survives a kill at any moment, belongs to one process at a time, and says so in plain words."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import DiskError, RunError
from jaxmlp.proof.verify import verify
from jaxmlp.run.checkpoint_folder import CheckpointFolder
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.find import default_run_dir, find_run
from jaxmlp.run.manifest import binding_flags, differences, instruction_set, manifest

CONFIG = ExperimentConfig(name="relu_rmsprop", epochs=5)
MANIFEST = {"binding": {"jax": "0.12.0", "x64": False}, "not_binding": {"devices": 8}}
HOLD = (
    "import sys, time; from jaxmlp.run.directory import RunDirectory\n"
    "run = RunDirectory.open(sys.argv[1], write=True); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a run"


@pytest.fixture
def run(path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.create(path, CONFIG, MANIFEST) as run:
        yield run


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXMLP_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def append_epochs(run: RunDirectory, *epochs: int) -> None:
    for epoch in epochs:
        run.append_epoch({"epoch": epoch, "loss": 1 / epoch}, {"epoch": epoch, "params_sha256": "0" * 64})


def save(run: RunDirectory, step: int, *, best: bool = False) -> Path:
    return run.save_checkpoint(step, {"params/w": np.full(100, step, np.float32)}, {"epoch": step}, best=best)


def steps(run: RunDirectory) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in run.checkpoints()]


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_a_run_reads_back_as_it_was_written(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1, 2)
    save(run, 9380)
    run.finish("finished", {"test_loss": 0.1, "test_accuracy": 0.98})
    read = RunDirectory.open(path, write=False)
    assert read.config == CONFIG
    assert read.status == "finished"
    assert read.manifest == {**MANIFEST, "status": "finished", "result": {"test_loss": 0.1, "test_accuracy": 0.98}}
    assert read.epochs() == [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]
    assert [line["epoch"] for line in read.digests()] == [1, 2]
    assert (path / "history.csv").read_text() == "epoch,loss\n1,1.0\n2,0.5\n"
    newest = read.newest_checkpoint(no_warning)
    assert newest and newest.path == path / "checkpoints" / "step-00009380.safetensors"
    assert newest.step == 9380 and newest.meta["epoch"] == 9380 and newest.arrays["params/w"][0] == 9380


def test_reading_a_run_imports_no_jax(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1)
    save(run, 1)
    code = (
        "import sys; from jaxmlp.run.directory import RunDirectory; run = RunDirectory.open(sys.argv[1], write=False)\n"
        "run.epochs(); run.newest_checkpoint(print); print('jax' in sys.modules, 'flax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_only_the_owner_can_enter_the_folders(run: RunDirectory, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "checkpoints").stat().st_mode & 0o777 == 0o700


def test_sha256sums_covers_every_file_but_itself_and_the_lock(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1)
    save(run, 1)
    run.finish("finished", {})
    *lines, last = (path / "SHA256SUMS").read_text().splitlines(keepends=True)
    sums = {name: sha256 for sha256, name in (line.rstrip().split("  ") for line in lines)}
    assert sums == {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in sums}
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert present - sums.keys() == {"SHA256SUMS", "lock"}
    assert last == f"# {hashlib.sha256(''.join(lines).encode()).hexdigest()}  the lines above\n"


def test_figures_that_are_not_finite_are_written_as_null(run: RunDirectory, path: Path) -> None:
    run.append_epoch({"epoch": 1, "loss": float("inf"), "per_class": [float("nan")]}, {"epoch": 1})
    run.finish("diverged", {"test": {"loss": float("nan")}})
    assert run.epochs() == [{"epoch": 1, "loss": None, "per_class": [None]}]
    assert json.loads((path / "manifest.json").read_text())["result"] == {"test": {"loss": None}}


# Taken folders


def test_a_folder_with_a_finished_run_is_refused_with_its_accuracy_and_the_ways_on(
    run: RunDirectory, path: Path
) -> None:
    run.finish("finished", {"test_loss": 0.1, "test_accuracy": 0.98254})
    run.close()
    with pytest.raises(RunError, match=r"finished run \(test accuracy 0\.9825\)\. .*--resume '.*/a run'.*--out"):
        RunDirectory.create(path, CONFIG, MANIFEST)


def test_a_folder_with_an_unfinished_run_is_refused_with_how_far_it_came(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1, 2)
    run.close()
    with pytest.raises(RunError, match=r"unfinished run \(interrupted, 2 of 5 epochs done\)\. .*--resume .*--out"):
        RunDirectory.create(path, CONFIG, MANIFEST)
    assert RunDirectory.open(path, write=True).epochs()


def test_a_folder_without_a_config_is_free_and_what_lies_there_is_set_aside(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1)
    save(run, 5)
    run.finish("interrupted", None)
    run.close()
    (path / "config.json").unlink()
    (path / "notes.txt").write_text("mine")
    with RunDirectory.create(path, CONFIG, MANIFEST) as fresh:
        assert fresh.epochs() == [] and fresh.checkpoints() == []
        assert not (path / "SHA256SUMS").exists()
        assert (path / "notes.txt").read_text() == "mine"
        assert len(list(path.glob("set-aside-*/checkpoints/step-00000005.safetensors"))) == 1


def test_a_run_killed_before_it_had_a_config_leaves_the_folder_free(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from jaxmlp.config import ExperimentConfig\n"
        "from jaxmlp.run.directory import RunDirectory; replace = os.replace\n"
        "def killed(a, b):\n"
        "    os._exit(9) if Path(b).name == 'config.json' else replace(a, b)\n"
        "os.replace = killed; RunDirectory.create(sys.argv[1], ExperimentConfig(), {})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
    assert list(path.glob(".jaxmlp-*.tmp"))
    with RunDirectory.create(path, CONFIG, MANIFEST):
        assert not list(path.glob(".jaxmlp-*.tmp"))


@pytest.mark.parametrize("write", [True, False])
def test_a_folder_that_is_missing_or_no_run_cannot_be_opened(tmp_path: Path, write: bool) -> None:
    with pytest.raises(RunError, match="is not there"):
        RunDirectory.open(tmp_path / "missing", write=write)
    with pytest.raises(RunError, match=r"is not a run directory: it has no config\.json"):
        RunDirectory.open(tmp_path, write=write)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        RunDirectory.create(tmp_path / "file", CONFIG, MANIFEST)


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"status": "fine"}', "[" * 100_000, b"\xff"])
def test_a_damaged_config_or_manifest_is_named(run: RunDirectory, path: Path, name: str, text: str | bytes) -> None:
    run.close()
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match=name):
        RunDirectory.open(path, write=False)
    with pytest.raises(RunError, match=name):
        RunDirectory.create(path, CONFIG, MANIFEST)


def test_a_result_without_the_test_scores_is_a_damaged_manifest(run: RunDirectory, path: Path) -> None:
    run.finish("finished", {"test_loss": None, "test_accuracy": None})
    run.close()
    RunDirectory.open(path, write=False)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace("test_loss", "loss"))
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        RunDirectory.open(path, write=False)


# The lock


def test_a_second_process_is_refused_and_the_first_is_named(run: RunDirectory, path: Path) -> None:
    run.close()
    with held_by_another_process(path) as holder:
        named = rf"in use by process {holder.pid} \(since .* UTC\)\. .*--out"
        with pytest.raises(RunError, match=named):
            RunDirectory.open(path, write=True)
        with pytest.raises(RunError, match=named):
            RunDirectory.create(path, CONFIG, MANIFEST)
        assert RunDirectory.open(path, write=False).status == "running"


def test_the_lock_of_a_killed_process_is_taken_over(run: RunDirectory, path: Path) -> None:
    run.close()
    with held_by_another_process(path) as holder:
        holder.kill()
        holder.wait()
        assert RunDirectory.open(path, write=False).status == "interrupted"
        with RunDirectory.open(path, write=True) as taken:
            assert taken.status == "running"


def test_looking_at_the_status_disturbs_no_writer(
    run: RunDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.close()
    with open(path / "lock") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(looker, fcntl.LOCK_UN))
        RunDirectory.open(path, write=True).close()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"pid": "\\u001b[2J", "since": 3}', "\x00\xff"])
def test_a_lock_that_names_nobody_still_locks(run: RunDirectory, path: Path, text: str) -> None:
    (path / "lock").write_text(text)
    with pytest.raises(RunError, match="in use by another process"):
        RunDirectory.open(path, write=True)


def test_a_process_that_could_not_open_a_run_holds_no_lock(run: RunDirectory, path: Path) -> None:
    run.close()
    good = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(b"")
    with pytest.raises(RunError):
        RunDirectory.open(path, write=True)
    (path / "manifest.json").write_bytes(good)
    RunDirectory.open(path, write=True).close()


def test_a_process_that_failed_to_begin_holds_no_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match="No space left on device"):
            RunDirectory.create(path, CONFIG, MANIFEST)
    RunDirectory.create(path, CONFIG, MANIFEST).close()


# Logs


@pytest.mark.parametrize("torn", [b'{"epoch": 3, "lo', b'{"epoch": 3}', b"\0" * 4096])
@pytest.mark.parametrize("name", ["metrics.jsonl", "digests.jsonl"])
def test_the_torn_last_line_of_a_killed_process_is_ignored_and_written_over(
    run: RunDirectory, path: Path, name: str, torn: bytes
) -> None:
    append_epochs(run, 1, 2)
    run.close()
    with open(path / name, "ab") as file:
        file.write(torn)
    read = RunDirectory.open(path, write=False)
    assert [line["epoch"] for line in read.epochs()] == [line["epoch"] for line in read.digests()] == [1, 2]
    with RunDirectory.open(path, write=True) as again:
        append_epochs(again, 3)
        assert [line["epoch"] for line in again.epochs()] == [line["epoch"] for line in again.digests()] == [1, 2, 3]


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"epoch": "1"}', "[" * 100_000])
def test_a_damaged_line_before_the_last_is_named(run: RunDirectory, path: Path, line: str) -> None:
    append_epochs(run, 1)
    (path / "metrics.jsonl").write_text(f'{{"epoch": 1}}\n{line}\n{{"epoch": 3}}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 2 is damaged"):
        run.epochs()


def test_cutting_back_keeps_the_bytes_of_the_epochs_before(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1, 2)
    before = [(path / name).read_bytes() for name in ("metrics.jsonl", "digests.jsonl")]
    append_epochs(run, 3, 4)
    run.cut_back(3)
    assert [(path / name).read_bytes() for name in ("metrics.jsonl", "digests.jsonl")] == before
    run.cut_back(1)
    assert run.epochs() == run.digests() == []


def test_the_logs_are_on_the_disk_before_a_checkpoint_that_knows_them(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    names = {file.stat().st_ino: file.name for file in path.iterdir()}
    calls: list[str] = []

    def recorded(descriptor: int) -> None:
        calls.append(names.get(os.fstat(descriptor).st_ino, "checkpoint"))

    monkeypatch.setattr(os, "fsync", recorded)
    save(run, 1)
    assert calls == ["metrics.jsonl", "digests.jsonl", "checkpoint", "checkpoints"]


def test_a_line_that_cannot_be_written_is_told(run: RunDirectory, path: Path) -> None:
    (path / "metrics.jsonl").unlink()
    (path / "metrics.jsonl").mkdir()
    with pytest.raises(DiskError, match=r"could not write .*metrics\.jsonl, .* intact: Is a directory\."):
        append_epochs(run, 1)


# Checkpoints


def test_the_last_two_checkpoints_and_the_best_are_kept(run: RunDirectory) -> None:
    save(run, 1)
    save(run, 2, best=True)
    for step in (3, 4, 5):
        save(run, step)
    assert steps(run) == [5, 4, 2]
    save(run, 6, best=True)
    save(run, 7)
    assert steps(run) == [7, 6]
    best = run.best_checkpoint()
    assert best and best.step == 6


def test_the_best_is_known_after_a_kill_and_a_resume(run: RunDirectory, path: Path) -> None:
    save(run, 2, best=True)
    save(run, 4)
    run.close()
    with RunDirectory.open(path, write=True) as again:
        for step in (6, 8):
            save(again, step)
        best = again.best_checkpoint()
        assert steps(again) == [8, 6, 2]
        assert best and best.step == 2


def test_the_best_written_once_more_stays_the_best(run: RunDirectory) -> None:
    save(run, 2, best=True)
    save(run, 2)
    best = run.best_checkpoint()
    assert best and best.step == 2


def test_without_a_best_there_is_none(run: RunDirectory) -> None:
    assert run.best_checkpoint() is None
    save(run, 1)
    assert run.best_checkpoint() is None


def test_without_checkpoints_there_is_no_newest(run: RunDirectory) -> None:
    assert run.newest_checkpoint(no_warning) is None


def test_a_damaged_checkpoint_is_named_with_the_older_good_one_that_is_used(run: RunDirectory) -> None:
    save(run, 1)
    damage(save(run, 2))
    warnings: list[str] = []
    newest = run.newest_checkpoint(warnings.append)
    assert newest and newest.step == 1
    assert warnings == [
        "checkpoint step-00000002.safetensors: tensor params/w is damaged (SHA-256 differs). "
        "step-00000001.safetensors is used, the next older good one."
    ]


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
    with pytest.raises(RunError, match=r"no good checkpoint: .*step-00000002.*step-00000001.*--out"):
        run.newest_checkpoint(no_warning)


def test_a_checkpoint_under_another_name_is_refused(run: RunDirectory) -> None:
    path = save(run, 1)
    path.rename(path.with_name("step-00000009.safetensors"))
    with pytest.raises(RunError, match=r"step-00000009\.safetensors: it is that of step 1 under another name"):
        run.checkpoint_at(9)


def test_a_checkpoint_is_had_by_its_step_or_the_steps_are_listed(run: RunDirectory) -> None:
    save(run, 100)
    save(run, 200)
    assert run.checkpoint_at(100).step == 100
    with pytest.raises(RunError, match=r"no checkpoint of step 150\. It has: 100, 200"):
        run.checkpoint_at(150)


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
    message = (
        r"could not write .*step-00000938\.safetensors: No space left on device\. "
        r"step-00000469\.safetensors is intact: .*--resume"
    )
    with pytest.raises(DiskError, match=message):
        save(run, 938)
    assert steps(run) == [469]
    assert run.newest_checkpoint(no_warning)


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, name: str = "") -> None:
    """Let the system refuse this call for paths that have the name in them."""
    real = getattr(os, call)

    def refused(path: Any, *rest: Any, **named: Any) -> Any:
        if name in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, *rest, **named)

    monkeypatch.setattr(os, call, refused)


def test_an_old_checkpoint_that_cannot_be_removed_is_told(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    save(run, 2)
    refuse(monkeypatch, "unlink", "step-00000001")
    with pytest.raises(DiskError, match=r"could not remove the old checkpoint .*step-00000001.*: Read-only"):
        save(run, 3)
    assert steps(run) == [3, 2, 1]


def test_a_damaged_checkpoint_that_cannot_be_set_aside_is_told(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 1)
    damage(save(run, 2))
    refuse(monkeypatch, "rename")
    with pytest.raises(DiskError, match=r"could not set aside the damaged .*step-00000002.*: Read-only"):
        run.newest_checkpoint(lambda _: None)


def test_a_temporary_file_that_cannot_be_removed_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.mkdir(parents=True)
    (path / ".jaxmlp-abc.tmp").touch()
    refuse(monkeypatch, "unlink")
    with pytest.raises(DiskError, match=r"could not begin a run in .*: Read-only"):
        RunDirectory.create(path, CONFIG, MANIFEST)


def test_a_write_that_fails_is_told_though_its_temporary_file_stays(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "replace")
    refuse(monkeypatch, "unlink")
    with pytest.raises(DiskError, match=r"could not write .*step-00000001\.safetensors: Read-only"):
        save(run, 1)


def test_a_lock_goes_though_its_file_cannot_be_written(
    run: RunDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        refuse(patched, "ftruncate")
        run.close()
        with pytest.raises(DiskError, match=r"could not lock .*: Read-only"):
            RunDirectory.open(path, write=True)
    RunDirectory.open(path, write=True).close()


@pytest.mark.parametrize("killed_at", ["SHA256SUMS", "manifest.json"])
def test_a_run_killed_before_it_could_say_that_it_has_finished_is_finished_again(
    run: RunDirectory, path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    real = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == killed_at:
            raise KeyboardInterrupt
        real(source, target)

    append_epochs(run, 1)
    save(run, 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.finish("finished", {})
    run.close()
    with RunDirectory.open(path, write=True) as again:
        assert again.status == "running"
        again.finish("finished", {})
        again.close()
        assert verify(path).damaged == ()


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

    for read in (listed.newest_checkpoint, lambda _: listed.best_checkpoint()):
        monkeypatch.setattr(CheckpointFolder, "paths", paths_then_written)
        found = read(no_warning)
        assert found and found.step == 4
        for each in run.checkpoints():
            each.unlink()
        save(run, 1, best=True)


def test_what_a_killed_process_was_writing_is_gone_after_the_next_open(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1)
    run.finish("interrupted", None)
    run.close()
    leftovers = [path / ".jaxmlp-abc.tmp", path / "checkpoints" / ".jaxmlp-def.tmp"]
    for leftover in leftovers:
        leftover.touch()
    RunDirectory.open(path, write=False)
    assert all(leftover.exists() for leftover in leftovers)
    with RunDirectory.open(path, write=True) as again:
        assert not any(leftover.exists() for leftover in leftovers)
        assert again.status == "running"
        assert not (path / "SHA256SUMS").exists()


def test_opening_a_finished_run_changes_none_of_its_files(run: RunDirectory, path: Path) -> None:
    append_epochs(run, 1)
    run.finish("finished", {"test_loss": 0.0, "test_accuracy": 1.0})
    run.close()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with RunDirectory.open(path, write=True) as again:
        assert again.status == "finished"
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "metrics.jsonl", "checkpoints", "lock"])
def test_a_symbolic_link_out_of_the_run_directory_is_not_followed(run: RunDirectory, path: Path, name: str) -> None:
    save(run, 1)
    (path / "checkpoints" / ".jaxmlp-abc.tmp").touch()
    run.close()
    outside = path.parent / name
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    before = [(file, file.read_bytes()) for file in (outside, *outside.rglob("*")) if file.is_file()]
    with pytest.raises((RunError, DiskError), match=f"{name}.*a symbolic link|could not lock"):
        RunDirectory.open(path, write=True)
    assert [(file, file.read_bytes()) for file in (outside, *outside.rglob("*")) if file.is_file()] == before


# Names


def test_the_default_folder_tells_time_experiment_and_seed(runs_dir: Path) -> None:
    now = datetime(2026, 11, 22, 23, 15, 30, tzinfo=timezone(timedelta(hours=1)))
    names = [default_run_dir(CONFIG, now).name for _ in range(3)]
    first = "20261122T221530Z-relu_rmsprop-s0"
    assert names == [first, f"{first}-2", f"{first}-3"]


def test_an_empty_variable_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXMLP_RUNS_DIR", "")
    monkeypatch.chdir(tmp_path)
    assert default_run_dir(CONFIG, datetime(2026, 1, 1, tzinfo=UTC)).parent == Path("runs")


def test_a_folder_for_runs_that_cannot_be_made_is_told(runs_dir: Path) -> None:
    runs_dir.symlink_to("nowhere/at/all")
    with pytest.raises(DiskError, match="could not make a folder in"):
        default_run_dir(CONFIG, datetime(2026, 1, 1, tzinfo=UTC))


def test_last_is_the_run_begun_last(runs_dir: Path) -> None:
    with pytest.raises(RunError, match="there is no last run"):
        find_run("last")
    for number, name in enumerate(("b", "c", "a")):
        RunDirectory.create(runs_dir / name, CONFIG, MANIFEST).close()
        os.utime(runs_dir / name / "config.json", ns=(number, number))
    (runs_dir / "no_run").mkdir()
    assert find_run("last") == runs_dir / "a"
    assert find_run("some/path") == Path("some/path")


# The manifest


def test_the_manifest_tells_what_the_bits_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true --xla_force_host_platform_device_count=8")
    facts = manifest(CONFIG, "d" * 64, devices=4)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["binding"]["config_sha256"] == hashlib.sha256(CONFIG.to_json().encode()).hexdigest()
    assert facts["binding"]["data_sha256"] == "d" * 64
    assert facts["binding"]["xla_flags"] == "--xla_gpu_deterministic_ops=true"
    assert {"jax", "jaxlib", "flax", "optax", "prng", "matmul_precision", "x64", "device_kind", "isa"} <= facts[
        "binding"
    ].keys()
    assert facts["not_binding"].keys() == {"devices", "processes", "threads", "python", "os"}
    assert facts["not_binding"]["devices"] == 4


def test_differences_name_the_binding_facts_with_both_values() -> None:
    here: dict[str, Any] = {"binding": {"jax": "0.13.0", "x64": False, "isa": "aarch64"}, "not_binding": {"devices": 1}}
    assert differences(MANIFEST, here) == ["jax: 0.12.0 there, 0.13.0 here", "isa: None there, aarch64 here"]
    assert differences(MANIFEST, {**MANIFEST, "not_binding": {"devices": 1}, "status": "finished"}) == []


@pytest.mark.parametrize(
    ("flags", "binding"),
    [
        ("", ""),
        ("--xla_b=1 --xla_a=2", "--xla_a=2 --xla_b=1"),
        ("--xla_a=1 --xla_a=2", "--xla_a=2"),
        ("--xla_flag", "--xla_flag"),
        ("--xla_force_host_platform_device_count=8 --xla_dump_to=/home/ann/x --xla_dump_hlo_as_text", ""),
        ("--xla_gpu_cuda_data_dir=/home/ann/cuda-13", "--xla_gpu_cuda_data_dir=cuda-13"),
    ],
)
def test_flags_that_change_no_bit_or_name_a_user_are_left_out(flags: str, binding: str) -> None:
    assert binding_flags(flags) == binding


def test_the_instruction_set_is_a_name_that_a_folder_can_have() -> None:
    assert re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+-[0-9a-f]{8})?", instruction_set())


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "name"),
    [
        ("x86_64", "flags\t\t: fpu sse4_2 avx avx2 fma hypervisor\n", "x86_64-avx2-"),
        ("x86_64", "flags\t\t: fpu avx512f avx2 avx512_bf16 amx_tile\n", "x86_64-amx_tile-"),
        ("aarch64", "Features\t: fp asimd sve\n", "aarch64-sve-"),
    ],
)
def test_the_instruction_set_is_named_by_its_widest_vectors(
    monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str, name: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    assert instruction_set().startswith(name)


def test_only_vector_instructions_of_the_cpu_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    names = []
    for flags in ("avx2 fma", "fma avx2 hypervisor md_clear", "avx2"):
        monkeypatch.setattr(Path, "read_text", lambda *_, flags=flags, **__: f"flags : {flags}\n")
        names.append(instruction_set())
    assert names[0] == names[1] != names[2]
