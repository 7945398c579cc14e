"""One process at a time writes in a run directory: others are told which, and a killed one bars nobody."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import run_stand_in
from refusals import assert_names, refused
from run_stand_in import CONFIG, MANIFEST, READ_ONLY, refuse

from jaxmlp.errors import DiskError, RunError
from jaxmlp.run.directory import RunDirectory

path = run_stand_in.path
run = run_stand_in.run
HOLD = (
    "import sys, time; from jaxmlp.run.directory import RunDirectory\n"
    "run = RunDirectory.open(sys.argv[1], write=True); print('held', flush=True); time.sleep(60)"
)


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_the_first_is_named(run: RunDirectory, path: Path) -> None:
    run.close()
    with held_by_another_process(path) as holder:
        with refused(RunError, path, holder.pid, "--out"):
            RunDirectory.open(path, write=True)
        with refused(RunError, path, holder.pid, "--out"):
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
    with refused(RunError, path):
        RunDirectory.open(path, write=True)


def without_flock(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Stands for a file system that has no locks."""

    def flock(descriptor: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_the_holder_is_known_by_its_process(
    code: int, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_flock(monkeypatch, code)
    RunDirectory.create(path, CONFIG, MANIFEST).close()
    assert_names(capsys.readouterr().err, path)
    with held_by_another_process(path) as holder:
        assert RunDirectory.open(path, write=False).status == "running"
        with refused(RunError, holder.pid, path / "lock"):
            RunDirectory.open(path, write=True)
        holder.kill()
        holder.wait()
        assert RunDirectory.open(path, write=False).status == "interrupted"
        with RunDirectory.open(path, write=True) as run:
            assert run.status == "running"


def test_a_lock_that_fails_for_another_reason_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_flock(monkeypatch, errno.EIO)
    with refused(DiskError, path, os.strerror(errno.EIO)):
        RunDirectory.create(path, CONFIG, MANIFEST)


def test_a_file_system_that_syncs_no_folders_takes_a_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with RunDirectory.create(path, CONFIG, MANIFEST) as run:
        run.finish("failed", None)
    assert RunDirectory.open(path, write=False).status == "failed"


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
        with refused(DiskError, os.strerror(errno.ENOSPC)):
            RunDirectory.create(path, CONFIG, MANIFEST)
    RunDirectory.create(path, CONFIG, MANIFEST).close()


def test_a_lock_goes_though_its_file_cannot_be_written(
    run: RunDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        refuse(patched, "ftruncate")
        run.close()
        with refused(DiskError, path, READ_ONLY):
            RunDirectory.open(path, write=True)
    RunDirectory.open(path, write=True).close()
